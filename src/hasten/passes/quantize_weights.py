"""Constant operands of products as int8: symmetric, one scale for each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WeightScale = Literal["absmax", "mse"]

LARGEST = 127
"""Codes lie in -127..127: a scale fits both signs, and a product of two of them can be negated."""

_AT_ONCE = 1 << 20  # weights that are rounded together: tables have many, and copies of all would be large
_CLIPS = np.linspace(1.0, 0.6, 41)  # shares of the largest weight that the search for a scale tries


@dataclass(frozen=True)
class Codes:
    """A quantized weight: code times the scale of its channel.

    Attributes:
        values: int8, in the shape of the weight.
        scale: float32, one for each index along the axis of the output channels.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]

    def weight(self, axis: int) -> NDArray[np.float32]:
        """What the codes stand for; `axis` is that of the output channels."""
        shape = [1] * self.values.ndim
        shape[axis] = -1
        return self.values.astype(np.float32) * self.scale.reshape(shape)


def quantize_weight(weight: NDArray[np.float32], axis: int, scale: WeightScale = "absmax") -> Codes:
    """Rounds a weight to the nearest codes.

    Args:
        weight: float32, finite.
        axis: of the output channels.
        scale: "absmax" lets the largest weight of a channel be 127; "mse" takes the scale, at most that
            one, for which the squares of the errors of the channel's weights add up to the least.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    steps, codes = np.empty(len(rows), np.float32), np.empty(rows.shape, np.int8)
    several = max(1, _AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), several):
        part = slice(start, start + several)
        steps[part] = channel_scales(rows[part], scale)
        codes[part] = rounded(rows[part] / steps[part, None])
    moved = np.moveaxis(weight, axis, 0).shape
    return Codes(np.ascontiguousarray(np.moveaxis(codes.reshape(moved), 0, axis)), steps)


def channel_scales(rows: NDArray[np.float32], scale: WeightScale) -> NDArray[np.float32]:
    """The scale of each row of `[channels, weights]`; 1 for a channel of zeros."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    full = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)
    # The least normal number: the codes of a channel of smaller weights would be infinite.
    full = np.maximum(full, np.finfo(np.float32).tiny)
    if scale == "absmax":
        return full
    best, least = full, np.full(len(rows), np.inf)
    for clip in _CLIPS:
        tried = np.maximum(full * np.float32(clip), np.finfo(np.float32).tiny)
        error = np.square(rows - rounded(rows / tried[:, None]) * tried[:, None]).sum(axis=1)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return best


def rounded(steps: NDArray[np.floating]) -> NDArray[np.int8]:
    """The nearest codes, ties to even."""
    codes: NDArray[np.int8] = np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8)
    return codes
