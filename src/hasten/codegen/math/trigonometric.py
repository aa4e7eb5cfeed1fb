"""sin and cos of float32 over the full range, with float64 for the reduction to a quarter circle.

x / 2 pi modulo 1 is the sum of x times six pieces of 1 / 2 pi. The pieces but the last have 29 bits, so
their products with the 24 bits of x are exact in float64, and so is taking away their whole turns: the idea
of Payne and Hanek (Radian reduction for trigonometric functions, 1983). Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

import math

from hasten.codegen.math.nodes import add, bits, choose, convert, equal, horner, mul, node, real, sub
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr

_SIN = (-0.00019514629, 0.008332156, -0.16666655)
_COS = (2.443773e-05, -0.0013887362, 0.041666646, -0.5, 1.0)
_TURNS = (
    0.15915494225919247,
    8.327028684640414e-10,
    5.69002511952534e-19,
    6.317065083361892e-27,
    5.595982707708916e-36,
    6.551007778024304e-45,
)


def _quarter(x: Expr) -> tuple[Expr, Expr]:
    """(q, r) with x = q pi / 2 + r modulo 2 pi and |r| <= pi / 4, as int32 and float32."""
    wide = convert(x, DType.F64)
    turns = []
    for piece in _TURNS[:-1]:
        product = mul(wide, piece)
        turns.append(sub(product, node("round", product)))
    turns.append(mul(wide, _TURNS[-1]))
    total = turns[0]
    for t in turns[1:]:
        total = add(total, t)
    quarters = node("round", mul(total, 4.0))
    # Quarters go first: what cancels then cancels exactly, and r is good relative to itself.
    rest = sub(turns[0], mul(quarters, 0.25))
    for t in turns[1:]:
        rest = add(rest, t)
    return convert(quarters, DType.I32), convert(mul(rest, 2.0 * math.pi), DType.F32)


def _circle(q: Expr, r: Expr) -> Expr:
    """sin(q pi / 2 + r)."""
    square = mul(r, r)
    sine = add(mul(mul(square, r), horner(square, _SIN)), r)
    cosine = horner(square, _COS)
    value = choose(equal(node("bitand", q, 1), 0), sine, cosine)
    sign = node("shl", node("bitand", q, 2), 30)
    return real(node("bitxor", bits(value), sign))


def sin_f32(x: Expr) -> Expr:
    """The sine; NaN for infinities."""
    return choose(equal(x, 0.0), x, _circle(*_quarter(x)))  # the reduction loses the sign of -0


def cos_f32(x: Expr) -> Expr:
    """The cosine; NaN for infinities."""
    q, r = _quarter(x)
    return _circle(add(q, 1), r)
