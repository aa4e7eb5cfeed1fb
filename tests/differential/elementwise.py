"""Steps that add element-wise operators, comparisons, logic and casts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tests.differential.graph import (
    FLOATS,
    INTEGERS,
    UNSIGNED,
    Builder,
    Shape,
    Unfit,
    Value,
    broadcast,
)

# Operator -> the result's bound for the operand's; the operand is made no larger than the second number.
SMOOTH: dict[str, tuple[Callable[[float], float], float]] = {
    "Exp": (math.exp, 5), "Tanh": (lambda b: 1, 1e4), "Sigmoid": (lambda b: 1, 1e4),
    "Erf": (lambda b: 1, 1e4), "Softplus": (lambda b: b + 1, 100), "Sin": (lambda b: 1, 50),
    "Cos": (lambda b: 1, 50), "Atan": (lambda b: 1.6, 1e4), "Sinh": (math.sinh, 5),
    "Cosh": (math.cosh, 5), "Asinh": (lambda b: math.asinh(b) + 1, 1e4),
    "Selu": (lambda b: 1.06 * b + 2, 1e3), "Elu": (lambda b: b + 1, 1e3), "Celu": (lambda b: b + 1, 1e3),
    "HardSigmoid": (lambda b: 1, 1e4), "HardSwish": (lambda b: b, 1e4), "Softsign": (lambda b: 1, 1e4),
    "Mish": (lambda b: b + 1, 100), "Gelu": (lambda b: b, 1e3), "Swish": (lambda b: b, 1e3),
}  # fmt: skip
FROM_ONE = ("Sqrt", "Log", "Reciprocal")
SINCE = {"Gelu": 20, "Swish": 24, "Mish": 18}


def bounded(b: Builder, x: Value, most: float) -> Value:
    """The value, or one that lies within limits."""
    if x.bound <= most:
        return x
    if b.chance(0.5):
        return b.emit("Tanh", [x], x, bound=1, fraction=None)
    return clip(b, x, -min(most, 4), min(most, 4))


def clip(b: Builder, x: Value, low: float, high: float) -> Value:
    limits = [b.constant(np.array(n), x.dtype) for n in (low, high)]
    return b.emit("Clip", [x, *limits], x, bound=max(-low, high))


def small(b: Builder, x: Value, most: float) -> Value:
    """An integer or float value made small without rounding."""
    return x if x.bound <= most else clip(b, x, 0 if x.dtype in UNSIGNED else -most, most)


def smooth(b: Builder) -> None:
    op = b.pick(list(SMOOTH))
    b.need(SINCE.get(op, 0))
    bound, most = SMOOTH[op]
    x = bounded(b, b.floating(), most)
    attributes = {}
    if op == "Gelu" and b.chance(0.5):
        attributes["approximate"] = "tanh"
    if op in ("Elu", "Celu") and b.chance(0.5):
        attributes["alpha"] = 0.75
    if op == "HardSigmoid" and b.chance(0.5):
        attributes |= {"alpha": 0.3, "beta": 0.4}
    if op == "Celu" and x.dtype != "float32":
        raise Unfit
    if op in ("Mish", "Selu", "Softsign") and x.dtype not in ("float32", "float64"):
        raise Unfit
    b.emit(op, [x], x, bound=bound(x.bound), fraction=None, **attributes)


def from_one(b: Builder) -> None:
    """What is defined for positive numbers, of numbers from 1 on."""
    x = b.floating()
    size = b.emit("Abs", [x], x)
    shifted = b.emit("Add", [size, b.constant(np.array(1.0), x.dtype)], size, bound=size.bound + 1)
    b.emit(b.pick(FROM_ONE), [shifted], shifted, fraction=None)


def inverse(b: Builder) -> None:
    """Functions of numbers between -1 and 1."""
    x = bounded(b, b.floating(), 1e4)
    unit = b.emit("Tanh", [x], x, bound=1, fraction=None)
    half = b.emit("Mul", [unit, b.constant(np.array(0.75), x.dtype)], unit, bound=0.75, fraction=None)
    b.emit(b.pick(["Asin", "Acos", "Atanh", "Tan"]), [half], half, bound=3.2, fraction=None)


def plain(b: Builder) -> None:
    """What rounds nothing."""
    op = b.pick(
        ["Relu", "Neg", "Abs", "Identity", "LeakyRelu", "ThresholdedRelu", "Sign", "Clip", "PRelu", "Shrink"]
    )
    x = b.source(lambda v: v.dtype != "bool")
    if op in ("Neg", "Relu", "LeakyRelu", "PRelu") and x.dtype in UNSIGNED:
        raise Unfit
    if op in ("LeakyRelu", "ThresholdedRelu") and not x.is_float:
        raise Unfit
    if op == "Sign":
        if not x.exact:
            raise Unfit
        b.emit(op, [x], x, bound=1, fraction=0)
    elif op == "LeakyRelu":
        b.emit(op, [x], x, alpha=0.25, fraction=None if x.fraction is None else x.fraction + 2)
    elif op == "ThresholdedRelu":
        if not x.exact:
            raise Unfit
        b.emit(op, [x], x, alpha=b.pick([0.5, 1.0, -0.25]))
    elif op == "Shrink":
        if not x.exact or x.dtype not in ("float32", "float64", "float16"):
            raise Unfit
        b.emit(op, [x], x, lambd=1.5, bias=0.5, bound=x.bound + 1)
    elif op == "PRelu":
        if not x.is_float or not x.rank:
            raise Unfit
        slope = b.weights_of(x.dtype, *_partner_shape(b, x.shape))
        if len(slope.shape) > x.rank:
            raise Unfit
        b.emit(op, [x, slope], x, bound=2 * x.bound, fraction=_sum(x.fraction, slope.fraction))
    elif op == "Clip":
        low = b.pick([0, 1, -2]) if x.dtype not in UNSIGNED else b.pick([0, 1])
        limits: list[Value | str] = [b.constant(np.array(low), x.dtype)]
        if b.chance(0.5):
            limits.append(b.constant(np.array(low + b.pick([0, 1, 3])), x.dtype))
        elif b.chance(0.3):
            limits = ["", b.constant(np.array(3), x.dtype)]
        b.emit(op, [x, *limits], x, bound=max(x.bound, 6))
    else:
        b.emit(op, [x], x)


def rounding(b: Builder) -> None:
    """Whole numbers near others: only where all engines have exactly the same ones."""
    op = b.pick(["Floor", "Ceil", "Round"])
    x = b.floating(exact=True)
    b.emit(op, [x], x, bound=x.bound + 1, fraction=0)


def _partner_shape(b: Builder, shape: Shape) -> list[int]:
    """A fixed shape that broadcasts to another one."""
    dims = [1 if len(set(d)) > 1 or b.chance(0.35) else d[0] for d in shape]
    return dims[b.int(0, len(dims)) :] if b.chance(0.5) else dims


def partner(b: Builder, x: Value) -> Value:
    """A value of the same type that combines with `x`."""

    def fits(v: Value) -> bool:
        try:
            return v.dtype == x.dtype and v.bound <= 1e4 and bool(broadcast(x.shape, v.shape) is not None)
        except Unfit:
            return False

    kind = b.rng.random()
    if kind < 0.6:
        return b.source(fits)
    if kind < 0.9:
        return b.weights_of(x.dtype, *_partner_shape(b, x.shape))
    shape = tuple(d if b.chance(0.6) else b.const_dim(1) for d in x.shape)
    return b.numbers(x.dtype, shape)


def _sum(*fractions: int | None) -> int | None:
    return None if any(f is None for f in fractions) else sum(f for f in fractions if f is not None)


def _most(*fractions: int | None) -> int | None:
    return None if any(f is None for f in fractions) else max(f for f in fractions if f is not None)


def _fits_integer(dtype: str, bound: float, signed: bool) -> bool:
    """Whether no result wraps: what engines do then is their own affair."""
    if dtype in FLOATS:
        return True
    info = np.iinfo(dtype)
    return bound <= info.max and not (signed and dtype in UNSIGNED)


def arithmetic(b: Builder) -> None:
    op = b.pick(["Add", "Add", "Sub", "Mul", "Mul", "Max", "Min", "Div", "Mean", "Sum"])
    x = b.source(lambda v: v.dtype != "bool" and v.bound <= 1e4)
    y = partner(b, x)
    if b.chance(0.3):
        x, y = y, x
    shape = broadcast(x.shape, y.shape)
    if op == "Div":
        return divide(b, x, y)
    if op in ("Mean", "Sum"):
        if not x.is_float:
            raise Unfit
        fraction = None if op == "Mean" else _most(x.fraction, y.fraction)
        b.emit(
            op,
            [x, y, x] if b.chance(0.3) else [x, y],
            x,
            shape,
            bound=2 * x.bound + y.bound,
            fraction=fraction,
        )
        return None
    bound = {"Add": x.bound + y.bound, "Sub": x.bound + y.bound, "Mul": x.bound * y.bound}.get(
        op, max(x.bound, y.bound)
    )
    if not _fits_integer(x.dtype, bound, op == "Sub"):
        raise Unfit
    fraction = _sum(x.fraction, y.fraction) if op == "Mul" else _most(x.fraction, y.fraction)
    inputs = [x, y]
    if op in ("Max", "Min") and b.chance(0.2):
        inputs = [x, y, x] if b.chance(0.5) else [x]
        shape = shape if len(inputs) == 3 else x.shape
    b.emit(op, inputs, x, shape, bound=bound, fraction=fraction)
    return None


def divide(b: Builder, x: Value, y: Value) -> None:
    """By numbers that are not 0."""
    shape = broadcast(x.shape, y.shape)
    one = b.constant(np.array(1), y.dtype)
    size = y if y.dtype in UNSIGNED else b.emit("Abs", [y], y)
    if not _fits_integer(y.dtype, size.bound + 1, False):
        raise Unfit
    other = b.emit("Add", [size, one], size, bound=size.bound + 1)
    if not x.is_float and b.chance(0.4):
        sign = b.pick([0, 0, 1]) if x.dtype in ("int32", "int64") else 0
        b.emit("Mod", [x, other], x, shape, bound=max(x.bound, other.bound), fmod=sign)
        return
    if x.is_float and b.chance(0.2) and x.exact and y.exact:
        b.emit("Mod", [x, other], x, shape, bound=x.bound, fmod=1, fraction=None)
        return
    b.emit("Div", [x, other], x, shape, fraction=None if x.is_float else 0)


def power(b: Builder) -> None:
    x = b.floating(30)
    y = b.constant(np.array(b.pick([2.0, 3.0, 1.0, 0.0, 2.0])), b.pick([x.dtype, x.dtype, "int64", "int32"]))
    b.emit("Pow", [x, y], x, bound=max(x.bound, 1) ** y.bound, fraction=None)


def compare(b: Builder) -> None:
    op = b.pick(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    x = b.source(lambda v: v.exact and v.dtype != "bool")
    y = partner(b, x)
    if not y.exact:
        raise Unfit
    b.emit(op, [x, y], x, broadcast(x.shape, y.shape), dtype="bool", bound=1, fraction=0)


def logic(b: Builder) -> None:
    x = b.source(lambda v: v.dtype == "bool")
    op = b.pick(["And", "Or", "Xor", "Not"])
    if op == "Not":
        b.emit(op, [x], x)
        return
    y = partner(b, x)
    b.emit(op, [x, y], x, broadcast(x.shape, y.shape), bound=1)


def bitwise(b: Builder) -> None:
    x = b.source(lambda v: v.dtype in INTEGERS)
    op = b.pick(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"])
    if op == "BitwiseNot":
        if x.dtype in UNSIGNED:
            raise Unfit
        b.emit(op, [x], x, bound=x.bound + 1)
        return
    if op == "BitShift":
        if x.dtype not in UNSIGNED:
            raise Unfit
        by = b.constant(np.array(b.pick([1, 2])), x.dtype)
        direction = b.pick(["LEFT", "RIGHT"])
        bound = x.bound * 4 if direction == "LEFT" else x.bound
        if not _fits_integer(x.dtype, bound, False):
            raise Unfit
        b.emit(op, [x, by], x, bound=bound, direction=direction)
        return
    y = partner(b, x)
    b.emit(op, [x, y], x, broadcast(x.shape, y.shape), bound=2 * max(x.bound, y.bound) + 1)


def where(b: Builder) -> None:
    mask = b.source(lambda v: v.dtype == "bool")

    def fits(v: Value) -> bool:
        try:
            return bool(broadcast(mask.shape, v.shape) is not None)
        except Unfit:
            return False

    x = b.source(lambda v: v.dtype != "bool" and fits(v))
    y = partner(b, x)
    shape = broadcast(mask.shape, broadcast(x.shape, y.shape))
    inputs = [mask, x, y] if b.chance(0.5) else [mask, y, x]
    b.emit("Where", inputs, x, shape, bound=max(x.bound, y.bound), fraction=_most(x.fraction, y.fraction))


def cast(b: Builder) -> None:
    x = b.source()
    to = b.pick(["float16", "bfloat16", "float64", *["float32"] * 4, *INTEGERS, "int32", "int64", "bool"])
    if to == x.dtype or (not x.is_float and to == "bfloat16"):
        raise Unfit
    from tests.differential.graph import onnx_type

    if to == "bool":
        if not x.exact:
            raise Unfit
        b.emit("Cast", [x], x, dtype="bool", bound=1, fraction=0, to=onnx_type("bool"))
        return
    if to in INTEGERS:
        if not x.exact:
            raise Unfit
        if to in UNSIGNED and x.dtype not in (*UNSIGNED, "bool"):
            x = b.emit("Abs", [x], x)
        if not _fits_integer(to, x.bound, False):
            x = small(b, x, min(x.bound, np.iinfo(to).max))
        b.emit("Cast", [x], x, dtype=to, fraction=0, to=onnx_type(to))
        return
    b.emit("Cast", [x], x, dtype=to, to=onnx_type(to))


def special(b: Builder) -> None:
    """NaN and infinities, found and replaced."""
    x = b.source(lambda v: v.is_float and v.dtype in ("float32", "float64") and v.exact)
    zero = b.constant(np.array(0.0), x.dtype)
    odd = b.emit("Div", [x, zero], x, fraction=None)
    found = b.emit(b.pick(["IsNaN", "IsInf"]), [odd], x, dtype="bool", bound=1, fraction=0)
    b.emit("Where", [found, x, zero], x)


STEPS = (
    (smooth, 4), (from_one, 1), (inverse, 0.7), (plain, 3), (rounding, 0.7), (arithmetic, 8), (power, 0.7),
    (compare, 1.5), (logic, 1), (bitwise, 0.8), (where, 1.5), (cast, 2.5), (special, 0.2),
)  # fmt: skip
