"""tanh and erf as functions of m(g) = 1 - exp(-g), without cancellation and without a second branch.

With -g = n ln 2 + r it is m = (1 - 2^n) - 2^n (exp(r) - 1): for n = 0 the first part is exactly 0, and for
n < 0 it is at least 1/2. Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

from hasten.codegen.math.exponential import FORMATS
from hasten.codegen.math.nodes import (
    add,
    at_most,
    bits,
    div,
    horner,
    magnitude,
    mul,
    node,
    real,
    sub,
    with_sign_of,
)
from hasten.loops.expr import Expr

_ERF = (
    9.256232e-06,
    -0.000117641015,
    0.0006328361,
    -0.0016670263,
    0.0001603951,
    0.019153064,
    -0.10277783,
    -0.6366194,
    -1.1283792,
)
_ERF_END = 3.95  # erf rounds to 1 from 3.92 on
_TANH_END = 20.0  # tanh rounds to 1 in float64 from 19.1 on


def _one_minus_exp(negative: Expr) -> Expr:
    """1 - exp(x) for -80 < x <= 0, not negative."""
    form = FORMATS[negative.dtype]
    magic = form.magic + form.bias
    shifted = add(mul(negative, form.log2e), magic)
    # ln 2 in one piece: what its rounding does to exp(x) is small against 1
    r = sub(negative, mul(sub(shifted, magic), form.ln2[0] + form.ln2[1]))
    scale = real(node("shl", bits(shifted), form.mantissa))
    minus = add(mul(mul(r, r), horner(r, form.tail)), r)
    return sub(sub(1.0, scale), mul(scale, minus))


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent: tanh |x| = m / (2 - m) with m = 1 - exp(-2 |x|)."""
    m = _one_minus_exp(mul(at_most(magnitude(x), _TANH_END), -2.0))
    return with_sign_of(div(m, sub(2.0, m)), x)


def erf_f32(x: Expr) -> Expr:
    """The error function of float32: erf |x| = 1 - exp(|x| p(|x|))."""
    a = at_most(magnitude(x), _ERF_END)
    return with_sign_of(_one_minus_exp(mul(a, horner(a, _ERF))), x)
