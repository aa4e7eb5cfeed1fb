"""From scalar expressions to vectors: `lanes` consecutive values of one variable at a time."""

from __future__ import annotations

from dataclasses import replace

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Bounded,
    Expr,
    Load,
    Op,
    Ramp,
    Reduce,
    Var,
    children,
    const,
    constant_int,
    free_vars,
    substitute,
    walk,
)
from hasten.loops.simplify import from_poly, to_poly


def coefficient(address: Expr, v: Var) -> Expr | None:
    """The factor of `v` in an index that is linear in it, or None where it is not linear."""
    factor: dict[tuple[Expr, ...], int] = {}
    for atoms, c in to_poly(address).items():
        occurrences = [a for a in atoms if a == v]
        if not occurrences:
            if any(v in free_vars(a) for a in atoms):
                return None
            continue
        rest = tuple(a for a in atoms if a != v)
        if len(occurrences) > 1 or any(v in free_vars(a) for a in rest):
            return None
        factor[rest] = factor.get(rest, 0) + c
    return from_poly(factor)


def vectorizable(e: Expr, v: Var, *, gathers: bool = False) -> bool:
    """Whether `lanes` values of `e` for consecutive `v` can be computed at once.

    Every load that depends on `v` must be contiguous in it (or `gathers` allowed), and no choice that
    depends on `v` may guard a load, since a vector evaluates both branches.
    """
    for node in walk(e):
        if v not in free_vars(node):
            continue
        if isinstance(node, Load):
            if constant_int(coefficient(node.index[-1], v) or const(0)) != 1 and not gathers:
                return False
        elif isinstance(node, Bounded):
            return False
        elif isinstance(node, Op) and node.op == "select" and v in free_vars(node.args[0]):
            if any(isinstance(n, Load) for arm in node.args[1:] for n in walk(arm)):
                return False
        elif node.dtype not in _VECTOR_TYPES and not isinstance(node, Var) and not _is_index(node):
            return False
    return True


_VECTOR_TYPES = frozenset(
    {DType.F32, DType.F64, DType.BF16, DType.F16, DType.I32, DType.I64, DType.BOOL, DType.U8, DType.I8}
)


def _is_index(e: Expr) -> bool:
    return e.dtype is INDEX


def vectorize(e: Expr, v: Var, base: Expr, lanes: int) -> Expr:
    """`e` for v = base, base + 1, ..., base + lanes - 1 as one vector expression.

    Parts that do not depend on `v` stay scalar; with `lanes` 1 the result is `e` at `base`.
    """
    if lanes == 1:
        return substitute(e, {v: base})
    memo: dict[Expr, Expr] = {}

    def go(node: Expr) -> Expr:
        if v not in free_vars(node):
            return node
        if node not in memo:
            memo[node] = _vector_node(node, v, base, lanes, [go(c) for c in children(node)])
        return memo[node]

    return go(e)


def _vector_node(node: Expr, v: Var, base: Expr, lanes: int, parts: list[Expr]) -> Expr:
    if isinstance(node, Var):
        return Ramp(INDEX, base, const(1), lanes=lanes)
    if isinstance(node, Load):
        address = node.index[-1]
        factor = coefficient(address, v)
        if factor is None:
            return Load(node.dtype, node.buffer, (*node.index[:-1], parts[-1]), lanes=lanes)
        first = substitute(address, {v: base})
        if constant_int(factor) != 1:
            first = Ramp(INDEX, first, factor, lanes=lanes)
        return Load(node.dtype, node.buffer, (*node.index[:-1], first), lanes=lanes)
    if node.dtype is INDEX and isinstance(node, Op) and node.op in ("add", "sub", "mul"):
        factor = coefficient(node, v)
        if factor is not None:
            return Ramp(INDEX, substitute(node, {v: base}), factor, lanes=lanes)
    if isinstance(node, Op):
        return replace(node, args=tuple(parts), lanes=lanes)
    if isinstance(node, Reduce):
        return replace(node, body=parts[0], lanes=lanes)
    raise TypeError(f"no vector form of {type(node).__name__}")
