"""Schedules the reductions inside an expression: loops with accumulators, as far out as they can be."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hasten.codegen.fuse import CHEAP, cost
from hasten.codegen.vectorize import vectorizable, vectorize
from hasten.codegen.window import Window, find_window
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    binary,
    children,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)
from hasten.loops.nest import Declare, For, If, Let, Stmt, Store, unrolled

WIDE = 4
"""Blocks side by side where the extent allows it, to hide the latency of an addition."""

BLOCK_BYTES = 64
"""Bytes of a row that have partial results of their own, on every target: one vector of the widest, several
of others. So the order in which a row is added up does not depend on the processor."""

NARROWEST = 4
"""Elements of the shortest vector that what is left of a row is taken with."""

SHORTEST = 8
"""Elements of the shortest row that vectors go along."""

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


@dataclass(frozen=True)
class Kept:
    """A reduction whose terms are written down as they are added, since each is needed once more.

    Attributes:
        total: the reduction, over one variable.
        buffer: where its terms are written.
        address: where in it, in terms of that variable.
    """

    total: Reduce
    buffer: str
    address: Expr


def below_maximum(value: Expr) -> Expr:
    """The value with each exp(x - max(x)) as the function of what is not positive, which is shorter."""

    def visit(e: Expr) -> Expr | None:
        if not isinstance(e, Op) or e.op != "exp" or e.dtype is not DType.F32:
            return None
        (x,) = e.args
        if not isinstance(x, Op) or x.op != "sub" or not _is_maximum(x.args[1], x.args[0]):
            return None
        return replace(e, op="exp_nonpositive")

    return transform(value, visit)


def _is_maximum(e: Expr, x: Expr) -> bool:
    """Whether an expression is the maximum of a row that `x` is an element of."""
    if not isinstance(e, Reduce) or e.op != "max" or len(e.vars) != 1:
        return False
    (v,) = e.vars
    columns = [u for u in free_vars(x) - free_vars(e) if u.extent == v.extent]
    return any(substitute(e.body, {v: u}) == x for u in columns)


def keep_terms(value: Expr, inner: Var, address: Expr, buffer: str) -> tuple[Expr, Kept | None]:
    """Finds what a row computes for a sum and then again for each of its elements, as a softmax its powers.

    Args:
        value: the element of a row.
        inner: counts the elements of the row.
        address: where the element is written.
        buffer: what the row is written to.

    Returns:
        The element in terms of what is written there before, and what is; or the value itself, and None.
    """
    reductions = [n for n in walk(value) if isinstance(n, Reduce)]
    if any(inner in free_vars(r) for r in reductions):
        return value, None
    for r in reductions:
        if len(r.vars) != 1 or r.vars[0].extent != inner.extent or r.body.dtype is not value.dtype:
            continue
        term = substitute(r.body, {r.vars[0]: inner})
        rest = substitute(value, {term: Load(value.dtype, buffer, (address,))})
        if rest != value and _is_costly(term, inner):
            return rest, Kept(r, buffer, substitute(address, {inner: r.vars[0]}))
    return value, None


def hoist(
    e: Expr, bound: frozenset[Var], names: Names, lanes: int, kept: Kept | None = None
) -> tuple[list[Stmt], Expr]:
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
            own = replace(kept, total=value) if kept is not None and kept.total == node else None
            statements, result = schedule_reduction(value, bound, names, lanes, own)
            body.extend(statements)
            known[node] = result

    visit(e)
    return body, substitute(e, known)


def schedule_reduction(
    r: Reduce, bound: frozenset[Var], names: Names, lanes: int, kept: Kept | None = None
) -> tuple[list[Stmt], Expr]:
    """Loops that compute one reduction, vectorized along its last variable where that is contiguous."""
    if kept is None:
        r = _merged(r)
    variables = tuple(Var(v.dtype, names.next(v.name + "_"), v.extent) for v in r.vars)
    own: dict[Expr, Expr] = dict(zip(r.vars, variables, strict=True))
    body = substitute(r.body, own)
    if kept is not None:
        kept = replace(kept, address=substitute(kept.address, own))
    inner = _innermost(variables, body, lanes)
    if inner is None:
        return _scalar_reduction(r, variables, body, bound, names, lanes, kept)
    return _vector_reduction(r, variables, inner, body, bound, names, lanes, kept)


def _merged(r: Reduce) -> Reduce:
    """The reduction with one variable for two neighbours where all addresses advance as if they were one."""
    for at in range(len(r.vars) - 2, -1, -1):
        outer, inner = r.vars[at : at + 2]
        assert outer.extent is not None and inner.extent is not None
        both = Var(inner.dtype, f"{outer.name}{inner.name}", outer.extent * inner.extent)
        split: dict[Expr, Expr] = {outer: both // inner.extent, inner: both % inner.extent}
        body = substitute(r.body, split)
        left = [
            n
            for n in walk(body)
            if isinstance(n, Op) and n.op in ("floordiv", "mod") and both in free_vars(n)
        ]
        if not left:
            return _merged(
                Reduce(r.dtype, r.op, (*r.vars[:at], both, *r.vars[at + 2 :]), body, lanes=r.lanes)
            )
    return r


def _added(result: Load | Var, element: Expr, op: str, kept: Kept | None, names: Names) -> tuple[Stmt, ...]:
    """Adds an element to a result, and writes it down where it is kept."""
    place = (result.buffer, result.index) if isinstance(result, Load) else (result.name, ())
    if kept is None:
        return (Store(*place, combine(op, result, element)),)
    term = Var(element.dtype, names.next("term"), lanes=element.lanes)
    return (
        Let(term, element),
        Store(kept.buffer, (kept.address,), term),
        Store(*place, combine(op, result, term)),
    )


def _innermost(variables: tuple[Var, ...], body: Expr, lanes: int) -> Var | None:
    """The variable to vectorize along: contiguous in all loads, and not surely too short."""
    if lanes == 1 or body.dtype not in (DType.F32, DType.F64, DType.I32):
        return None
    for v in reversed(variables):
        extent = constant_int(v.extent)
        if (extent is None or extent >= SHORTEST) and vectorizable(body, v):
            return v
    return None


def _scalar_reduction(
    r: Reduce,
    variables: tuple[Var, ...],
    body: Expr,
    bound: frozenset[Var],
    names: Names,
    lanes: int,
    kept: Kept | None,
) -> tuple[list[Stmt], Expr]:
    result = Var(r.dtype, names.next(r.op), lanes=r.lanes)
    declared = Declare(result.name, r.dtype, (), r.lanes, value=neutral(r.op, r.dtype))
    scope = bound | frozenset(variables)
    window = find_window(r.op, variables, body) if kept is None else None
    if window is not None:
        body = window.body
    inner, element = hoist(body, scope, names, lanes)
    nest: tuple[Stmt, ...] = (*inner, *_added(result, element, r.op, kept, names))
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
    kept: Kept | None,
) -> tuple[list[Stmt], Expr]:
    outer = tuple(v for v in variables if v != inner)
    assert inner.extent is not None
    hoisted, element = hoist(body, bound | frozenset(outer), names, lanes)
    declared: list[Stmt] = []
    loops: list[Stmt] = []
    start: Expr = const(0)
    parts: dict[int, list[Expr]] = {}
    block = BLOCK_BYTES // r.dtype.bytes
    for covered, count in _strides(constant_int(inner.extent), block, _is_costly(element, inner)):
        # Division by a literal: up to the number of elements that whole strides cover.
        stop = start + (inner.extent - start) // (covered * count) * (covered * count)
        if start == stop:
            continue
        if constant_int(stop) is None and covered > 1:
            whole = Var(INDEX, names.next("whole"))
            loops.append(Let(whole, stop))
            stop = whole
        width = min(covered, lanes)
        vectors = covered // width * count
        name = names.next(f"{r.op}_{'lanes' if width > 1 else 'tail'}")
        dims, nothing = () if vectors == 1 else (vectors,), neutral(r.op, r.dtype)
        declared.append(Declare(name, r.dtype, dims, width, value=None if dims else nothing))
        u = Var(INDEX, names.next("u"), const(vectors))

        def part(at: Expr, name: str = name, dims: tuple[int, ...] = dims, width: int = width) -> Load | Var:
            return Load(r.dtype, name, (at,), lanes=width) if dims else Var(r.dtype, name, lanes=width)

        here: dict[Expr, Expr] = {inner: inner + u * width if dims else inner}
        own = None if kept is None else replace(kept, address=substitute(kept.address, here))
        step = _added(part(u), vectorize(element, inner, here[inner], width), r.op, own, names)
        if dims:
            declared.append(unrolled(u, Store(name, (u,), nothing)))
            step = (unrolled(u, *step),)
        loops.append(For(inner, start, stop, step, step=covered * count))
        parts.setdefault(covered, []).extend(part(const(n)) for n in range(vectors))
        start = stop
    total = Var(r.dtype, names.next(r.op))
    return [*declared, *_loops(outer, (*hoisted, *loops)), Let(total, _folded(r.op, parts))], total


def _folded(op: str, parts: Mapping[int, Sequence[Expr]]) -> Expr:
    """Partial results as one; they stand by the number of elements of their blocks."""

    def total(elements: int, found: Sequence[Expr]) -> Expr:
        e = one_vector(op, found, elements)
        return Op(e.dtype, f"total_{op}", (e,)) if e.lanes > 1 else e

    blocks = [total(elements, found) for elements, found in parts.items()]
    return functools.reduce(functools.partial(combine, op), blocks)


def one_vector(op: str, parts: Sequence[Expr], elements: int) -> Expr:
    """The vectors of blocks of so many elements as one vector: block after block, then half by half.

    `total_sum` and its like go on by halves: the order is that of a vector as wide as a block.
    """
    both = functools.partial(combine, op)
    count = elements // parts[0].lanes
    left = [functools.reduce(both, parts[n::count]) for n in range(count)]
    while len(left) > 1:
        half = len(left) // 2
        left = [both(a, b) for a, b in zip(left[:half], left[half:], strict=True)]
    return left[0]


def _is_costly(term: Expr, v: Var) -> bool:
    """Whether what depends on a variable takes longer than to store and load it."""
    return cost(transform(term, lambda e: None if v in free_vars(e) else const(0, e.dtype))) > CHEAP


def _strides(extent: int | None, block: int, costly: bool) -> list[tuple[int, int]]:
    """The steps in which to go through a row, one kind after the other: elements of a block, and blocks.

    Several blocks have a result each, which hides how long an addition takes: terms that take long hide it.
    """
    several = [] if costly else [(block, WIDE)]
    narrower = [] if extent is None else [(n, 1) for n in (block // 2, block // 4) if n >= NARROWEST]
    steps = [*several, (block, 1), *narrower, (1, 1)]
    return [(n, count) for n, count in steps if extent is None or n * count <= extent]
