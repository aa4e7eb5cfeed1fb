"""Element-wise arithmetic with broadcasting, and the helpers that all element-wise families use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, cast, const, select, unary
from hasten.ops.attributes import attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lower, Lowering, Op, Tensor, optional, required
from hasten.ops.broadcasting import broadcast
from hasten.ops.pruning import ELEMENTWISE, alike


def elementwise(
    ctx: Lowering, inputs: Sequence[Tensor], body: Callable[..., Expr], dtype: DType
) -> list[Tensor]:
    """One output whose element is `body` of the inputs' elements, all broadcast to one shape."""
    shape, views = broadcast(ctx, inputs)
    return [ctx.define(shape, lambda *i: body(*(view(*i) for view in views)), dtype)]


def unary_lower(op: str) -> Lower:
    """Lowering of a one-input operator that maps to one IR operation."""

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x = required(inputs, 0)
        return elementwise(ctx, [x], lambda a: unary(op, a), x.dtype)

    return lower


def binary_lower(op: str, dtype: DType | None = None) -> Lower:
    """Lowering of a two-input operator that maps to one IR operation.

    Args:
        op: the operation.
        dtype: type of the result; by default that of the operands.
    """

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        a, b = required(inputs, 0), required(inputs, 1)
        return elementwise(ctx, [a, b], lambda x, y: binary(op, x, y), dtype or a.dtype)

    return lower


def variadic_lower(op: str) -> Lower:
    """Lowering of an operator that folds any number of inputs from the left."""

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        tensors = [required(inputs, n) for n in range(len(inputs))]
        return elementwise(ctx, tensors, lambda *x: fold(op, x), tensors[0].dtype)

    return lower


def fold(op: str, elements: Sequence[Expr]) -> Expr:
    """((e0 op e1) op e2) op ..."""
    result = elements[0]
    for e in elements[1:]:
        result = binary(op, result, e)
    return result


def scalar(t: Tensor) -> Expr:
    """The only element of a tensor of rank 0, or of rank 1 with one element."""
    return t.at(*(const(0) for _ in t.shape))


def lower_mean(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The mean of the inputs, element by element."""
    tensors = [required(inputs, n) for n in range(len(inputs))]
    dtype = tensors[0].dtype
    return elementwise(ctx, tensors, lambda *x: binary("div", fold("add", x), const(len(x), dtype)), dtype)


def lower_div(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The quotient; of integers rounded toward zero."""
    a, b = required(inputs, 0), required(inputs, 1)
    if a.dtype.is_float:
        return elementwise(ctx, [a, b], lambda x, y: binary("div", x, y), a.dtype)
    divisor = safe_divisor(ctx, b)
    return elementwise(ctx, [a, b], lambda x, y: binary("truncdiv", x, divisor(x, y)), a.dtype)


def safe_divisor(ctx: Lowering, b: Tensor) -> Callable[[Expr, Expr], Expr]:
    """What an integer is divided by, as a function of dividend and divisor.

    Processors trap on division by zero and of the smallest integer by -1. Where the divisor is not
    known to be harmless it is replaced by 1 there: x / 0 is x (ONNX leaves it open), and the
    smallest integer stays, as it would by wrapping around.
    """
    known = ctx.constant_of(b)
    if known is not None and not np.isin(known, (0, -1)).any():
        return lambda x, y: y

    def divisor(x: Expr, y: Expr) -> Expr:
        harmful = binary("eq", y, const(0, y.dtype))
        if y.dtype.is_signed:
            lowest = const(int(np.iinfo(y.dtype.numpy.name).min), y.dtype)
            wraps = binary("and", binary("eq", y, const(-1, y.dtype)), binary("eq", x, lowest))
            harmful = binary("or", harmful, wraps)
        return select(harmful, const(1, y.dtype), y)

    return divisor


def lower_mod(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The remainder: with `fmod` it has the dividend's sign, without it the divisor's."""
    a, b = required(inputs, 0), required(inputs, 1)
    like_c = attribute_int(node, "fmod", 0) == 1
    if a.dtype.is_float:

        def remainder(x: Expr, y: Expr) -> Expr:
            r = binary("fmod", x, y)
            if like_c:
                return r
            zero = const(0, a.dtype)
            opposite = binary("xor", binary("lt", r, zero), binary("lt", y, zero))
            return select(binary("and", binary("ne", r, zero), opposite), binary("add", r, y), r)

        return elementwise(ctx, [a, b], remainder, a.dtype)
    divisor = safe_divisor(ctx, b)
    op = "fmod" if like_c else "mod"
    return elementwise(ctx, [a, b], lambda x, y: binary(op, x, divisor(x, y)), a.dtype)


_LARGEST_UNROLLED_EXPONENT = 64


def lower_pow(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Base to the exponent, in the base's type.

    A constant whole exponent becomes multiplications where that rounds no worse than `pow` would be
    noticed (2 and 3 for floats) or is exact (integers). Other integer powers are computed in f64 and
    are exact up to 2**53.
    """
    a, b = required(inputs, 0), required(inputs, 1)
    exponent = _uniform(ctx, b)
    whole = int(exponent) if exponent is not None and exponent == int(exponent) else None
    largest = 3 if a.dtype.is_float else _LARGEST_UNROLLED_EXPONENT
    if whole is not None and 1 <= whole <= largest:
        return elementwise(ctx, [a, b], lambda x, _: _repeated(x, whole), a.dtype)
    if a.dtype.is_float:
        return elementwise(ctx, [a, b], lambda x, y: binary("pow", x, cast(y, a.dtype)), a.dtype)

    def through_f64(x: Expr, y: Expr) -> Expr:
        return cast(binary("pow", cast(x, DType.F64), cast(y, DType.F64)), a.dtype)

    return elementwise(ctx, [a, b], through_f64, a.dtype)


def _uniform(ctx: Lowering, t: Tensor) -> float | None:
    """The finite value that all elements of a constant have, or None."""
    array = ctx.constant_of(t)
    if array is None or array.size == 0 or not (array == array.flat[0]).all():
        return None
    value = float(array.flat[0])
    return value if np.isfinite(value) else None


def _repeated(x: Expr, n: int) -> Expr:
    """X to the n-th power by repeated squaring, n >= 1."""
    if n == 1:
        return x
    half = _repeated(x, n // 2)
    square = binary("mul", half, half)
    return binary("mul", square, x) if n % 2 else square


def lower_neg(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The value with its sign changed; of indices as arithmetic, so that it simplifies."""
    x = required(inputs, 0)
    if x.dtype.is_float:
        return elementwise(ctx, [x], lambda a: unary("neg", a), x.dtype)
    return elementwise(ctx, [x], lambda a: binary("sub", const(0, x.dtype), a), x.dtype)


def lower_abs(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The magnitude."""
    x = required(inputs, 0)
    if not x.dtype.is_signed:
        return elementwise(ctx, [x], lambda a: a, x.dtype)
    return elementwise(ctx, [x], lambda a: unary("abs", a), x.dtype)


def lower_round(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Ceil, Floor or Round (half to even); integers are whole already."""
    x = required(inputs, 0)
    op = node.op_type.lower()
    return elementwise(ctx, [x], lambda a: unary(op, a) if x.dtype.is_float else a, x.dtype)


def lower_reciprocal(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """1 / x."""
    x = required(inputs, 0)
    return elementwise(ctx, [x], lambda a: binary("div", const(1, x.dtype), a), x.dtype)


def lower_clip(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """min(max(x, low), high); either bound may be left out."""
    x, low, high = required(inputs, 0), optional(inputs, 1), optional(inputs, 2)

    def body(a: Expr) -> Expr:
        if low is not None:
            a = binary("max", a, scalar(low))
        return a if high is None else binary("min", a, scalar(high))

    return elementwise(ctx, [x], body, x.dtype)


def lower_bit_shift(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Bits moved left or right; by the type's width or more, or less than 0, only the sign is left."""
    a, b = required(inputs, 0), required(inputs, 1)
    direction = attribute_str(node, "direction", "")
    if direction not in ("LEFT", "RIGHT"):
        raise Declined(f"direction is '{direction}', not LEFT or RIGHT")
    op = "shl" if direction == "LEFT" else "shr"
    width = const(8 * a.dtype.bytes, a.dtype)
    zero = const(0, a.dtype)

    def body(x: Expr, y: Expr) -> Expr:
        within = binary("and", binary("le", zero, y), binary("lt", y, width))
        past: Expr = zero
        if op == "shr" and a.dtype.is_signed:
            past = select(binary("lt", x, zero), const(-1, a.dtype), zero)
        return select(within, binary(op, x, select(within, y, zero)), past)

    return elementwise(ctx, [a, b], body, a.dtype)


_FUNCTIONS = (
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"),
    *("Erf", "Exp", "Log", "Sqrt", "Sign"),
)

_ALL: tuple[Op, ...] = (
    Op(name="Add", lower=binary_lower("add")),
    Op(name="Sub", lower=binary_lower("sub")),
    Op(name="Mul", lower=binary_lower("mul")),
    Op(name="Div", lower=lower_div),
    Op(name="Mod", lower=lower_mod),
    Op(name="Pow", lower=lower_pow),
    Op(name="Max", lower=variadic_lower("max")),
    Op(name="Min", lower=variadic_lower("min")),
    Op(name="Sum", lower=variadic_lower("add")),
    Op(name="Mean", lower=lower_mean),
    Op(name="Neg", lower=lower_neg),
    Op(name="Abs", lower=lower_abs),
    Op(name="Reciprocal", lower=lower_reciprocal),
    Op(name="Clip", lower=lower_clip),
    *(Op(name=name, lower=lower_round) for name in ("Ceil", "Floor", "Round")),
    *(Op(name=name, lower=unary_lower(name.lower())) for name in _FUNCTIONS),
    Op(name="BitShift", lower=lower_bit_shift),
    Op(name="BitwiseAnd", lower=binary_lower("bitand")),
    Op(name="BitwiseOr", lower=binary_lower("bitor")),
    Op(name="BitwiseXor", lower=binary_lower("bitxor")),
    Op(name="BitwiseNot", lower=unary_lower("bitnot")),
)

OPS = alike(ELEMENTWISE, _ALL)
