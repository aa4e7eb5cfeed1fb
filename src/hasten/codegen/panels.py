"""The second operand of a product in panels of columns, in the order in which the register tile reads it."""

from __future__ import annotations

import numpy as np

from hasten.codegen.tiles import HALF_PANEL, PANEL


def pack_constant(weight: np.ndarray) -> np.ndarray:
    """The second operand, given as [batch, column, tap, depth], in panels.

    Returns:
        A flat array: for each batch entry all panels, each `[tap * depth / group][columns][group]`, the last
        one with `HALF_PANEL` columns where that is enough; missing columns, and what a depth lacks to whole
        groups, are zero. A group is what shares 32 bits: one f32, two bf16, four bytes.
    """
    together = 4 // weight.dtype.itemsize
    weight = np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, -weight.shape[3] % together)))
    batch, columns, taps, depth = weight.shape
    steps = taps * depth // together
    padded = np.zeros((batch, steps, packed_columns(columns), together), weight.dtype)
    padded[:, :, :columns] = weight.reshape(batch, columns, steps, together).transpose(0, 2, 1, 3)
    full = columns_in_full_panels(columns)
    panels = padded[:, :, :full].reshape(batch, steps, -1, PANEL, together).transpose(0, 2, 1, 3, 4)
    flat = [panels.reshape(batch, -1), padded[:, :, full:].reshape(batch, -1)]
    return np.ascontiguousarray(np.concatenate(flat, axis=1)).reshape(-1)


def unpack_constant(packed: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """What `pack_constant` made panels of.

    Args:
        packed: flat, as it was returned.
        shape: [batch, column, tap, depth] of what it was made from.
    """
    batch, columns, taps, depth = shape
    together = 4 // packed.dtype.itemsize
    steps = taps * (depth + -depth % together) // together
    full = columns_in_full_panels(columns)
    rows = packed.reshape(batch, -1)
    panels = rows[:, : steps * full * together].reshape(batch, -1, steps, PANEL, together)
    left = panels.transpose(0, 2, 1, 3, 4).reshape(batch, steps, full, together)
    right = rows[:, steps * full * together :].reshape(batch, steps, -1, together)
    padded = np.concatenate([left, right], axis=2)[:, :, :columns]
    return padded.transpose(0, 2, 1, 3).reshape(batch, columns, taps, -1)[..., :depth]


def packed_columns(columns: int) -> int:
    """Columns after padding: whole panels, or whole panels and a half one."""
    return -(-columns // HALF_PANEL) * HALF_PANEL


def columns_in_full_panels(columns: int) -> int:
    """Padded columns that lie in panels of full width."""
    return packed_columns(columns) // PANEL * PANEL
