"""MatMulInteger and ConvInteger: products of bytes with sums of 32 bits.

Where their sums are scaled to floats afterwards, as exporters write them, passes have made quantized products
of them before (`passes/normalize_qdq.py`). Where they are read as integers, the code generator finds them to
be sums of bytes (`codegen/quantized.py`).
"""

from __future__ import annotations

import onnx_ir as ir

from hasten.loops.dtypes import BYTES, DType
from hasten.loops.expr import Expr, binary, cast, const, constant_int
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.broadcasting import spread
from hasten.ops.contraction import lower_matmul
from hasten.ops.convolution import convolved
from hasten.ops.windows import windows


def _centered(ctx: Lowering, x: Tensor, zero: Tensor | None, axis: int, suffix: str) -> Tensor:
    """The tensor in 32 bits without its zero point, which is one number or one for each index of an axis."""
    if x.dtype not in BYTES:
        raise Declined(f"products of {x.dtype.numpy} are not compiled")

    def body(*index: Expr) -> Expr:
        value = cast(x.at(*index), DType.I32)
        if zero is None:
            return value
        if zero.rank <= 1:
            single = zero.rank == 0 or constant_int(zero.shape[0]) == 1
            at = [const(0)] * zero.rank if single else [index[axis]]
            point = zero.at(*at)
        else:
            point = spread(ctx, zero, x.shape)(*index)
        return binary("sub", value, cast(point, DType.I32))

    return ctx.temporary(x.shape, body, DType.I32, suffix)


def lower_matmul_integer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The matrix product of bytes; zero points are those of rows and of columns."""
    a = _centered(ctx, required(inputs, 0), optional(inputs, 2), -2, "a")
    b = _centered(ctx, required(inputs, 1), optional(inputs, 3), -1, "b")
    return lower_matmul(ctx, node, [a, b])


def lower_conv_integer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The convolution of bytes; padding counts as the zero point."""
    x = _centered(ctx, required(inputs, 0), optional(inputs, 2), 1, "x")
    w = _centered(ctx, required(inputs, 1), optional(inputs, 3), 0, "w")
    kernel = [constant_int(n) for n in w.shape]
    sizes = [n for n in kernel if n is not None]
    if len(sizes) != w.rank or x.rank != w.rank or x.rank < 3:
        raise Declined("ConvInteger whose weight has no constant shape, or another rank than the input")
    sliding = windows(ctx, node, x.shape[2:], sizes[2:])
    return [convolved(ctx, x, w, None, sliding, attribute_int(node, "group", 1))]


OPS: tuple[Op, ...] = (
    Op(name="MatMulInteger", lower=lower_matmul_integer),
    Op(name="ConvInteger", lower=lower_conv_integer),
)
