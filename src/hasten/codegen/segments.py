"""Parts of a loop that are computed in different ways, such as the parts of a concatenation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hasten.codegen.vectorize import coefficient
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Op,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)

MOST = 8
"""Parts that a loop is divided into at the most: each is a loop of its own."""


def segments(
    values: Sequence[Expr], v: Var, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int, tuple[Expr, ...]]]:
    """Divides the range of a variable where conditions, bounds and quotients of it alone change.

    Args:
        values: what is computed for each value of the variable.
        v: its variable, of a known extent.
        start: the first of its values.
        stop: behind the last of them, by default its extent.

    Yields:
        First and last value (exclusive) of each part, and `values` there: without those conditions, with one
        side of each bound, and with remainders as differences.
    """
    if stop is None:
        stop = constant_int(v.extent)
        assert stop is not None
    found = {t for e in values for n in walk(e) for t in _changes(n, v, start, stop)}
    cuts = sorted(t for t in found if start < t < stop)
    if not 0 < len(cuts) < MOST:
        yield start, stop, tuple(values)
        return
    for first, last in itertools.pairwise([start, *cuts, stop]):
        here, before = _all_decided(values, v, first, last), tuple(values)
        while here != before:  # what was decided may stand in a condition that had no other unknown
            here, before = _all_decided(here, v, first, last), here
        yield from segments(here, v, first, last)


def _all_decided(values: Sequence[Expr], v: Var, start: int, stop: int) -> tuple[Expr, ...]:
    return tuple(transform(e, lambda n: _decided(n, v, start, stop)) for e in values)


def _changes(e: Expr, v: Var, start: int, stop: int) -> Iterator[int]:
    """The values of a variable from which on an expression of it alone is another one than before."""
    if not isinstance(e, Op) or e.lanes > 1 or len(e.args) != 2 or e.args[0].dtype is not INDEX:
        return
    threshold = _threshold(e if e.dtype is DType.BOOL else _order(e), v)
    if threshold is not None:
        yield threshold
    line = _quotient(e, v)
    if line is not None:
        step, rest, by = line
        low, high = (step * start + rest) // by, (step * (stop - 1) + rest) // by
        if 0 < high - low < MOST:
            yield from (-((rest - q * by) // step) for q in range(low + 1, high + 1))


def _decided(e: Expr, v: Var, start: int, stop: int) -> Expr | None:
    """What an expression is for a part of a variable's range, or None where that is not one thing."""
    if not isinstance(e, Op) or e.lanes > 1 or len(e.args) != 2 or e.args[0].dtype is not INDEX:
        return None
    if e.dtype is DType.BOOL or e.op in ("min", "max"):
        order = e if e.dtype is DType.BOOL else _order(e)
        threshold = _threshold(order, v)
        if threshold is None or start < threshold < stop:
            return None
        known = substitute(order, {v: const(start)})
        if not isinstance(known, Const) or e.dtype is DType.BOOL:
            return known if isinstance(known, Const) else None
        return e.args[0] if bool(known.value) == (e.op == "min") else e.args[1]
    line = _quotient(e, v)
    if line is None:
        return None
    step, rest, by = line
    quotient = (step * start + rest) // by
    if quotient != (step * (stop - 1) + rest) // by:
        return None
    return const(quotient) if e.op == "floordiv" else e.args[0] - quotient * by


def _order(e: Op) -> Expr:
    """That the first of two bounds is not above the other."""
    return binary("le", *e.args) if e.op in ("min", "max") else e


def _quotient(e: Op, v: Var) -> tuple[int, int, int] | None:
    """(a, b, c) of a quotient or remainder of a * v + b by c, a and c positive."""
    if e.op not in ("floordiv", "mod") or free_vars(e) != frozenset((v,)):
        return None
    step = constant_int(coefficient(e.args[0], v) or const(0))
    rest, by = constant_int(substitute(e.args[0], {v: const(0)})), constant_int(e.args[1])
    if step is None or rest is None or by is None or step <= 0 or by <= 0:
        return None
    return step, rest, by


def _threshold(e: Expr, v: Var) -> int | None:
    """The value of a variable from which on a condition on it alone is another one than before."""
    if not isinstance(e, Op) or e.op not in ("lt", "le") or e.args[0].dtype is not INDEX or e.lanes > 1:
        return None
    if e.dtype is not DType.BOOL or free_vars(e) != frozenset((v,)):
        return None
    margin = e.args[1] - e.args[0] - (1 if e.op == "lt" else 0)  # not negative where it holds
    step, rest = constant_int(coefficient(margin, v)), constant_int(substitute(margin, {v: const(0)}))
    if not step or rest is None:
        return None
    return -(rest // step) if step > 0 else rest // -step + 1
