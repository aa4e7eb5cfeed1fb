"""Rows: what reduces rows and what follows it row by row in one kernel, each row while it is in the cache.

A normalization writes a row; then that row is quantized, or its scale is found and then it is quantized,
each by a stage of its own that reads nothing else of what was just written. Or a row that a product wrote is
read for its scale, and once more to be quantized. As kernels of their own these wait for all threads and
fetch what another core may have; here a thread goes through all of them for one of its rows, then for the
next.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.codegen.domain import Domain, decode, extent, output_name, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts
from hasten.codegen.maps import (
    finish_kernel,
    inner_loop,
    memory_domain,
    renamed_buffers,
    replaced,
    work_of,
    written_over,
)
from hasten.codegen.reductions import Names, below_maximum, hoist, keep_terms
from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient, vectorizable
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Load, Reduce, Var, const, constant_int, free_vars, substitute, walk
from hasten.loops.nest import For, Stmt, Store
from hasten.loops.simplify import spell

LONGEST = 1 << 13
"""Elements of the longest rows: what a thread has of a row must stay in its first-level cache."""


def find_rows(stages: Sequence[Stage], at: int, layouts: Layouts) -> tuple[Stage, ...]:
    """The stages from one on that a kernel takes row by row; that one alone where nothing follows it so."""
    first = stages[at]
    if not isinstance(first.body, Expr) or not _rows(first, layouts):
        return (first,)
    taken = [first]
    for s in stages[at + 1 :]:
        if not isinstance(s.body, Expr) or not _follows(s, taken, layouts):
            break
        taken.append(s)
    return tuple(taken)


def row_kernel(stages: Sequence[Stage], layouts: Layouts, vector_bytes: int, name: str) -> Kernel:
    """The kernel of stages that `find_rows` gives, more than one."""
    domains = [memory_domain(s, layouts) for s in stages]
    outer = _rows(stages[0], layouts)
    task = Var(INDEX, "task", extent(outer))
    outputs = {s.name: output_name(i) for i, s in enumerate(stages)}
    found = dict(outputs)
    names = Names()
    body: list[Stmt] = decode(task, outer)
    for i, (s, d) in enumerate(zip(stages, domains, strict=True)):
        column = Var(INDEX, f"column{i}", d.vars[-1].extent)
        same: dict[Expr, Expr] = dict(zip(d.vars, (*outer, column), strict=False))
        value = renamed_buffers(substitute(below_maximum(d.value), same), found)
        address = substitute(d.address, same)
        lanes = vector_bytes // max(4, s.dtype.bytes)
        value, kept = keep_terms(value, column, address, outputs[s.name])
        statements, value = hoist(value, frozenset(outer), names, lanes, kept)
        body += statements
        if len(d.vars) == len(outer):
            body.append(Store(outputs[s.name], (address,), value))
        else:
            assert column.extent is not None
            row = Domain((column,), value, address)
            bound = frozenset(outer)
            body += inner_loop(row, const(0), column.extent, lanes, names, bound, outputs[s.name])
    loop = For(task, *share(extent(outer), const(1)), tuple(body))
    read = {param: tensor for tensor, param in found.items() if tensor not in outputs}
    work = sum((work_of(d) for d in domains), start=const(0))
    kernel = finish_kernel(name, (loop,), read, layouts, *stages, work=work)
    first = Domain(domains[0].vars, renamed_buffers(domains[0].value, found), domains[0].address)
    over = replaced(first, read, layouts, stages[0])
    later = {n for s in stages[1:] for n in s.reads()}
    return written_over(kernel, None if over is None or read[over] in later else over)


def _rows(s: Stage, layouts: Layouts) -> tuple[Var, ...]:
    """The variables that count the rows of a stage that reduces rows, outermost in memory first, or none.

    A row, of a length that is known, is reduced to what all elements of the result's row need, or to the
    element that is the result.
    """
    d = memory_domain(s, layouts)
    reductions = [n for n in walk(d.value) if isinstance(n, Reduce)]
    if not d.vars or not reductions:
        return ()
    *outer, inner = d.vars
    rows, length = tuple(outer), constant_int(inner.extent)
    if all(inner in free_vars(n) and _along_memory(n) for n in reductions):
        rows, length = d.vars, max(constant_int(extent(n.vars)) or LONGEST + 1 for n in reductions)
    elif any(inner in free_vars(n) for n in reductions):
        return ()
    short = length is not None and length <= LONGEST
    return rows if short and rows and constant_int(extent(rows)) != 1 else ()


def _along_memory(r: Reduce) -> bool:
    """Whether a reduction reads what lies side by side, and no element of it twice as windows do."""
    if len(r.vars) != 1 or not vectorizable(r.body, r.vars[0]):
        return False
    (v,) = r.vars
    length = constant_int(v.extent)
    loads = [n for n in walk(r.body) if isinstance(n, Load) and n.index and v in free_vars(n.index[0])]
    steps = [coefficient(n.index[0], row) for n in loads for row in free_vars(n.index[0]) - {v}]
    known = [constant_int(s) for s in steps if s is not None]
    return length is not None and all(s is None or abs(s) >= length for s in known)


def _follows(s: Stage, taken: Sequence[Stage], layouts: Layouts) -> bool:
    """Whether a stage has the same rows and reads of the stages before it what is in its own row."""
    assert isinstance(s.body, Expr)
    outer = _rows(taken[0], layouts)
    own = memory_domain(s, layouts).vars
    if not len(outer) <= len(own) <= len(outer) + 1:
        return False
    if [spell(v.extent or const(1)) for v in outer] != [
        spell(v.extent or const(1)) for v in own[: len(outer)]
    ]:
        return False
    rest = own[len(outer) :]
    length = constant_int(rest[0].extent) if rest else 1
    inside = [n for n in walk(s.body) if isinstance(n, Reduce)]
    if length is None or length > LONGEST or any(v in free_vars(n) for v in rest for n in inside):
        return False
    rows = own[: len(outer)]
    before = {t.name: t for t in taken}
    loads = [n for n in walk(s.body) if isinstance(n, Load) and n.buffer in before]
    return bool(loads) and all(_in_row(n, before[n.buffer], rows, layouts) for n in loads)


def _in_row(load: Load, written: Stage, rows: Sequence[Var], layouts: Layouts) -> bool:
    """Whether a load reads the row of a tensor that has the number of the reader's own."""
    order = layouts[written.name].order
    long = [d for d in order if constant_int(written.vars[d].extent) != 1]
    return [load.index[d] for d in long[: len(rows)]] == list(rows)
