"""Element-wise operators with broadcasting: arithmetic, comparison, logic, activations, Where, Cast."""

from __future__ import annotations

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, const
from hasten.ops.base import Inputs, Lower, Lowering, Op, Tensor, required


def binary_lower(op: str) -> Lower:
    """Lowering of a two-input operator that maps to one IR operation."""

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        a, b = required(inputs, 0), required(inputs, 1)
        shape = ctx.broadcast_shapes(a.shape, b.shape)
        dtype = DType.BOOL if op in ("lt", "le", "eq") else a.dtype
        return [ctx.define(shape, lambda *i: binary(op, a.broadcast(*i), b.broadcast(*i)), dtype)]

    return lower


def lower_relu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """max(x, 0)."""
    x = required(inputs, 0)

    def body(*index: Expr) -> Expr:
        return binary("max", x.at(*index), const(0, x.dtype))

    return [ctx.define(x.shape, body, x.dtype)]


OPS = (
    Op(name="Add", lower=binary_lower("add")),
    Op(name="Sub", lower=binary_lower("sub")),
    Op(name="Mul", lower=binary_lower("mul")),
    Op(name="Relu", lower=lower_relu),
)
