"""Packed second operands of products: how weights lie in memory, and what rows outside the input count as."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.tiles import group
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import Gemm
from hasten.loops.expr import Const, Expr, Load, Op, constant_int, round_up
from hasten.loops.simplify import to_poly

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


def row_pitch(g: Gemm, layouts: Layouts) -> Expr | None:
    """Elements from each row of the first operand to the next, or None where that differs."""
    element = flatten(g.a, layouts)
    if not isinstance(element, Load) or g.taps:
        return None
    variables = [v for v in g.rows if constant_int(v.extent) != 1]
    if not variables:
        return whole_depth(g)
    index = element.index[0]
    steps = [coefficient(index, v) for v in variables]
    for v, outer, inner in zip(variables[1:], steps, steps[1:], strict=False):
        assert v.extent is not None
        if outer is None or inner is None or to_poly(outer) != to_poly(inner * v.extent):
            return None
    return steps[-1]
