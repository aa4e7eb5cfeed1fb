"""Axes that an input lists, known now or read at each call.

An axis that is read is a number, so which axes are meant is arithmetic: conditions and positions that are
literals where the axes are constants, and that a plan works out at each call otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Op, Size, binary, cast, const, constant_int, select, unary
from hasten.ops.base import Lowering, Tensor, moved, normalize_axis, symbolic_ints


def index_values(ctx: Lowering, t: Tensor, what: str) -> list[Expr]:
    """The integers of an input as index expressions of sizes; floats are cut off.

    Raises:
        Declined: there are too many, or how many is not known.
    """
    if t.dtype.is_float and ctx.values(t) is None:
        t = ctx.temporary(t.shape, lambda *i: cast(t.at(*i), INDEX), INDEX, "whole")
    return [_as_index(e) for e in symbolic_ints(ctx, t, what)]


def _as_index(e: Expr) -> Expr:
    """A number as an index; one that was read from a narrower type is the same number."""
    if isinstance(e, Op) and e.op == "cast" and isinstance(e.args[0], Size) and not e.dtype.is_float:
        return e.args[0]
    return cast(e, INDEX)


def axis_numbers(ctx: Lowering, t: Tensor | None, rank: int, default: Sequence[int]) -> list[Expr]:
    """The axes that an optional input lists, counted from the front, each once.

    Args:
        ctx: where conditions are stated.
        t: the input.
        rank: of the tensor whose axes they are.
        default: what is meant without the input.

    Raises:
        Declined: one lies outside the rank or is listed twice, or they depend on data that cannot be read.
    """
    if t is None:
        return [const(a) for a in default]
    axes: list[Expr] = []
    for e in index_values(ctx, t, "the list of axes"):
        known = constant_int(e)
        if known is not None:
            axes.append(const(normalize_axis(known, rank)))
            continue
        inside = binary("and", binary("le", const(-rank), e), binary("lt", e, const(rank)))
        ctx.require(inside, f"an axis from {-rank} to {rank - 1}")
        axes.append(select(binary("lt", e, const(0)), e + rank, e))
    for n, a in enumerate(axes):
        for b in axes[:n]:
            ctx.require(binary("ne", a, b), "axes of which none is listed twice")
    return axes


def listed(axes: Sequence[Expr], rank: int) -> list[Expr]:
    """For each axis of a tensor whether it is among some (of BOOL)."""
    result = []
    for d in range(rank):
        found: Expr = const(False, DType.BOOL)
        for a in axes:
            found = binary("or", found, binary("eq", a, const(d)))
        result.append(found)
    return result


def by_axis(axes: Sequence[Expr], values: Sequence[Expr], rank: int, default: Sequence[Expr]) -> list[Expr]:
    """For each axis of a tensor the value that is given for it, or its default."""
    result = []
    for d in range(rank):
        found = default[d]
        for a, value in zip(axes, values, strict=True):
            found = select(binary("eq", a, const(d)), value, found)
        result.append(found)
    return result


def _ranks(flags: Sequence[Expr]) -> list[list[Expr]]:
    """For each axis and each place whether the axis is the one at this place of those not flagged."""
    place: Expr = const(0)
    result = []
    for flag in flags:
        other = unary("not", flag)
        result.append([binary("and", other, binary("eq", place, const(k))) for k in range(len(flags))])
        place = place + cast(other, INDEX)
    return result


def _sum_where(conditions: Sequence[Expr], values: Sequence[Expr]) -> Expr:
    """The value whose condition holds, of which there is one at the most, or 0."""
    result: Expr = const(0)
    for condition, value in zip(conditions, values, strict=True):
        result = select(condition, value, result)
    return result


def without(ctx: Lowering, x: Tensor, axes: Sequence[Expr]) -> Tensor:
    """A tensor without some axes, each of one element."""
    at = _ranks(listed(axes, x.rank))
    count = x.rank - len(axes)
    shape = [_sum_where([at[d][k] for d in range(x.rank)], x.shape) for k in range(count)]
    return moved(ctx, x, shape, lambda i: [_sum_where(at[d][:count], i) for d in range(x.rank)])[0]


def with_ones(ctx: Lowering, x: Tensor, axes: Sequence[Expr]) -> Tensor:
    """A tensor with further axes of one element at the places in the result that are given."""
    rank = x.rank + len(axes)
    flags = listed(axes, rank)
    at = _ranks(flags)
    shape = [select(flags[d], const(1), _sum_where(at[d][: x.rank], x.shape)) for d in range(rank)]
    return moved(
        ctx, x, shape, lambda i: [_sum_where([at[d][s] for d in range(rank)], i) for s in range(x.rank)]
    )[0]


def apart(ctx: Lowering, x: Tensor, axes: Sequence[Expr]) -> Tensor:
    """A tensor with twice as many axes: what some axes leave of each, then what they take of each.

    Its element at (i, r) is that of x at i + r; an axis that is listed has one element in the first half, the
    others have one in the second. So a reduction over axes that are read at each call is one over the second
    half.
    """
    flags = listed(axes, x.rank)
    left = [select(f, const(1), n) for f, n in zip(flags, x.shape, strict=True)]
    taken = [select(f, n, const(1)) for f, n in zip(flags, x.shape, strict=True)]

    def element(*i: Expr) -> Expr:
        return x.at(*(a + b for a, b in zip(i[: x.rank], i[x.rank :], strict=True)))

    return ctx.temporary([*left, *taken], element, x.dtype, "apart")
