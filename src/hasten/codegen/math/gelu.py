"""GELU with the exact error function's meaning, as a polynomial without a division.

x P(Z < x) = max(x, 0) - |x| P(Z > |x|), and the 16th root of the normal tail P(Z > a) is so nearly straight
that a polynomial of degree 6 holds it; four squarings give the tail. Of the 8th root degree 4 holds as much
as bytes can tell. Coefficients: tools/fit_math.py.
"""

from __future__ import annotations

from hasten.codegen.math.nodes import at_least, at_most, horner, magnitude, mul, sub
from hasten.loops.expr import Expr

_ROOT = (-1.8613297e-06, -2.9268722e-05, 0.0006390423, -0.0013143456, -0.017827975, -0.047760047, 0.95760363)
_END = 7.695295  # where the root is zero


_NEAR_ROOT = (0.0005414721, 0.0025078657, -0.03572176, -0.08969467, 0.916767)
_NEAR_END = 5.0

NEAR = 5.5e-5
"""Most by which `gelu_near` is off."""


def gelu_erf(x: Expr) -> Expr:
    """GELU, x (1 + erf(x / sqrt 2)) / 2, of float32, within 5e-7 max(1, |x|).

    Beyond |x| = 7.7 it is max(x, 0).
    """
    return _gelu(x, _ROOT, _END, squarings=4)


def gelu_near(x: Expr) -> Expr:
    """The same within `NEAR`, in two thirds of the operations: for what is rounded to far larger steps."""
    return _gelu(x, _NEAR_ROOT, _NEAR_END, squarings=3)


def _gelu(x: Expr, root: tuple[float, ...], end: float, squarings: int) -> Expr:
    a = at_most(magnitude(x), end)
    tail = horner(a, root)
    for _ in range(squarings):
        tail = mul(tail, tail)
    return sub(at_least(x, 0.0), mul(a, tail))
