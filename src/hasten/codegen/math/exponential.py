"""exp, its relaxed form for soft-max, and sigmoid: x = n ln 2 + r, exp(x) = 2^n exp(r).

n is found by adding a large constant whose last bit is worth 1 (Cody and Waite, Software Manual for the
Elementary Functions, 1980, give the reduction in two steps), so that n stands in the low bits of the sum,
ready to be moved to the exponent. Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.math.nodes import (
    add,
    at_least,
    at_most,
    bits,
    div,
    horner,
    mul,
    node,
    real,
    sub,
)
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr


@dataclass(frozen=True)
class Format:
    """Constants of one float type.

    Attributes:
        mantissa: bits of the mantissa, without the hidden one.
        bias: of the exponent.
        magic: 1.5 * 2^mantissa.
        ln2: ln 2 in two parts, the first short enough for exact products with n.
        tail: coefficients of (exp(r) - 1 - r) / r^2.
        log2e: 1 / ln 2.
        lowest: exp of less is 0.
        highest: exp of more is infinite.
    """

    mantissa: int
    bias: int
    magic: float
    ln2: tuple[float, float]
    tail: tuple[float, ...]
    log2e: float
    lowest: float
    highest: float

    @property
    def flush(self) -> float:
        """An argument for which 2^n is just below the normal numbers."""
        return -(self.bias - 0.05) / self.log2e

    @property
    def saturate(self) -> float:
        """An argument for which 2^n is just above the finite numbers."""
        return (self.bias + 0.95) / self.log2e


_FAST_TAIL = (0.008312405, 0.041890983, 0.16667119, 0.49999225)
# Of 2^-r on [-1/2, 1/2], within 7.5e-5 of itself.
_SHORT = (-0.05517164, 0.24261111, -0.69326097, 0.99992806)


FORMATS = {
    DType.F32: Format(
        mantissa=23,
        bias=127,
        magic=12582912.0,
        ln2=(0.693145751953125, 1.4286068203094172e-06),
        tail=(0.0013814322, 0.008368851, 0.0416684, 0.1666652, 0.49999994),
        log2e=1.44269504,
        lowest=-104.0,
        highest=89.0,
    ),
    DType.F64: Format(
        mantissa=52,
        bias=1023,
        magic=6755399441055744.0,
        ln2=(0.6931471803691238, 1.9082149292705877e-10),
        tail=(
            2.5161765613132828e-08,
            2.762850396161962e-07,
            2.7557115387424293e-06,
            2.48014990764277e-05,
            0.00019841269988566757,
            0.0013888888936728274,
            0.008333333333292616,
            0.0416666666665608,
            0.16666666666666696,
            0.5000000000000007,
        ),
        log2e=1.4426950408889634,
        lowest=-746.0,
        highest=710.0,
    ),
}


def _reduce(x: Expr, form: Format, bias: int, sign: float = 1.0) -> tuple[Expr, Expr]:
    """The sum that holds n + bias in its low bits, and r, for sign * x = n ln 2 + r."""
    magic = form.magic + bias
    shifted = add(mul(x, sign * form.log2e), magic)
    n = sub(shifted, magic)
    high, low = form.ln2
    r = sub(node("neg", x) if sign < 0 else x, mul(n, high))
    return shifted, sub(r, mul(n, low))


def _exp1(r: Expr, tail: tuple[float, ...]) -> Expr:
    """exp(r)."""
    return horner(r, (*tail, 1.0, 1.0))


def exp(x: Expr) -> Expr:
    """e^x over the full range; the scale is applied in two halves, so that results may be subnormal."""
    form = FORMATS[x.dtype]
    x = at_least(at_most(x, form.highest), form.lowest)
    shifted, r = _reduce(x, form, 2 * form.bias)
    both = bits(shifted)  # n + twice the bias; the bits of the constant above it vanish in the shift
    half = node("shr", both, 1)
    first = real(node("shl", half, form.mantissa))
    second = real(node("shl", sub(both, half), form.mantissa))
    return mul(mul(_exp1(r, form.tail), first), second)


def _exp_flushed(x: Expr, form: Format, tail: tuple[float, ...], sign: float = 1.0) -> Expr:
    shifted, r = _reduce(x, form, form.bias, sign)
    # n = -bias makes this scale 0, n = bias + 1 makes it infinite
    scale = real(node("shl", bits(shifted), form.mantissa))
    return mul(_exp1(r, tail), scale)


def exp_nonpositive(x: Expr) -> Expr:
    """e^x of a float32 x <= 0, for soft-max: results below 2^-126.5 are 0, and one step less is exact."""
    form = FORMATS[DType.F32]
    return _exp_flushed(at_least(x, form.flush), form, _FAST_TAIL)


def exp_for_bf16(x: Expr) -> Expr:
    """e^x of a float32 x <= 0 within 2^-13 of itself, for what is rounded to bf16; below 2^-126.5 it is 0.

    The reduction is by powers of two, in one step: r = x / ln 2 - n is exact where the multiply-add is fused,
    and off by less than 2^-17 where it is not.
    """
    form = FORMATS[DType.F32]
    x, magic = at_least(x, form.flush), form.magic + form.bias
    shifted = add(mul(x, form.log2e), magic)
    # The negative of r: its product is none that the sum above has, so that both are fused.
    r = add(mul(x, -form.log2e), sub(shifted, magic))
    return mul(horner(r, _SHORT), real(node("shl", bits(shifted), form.mantissa)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x); results below the normal numbers are 0 (an error of less than 2^-127)."""
    form = FORMATS[x.dtype]
    x = at_least(at_most(x, -form.flush), -form.saturate)
    return div(1.0, add(_exp_flushed(x, form, form.tail, -1.0), 1.0))
