"""Arithmetic of shapes and indices, as expressions."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.loops.expr import Expr, binary, const


def product(extents: Sequence[Expr]) -> Expr:
    """The number of elements of a shape."""
    result: Expr = const(1)
    for n in extents:
        result = result * n
    return result


def linear_index(index: Sequence[Expr], shape: Sequence[Expr]) -> Expr:
    """The row-major position of an index."""
    result: Expr = const(0)
    for i, n in zip(index, shape, strict=True):
        result = result * n + i
    return result


def split_index(flat: Expr, shape: Sequence[Expr]) -> list[Expr]:
    """The index of a row-major position; the inverse of `linear_index`."""
    result: list[Expr] = []
    inner: Expr = const(1)
    for d in range(len(shape) - 1, -1, -1):
        quotient = flat // inner
        result.append(quotient if d == 0 else quotient % shape[d])
        inner = inner * shape[d]
    return result[::-1]


def clamp(e: Expr, low: Expr, high: Expr) -> Expr:
    """min(max(e, low), high)."""
    return binary("min", binary("max", e, low), high)
