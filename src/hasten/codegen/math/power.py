"""x^y of float32 = 2^(y log2 |x|), in float64, so that the product keeps enough digits.

Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

from hasten.codegen.math.logarithm import split_f32
from hasten.codegen.math.nodes import (
    INFINITY,
    NAN,
    SIGN_BIT,
    add,
    at_least,
    at_most,
    bits,
    choose,
    choose_of,
    convert,
    div,
    equal,
    horner,
    less,
    magnitude,
    mul,
    node,
    real,
    sub,
)
from hasten.loops.dtypes import DType
from hasten.loops.expr import Const, Expr

_EXP2 = (
    0.00015345826787040444,
    0.0013399931455895923,
    0.009618488910856976,
    0.05550328776277952,
    0.24022646890819693,
    0.6931472057376759,
    1.0000000005543181,
)
_LOG2 = (
    -0.06973953554587847,
    0.13251246947511797,
    -0.13462935393419198,
    0.13027550518187098,
    -0.14249860275694506,
    0.1602166770063009,
    -0.1804367548721222,
    0.20610712269616543,
    -0.24044643337376648,
    0.28853879573447194,
    -0.36067379314128895,
    0.48089834880279675,
    -0.7213475203275281,
    1.4426950408865746,
)
_MAGIC = 6755399441055744.0 + 1023.0
_HUGE = 1e300  # stands for the logarithm of infinity; finite, so that 0 * log is 0
_LARGEST = 3.4028234663852886e38


def _log2(a: Expr) -> Expr:
    """log2 a as float64 for a float32 a >= 0, infinity included."""
    f, e = split_f32(a)
    wide = convert(f, DType.F64)
    value = add(mul(wide, horner(wide, _LOG2)), convert(e, DType.F64))
    beyond = choose_of(DType.F64, equal(a, 0.0), -_HUGE, _HUGE)
    inside = choose(less(a, INFINITY), choose(less(0.0, a), value, beyond), beyond)
    return choose(equal(a, a), inside, NAN)


def _exp2(t: Expr) -> Expr:
    """2^t in float64, held between 2^-200 and 2^200, which float32 rounds to 0 and infinity."""
    t = at_least(at_most(t, 200.0), -200.0)
    shifted = add(t, _MAGIC)
    scale = real(node("shl", bits(shifted), 52))
    return mul(horner(sub(t, sub(shifted, _MAGIC)), _EXP2), scale)


def _constant_exponent(x: Expr, y: float) -> Expr | None:
    if y == 1.0:
        return x
    if y == 2.0:
        return mul(x, x)
    if y == 3.0:
        return mul(mul(x, x), x)
    if y == -1.0:
        return div(1.0, x)
    if y == 0.5:  # the sum makes +0 of -0
        return choose(equal(x, -INFINITY), INFINITY, node("sqrt", add(x, 0.0)))
    return None


def pow_f32(x: Expr, y: Expr) -> Expr:
    """x^y, with the edge cases of C's Annex F."""
    if isinstance(y, Const):
        short = _constant_exponent(x, float(y.value))
        if short is not None:
            return short
    exponent = at_least(at_most(y, _LARGEST), -_LARGEST)
    power = mul(convert(exponent, DType.F64), _log2(magnitude(x)))
    size = convert(_exp2(power), DType.F32)
    half = mul(y, 0.5)
    whole = equal(node("floor", y), y)
    # odd: whole, and its half is not (every float32 of 2^24 or more is even)
    even = equal(node("floor", half), half)
    sign = node("bitand", bits(x), SIGN_BIT[DType.I32])
    odd_sign = choose(whole, choose(even, 0, sign), 0)
    result = real(node("bitor", bits(size), odd_sign))
    # a negative number to a broken power has no value, except for -infinity
    negative = choose(whole, result, choose(equal(x, -INFINITY), result, NAN))
    result = choose(less(x, 0.0), negative, result)
    return choose(equal(y, 0.0), 1.0, choose(equal(x, 1.0), 1.0, result))
