"""Kernels for element-wise stages, movement that must touch memory, reductions and normalizations."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from hasten.codegen.counts import factor_type, stage_bytes, stage_flops
from hasten.codegen.crossed import Crossed, crossed_body, find_crossed
from hasten.codegen.domain import OUTPUT, Domain, decode, extent, output_name, share
from hasten.codegen.fuse import cost
from hasten.codegen.kernel import SCRATCH, SCRATCH_PARAM, TAIL_PARAMS, THREAD, Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.phases import find_phases, phased_row
from hasten.codegen.reductions import NARROWEST, WIDE, Names, below_maximum, hoist, keep_terms
from hasten.codegen.segments import segments
from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.codegen.window import conjuncts, find_window
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    Var,
    binary,
    cast,
    const,
    constant_int,
    free_vars,
    select,
    substitute,
    transform,
    walk,
)
from hasten.loops.nest import (
    For,
    Function,
    If,
    Let,
    Param,
    Stmt,
    Store,
    choose,
    size_parameter,
    sizes_of,
)
from hasten.loops.simplify import spell

FRAMED_CHANNELS = 8
"""Channels up to which a row of a framed picture is unrolled over them."""

SHORT = 8
"""Elements of a row that is too short for a loop of its own."""

COPIED = 128
"""Elements from which on a row is copied by a call."""

FIRST_LEVEL_CACHE = 32 << 10
"""Bytes of data that surely fit a core's first-level cache on every processor of interest."""


def map_kernel(stage: Stage, layouts: Layouts, vector_bytes: int, name: str) -> Kernel:
    """The kernel of a stage whose body is an expression."""
    assert isinstance(stage.body, Expr)
    domain = split_loop(merge_loops(memory_domain(stage, layouts)))
    value, buffers = name_buffers(below_maximum(domain.value))
    domain = Domain(domain.vars, value, domain.address)
    lanes = vector_bytes // max(4, stage.dtype.bytes)
    body = framed_nest(domain) or parallel_nest(domain, lanes, Names())
    kernel = finish_kernel(name, body, buffers, layouts, stage, work=work_of(domain))
    return written_over(kernel, replaced(domain, buffers, layouts, stage))


def finish_kernel(
    name: str,
    body: tuple[Stmt, ...],
    buffers: Mapping[str, str],
    layouts: Layouts,
    *stages: Stage,
    work: Expr,
    scratch: Expr | None = None,
    views: tuple[Param, ...] = (SCRATCH_PARAM,),
) -> Kernel:
    """Wraps statements into a function with its parameters, in the order buffers, outputs, sizes, thread.

    It computes the stages, mostly one; the parameter of each is named by `output_name`.
    Where there is `scratch`, bytes for each thread, parameters for it follow the output: `views`.
    """
    own = () if scratch is None else views
    sizes = sorted(sizes_of(body))
    outputs = {output_name(n): s for n, s in enumerate(stages)}
    params = (
        *(Param(p, layouts[t].dtype, 1) for p, t in buffers.items()),
        *(Param(p, s.dtype, 1, writable=True) for p, s in outputs.items()),
        *own,
        *(Param(size_parameter(s), INDEX) for s in sizes),
        *TAIL_PARAMS,
    )
    title = ", ".join(dict.fromkeys(o for s in stages for o in s.origins if o)) or stages[0].name
    return Kernel(
        Function(name, params, body, title),
        (),
        (*buffers.items(), *((p, s.name) for p, s in outputs.items())),
        tuple((size_parameter(s), Size(INDEX, s)) for s in sizes),
        work,
        tuple(s.name for s in stages),
        const(0) if scratch is None else scratch,
        title,
        flops=sum((stage_flops(s) for s in stages), start=const(0)),
        bytes=sum((stage_bytes(s, layouts) for s in stages), start=const(0)),
        factors=factor_type(stages[0], layouts),
    )


def written_over(k: Kernel, read: str | None) -> Kernel:
    """The kernel with its result in the memory of what it reads through a parameter, if there is one."""
    if read is None:
        return k
    params = tuple(replace(p, shared=p.name in (read, OUTPUT)) for p in k.function.params)
    return replace(k, function=replace(k.function, params=params), over=dict(k.buffers)[read])


def replaced(d: Domain, buffers: Mapping[str, str], layouts: Layouts, stage: Stage) -> str | None:
    """The parameter of a tensor that the result of a domain may be written over, or None.

    Its element is read where the result's is written, or with all of that row before any of it is written.
    """
    reductions = [n for n in walk(d.value) if isinstance(n, Reduce)]
    addresses = {spell(d.address)}
    later: set[str] = set()
    if reductions:
        *outer, inner = d.vars or (None,)
        rows = [v for v in outer if v is not None and constant_int(v.extent) != 1]
        if inner is None or not rows or any(inner in free_vars(r) for r in reductions):
            return None  # what is read may be of another thread's part, or written already
        along = {v for r in reductions for v in r.vars if v.extent == inner.extent}
        addresses |= {spell(substitute(d.address, {inner: v})) for v in along}
        rest, kept = keep_terms(d.value, inner, d.address, OUTPUT)
        if kept is not None:
            rest = substitute(rest, {kept.total: const(0, kept.total.dtype)})
            later = {n.buffer for n in walk(rest) if isinstance(n, Load)}
    place = same_place(d.value, addresses, buffers, layouts, stage)
    return None if place in later else place


def same_place(
    value: Expr, addresses: Collection[object], buffers: Mapping[str, str], layouts: Layouts, stage: Stage
) -> str | None:
    """The parameter of the first tensor as large as the result that is read at these addresses alone."""
    read: dict[str, set[object]] = {}
    for n in walk(value):
        if isinstance(n, Load) and n.buffer in buffers and n.index:
            read.setdefault(n.buffer, set()).add(spell(n.index[0]))
    own = layouts[stage.name]
    for p, found in read.items():
        layout = layouts[buffers[p]]
        size = spell(layout.elements), layout.dtype.bytes
        once = list(buffers.values()).count(buffers[p]) == 1
        if once and size == (spell(own.elements), own.dtype.bytes) and found <= set(addresses):
            return p
    return None


def memory_domain(stage: Stage, layouts: Layouts) -> Domain:
    """Loops over all elements in the order in which they lie in memory; extents of 1 vanish."""
    assert isinstance(stage.body, Expr)
    layout = layouts[stage.name]
    ones: dict[Expr, Expr] = {v: const(0) for v in stage.vars if constant_int(v.extent) == 1}
    value = substitute(flatten(stage.body, layouts), ones)
    address = substitute(layout.address(stage.vars), ones)
    ordered = tuple(stage.vars[d] for d in layout.order if stage.vars[d] not in ones)
    return Domain(ordered, value, address)


def merge_loops(domain: Domain) -> Domain:
    """Makes one loop of neighbours wherever every address advances as if they were one."""
    d = domain
    position = len(d.vars) - 1
    while position > 0:
        merged = _merge_pair(d, position - 1)
        d = merged or d
        position -= 1
    return d


def _merge_pair(d: Domain, at: int) -> Domain | None:
    outer, inner = d.vars[at], d.vars[at + 1]
    assert outer.extent is not None and inner.extent is not None
    for address in (d.address, *(n.index[0] for n in walk(d.value) if isinstance(n, Load) and n.index)):
        a, b = coefficient(address, outer), coefficient(address, inner)
        if a is None or b is None or spell(a) != spell(b * inner.extent):
            return None
    if any(v in _outside_addresses(d.value) for v in (outer, inner)):
        return None
    both = Var(INDEX, f"{outer.name}{inner.name}", outer.extent * inner.extent)
    split: dict[Expr, Expr] = {outer: both // inner.extent, inner: both % inner.extent}
    value, address = substitute(d.value, split), substitute(d.address, split)
    for e in (value, address):
        if any(isinstance(n, Op) and n.op in ("floordiv", "mod") and both in free_vars(n) for n in walk(e)):
            return None
    return Domain((*d.vars[:at], both, *d.vars[at + 2 :]), value, address)


def split_loop(d: Domain) -> Domain:
    """Makes two loops of the innermost where it walks the same row again and again, as a repetition does."""
    v = d.vars[-1] if d.vars else None
    if v is None or v.extent is None or vectorizable(d.value, v):
        return d
    divided = [
        n for n in walk(d.value) if isinstance(n, Op) and n.op in ("floordiv", "mod") and n.args[0] == v
    ]
    for n in divided:
        by = n.args[1]
        length = constant_int(by)
        if (length is not None and length <= SHORT) or constant_int(v.extent % by) != 0:
            continue
        times, inner = Var(INDEX, f"{v.name}_times", v.extent // by), Var(INDEX, f"{v.name}_part", by)
        split: dict[Expr, Expr] = {v: times * by + inner}
        value = substitute(d.value, split)
        if vectorizable(value, inner):
            return Domain((*d.vars[:-1], times, inner), value, substitute(d.address, split))
    return d


def _outside_addresses(e: Expr) -> frozenset[Var]:
    """Variables that an expression uses other than in addresses."""
    hidden = transform(e, lambda n: Load(n.dtype, n.buffer, ()) if isinstance(n, Load) else None)
    return free_vars(hidden)


def name_buffers(value: Expr) -> tuple[Expr, dict[str, str]]:
    """Renames the tensors that are read to x0, x1, ..., so that equal kernels become the same text."""
    found: dict[str, str] = {}
    renamed = renamed_buffers(value, found)
    return renamed, {param: tensor for tensor, param in found.items()}


def renamed_buffers(value: Expr, found: dict[str, str]) -> Expr:
    """The same for one of several expressions; `found` has the names of tensors, and grows."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or not node.index or node.buffer == SCRATCH:
            return None
        name = found.setdefault(node.buffer, f"x{len(found)}")
        return Load(node.dtype, name, tuple(transform(i, visit) for i in node.index))

    return transform(value, visit)


def parallel_nest(d: Domain, lanes: int, names: Names) -> tuple[Stmt, ...]:
    """Loops over a domain with its work divided among the threads."""
    if not d.vars:
        statements_, value = hoist(d.value, frozenset(), names, lanes)
        once = (*statements_, Store(OUTPUT, (d.address,), value))
        return (If(Op(DType.BOOL, "eq", (THREAD, const(0, DType.I32))), once),)
    *outer, inner = d.vars
    assert inner.extent is not None
    if not outer:
        return _shared_row(d, inner, lanes, names)
    total = extent(outer)
    if constant_int(total) == 1:
        return _shared_row(d, inner, lanes, names)
    across = find_crossed(d, lanes)
    if across is not None:
        return _crossed_nest(d, across, lanes, names)
    phases = find_phases(d)
    if phases is not None:
        task = Var(INDEX, "task", total)
        return (For(task, *share(total, const(1)), (*decode(task, outer), *phased_row(phases, lanes))),)
    value, kept = keep_terms(d.value, inner, d.address, OUTPUT)
    row, value = hoist(value, frozenset(outer), names, lanes, kept)
    d = Domain((inner,), value, d.address)
    begin, end = Var(INDEX, "begin"), Var(INDEX, "end")
    block = _block(value, inner, lanes)
    if block is None:
        body = _in_segments(d, inner, lanes, names, frozenset(outer))
        tasks = outer
    else:
        # Blocks outermost: the weights of a block stay in the first-level cache over all positions.
        blocks = Var(INDEX, "block", (inner.extent + (block - 1)) // block)
        tasks = [blocks, *outer]
        body = (
            Let(begin, blocks * block),
            Let(end, binary("min", begin + block, inner.extent)),
            *inner_loop(d, begin, end, lanes, names, frozenset(outer)),
        )
        total = total * ((inner.extent + (block - 1)) // block)
    task = Var(INDEX, "task", total)
    first, last = share(total, const(1))
    return (For(task, first, last, (*decode(task, tasks), *row, *body)),)


def _crossed_nest(d: Domain, c: Crossed, lanes: int, names: Names) -> tuple[Stmt, ...]:
    """Blocks that are transposed in registers; single elements where rows or columns are too few for one."""
    begin, end = Var(INDEX, "begin"), Var(INDEX, "end")
    bound = frozenset((*c.outer, c.across))
    rest = inner_loop(Domain((c.along,), d.value, d.address), begin, end, lanes, names, bound)
    body = crossed_body(d, c, lanes, rest, begin, end)
    total = extent(c.tasks)
    task = Var(INDEX, "task", total)
    return (For(task, *share(total, const(1)), (*decode(task, c.tasks), *body)),)


def framed_nest(d: Domain) -> tuple[Stmt, ...] | None:
    """Loops over a picture of few channels in a frame of a constant: each row without conditions.

    A row is frame, picture, frame. Its channels are unrolled, so that a compiler sees the whole pattern in
    which they are interleaved, and makes vectors of it. None where a domain is anything else.
    """
    value = d.value
    if isinstance(value, Op) and value.op == "cast":
        (value,) = value.args
    if len(d.vars) < 3 or not isinstance(value, Op) or value.op != "select":
        return None
    *outer, column, channel = d.vars
    condition, inside, outside = value.args
    count, width = constant_int(channel.extent), column.extent
    reads = any(isinstance(n, Load) for n in walk(condition)) or not isinstance(inside, Load)
    if count is None or count > FRAMED_CHANNELS or reads or not isinstance(outside, Const):
        return None
    in_row: Expr = const(True, DType.BOOL)
    in_picture = in_row
    for atom in conjuncts(condition):
        if column in free_vars(atom):
            in_row = binary("and", in_row, atom)
        else:
            in_picture = binary("and", in_picture, atom)
    one, zero = const(1.0, DType.F32), const(0.0, DType.F32)
    window = find_window("sum", (column,), select(in_row, one, zero))
    if window is None or width is None or channel in free_vars(condition):
        return None

    def fill(start: Expr, stop: Expr, value: Expr) -> For:
        element = Store(OUTPUT, (d.address,), cast(value, d.value.dtype))
        pixel = For(channel, const(0), const(count), (element,), unroll=True)
        return For(column, start, stop, (pixel,))

    begin, end = Var(INDEX, "begin"), Var(INDEX, "end")
    low, high = window.ranges[column]
    row = (
        Let(begin, low),
        Let(end, high),
        fill(const(0), begin, outside),
        fill(begin, end, inside),
        fill(end, width, outside),
    )
    total = extent(outer)
    task = Var(INDEX, "task", total)
    body = (*decode(task, outer), *choose(in_picture, row, (fill(const(0), width, outside),)))
    return (For(task, *share(total, const(1)), body),)


def _block(value: Expr, inner: Var, lanes: int) -> int | None:
    """Elements of the innermost loop to stay with, where a window over all of it leaves the cache."""
    extent = constant_int(inner.extent)
    wide = WIDE * lanes
    taps = [constant_int(v.extent) or 1 for n in walk(value) if isinstance(n, Reduce) for v in n.vars]
    if extent is None or extent < 2 * wide or not taps:
        return None
    touched = 2 * value.dtype.bytes * extent * math.prod(taps)
    return wide if touched > FIRST_LEVEL_CACHE else None


def _has_window(value: Expr) -> bool:
    return any(isinstance(n, Reduce) for n in walk(value))


def _shared_row(d: Domain, inner: Var, lanes: int, names: Names) -> tuple[Stmt, ...]:
    """A single loop, of which each thread takes a stretch of whole cache lines."""
    assert inner.extent is not None
    row, value = hoist(d.value, frozenset(), names, lanes)
    first, last = share(inner.extent, const(64))
    begin, end = Var(INDEX, "first"), Var(INDEX, "last")
    loop = inner_loop(Domain((inner,), value, d.address), begin, end, lanes, names, frozenset())
    return (*row, Let(begin, first), Let(end, last), *loop)


def _in_segments(d: Domain, inner: Var, lanes: int, names: Names, bound: frozenset[Var]) -> tuple[Stmt, ...]:
    """The innermost loop over all of its extent: a loop for each part that is computed in another way."""
    assert inner.extent is not None
    if constant_int(inner.extent) is None:
        return inner_loop(d, const(0), inner.extent, lanes, names, bound)
    loops: list[Stmt] = []
    for start, stop, (value,) in segments((d.value,), inner):
        length = const(stop - start)
        v = replace(inner, name=names.next(inner.name + "_"), extent=length) if value != d.value else inner
        at: dict[Expr, Expr] = {inner: v + start}
        part = Domain((v,), substitute(value, at), substitute(d.address, at))
        loops += inner_loop(part, const(0), length, lanes, names, bound)
    return tuple(loops)


def inner_loop(
    d: Domain,
    begin: Expr,
    end: Expr,
    lanes: int,
    names: Names,
    bound: frozenset[Var],
    output: str = OUTPUT,
) -> tuple[Stmt, ...]:
    """The innermost loop: whole vectors, then single elements; scalar where vectors do not fit."""
    (v,) = d.vars
    if isinstance(d.value, Op) and d.value.op == "select" and v not in free_vars(d.value.args[0]):
        condition, *arms = d.value.args
        rows = [inner_loop(replace(d, value=a), begin, end, lanes, names, bound, output) for a in arms]
        return choose(condition, *rows)
    extent = constant_int(v.extent)
    contiguous = constant_int(coefficient(d.address, v) or const(0)) == 1
    along = lanes  # as the loops of a reduction have, whatever this one takes
    if extent is not None and NARROWEST <= extent < lanes:
        lanes = 1 << extent.bit_length() - 1  # vectors as on a target whose own are as short
    fits = extent is None or extent >= max(lanes, NARROWEST)
    if contiguous and _is_copy(d.value, v):
        return (For(v, begin, end, (Store(output, (d.address,), d.value),)),)
    if not (lanes > 1 and contiguous and fits and _vector_friendly(d.value, v)):
        return (For(v, begin, end, _element(d, v, v, 1, names, bound, output, reduction_lanes=along)),)
    loops: list[Stmt] = []
    start, left = begin, extent if constant_int(begin) == 0 else None
    for width in _widths(d.value, lanes, extent):
        covered = Var(INDEX, names.next("whole"))
        base = Var(INDEX, names.next(v.name + "_"), v.extent)
        main = _element(d, v, base, width, names, bound, output)
        stop = start + binary("truncdiv", end - start, width) * width
        if constant_int(stop) is None:
            loops.append(Let(covered, stop))
            stop = covered
        loops.append(For(base, start, stop, main, step=width))
        start, left = stop, None if left is None else left % width
    if left != 0:
        loops.append(For(v, start, end, _element(d, v, v, 1, names, bound, output)))
    return tuple(loops)


def _is_copy(value: Expr, v: Var) -> bool:
    """Whether a long row is copied as it is: compilers make a call of `memcpy` of such a loop."""
    long = (constant_int(v.extent) or 0) >= COPIED
    return long and isinstance(value, Load) and constant_int(coefficient(value.index[-1], v) or const(0)) == 1


def _widths(value: Expr, lanes: int, extent: int | None) -> list[int]:
    """Vector widths to go through: windows several vectors at a time, to hide latency and share loops."""
    return [WIDE * lanes, lanes] if _has_window(value) and (extent or 0) >= WIDE * lanes else [lanes]


def _vector_friendly(value: Expr, v: Var) -> bool:
    """Whether vectors along `v` work and do not turn contiguous reductions into gathers."""
    return vectorizable(value, v, gathers=not any(isinstance(n, Reduce) for n in walk(value)))


def _element(
    d: Domain,
    v: Var,
    base: Expr,
    lanes: int,
    names: Names,
    bound: frozenset[Var],
    output: str,
    reduction_lanes: int = 1,
) -> tuple[Stmt, ...]:
    """Statements that compute and store `lanes` elements from `base` on."""
    value = vectorize(d.value, v, base, lanes)
    scope = bound | (free_vars(base) if lanes == 1 else free_vars(base) | {v})
    # Reductions that depend on the inner variable run inside; vectors go along it, if they can.
    row, value = hoist(value, scope, names, reduction_lanes)
    if value.lanes != lanes:
        value = Op(value.dtype, "broadcast", (value,), lanes=lanes)
    return (*row, Store(output, (substitute(d.address, {v: base}),), value))


def work_of(d: Domain) -> Expr:
    """Elementary operations of a domain."""
    per_element = max(1, cost(d.value) + sum(isinstance(n, Load) for n in walk(d.value)))
    total: Expr = const(per_element)
    for v in d.vars:
        assert v.extent is not None
        total = total * v.extent
    for n in walk(d.value):
        if isinstance(n, Reduce):
            for v in n.vars:
                assert v.extent is not None
                total = total * v.extent
            break
    return total
