"""Pad: borders of a constant, or of the input's own elements."""

from __future__ import annotations

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, const, constant_int, select
from hasten.ops.attributes import attribute_ints, attribute_str
from hasten.ops.axes import axis_numbers, by_axis, index_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, moved, normalize_axis, optional, required
from hasten.ops.elementwise import scalar
from hasten.ops.indices import clamp
from hasten.ops.movement_pruning import PAD


def lower_pad(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Borders before and after each axis; negative ones cut off."""
    x = required(inputs, 0)
    pads = index_values(ctx, required(inputs, 1), "the width of the border")
    axes = axis_numbers(ctx, optional(inputs, 3), x.rank, range(x.rank))
    if len(pads) != 2 * len(axes):
        raise Declined(f"{len(pads)} border widths were given for {len(axes)} axes")
    none = [const(0)] * x.rank
    before = by_axis(axes, pads[: len(axes)], x.rank, none)
    after = by_axis(axes, pads[len(axes) :], x.rank, none)
    padded = [d for d in range(x.rank) if constant_int(before[d]) != 0 or constant_int(after[d]) != 0]
    shape = list(x.shape)
    for d in padded:
        shape[d] = x.shape[d] + before[d] + after[d]
    mode = attribute_str(node, "mode", "constant")
    if mode == "constant":
        value = optional(inputs, 2)
        return [_constant_border(ctx, x, shape, {d: (before[d], after[d]) for d in padded}, value)]
    if mode not in ("reflect", "edge", "wrap"):
        raise Declined(f"mode is '{mode}', not constant, reflect, edge or wrap")
    for d in padded:
        ctx.require_some(x.shape[d], shape)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        at = list(index)
        for d in padded:
            at[d] = _border_index(mode, index[d] - before[d], x.shape[d])
        return at

    return moved(ctx, x, shape, source)


def _border_index(mode: str, i: Expr, n: Expr) -> Expr:
    """The index in [0, n) of the element that position i, which may lie outside, shows."""
    if mode == "edge":
        return clamp(i, const(0), n - 1)
    if mode == "wrap":
        return i % n
    # A reflection at both ends repeats after a period; one element alone repeats itself.
    period = n * 2 - 2
    m = i % binary("max", period, const(1))
    return select(binary("lt", m, n), m, period - m)


def _constant_border(
    ctx: Lowering,
    x: Tensor,
    shape: list[Expr],
    pads: dict[int, tuple[Expr, Expr]],
    value: Tensor | None,
) -> Tensor:
    known = ctx.constant_of(value)
    # Most exporters write the 0 as well; as a literal the reader can take the border in.
    outside: Expr = const(0, x.dtype)
    if known is not None and known.size == 1:
        outside = const(known.item(), x.dtype)
    elif value is not None:
        outside = scalar(value)

    def body(*index: Expr) -> Expr:
        inside: Expr = const(True, DType.BOOL)
        at = list(index)
        for d, (before, after) in pads.items():
            at[d] = index[d] - before
            if constant_int(before) != 0:
                inside = binary("and", inside, binary("le", before, index[d]))
            if constant_int(after) != 0:
                inside = binary("and", inside, binary("lt", at[d], x.shape[d]))
        return select(inside, x.at(*at), outside)

    return ctx.define(shape, body, x.dtype)


def lower_center_crop_pad(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The middle of each axis, or the axis in the middle of zeros; an odd element more is at the end."""
    x = required(inputs, 0)
    lengths = index_values(ctx, required(inputs, 1), "the lengths to crop or pad to")
    axes = [normalize_axis(a, x.rank) for a in attribute_ints(node, "axes", range(x.rank))]
    if len(axes) != len(lengths):
        raise Declined(f"{len(lengths)} lengths were given for {len(axes)} axes")
    shape = list(x.shape)
    for d, n in zip(axes, lengths, strict=True):
        shape[d] = ctx.dim(n)

    def body(*index: Expr) -> Expr:
        inside: Expr = const(True, DType.BOOL)
        at = list(index)
        for d in axes:
            at[d] = index[d] + binary("truncdiv", x.shape[d] - shape[d], const(2))
            here = binary("and", binary("le", const(0), at[d]), binary("lt", at[d], x.shape[d]))
            inside = binary("and", inside, here)
        return select(inside, x.at(*at), const(0, x.dtype))

    return [ctx.define(shape, body, x.dtype)]


OPS: tuple[Op, ...] = (
    Op(name="Pad", lower=lower_pad, pruning=PAD),
    Op(name="CenterCropPad", lower=lower_center_crop_pad),
)
