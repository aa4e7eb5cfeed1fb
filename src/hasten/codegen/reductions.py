"""Schedules the reductions inside an expression: loops with accumulators, as far out as they can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hasten.codegen.vectorize import vectorizable, vectorize
from hasten.codegen.window import Window, find_window
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Op,
    Reduce,
    Var,
    binary,
    children,
    const,
    constant_int,
    free_vars,
    substitute,
)
from hasten.loops.nest import Declare, For, If, Let, Stmt, Store

WIDE = 4
"""Vectors per accumulator where the extent allows it, to hide the latency of an addition."""

UNROLLED_WINDOW = 25
"""Largest number of iterations of inner loops that are unrolled (pooling and convolution windows)."""


@dataclass
class Names:
    """Gives local variables names that are unique in a function."""

    _counter: Iterator[int] = field(default_factory=itertools.count)

    def next(self, hint: str) -> str:
        """hint0, hint1, ..."""
        return f"{hint}{next(self._counter)}"


def neutral(op: str, dtype: DType) -> Const:
    """The result of a reduction over nothing."""
    if op in ("sum", "prod"):
        return const(0 if op == "sum" else 1, dtype)
    if dtype.is_float:
        return const(float("-inf") if op == "max" else float("inf"), dtype)
    if dtype is DType.BOOL:
        return const(op == "min", dtype)
    bits = 8 * dtype.bytes
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.is_signed else (0, 2**bits - 1)
    return const(low if op == "max" else high, dtype)


def combine(op: str, accumulator: Expr, value: Expr) -> Expr:
    """The accumulator after one more value."""
    name = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}[op]
    lanes = max(accumulator.lanes, value.lanes)
    return Op(accumulator.dtype, name, (accumulator, value), lanes=lanes)


def hoist(e: Expr, bound: frozenset[Var], names: Names, lanes: int) -> tuple[list[Stmt], Expr]:
    """Computes every reduction of `e` that depends on `bound` variables alone.

    Returns:
        The statements, and `e` with those reductions replaced by the variables that hold them.
    """
    body: list[Stmt] = []
    known: dict[Expr, Expr] = {}

    def visit(node: Expr) -> None:
        if node in known:
            return
        for c in children(node):
            visit(c)
        if isinstance(node, Reduce) and free_vars(node) <= bound:
            value = substitute(node, {k: v for k, v in known.items() if k != node})
            assert isinstance(value, Reduce)
            statements, result = schedule_reduction(value, bound, names, lanes)
            body.extend(statements)
            known[node] = result

    visit(e)
    return body, substitute(e, known)


def schedule_reduction(r: Reduce, bound: frozenset[Var], names: Names, lanes: int) -> tuple[list[Stmt], Expr]:
    """Loops that compute one reduction, vectorized along its last variable where that is contiguous."""
    variables = tuple(Var(v.dtype, names.next(v.name + "_"), v.extent) for v in r.vars)
    body = substitute(r.body, dict(zip(r.vars, variables, strict=True)))
    inner = _innermost(variables, body, lanes)
    if inner is None:
        return _scalar_reduction(r, variables, body, bound, names, lanes)
    return _vector_reduction(r, variables, inner, body, bound, names, lanes)


def _innermost(variables: tuple[Var, ...], body: Expr, lanes: int) -> Var | None:
    """The variable to vectorize along: contiguous in all loads, and not surely too short."""
    if lanes == 1 or body.dtype not in (DType.F32, DType.F64, DType.I32):
        return None
    for v in reversed(variables):
        extent = constant_int(v.extent)
        if (extent is None or extent >= lanes) and vectorizable(body, v):
            return v
    return None


def _scalar_reduction(
    r: Reduce, variables: tuple[Var, ...], body: Expr, bound: frozenset[Var], names: Names, lanes: int
) -> tuple[list[Stmt], Expr]:
    result = Var(r.dtype, names.next(r.op), lanes=r.lanes)
    declared = Declare(result.name, r.dtype, (), r.lanes, value=neutral(r.op, r.dtype))
    scope = bound | frozenset(variables)
    window = find_window(r.op, variables, body)
    if window is not None:
        body = window.body
    inner, element = hoist(body, scope, names, lanes)
    update = Store(result.name, (), combine(r.op, result, element))
    nest: tuple[Stmt, ...] = (*inner, update)
    if window is None:
        return [declared, *_loops(variables, nest)], result
    return [declared, *_window_loops(window, variables, nest, names)], result


def _window_loops(
    window: Window, variables: tuple[Var, ...], nest: tuple[Stmt, ...], names: Names
) -> tuple[Stmt, ...]:
    """Loops over the part of a window that lies inside; unrolled where all of it does."""
    lets: list[Stmt] = []
    whole: Expr = const(True, DType.BOOL)
    part = nest
    for v in reversed(variables):
        assert v.extent is not None
        if v not in window.ranges:
            part = (For(v, const(0), v.extent, part),)
            continue
        low, high = window.ranges[v]
        begin, end = Var(INDEX, names.next("begin")), Var(INDEX, names.next("end"))
        lets += [Let(begin, low), Let(end, high)]
        full = binary("and", binary("eq", begin, const(0)), binary("eq", end, v.extent))
        whole = binary("and", whole, full)
        part = (For(v, begin, end, part),)
    return (*lets, If(whole, _loops(variables, nest), part))


def _loops(variables: tuple[Var, ...], nest: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Loops over all variables, the first outermost; short constant ones are unrolled."""
    count = 1
    for v in reversed(variables):
        extent = constant_int(v.extent)
        count *= extent if extent is not None else UNROLLED_WINDOW + 1
        assert v.extent is not None
        nest = (For(v, const(0), v.extent, nest, unroll=count <= UNROLLED_WINDOW),)
    return nest


def _vector_reduction(
    r: Reduce,
    variables: tuple[Var, ...],
    inner: Var,
    body: Expr,
    bound: frozenset[Var],
    names: Names,
    lanes: int,
) -> tuple[list[Stmt], Expr]:
    outer = tuple(v for v in variables if v != inner)
    assert inner.extent is not None
    extent = constant_int(inner.extent)
    width = lanes
    if extent is not None:
        while width < WIDE * lanes and extent % (2 * width) == 0:
            width *= 2
    vector = Var(r.dtype, names.next(r.op + "_lanes"), lanes=width)
    total = Var(r.dtype, names.next(r.op))
    hoisted, element = hoist(body, bound | frozenset(outer), names, lanes)
    # Division by a literal: the number of elements that whole vectors cover.
    whole = inner.extent // width * width
    main = For(
        inner,
        const(0),
        whole,
        (Store(vector.name, (), combine(r.op, vector, vectorize(element, inner, inner, width))),),
        step=width,
    )
    loops: list[Stmt] = [main]
    tail: list[Stmt] = []
    if constant_int(inner.extent - whole) != 0:
        tail_name = names.next(r.op + "_tail")
        tail_value = Var(r.dtype, tail_name)
        tail.append(Declare(tail_name, r.dtype, value=neutral(r.op, r.dtype)))
        update = Store(tail_name, (), combine(r.op, tail_value, element))
        loops.append(For(inner, whole, inner.extent, (update,)))
    folded: Expr = Op(r.dtype, f"total_{r.op}", (vector,))
    if tail:
        folded = combine(r.op, folded, Var(r.dtype, tail_name))
    return [
        Declare(vector.name, r.dtype, (), width, value=neutral(r.op, r.dtype)),
        *tail,
        *_loops(outer, (*hoisted, *loops)),
        Let(total, folded),
    ], total
