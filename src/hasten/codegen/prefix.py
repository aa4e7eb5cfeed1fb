"""The kernel of sums of all elements up to each one: each adds one term to its neighbour."""

from __future__ import annotations

from collections.abc import Callable

from hasten.codegen.domain import OUTPUT, Domain, decode, extent, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, inner_loop, name_buffers
from hasten.codegen.reductions import Names, hoist
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import NEUTRAL, Prefix
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Load, Op, Var, binary, const, constant_int, substitute
from hasten.loops.nest import Declare, For, Stmt, Store, choose

_OPERATIONS = {"sum": "add", "prod": "mul"}


def prefix_kernel(stage: Stage, layouts: Layouts, vector_bytes: int, name: str) -> Kernel:
    """The kernel of a `Prefix`: each lane by one thread, lanes that lie side by side as vectors."""
    c = stage.body
    assert isinstance(c, Prefix) and c.at.extent is not None
    term, buffers = name_buffers(flatten(c.term, layouts))
    inner = stage.vars[-1]
    if inner == c.at or constant_int(inner.extent) == 1:
        lanes = tuple(v for v in stage.vars if v != c.at)
        body = _one_by_one(c, term, layouts[stage.name].address(stage.vars))
    else:
        lanes = tuple(v for v in stage.vars if v not in (c.at, inner))
        address = layouts[stage.name].address(stage.vars)
        body = _rows(c, term, address, inner, vector_bytes // max(4, stage.dtype.bytes))
    tasks = extent(lanes)
    task = Var(INDEX, "task", tasks)
    loop = For(task, *share(tasks, const(1)), (*decode(task, lanes), *body))
    return finish_kernel(name, (loop,), buffers, layouts, stage, work=extent(stage.vars) * 4)


def _places(c: Prefix) -> tuple[Callable[[Expr], Expr], Expr]:
    """The position of a step, and how many steps there are."""
    count = c.at.extent
    assert count is not None
    return (lambda step: count - 1 - step) if c.backward else (lambda step: step), count


def _joined(c: Prefix, total: Expr, term: Expr) -> Expr:
    return Op(term.dtype, _OPERATIONS[c.op], (total, term))


def _one_by_one(c: Prefix, term: Expr, address: Expr) -> tuple[Stmt, ...]:
    """A lane whose elements lie one after the other: the sum is in a register."""
    place, count = _places(c)
    step = Var(INDEX, "step", count)
    total = Load(term.dtype, "total", ())
    found, value = hoist(substitute(term, {c.position: place(step)}), frozenset((step, *c.lanes)), Names(), 1)
    add = Store("total", (), _joined(c, total, value))
    write = Store(OUTPUT, (substitute(address, {c.at: place(step)}),), total)
    both = (add, write) if c.inclusive else (write, add)
    neutral = const(NEUTRAL[c.op], term.dtype)
    return (Declare("total", term.dtype, value=neutral), For(step, const(0), count, (*found, *both)))


def _rows(c: Prefix, term: Expr, address: Expr, inner: Var, lanes: int) -> tuple[Stmt, ...]:
    """Lanes side by side: each row is the row before with a row of terms added."""
    place, count = _places(c)
    step, names = Var(INDEX, "step", count), Names()
    before, here = place(step - 1), place(step)
    bound = frozenset((step, *(v for v in c.lanes if v != inner)))

    def row(value: Expr, at: Expr) -> tuple[Stmt, ...]:
        domain = Domain((inner,), value, substitute(address, {c.at: at}))
        return inner_loop(domain, const(0), inner.extent or const(1), lanes, names, bound)

    last = Load(term.dtype, OUTPUT, (substitute(address, {c.at: before}),))
    added = substitute(term, {c.position: here if c.inclusive else before})
    first = (
        substitute(term, {c.position: place(const(0))}) if c.inclusive else const(NEUTRAL[c.op], term.dtype)
    )
    # Of an empty axis there is no first row either.
    begin = choose(binary("lt", const(0), count), row(first, place(const(0))), ())
    return (*begin, For(step, const(1), count, row(_joined(c, last, added), here)))
