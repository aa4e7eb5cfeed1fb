"""Broadcasting where sizes are known in a run only (docs/decisions/0035-broadcasting.md).

An axis of one element repeats. Whether a free size is 1 is known at each call, so of two sizes that have
nothing in common the result's is the one that is not 1, and what may repeat is read at index 0 where it does.
Sizes that are worked out of the same free size are taken to be meant as equal, which each call checks: then
nothing is asked where elements are computed, and what follows keeps one name for one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hasten.loops.expr import Const, Expr, Op, Size, binary, const, constant_int, select, walk
from hasten.loops.simplify import infix, to_poly
from hasten.ops.base import Declined, Lowering, Tensor
from hasten.ops.lengths import is_at_most

View = Callable[..., Expr]
"""The element of a tensor at an index of a shape that it broadcasts to."""


def broadcast(ctx: Lowering, tensors: Sequence[Tensor]) -> tuple[tuple[Expr, ...], list[View]]:
    """The shape that tensors broadcast to (NumPy's rule), and each of them as it is there."""
    shape = joint_shape(ctx, *(t.shape for t in tensors))
    return shape, [spread(ctx, t, shape) for t in tensors]


def joint_shape(ctx: Lowering, *shapes: Sequence[Expr]) -> tuple[Expr, ...]:
    """The shape that all of them broadcast to; `spread` states what must hold for each."""
    rank = max((len(s) for s in shapes), default=0)
    return tuple(
        _joint_size(ctx, [s[d - rank + len(s)] for s in shapes if d - rank + len(s) >= 0])
        for d in range(rank)
    )


def spread(ctx: Lowering, t: Tensor, shape: Sequence[Expr]) -> View:
    """A tensor as it is in a shape that it broadcasts to.

    Raises:
        Declined: it provably does not.
    """
    if t.rank > len(shape):
        raise Declined(f"'{t.name}' has rank {t.rank}, more than the {len(shape)} of what it is for")
    once = repeated(ctx, t.shape, shape)

    def view(*index: Expr) -> Expr:
        tail = index[len(index) - t.rank :]
        at = [select(one, const(0), i) for one, i in zip(once, tail, strict=True)]
        if not once or isinstance(once[-1], Const):
            return t.at(*at)
        # Along the last axis vectors are read: whole ones, or one element for all.
        return select(once[-1], t.at(*at[:-1], const(0)), t.at(*at[:-1], tail[-1]))

    return view


def repeated(ctx: Lowering, dims: Sequence[Expr], shape: Sequence[Expr]) -> list[Expr]:
    """For each axis of a tensor whether it repeats in a shape that the tensor must broadcast to.

    Conditions are mostly known now; what must hold beyond them is stated.
    """
    tail = shape[len(shape) - len(dims) :]
    return [_repeats(ctx, n, whole, shape) for n, whole in zip(dims, tail, strict=True)]


def _repeats(ctx: Lowering, n: Expr, whole: Expr, shape: Sequence[Expr]) -> Expr:
    """Whether an axis of n elements repeats along one of another size: a condition, mostly known now."""
    no, yes = const(0), const(1)
    if constant_int(n) == 1:
        return binary("eq", yes, yes)
    never = binary("eq", no, yes)
    if n == whole:
        return never
    if _single(ctx, n):
        ctx.require_some(n, shape)
        return binary("eq", yes, yes)
    parts, mine = _parts(ctx, whole), _parts(ctx, n)
    partners = {e: next((p for p in parts if e == p or _related(ctx, e, p)), None) for e in mine}
    for e, partner in partners.items():
        if partner is not None:
            ctx.require_equal(e, partner)
    if set(partners.values()) == set(parts):
        return never
    if not _may_be_one(ctx, n):
        ctx.require_equal(n, whole)
        return never
    fits = binary("or", binary("eq", n, yes), binary("eq", n, whole))
    meant = parts if set(mine) <= set(parts) else (*mine, *parts)
    names = [infix(e, ctx.program.derived) for e in meant]
    ctx.require(fits, f"{' == '.join(names)}, or 1")
    return binary("eq", n, yes)


def _joint_size(ctx: Lowering, sizes: Sequence[Expr]) -> Expr:
    """The size that axes of these sizes broadcast to."""
    wide = [n for n in sizes if constant_int(n) != 1 and not _single(ctx, n)]
    if not wide:
        return next((n for n in sizes if not isinstance(n, Const)), const(1))
    literal = next((n for n in wide if isinstance(n, Const)), None)
    if literal is not None:
        return literal
    parts: list[Expr] = []
    for part in (p for n in wide for p in _parts(ctx, n)):
        if not any(part == p or _related(ctx, part, p) for p in parts):
            parts.append(part)
    sure = next((p for p in parts if not _may_be_one(ctx, p)), None)
    if sure is not None:
        return sure
    known = next((n for n in wide if set(_parts(ctx, n)) == set(parts)), None)
    if known is not None:
        return known
    *others, result = parts
    for p in reversed(others):
        result = select(binary("ne", p, const(1)), p, result)
    return ctx.dim(result)


def _parts(ctx: Lowering, n: Expr) -> tuple[Expr, ...]:
    """The sizes of which the first that is not 1 is this one: itself, where it is no such choice."""
    found: list[Expr] = []
    e = ctx.program.derived.get(n.name, n) if isinstance(n, Size) else n
    while isinstance(e, Op) and e.op == "select" and e.args[0] == binary("ne", e.args[1], const(1)):
        found.append(e.args[1])
        e = e.args[2]
    return (*found, e) if found else (n,)


def _single(ctx: Lowering, n: Expr) -> bool:
    """Whether a size that is not known can be nothing but 0 or 1, as that of `x[1:2]`."""
    return not isinstance(n, Const) and is_at_most(ctx.spelled_out(n), const(1))


def _related(ctx: Lowering, a: Expr, b: Expr) -> bool:
    """Whether two sizes are worked out of a common one."""
    first, second = ({n.name for n in walk(ctx.spelled_out(e)) if isinstance(n, Size)} for e in (a, b))
    return bool(first & second)


def _may_be_one(ctx: Lowering, n: Expr) -> bool:
    e = ctx.spelled_out(n)
    return math.gcd(*to_poly(e).values()) <= 1 and constant_int(binary("eq", e, const(1))) != 0
