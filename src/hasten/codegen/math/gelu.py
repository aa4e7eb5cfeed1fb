"""GELU with the exact error function's meaning, as a polynomial without a division.

x P(Z < x) = max(x, 0) - |x| P(Z > |x|), and the 16th root of the normal tail P(Z > a) is so nearly straight
that a polynomial of degree 6 holds it; four squarings give the tail. Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

from hasten.codegen.math.nodes import at_least, at_most, horner, magnitude, mul, sub
from hasten.loops.expr import Expr

_ROOT = (-1.8613297e-06, -2.9268722e-05, 0.0006390423, -0.0013143456, -0.017827975, -0.047760047, 0.95760363)
_END = 7.695295  # where the root is zero


def gelu_erf(x: Expr) -> Expr:
    """GELU, x (1 + erf(x / sqrt 2)) / 2, of float32, within 5e-7 max(1, |x|).

    Beyond |x| = 7.7 it is max(x, 0).
    """
    a = at_most(magnitude(x), _END)
    tail = horner(a, _ROOT)
    for _ in range(4):
        tail = mul(tail, tail)
    return sub(at_least(x, 0.0), mul(a, tail))
