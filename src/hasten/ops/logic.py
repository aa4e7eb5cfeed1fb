"""Comparison, logic, choice between tensors and conversion of element types, all element-wise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, cast, const, select, unary
from hasten.loops.expr import Op as Op_
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Declined, Inputs, Lower, Lowering, Op, Tensor, required
from hasten.ops.element_types import COMPUTED, element_type
from hasten.ops.elementwise import binary_lower, elementwise, unary_lower
from hasten.ops.pruning import ELEMENTWISE, alike


def compare_lower(op: str, *, swapped: bool = False) -> Lower:
    """Lowering of a comparison; with `swapped`, of the second operand with the first."""

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        a, b = required(inputs, 0), required(inputs, 1)

        def body(x: Expr, y: Expr) -> Expr:
            return binary(op, y, x) if swapped else binary(op, x, y)

        return elementwise(ctx, [a, b], body, DType.BOOL)

    return lower


def lower_is_nan(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X != x, which holds for NaN alone."""
    x = required(inputs, 0)
    return elementwise(ctx, [x], lambda a: binary("ne", a, a), DType.BOOL)


def lower_is_inf(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """True for infinities of the signs asked for."""
    x = required(inputs, 0)
    positive = attribute_int(node, "detect_positive", 1) == 1
    negative = attribute_int(node, "detect_negative", 1) == 1

    def body(a: Expr) -> Expr:
        infinity = const(float("inf"), x.dtype)
        if positive and negative:
            return binary("eq", unary("abs", a), infinity)
        if not positive and not negative:
            return const(False, DType.BOOL)
        return binary("eq", a, infinity if positive else const(float("-inf"), x.dtype))

    return elementwise(ctx, [x], body, DType.BOOL)


def lower_where(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The second input where the first holds, else the third."""
    condition, a, b = (required(inputs, n) for n in range(3))
    return elementwise(ctx, [condition, a, b], select, a.dtype)


def lower_cast(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Conversion as in C: toward zero from float to integer, `!= 0` to BOOL."""
    x = required(inputs, 0)
    target = ir.DataType(attribute_int(node, "to", 0))
    dtype = None if target is ir.DataType.STRING else element_type(target)
    if dtype is None:
        raise Declined(f"conversion to {target.name} is not supported")
    return elementwise(ctx, [x], lambda a: cast(a, dtype), dtype)


def lower_bit_cast(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The same bits as another element type of the same size."""
    x, target = required(inputs, 0), ir.DataType(attribute_int(node, "to", 0))
    dtype = None if target in COMPUTED else element_type(target)
    given = node.inputs[0]
    if dtype is None or given is None or given.dtype in COMPUTED or dtype.bytes != x.dtype.bytes:
        raise Declined(f"the bits of {x.dtype.numpy} are not read as {target.name}")
    if dtype is DType.BOOL or x.dtype is DType.BOOL:
        raise Declined("the bits of booleans are not read as numbers")
    if dtype.is_float == x.dtype.is_float:
        return elementwise(ctx, [x], lambda a: cast(a, dtype), dtype)  # keeps the bits of integers
    # A float goes to the signed integer of its size, and comes from it; to the unsigned one by a cast.
    signed = DType.of(np.dtype(f"int{8 * dtype.bytes}"))
    assert signed is not None

    def body(a: Expr) -> Expr:
        if x.dtype.is_float:
            return cast(Op_(signed, "bitcast", (a,)), dtype)
        return Op_(dtype, "bitcast", (cast(a, signed),))

    return elementwise(ctx, [x], body, dtype)


def lower_cast_like(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Conversion to the element type of the second input."""
    x, like = required(inputs, 0), required(inputs, 1)
    return elementwise(ctx, [x], lambda a: cast(a, like.dtype), like.dtype)


_ALL: tuple[Op, ...] = (
    Op(name="Equal", lower=compare_lower("eq")),
    Op(name="Less", lower=compare_lower("lt")),
    Op(name="LessOrEqual", lower=compare_lower("le")),
    Op(name="Greater", lower=compare_lower("lt", swapped=True)),
    Op(name="GreaterOrEqual", lower=compare_lower("le", swapped=True)),
    Op(name="And", lower=binary_lower("and")),
    Op(name="Or", lower=binary_lower("or")),
    Op(name="Xor", lower=binary_lower("xor")),
    Op(name="Not", lower=unary_lower("not")),
    Op(name="IsNaN", lower=lower_is_nan),
    Op(name="IsInf", lower=lower_is_inf),
    Op(name="Where", lower=lower_where),
    Op(name="Cast", lower=lower_cast),
    Op(name="BitCast", lower=lower_bit_cast),
    Op(name="CastLike", lower=lower_cast_like),
)

OPS = alike(ELEMENTWISE, _ALL)
