"""QuantizeLinear and DequantizeLinear, for a whole tensor or for each index along one axis."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, cast, const, unary
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, normalize_axis, optional, required
from hasten.ops.element_types import element_type, integer_range
from hasten.ops.indices import clamp


def _parameter(
    ctx: Lowering, node: ir.Node, x: Tensor, scale: Tensor, zero: Tensor | None
) -> Callable[[Tensor, tuple[Expr, ...]], Expr]:
    """Access to a scale or zero point by the index of `x`: one for all, by axis, or by block of an axis.

    Raises:
        Declined: scales of another shape.
    """
    block = attribute_int(node, "block_size", 0)
    if block:
        along = normalize_axis(attribute_int(node, "axis", 1), x.rank)
        for t in (scale, zero):
            if t is not None and t.rank == x.rank:
                covered = binary("le", x.shape[along], t.shape[along] * block)
                ctx.require(covered, f"'{t.name}' to have a number for each block of {block}")
        return lambda t, index: t.at(*(i // block if d == along else i for d, i in enumerate(index)))
    if scale.rank == 0 or (scale.rank == 1 and scale.shape[0] == const(1)):
        return lambda t, index: t.at(*(const(0) for _ in t.shape))
    if scale.rank != 1:
        raise Declined(f"{node.op_type} with a scale of rank {scale.rank}")
    axis = normalize_axis(attribute_int(node, "axis", 1), x.rank)
    ctx.require_equal(scale.shape[0], x.shape[axis])
    return lambda t, index: t.at(index[axis])


def lower_quantize(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """round(x / scale) + zero point, ties to even, clamped to the range of the result."""
    x, scale, zero = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    wanted = node.outputs[0].dtype or ir.DataType.UINT8
    dtype, limits = element_type(wanted), integer_range(wanted)
    if dtype is None:
        raise Declined(f"QuantizeLinear to {wanted.name.lower()}")
    if not x.dtype.is_float or scale.dtype is not x.dtype:
        raise Declined("QuantizeLinear whose input and scale are not of one float type")
    at = _parameter(ctx, node, x, scale, zero)

    def body(*index: Expr) -> Expr:
        y = binary("div", x.at(*index), at(scale, index))
        if limits is None:  # a small float: the result is rounded to its numbers
            return y if zero is None else binary("add", y, cast(at(zero, index), x.dtype))
        low, high = (const(limit, x.dtype) for limit in limits)
        y = unary("round", y)
        if zero is not None:
            y = binary("add", y, cast(at(zero, index), x.dtype))
        return cast(clamp(y, low, high), dtype)

    return [ctx.define(x.shape, body, dtype)]


def lower_dequantize(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """(x - zero point) * scale."""
    x, scale, zero = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    if not scale.dtype.is_float or x.dtype is DType.BOOL:
        raise Declined(f"DequantizeLinear of {x.dtype.numpy.name} by {scale.dtype.numpy.name}")
    wanted = attribute_int(node, "output_dtype", 0)
    if wanted and element_type(ir.DataType(wanted)) is not scale.dtype:
        raise Declined(f"DequantizeLinear to {ir.DataType(wanted).name.lower()}")
    at = _parameter(ctx, node, x, scale, zero)

    def body(*index: Expr) -> Expr:
        y = cast(x.at(*index), scale.dtype)
        if zero is not None:
            y = binary("sub", y, cast(at(zero, index), scale.dtype))
        return binary("mul", y, at(scale, index))

    return [ctx.define(x.shape, body, scale.dtype)]


OPS = (
    Op(name="QuantizeLinear", lower=lower_quantize),
    Op(name="DequantizeLinear", lower=lower_dequantize),
)
