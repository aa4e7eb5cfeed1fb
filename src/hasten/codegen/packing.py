"""Packed second operands of products: how weights lie in memory, and what rows outside the input count as."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.tiles import group
from hasten.loops.descriptions import Gemm
from hasten.loops.expr import Const, Expr, Op, round_up

PADDING = "zeros"
"""Buffer that row pointers outside the input point to: zeros, or the zero point of bytes."""


@dataclass(frozen=True)
class PackedOperand:
    """Where the packed second operand lies.

    Attributes:
        tensor: its name.
        batch_stride: elements from one batch entry to the next.
        half: the last panel has `HALF_PANEL` columns where that is enough.
        parts: equal groups of whole panels, of which a thread takes the same stretch: what reads the result
            reads one stretch of each group at a time.
    """

    tensor: str
    batch_stride: Expr
    half: bool
    parts: int = 1


def padding_name(padding: Const) -> str:
    """Name of the constant whose elements are all what padding counts as."""
    return f"{PADDING}_{padding.dtype}" + (f"_{padding.value}" if padding.value else "")


def padding_of(g: Gemm) -> Const | None:
    """What rows of the first operand count as where they lie outside the input, or None if none does."""
    if not isinstance(g.a, Op) or g.a.op != "select":
        return None
    outside = g.a.args[2]
    assert isinstance(outside, Const)
    return outside


def whole_depth(g: Gemm) -> Expr:
    """Elements of depth in whole groups: beyond the last one the second operand is zero."""
    assert g.depth.extent is not None
    return round_up(g.depth.extent, group(g.a.dtype))
