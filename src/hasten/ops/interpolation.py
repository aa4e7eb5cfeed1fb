"""Weights of interpolation between neighbouring elements."""

from __future__ import annotations

from hasten.loops.expr import Expr, binary, const


def linear_weights(t: Expr) -> list[Expr]:
    """Weights of the elements at 0 and 1 for a position t between them."""
    return [binary("sub", const(1, t.dtype), t), t]


def cubic_weights(t: Expr, a: float) -> list[Expr]:
    """Weights of the elements at -1, 0, 1 and 2 for a position t between those at 0 and 1.

    Cubic convolution (Keys, "Cubic convolution interpolation for digital image processing", 1981).

    Args:
        t: the position, in [0, 1).
        a: the parameter of the kernel.
    """

    def polynomial(s: Expr, *factors: float) -> Expr:
        """In Horner's form, the highest power first."""
        result: Expr = const(factors[0], s.dtype)
        for f in factors[1:]:
            result = binary("mul", result, s)
            if f:
                result = binary("add", result, const(f, s.dtype))
        return result

    near = (a + 2, -(a + 3), 0, 1)
    far = (a, -5 * a, 8 * a, -4 * a)
    one = const(1, t.dtype)
    left, right = binary("add", t, one), binary("sub", one, t)
    return [
        polynomial(left, *far),
        polynomial(t, *near),
        polynomial(right, *near),
        polynomial(binary("add", right, one), *far),
    ]


def weighted(elements: list[Expr], weights: list[Expr]) -> Expr:
    """The sum of products."""
    result: Expr | None = None
    for e, w in zip(elements, weights, strict=True):
        term = binary("mul", e, w)
        result = term if result is None else binary("add", result, term)
    assert result is not None
    return result
