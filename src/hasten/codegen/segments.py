"""Parts of a loop that are computed in different ways, such as the parts of a concatenation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hasten.codegen.vectorize import coefficient
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Op,
    Var,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)

MOST = 8
"""Parts that a loop is divided into at the most: each is a loop of its own."""


def segments(value: Expr, v: Var) -> Iterator[tuple[int, int, Expr]]:
    """Divides the range of a variable where conditions on it alone change.

    Args:
        value: what is computed for each value of the variable.
        v: its variable, of a known extent.

    Yields:
        First and last value (exclusive) of each part, and `value` there, without those conditions.
    """
    extent = constant_int(v.extent)
    assert extent is not None
    cuts = {t for n in walk(value) if (t := _threshold(n, v)) is not None and 0 < t < extent}
    if not cuts or len(cuts) >= MOST:
        yield 0, extent, value
        return
    for start, stop in itertools.pairwise([0, *sorted(cuts), extent]):

        def decided(n: Expr, at: int = start) -> Expr | None:
            if _threshold(n, v) is None:
                return None
            known = substitute(n, {v: const(at)})
            return known if isinstance(known, Const) else None

        yield start, stop, transform(value, decided)


def _threshold(e: Expr, v: Var) -> int | None:
    """The value of a variable from which on a condition on it alone is another one than before."""
    if not isinstance(e, Op) or e.op not in ("lt", "le") or e.args[0].dtype is not INDEX or e.lanes > 1:
        return None
    if e.dtype is not DType.BOOL or free_vars(e) != frozenset((v,)):
        return None
    margin = e.args[1] - e.args[0] - (1 if e.op == "lt" else 0)  # not negative where it holds
    step, rest = coefficient(margin, v), constant_int(substitute(margin, {v: const(0)}))
    if step is None or rest is None or constant_int(step) not in (1, -1):
        return None
    return -rest if constant_int(step) == 1 else rest + 1
