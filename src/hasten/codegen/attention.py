"""The attention kernel: scores, softmax and weighted sum for one tile of queries at a time.

Keys are packed once for each batch entry and head into the panels that the register tile reads; values
are read in place, as panels whose rows lie a tensor row apart. The scores of a tile of queries stay in
the second-level cache: at no time is there a matrix of all scores. The softmax divides at the end.

In bf16 queries, keys, values and the weights of the values are multiplied in pairs, so values are packed
too; scores, their softmax and all sums are f32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hasten.codegen.amx import END_PRODUCTS, Strided, begin_products, matrix_step, multiply_matrix
from hasten.codegen.c_amx import PAIR
from hasten.codegen.fuse import operand_load
from hasten.codegen.gemm import PRODUCTS_PER_WORK
from hasten.codegen.kernel import SCRATCH, SCRATCH_PARAM, THREADS, Kernel, scratch_view
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import Domain, finish_kernel, inner_loop, share
from hasten.codegen.reductions import Names
from hasten.codegen.stage import Stage
from hasten.codegen.tiles import PANEL, Columns, Rows, Tile, group, multiply, tiles_for
from hasten.codegen.transpose import transpose_name
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Address,
    Expr,
    Load,
    Op,
    Var,
    binary,
    cast,
    const,
    constant_int,
    round_up,
    select,
    substitute,
    transform,
    unary,
)
from hasten.loops.nest import Call, Comment, Declare, For, Let, Param, Stmt, Store
from hasten.loops.program import Attention
from hasten.target import Target

F32 = DType.F32
_MINUS_INFINITY = const(float("-inf"), F32)
ROWS_AHEAD = 16
"""Steps of depth by which a panel of keys or values is asked for before it is needed."""


@dataclass(frozen=True)
class _Parts:
    """What the pieces of one attention kernel share.

    `step` has the groups of depth that a tile register of matrices takes of queries and keys, and `pitch` the
    elements from one query to the next, or None where the register tile multiplies.
    """

    stage: Stage
    a: Attention
    layouts: Layouts
    tiles: tuple[Tile, ...]
    buffers: dict[str, str]
    names: Names
    step: int | None
    pitch: Expr | None

    @property
    def rows(self) -> int:
        """Queries of a tile."""
        return self.tiles[0].rows if self.step is None else PAIR

    @property
    def lanes(self) -> int:
        return self.tiles[0].lanes

    @property
    def first(self) -> Expr:
        """Where the rows and keys of a task's batch entry begin."""
        return const(0) if self.a.start is None else Var(INDEX, "start", _extent(self.a.row))

    @property
    def queries(self) -> Expr:
        """Rows of a task's batch entry."""
        return _extent(self.a.row) if self.a.longest is None else self.keys

    @property
    def keys(self) -> Expr:
        """Keys of a task's batch entry."""
        longest = self.a.longest
        return _extent(self.a.key) if longest is None else Var(INDEX, "length", longest + 1)

    @property
    def dtype(self) -> DType:
        """Element type of what is multiplied."""
        return self.tiles[0].dtype

    @property
    def group(self) -> int:
        return group(self.dtype)

    @property
    def packed(self) -> str:
        """The buffer that holds packed operands: the scratch memory, behind the scores."""
        return scratch_view(self.dtype).name

    def keys_at(self, pitch: Expr) -> Expr:
        """Where packed keys begin in it: behind the scores."""
        return pitch * (self.rows * self.group)

    def weights_at(self, pitch: Expr) -> Expr:
        """Where the weights of the values begin: in f32 they replace the scores."""
        return const(0) if self.group == 1 else self.keys_at(pitch) + _extent(self.a.depth) * pitch

    def values_at(self, pitch: Expr) -> Expr:
        """Where packed values begin, if they are packed."""
        return self.weights_at(pitch) + pitch * self.rows

    @property
    def whole_keys(self) -> Expr:
        """Keys rounded up to whole vectors, or to what the weighted sum takes: weights beyond are zero."""
        return round_up(self.keys, self.lanes if self.step is None else PANEL)

    @property
    def summed_keys(self) -> Expr:
        """Keys that the weighted sum goes over: whole groups, or all that have weights."""
        return round_up(self.keys, self.group) if self.step is None else self.whole_keys


def attention_kernel(stage: Stage, layouts: Layouts, target: Target, name: str) -> Kernel:
    """The kernel of an attention stage, whose result is [batch, row, head, column] in memory."""
    a = stage.body
    assert isinstance(a, Attention)
    dtype, deep = a.q.dtype, constant_int(a.depth.extent)
    q = flatten(a.q, layouts)
    assert isinstance(q, Load)
    pitch = coefficient(q.index[0], a.row)
    step = None if deep is None or pitch is None else matrix_step(target, dtype, deep)
    parts = _Parts(stage, a, layouts, tiles_for(target, dtype), {}, Names(), step, pitch)
    body = _body(parts)
    depth, columns = _extent(a.depth), _extent(a.column)
    keys = a.longest if a.longest is not None else _extent(a.key)
    rows = _extent(a.row) if a.longest is not None else _extent(a.batch) * _extent(a.row)
    products = _extent(a.head) * rows * keys * (depth + columns)
    work = (products + PRODUCTS_PER_WORK) // PRODUCTS_PER_WORK
    pitch = _key_pitch(keys)
    end = parts.keys_at(pitch) + depth * pitch
    views: tuple[Param, ...] = (SCRATCH_PARAM,)
    if parts.dtype is not F32:
        end = parts.values_at(pitch) + _value_panels(a) * pitch * PANEL
        views = (SCRATCH_PARAM, scratch_view(parts.dtype))
    scratch = end * parts.dtype.bytes  # scores, then packed keys and what else is packed
    return finish_kernel(name, body, parts.buffers, layouts, stage, work=work, scratch=scratch, views=views)


def _extent(v: Var) -> Expr:
    assert v.extent is not None
    return v.extent


def _key_pitch(keys: Expr) -> Expr:
    """Keys rounded up to whole panels."""
    return round_up(keys, PANEL)


def _value_panels(a: Attention) -> Expr:
    return (_extent(a.column) + (PANEL - 1)) // PANEL


def _body(p: _Parts) -> tuple[Stmt, ...]:
    a = p.a
    heads = _extent(a.batch) * _extent(a.head)
    task = Var(INDEX, "task", heads)
    many = Var(DType.BOOL, "many_heads")
    threads = cast(THREADS, INDEX)
    first, last = share(heads, const(1))
    first_row, last_row = share(p.queries, const(p.rows))
    begin, end = Var(INDEX, "first_row"), Var(INDEX, "last_row")
    pitch = Var(INDEX, "pitch")
    block = Var(INDEX, "block")
    shares = (
        Let(begin, p.first + Op(INDEX, "select", (many, const(0), first_row))),
        Let(end, p.first + Op(INDEX, "select", (many, p.queries, last_row))),
        Let(pitch, _key_pitch(p.keys)),
    )
    outside, inside = (shares, _entry(p, task)) if a.start is None else ((), (*_entry(p, task), *shares))
    per_task: tuple[Stmt, ...] = (
        *inside,
        *_pack_keys(p, pitch),
        *(_pack_values(p, pitch) if p.dtype is not F32 else ()),
        For(block, begin, end, _query_tile(p, block, end, pitch), step=p.rows),
    )
    return (
        Comment("threads take whole heads if there are enough, else stretches of queries"),
        Let(many, Op(DType.BOOL, "le", (threads, heads))),
        *outside,
        Declare("table", p.dtype, (max(p.rows, p.lanes),), pointer=True),
        Declare("tile", F32, (p.rows * PANEL,)),
        Declare("total", F32, (p.rows,)),
        For(
            task,
            Op(INDEX, "select", (many, first, const(0))),
            Op(INDEX, "select", (many, last, heads)),
            per_task,
        ),
    )


def _entry(p: _Parts, task: Var) -> tuple[Stmt, ...]:
    """Batch entry and head of a task, and where the entry lies.

    Entries of different lengths come one after the other for each head, not each entry with all its heads:
    heads are alike, so that threads get equal shares.
    """
    a = p.a
    batch, head = Var(INDEX, a.batch.name), Var(INDEX, a.head.name)
    if a.start is None or a.stop is None:
        return (Let(batch, task // _extent(a.head)), Let(head, task % _extent(a.head)))
    start, stop = (substitute(_renamed(p, e), _bound(p)) for e in (a.start, a.stop))
    assert isinstance(p.first, Var) and isinstance(p.keys, Var)
    return (
        Let(head, task // _extent(a.batch)),
        Let(batch, task % _extent(a.batch)),
        Let(p.first, start),
        Let(p.keys, Op(INDEX, "sub", (stop, p.first))),
    )


def _operand(p: _Parts, e: Expr, label: str) -> Load:
    """The load of an operand at its address, its buffer renamed to the parameter."""
    load = flatten(e, p.layouts)
    assert isinstance(load, Load)
    p.buffers[label] = load.buffer
    return replace(load, buffer=label)


def _renamed(p: _Parts, e: Expr) -> Expr:
    """A mask expression at addresses, its buffers renamed to parameters."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load):
            return None
        known = {tensor: param for param, tensor in p.buffers.items() if param.startswith("mask")}
        label = known.get(node.buffer, f"mask{len(known)}")
        p.buffers[label] = node.buffer
        return Load(node.dtype, label, tuple(transform(i, visit) for i in node.index))

    return transform(flatten(e, p.layouts), visit)


def _bound(p: _Parts) -> dict[Expr, Expr]:
    """Batch and head as the locals that hold them."""
    return {v: Var(INDEX, v.name) for v in (p.a.batch, p.a.head)}


def _pack_keys(p: _Parts, pitch: Var) -> tuple[Stmt, ...]:
    """packed[panel][depth / group][key in panel][group] = k[key][depth].

    Keys beyond the last repeat it; their scores are not used.
    """
    a, size, lanes = p.a, p.group, p.lanes
    steps = _extent(a.depth) // size
    panel, j, d = Var(INDEX, "panel"), Var(INDEX, "j", const(PANEL)), Var(INDEX, "d", steps)
    load = _operand(p, a.k, "k")
    contiguous = constant_int(coefficient(load.index[0], a.depth) or const(0)) == 1
    # Whole blocks are transposed in registers, the rest of the depth goes one group at a time.
    whole = steps // lanes * lanes if contiguous else const(0)
    into = p.keys_at(pitch) + panel * (_extent(a.depth) * PANEL) + j * size

    def key(at: Expr) -> dict[Expr, Expr]:
        return {**_bound(p), a.key: p.first + binary("min", panel * PANEL + at, p.keys - 1)}

    i = Var(INDEX, "i", const(lanes))
    row = substitute(load, {**key(j + i), a.depth: const(0)})
    assert isinstance(row, Load)
    block = Call(
        transpose_name(lanes, p.dtype),
        (Address(p.dtype, "table", (const(0),)), d * size,
         Address(p.dtype, p.packed, (into + d * (PANEL * size),)), const(PANEL * size)),
    )  # fmt: skip
    blocks = (
        For(i, const(0), const(lanes), (Store("table", (i,), Address(p.dtype, "k", row.index)),)),
        For(d, const(0), whole, (block,), step=lanes),
    )
    single = substitute(load, {**key(j), a.depth: d * size})
    assert isinstance(single, Load)
    moved = Store(p.packed, (into + d * (PANEL * size),), replace(single, lanes=size))
    body: list[Stmt] = []
    if whole != const(0):
        body.append(For(j, const(0), const(PANEL), blocks, step=lanes))
    if whole != steps:
        body.append(For(j, const(0), const(PANEL), (For(d, whole, steps, (moved,)),)))
    return (
        Comment("keys, transposed into panels"),
        For(panel, const(0), pitch // const(PANEL), tuple(body)),
    )


def _pack_values(p: _Parts, pitch: Var) -> tuple[Stmt, ...]:
    """packed[panel][key / 2][column in panel][2] = v[key][column]; missing last keys are zero."""
    a = p.a
    panel, pair, j = Var(INDEX, "panel"), Var(INDEX, "pair"), Var(INDEX, "j", const(PANEL))
    load = _operand(p, a.v, "v")
    values = {**_bound(p), a.column: panel * PANEL + j}
    even, odd = (
        _or_zero(
            Op(DType.BOOL, "lt", (pair * 2 + half, p.keys)),
            replace(substitute(load, {**values, a.key: p.first + pair * 2 + half}), lanes=p.lanes),
        )
        for half in (0, 1)
    )
    value = Op(p.dtype, "interleave", (even, odd), lanes=2 * p.lanes)
    at = p.values_at(pitch) + panel * (pitch * PANEL) + pair * (2 * PANEL) + j * 2
    inner = For(j, const(0), const(PANEL), (Store(p.packed, (at,), value),), step=p.lanes)
    pairs = p.summed_keys // 2
    return (
        Comment("values, two keys side by side"),
        For(panel, const(0), _value_panels(a), (For(pair, const(0), pairs, (inner,)),)),
    )


def _or_zero(condition: Expr, value: Expr) -> Expr:
    """What is loaded where a condition holds, else 0."""
    zero = Op(value.dtype, "broadcast", (const(0.0, value.dtype),), lanes=value.lanes)
    return Op(value.dtype, "select", (condition, value, zero), lanes=value.lanes)


def _query_tile(p: _Parts, block: Var, end: Var, pitch: Var) -> tuple[Stmt, ...]:
    """Scores, softmax and result of up to `rows` queries."""
    a = p.a
    m, r = Var(INDEX, "m"), Var(INDEX, "r")
    query = substitute(_operand(p, a.q, "q").index[0], {**_bound(p), a.depth: const(0)})
    key_panel = Var(INDEX, "panel")

    def row(at: Expr) -> Address:
        return Address(p.dtype, "q", (substitute(query, {a.row: block + at}),))

    fill, rows = _rows(p, row, m, p.pitch, _extent(a.depth), p.step)
    panel_at = p.keys_at(pitch) + key_panel * (_extent(a.depth) * PANEL)
    keys = Address(p.dtype, p.packed, (panel_at,))
    scores = Address(F32, SCRATCH, (key_panel * PANEL,))
    width = Var(INDEX, "width")
    product = (
        Let(width, binary("min", p.keys - key_panel * PANEL, const(PANEL))),
        *_product(p, m, rows, keys, const(PANEL * p.group), width, scores, pitch),
    )
    strip = r * pitch
    return (
        Let(m, binary("min", end - block, const(p.rows))),
        *fill,
        *(() if p.step is None else (begin_products(m, p.step),)),
        Comment("scores"),
        For(key_panel, const(0), pitch // const(PANEL), product),
        Comment("softmax, not yet divided by its sum"),
        For(r, const(0), m, (*_masked_scores(p, block + r, strip), *_weights(p, r, strip, pitch))),
        Comment("weighted sum of the values"),
        *((begin_products(m, PANEL // p.group),) if p.step not in (None, PANEL // p.group) else ()),
        *_weighted_sum(p, m, block, pitch),
        *(() if p.step is None else (END_PRODUCTS,)),
    )


def _rows(
    p: _Parts, row: Callable[[Expr], Address], m: Var, pitch: Expr | None, depth: Expr, step: int | None
) -> tuple[tuple[Stmt, ...], Rows | Strided]:
    """What `_product` takes of a tile of queries, and statements that prepare it.

    Args:
        p: the kernel.
        row: the address of a row by its number in the tile.
        m: number of rows; the table repeats the last one.
        pitch: elements from one row to the next.
        depth: elements that are summed.
        step: groups of it that a tile of a matrix takes.
    """
    if step is not None and pitch is not None:
        return (), Strided(row(const(0)), pitch, depth, step)
    r = Var(INDEX, "r")
    fill = For(r, const(0), const(p.rows), (Store("table", (r,), row(binary("min", r, m - 1))),))
    return (fill,), Rows(Address(p.dtype, "table", (const(0),)), const(p.rows), const(1), depth)


def _product(
    p: _Parts,
    m: Var,
    rows: Rows | Strided,
    panel: Address,
    stride: Expr,
    width: Expr,
    result: Address | None = None,
    result_pitch: Expr | None = None,
) -> tuple[Stmt, ...]:
    """The rows of a tile of queries times one panel."""
    ahead = Address(p.dtype, panel.buffer, (panel.index[0] + stride * ROWS_AHEAD,))
    columns = Columns(panel, stride, width, ahead, stride)
    if isinstance(rows, Strided):
        return multiply_matrix(m, rows, columns, result, result_pitch)
    return multiply(p.tiles, m, rows, columns, result, result_pitch)


def _masked_scores(p: _Parts, row: Expr, strip: Expr) -> tuple[Stmt, ...]:
    """Scales and masks a strip of scores in place, finds the largest, fills its last vector with -inf."""
    a = p.a
    t = Var(INDEX, "t", p.keys)
    at = {**_bound(p), a.row: row, a.key: p.first + t}
    value: Expr = Op(F32, "mul", (Load(F32, SCRATCH, (strip + t,)), const(a.scale, F32)))
    if a.bias is not None:
        value = Op(F32, "add", (value, substitute(_renamed(p, a.bias), at)))
    keep = const(True, DType.BOOL) if a.keep is None else substitute(_renamed(p, a.keep), at)
    lanes = p.lanes if all(vectorizable(e, t, gathers=True) for e in (value, keep)) else 1
    whole = p.keys // lanes * lanes
    last = Var(INDEX, "last", p.keys)

    def step(at: Var, width: int, peak: str) -> tuple[Stmt, ...]:
        scaled, score = Var(F32, "scaled", lanes=width), Var(F32, "score", lanes=width)
        kept = Load(F32, peak, (), lanes=width)
        larger = Op(DType.BOOL, "lt", (kept, score), lanes=width)
        masked = select(vectorize(keep, t, at, width), scaled, _MINUS_INFINITY)
        return (
            Let(scaled, vectorize(value, t, at, width)),
            Let(score, masked),
            Store(SCRATCH, (strip + at,), score),
            # A score that is no number is never the largest, but makes the sum none.
            Store(peak, (), Op(F32, "select", (larger, score, kept), lanes=width)),
        )

    begin: Expr = _MINUS_INFINITY
    vectors: tuple[Stmt, ...] = ()
    if lanes > 1:
        begin = Op(F32, "total_max", (Load(F32, "peaks", (), lanes=lanes),))
        vectors = (
            Declare("peaks", F32, (), lanes, value=_MINUS_INFINITY),
            For(t, const(0), whole, step(t, lanes, "peaks"), step=lanes),
        )
    return (
        *vectors,
        Declare("peak", F32, value=begin),
        For(last, whole if lanes > 1 else const(0), p.keys, step(last, 1, "peak")),
        For(last, p.keys, p.whole_keys, (Store(SCRATCH, (strip + last,), _MINUS_INFINITY),)),
    )


def _weights(p: _Parts, r: Var, strip: Expr, pitch: Var) -> tuple[Stmt, ...]:
    """Makes weights exp(score - peak) of a strip of scores, and keeps one over their sum."""
    t, lanes = Var(INDEX, "t", p.keys), p.lanes
    score = Load(F32, SCRATCH, (strip + t,), lanes=lanes)
    peak, shift = Load(F32, "peak", ()), Var(F32, "shift")
    dead = Op(DType.BOOL, "eq", (peak, _MINUS_INFINITY))
    weight, sums = Var(F32, "weight", lanes=lanes), Load(F32, "sums", (), lanes=lanes)
    one, zero = const(1.0, F32), const(0.0, F32)
    each = (
        Let(weight, unary("exp_nonpositive", Op(F32, "sub", (score, shift), lanes=lanes))),
        Store(p.packed, (p.weights_at(pitch) + strip + t,), cast(weight, p.dtype)),
        Store("sums", (), Op(F32, "add", (sums, weight), lanes=lanes)),
    )
    return (
        Let(shift, Op(F32, "select", (dead, zero, peak))),
        Declare("sums", F32, (), lanes, value=zero),
        For(t, const(0), p.whole_keys, each, step=lanes),
        Let(Var(F32, "sum"), Op(F32, "total_sum", (sums,))),
        Store("total", (r,), Op(F32, "select", (dead, zero, Op(F32, "div", (one, Var(F32, "sum")))))),
    )


def _weighted_sum(p: _Parts, m: Var, block: Var, pitch: Var) -> tuple[Stmt, ...]:
    """Out = (weights times values) / sum, a panel of value columns at a time."""
    a = p.a
    r, panel, j = Var(INDEX, "r", const(p.rows)), Var(INDEX, "panel"), Var(INDEX, "j")

    def row(at: Expr) -> Address:
        return Address(p.dtype, p.packed, (p.weights_at(pitch) + at * pitch,))

    step = None if p.step is None else PANEL // p.group
    fill, rows = _rows(p, row, m, pitch, p.summed_keys, step)
    width = Var(INDEX, "width")
    values, stride = _values(p, panel, pitch)
    product = _product(p, m, rows, values, stride, width)
    tile = Load(F32, "tile", (r * PANEL + j,))
    value = cast(Op(F32, "mul", (tile, Load(F32, "total", (r,)))), p.stage.dtype)
    at = {**_bound(p), a.row: block + r, a.column: panel * PANEL + j}
    address = substitute(p.layouts[p.stage.name].address(p.stage.vars), at)
    write = inner_loop(Domain((j,), value, address), const(0), width, p.lanes, p.names, frozenset({r}))
    body = (
        Let(width, binary("min", _extent(a.column) - panel * PANEL, const(PANEL))),
        *product,
        For(r, const(0), m, write),
    )
    return (*fill, For(panel, const(0), _value_panels(a), body))


def _values(p: _Parts, panel: Var, pitch: Var) -> tuple[Address, Expr]:
    """Where a panel of values begins, and elements from one step of keys to the next."""
    a = p.a
    if p.dtype is not F32:
        at = p.values_at(pitch) + panel * (pitch * PANEL)
        return Address(p.dtype, p.packed, (at,)), const(2 * PANEL)
    load = _operand(p, a.v, "v")
    assert operand_load(load, a.column) is not None
    step = coefficient(load.index[0], a.key)
    assert step is not None
    values = {**_bound(p), a.key: p.first, a.column: panel * PANEL}
    start = substitute(load.index[0], values)
    return Address(F32, "v", (start,)), substitute(step, values)
