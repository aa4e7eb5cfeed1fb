"""The natural logarithm: x = 2^e m with m in [sqrt 1/2, sqrt 2), log x = e ln 2 + log m.

Coefficients: tools/fit_math.py. The series in float64 is the one of fdlibm's e_log.c (Sun, 1993).
"""

from __future__ import annotations

from hasten.codegen.math.exponential import FORMATS
from hasten.codegen.math.nodes import (
    INFINITY,
    NAN,
    add,
    bits,
    choose,
    choose_of,
    convert,
    div,
    equal,
    horner,
    less,
    mul,
    node,
    real,
    sub,
)
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr

_LOG = (
    -0.07634473,
    0.12761562,
    -0.13160186,
    0.14201762,
    -0.16623357,
    0.20001227,
    -0.2500082,
    0.3333333,
)
_LOG_F64 = (
    0.14795948247573382,
    0.15314050713515662,
    0.1818356431905359,
    0.22222198573338275,
    0.2857142874238591,
    0.39999999999414687,
    0.6666666666666734,
)
_LN2_F32 = FORMATS[DType.F32].ln2
_LN2_F64 = FORMATS[DType.F64].ln2
_SQRT_HALF_F32, _ONE_F32 = 0x3F3504F3, 0x3F800000
_SQRT_HALF_F64, _ONE_F64 = 0x3FE6A09E667F3BCD, 0x3FF0000000000000
_TWO_52_BITS, _TWO_52 = 0x4330000000000000, 4503599627370496.0


def split_f32(x: Expr) -> tuple[Expr, Expr]:
    """The parts m - 1 and e (as float32) of a float32 x > 0, also a subnormal one."""
    tiny = less(x, 1.17549435e-38)
    normal = choose(tiny, mul(x, 8388608.0), x)
    moved = add(bits(normal), _ONE_F32 - _SQRT_HALF_F32)
    m = real(add(node("bitand", moved, 0x7FFFFF), _SQRT_HALF_F32))
    e = convert(node("shr", moved, 23), DType.F32)
    return sub(m, 1.0), sub(e, choose_of(DType.F32, tiny, 150.0, 127.0))


def _edges(x: Expr, result: Expr) -> Expr:
    """The logarithm where `result` does not hold: infinity and NaN, zero, and what is negative."""
    outside = choose_of(x.dtype, equal(x, 0.0), -INFINITY, NAN)
    return choose(less(0.0, x), choose(less(x, INFINITY), result, x), outside)


def log_f32(x: Expr) -> Expr:
    """The logarithm, e ln 2 + f - f^2 / 2 + f^3 p(f) with f = m - 1."""
    f, e = split_f32(x)
    square = mul(f, f)
    tail = add(mul(mul(square, f), horner(f, _LOG)), mul(e, _LN2_F32[1]))
    return _edges(x, add(mul(e, _LN2_F32[0]), add(f, sub(tail, mul(square, 0.5)))))


def log_f64(x: Expr) -> Expr:
    """The logarithm, e ln 2 + f - (f^2 / 2 - s (f^2 / 2 + q(s^2))) with s = f / (2 + f)."""
    tiny = less(x, 2.2250738585072014e-308)
    normal = choose(tiny, mul(x, 18014398509481984.0), x)
    moved = add(bits(normal), _ONE_F64 - _SQRT_HALF_F64)
    f = sub(real(add(node("bitand", moved, (1 << 52) - 1), _SQRT_HALF_F64)), 1.0)
    # a small integer placed in the mantissa of 2^52 becomes a float without a conversion
    raised = real(node("bitor", node("shr", moved, 52), _TWO_52_BITS))
    e = sub(raised, choose_of(DType.F64, tiny, _TWO_52 + 1077.0, _TWO_52 + 1023.0))
    s = div(f, add(f, 2.0))
    z = mul(s, s)
    half = mul(mul(f, f), 0.5)
    rest = add(mul(s, add(half, mul(z, horner(z, _LOG_F64)))), mul(e, _LN2_F64[1]))
    return _edges(x, add(mul(e, _LN2_F64[0]), sub(f, sub(half, rest))))
