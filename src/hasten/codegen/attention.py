"""The attention kernel: scores, softmax and weighted sum for one tile of queries at a time.

Keys and values are packed once for each batch entry and head into the panels that the register tile reads.
The scores of a tile of queries stay in the second-level cache: at no time is there a matrix of all scores.
The softmax divides at the end.

In bf16 queries, keys, values and the weights of the values are multiplied in pairs; scores, their softmax
and all sums are f32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hasten.codegen.amx import END_PRODUCTS, Strided, begin_products, matrix_step, multiply_matrix
from hasten.codegen.attention_operands import (
    Parts,
    bound,
    extent_of,
    operand,
    pack_keys,
    pack_values,
    renamed,
    value_panels,
)
from hasten.codegen.domain import Domain, share
from hasten.codegen.few_rows import multiply_few
from hasten.codegen.gemm import PRODUCTS_PER_WORK, STEPS_AHEAD
from hasten.codegen.kernel import SCRATCH, SCRATCH_PARAM, THREADS, Kernel, scratch_view
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, inner_loop
from hasten.codegen.reductions import BLOCK_BYTES, Names, one_vector
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import PANEL, Columns, Rows, finished_sum, multiply, tile_sums, tiles_for
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.descriptions import Attention
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
    unary,
)
from hasten.loops.nest import Comment, Declare, For, Let, Param, Stmt, Store, choose, unrolled
from hasten.target import Target

F32 = DType.F32
_MINUS_INFINITY = const(float("-inf"), F32)
ABREAST = 2
"""Blocks of a row that the softmax works on at once."""


def attention_kernel(stage: Stage, layouts: Layouts, target: Target, name: str) -> Kernel:
    """The kernel of an attention stage, whose result is [batch, row, head, column] in memory."""
    a = stage.body
    assert isinstance(a, Attention)
    dtype, deep = a.q.dtype, constant_int(a.depth.extent)
    q = flatten(a.q, layouts)
    assert isinstance(q, Load)
    pitch = coefficient(q.index[0], a.row)
    step = None if deep is None or pitch is None else matrix_step(target, dtype, deep)
    parts = Parts(stage, a, layouts, tiles_for(target, dtype), {}, Names(), step, pitch)
    body = _body(parts)
    depth, columns = extent_of(a.depth), extent_of(a.column)
    keys = a.longest if a.longest is not None else extent_of(a.key)
    rows = extent_of(a.row) if a.longest is not None else extent_of(a.batch) * extent_of(a.row)
    products = extent_of(a.head) * rows * keys * (depth + columns)
    work = (products + PRODUCTS_PER_WORK) // PRODUCTS_PER_WORK
    pitch = _key_pitch(keys)
    end = parts.values_at(pitch) + value_panels(a) * pitch * PANEL
    views: tuple[Param, ...] = (SCRATCH_PARAM,)
    if parts.dtype is not F32:
        views = (SCRATCH_PARAM, scratch_view(parts.dtype))
    scratch = end * parts.dtype.bytes  # scores, then what is packed
    return finish_kernel(name, body, parts.buffers, layouts, stage, work=work, scratch=scratch, views=views)


def _key_pitch(keys: Expr) -> Expr:
    """Keys rounded up to whole panels."""
    return round_up(keys, PANEL)


def _body(p: Parts) -> tuple[Stmt, ...]:
    a = p.a
    heads = extent_of(a.batch) * extent_of(a.head)
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
        *pack_keys(p, pitch),
        *pack_values(p, pitch),
        For(block, begin, end, _query_tile(p, block, end, pitch), step=p.rows),
    )
    return (
        Comment("threads take whole heads if there are enough, else stretches of queries"),
        Let(many, Op(DType.BOOL, "le", (threads, heads))),
        *outside,
        Declare("table", p.dtype, (max(p.rows, p.lanes),), pointer=True),
        Declare("tile", F32, (p.rows * PANEL,)),
        Declare("peaks", F32, (p.rows,), p.lanes),
        Declare("row_sums", F32, (p.rows,), p.lanes),
        Declare("shift", F32, (p.rows,)),
        Declare("total", F32, (p.rows,)),
        For(
            task,
            Op(INDEX, "select", (many, first, const(0))),
            Op(INDEX, "select", (many, last, heads)),
            per_task,
        ),
    )


def _entry(p: Parts, task: Var) -> tuple[Stmt, ...]:
    """Batch entry and head of a task, and where the entry lies.

    Entries of different lengths come one after the other for each head, not each entry with all its heads:
    heads are alike, so that threads get equal shares.
    """
    a = p.a
    batch, head = Var(INDEX, a.batch.name), Var(INDEX, a.head.name)
    if a.start is None or a.stop is None:
        return (Let(batch, task // extent_of(a.head)), Let(head, task % extent_of(a.head)))
    start, stop = (substitute(renamed(p, e), bound(p)) for e in (a.start, a.stop))
    assert isinstance(p.first, Var) and isinstance(p.keys, Var)
    return (
        Let(head, task // extent_of(a.batch)),
        Let(batch, task % extent_of(a.batch)),
        Let(p.first, start),
        Let(p.keys, Op(INDEX, "sub", (stop, p.first))),
    )


def _query_tile(p: Parts, block: Var, end: Var, pitch: Var) -> tuple[Stmt, ...]:
    """Scores, softmax and result of up to `rows` queries."""
    a = p.a
    m, r = Var(INDEX, "m"), Var(INDEX, "r")
    query = substitute(operand(p, a.q, "queries").index[0], {**bound(p), a.depth: const(0)})
    key_panel = Var(INDEX, "panel")

    def row(at: Expr) -> Address:
        return Address(p.dtype, "queries", (substitute(query, {a.row: block + at}),))

    fill, rows = _rows(p, row, m, p.pitch, extent_of(a.depth), p.step)
    panel_at = p.keys_at(pitch) + key_panel * (extent_of(a.depth) * PANEL)
    keys = Address(p.dtype, p.packed, (panel_at,))
    width = Var(INDEX, "width")
    scores = (
        Let(width, binary("min", p.keys - key_panel * PANEL, const(PANEL))),
        *_tile_of_scores(p, m, block, rows, keys, width, pitch),
    )
    return (
        Let(m, binary("min", end - block, const(p.rows))),
        *fill,
        *(() if p.step is None else (begin_products(m, p.step),)),
        Comment("scores, and the largest of each row"),
        For(r, const(0), const(p.rows), (Store("peaks", (r,), _MINUS_INFINITY),)),
        For(key_panel, const(0), pitch // const(PANEL), scores),
        Comment("softmax, not yet divided by its sum"),
        *_softmax(p, m, pitch),
        Comment("weighted sum of the values"),
        *((begin_products(m, PANEL // p.group),) if p.step not in (None, PANEL // p.group) else ()),
        *_weighted_sum(p, m, block, pitch),
        *(() if p.step is None else (END_PRODUCTS,)),
    )


def _rows(
    p: Parts, row: Callable[[Expr], Address], m: Var, pitch: Expr | None, depth: Expr, step: int | None
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
    p: Parts,
    m: Var,
    rows: Rows | Strided,
    panel: Address,
    stride: Expr,
    width: Expr,
    result: Address | None = None,
    result_pitch: Expr | None = None,
) -> tuple[Stmt, ...]:
    """The rows of a tile of queries times one panel."""
    ahead = Address(p.dtype, panel.buffer, (panel.index[0] + stride * STEPS_AHEAD,))
    columns = Columns(panel, stride, width, ahead, stride)
    if isinstance(rows, Strided):
        return multiply_matrix(m, rows, columns, result, result_pitch)
    plain = multiply(p.tiles, m, rows, columns, result, result_pitch)
    if p.tiles[0].columns == PANEL:
        return plain
    # Half a panel of a single row leaves the units idle; all panels of keys and values are whole.
    whole = multiply_few(const(1), rows, panel, stride, const(0), const(1), const(0), result)
    return choose(binary("eq", m, const(1)), (whole,), plain)


def _score(p: Parts, row: Expr, t: Var, product: Expr) -> tuple[Expr, Expr]:
    """The score of a query and the key `t`, of which the product is given, and whether it counts."""
    a = p.a
    at = {**bound(p), a.row: row, a.key: p.first + t}
    value: Expr = Op(F32, "mul", (product, const(a.scale, F32)))
    if a.bias is not None:
        value = Op(F32, "add", (value, substitute(renamed(p, a.bias), at)))
    keep = const(True, DType.BOOL) if a.keep is None else substitute(renamed(p, a.keep), at)
    return value, keep


def _kept_score(score: tuple[Expr, Expr], t: Var, at: Expr, lanes: int) -> tuple[Let, Expr]:
    """The scores of `lanes` keys from `at` on: a definition of them, and -inf where one does not count."""
    value, keep = score
    scaled = Var(F32, "scaled", lanes=lanes)
    masked = select(vectorize(keep, t, at, lanes), scaled, _MINUS_INFINITY)
    return Let(scaled, vectorize(value, t, at, lanes)), masked


def _raise_peaks(r: Expr, score: Expr) -> Store:
    """Keeps the larger of each lane: never a score that is no number, which makes the sum none."""
    kept = Load(F32, "peaks", (r,), lanes=score.lanes)
    larger = Op(DType.BOOL, "lt", (kept, score), lanes=score.lanes)
    return Store("peaks", (r,), Op(F32, "select", (larger, score, kept), lanes=score.lanes))


def _tile_of_scores(
    p: Parts, m: Var, block: Var, rows: Rows | Strided, keys: Address, width: Expr, pitch: Var
) -> tuple[Stmt, ...]:
    """Scores of a tile of queries and a panel of keys, and the largest of each row so far."""
    key_panel = Var(INDEX, "panel")
    stride = const(PANEL * p.group)
    scores = Address(F32, SCRATCH, (key_panel * PANEL,))
    r = Var(INDEX, "r")
    by_row = (
        *_product(p, m, rows, keys, stride, width, scores, pitch),
        For(r, const(0), m, _masked_row(p, block, r, width, pitch)),
    )
    whole = _scores_in_registers(p, block, rows, keys, pitch)
    if whole is None:
        return by_row
    condition = binary("and", binary("eq", m, const(p.rows)), binary("eq", width, PANEL))
    return choose(condition, whole, by_row)


def _scores_in_registers(
    p: Parts, block: Var, rows: Rows | Strided, keys: Address, pitch: Var
) -> tuple[Stmt, ...] | None:
    """Scores of a whole tile, which leave the registers as they are needed; None where that cannot be."""
    if isinstance(rows, Strided):
        return None
    tile, t = p.tiles[0], Var(INDEX, "t", p.keys)
    r, v = Var(INDEX, "r", const(tile.rows)), Var(INDEX, "v", const(tile.vectors))
    held = Load(F32, ACCUMULATOR, (t,))
    score = _score(p, block + r, t, held)
    if not all(vectorizable(e, t, gathers=True) for e in score):
        return None
    column: Expr = const(0) if tile.columns == PANEL else Var(INDEX, "column", const(PANEL))
    stride = const(PANEL * p.group)
    panel = Address(p.dtype, keys.buffer, (keys.index[0] + column * p.group,))
    ahead = Address(p.dtype, keys.buffer, (keys.index[0] + stride * STEPS_AHEAD,))
    at = Var(INDEX, "panel") * PANEL + column + v * tile.lanes
    scaled, masked = _kept_score(score, t, at, tile.lanes)
    sums: dict[Expr, Expr] = {replace(held, index=(at,), lanes=tile.lanes): finished_sum(tile, r, v)}
    kept = Var(F32, "score", lanes=tile.lanes)
    each = (
        replace(scaled, value=substitute(scaled.value, sums)),
        Let(kept, masked),
        Store(SCRATCH, (r * pitch + at,), kept),
        _raise_peaks(r, kept),
    )
    body = (
        *tile_sums(tile, rows, Columns(panel, stride, const(tile.columns), ahead, stride)),
        unrolled(r, unrolled(v, *each)),
    )
    return (
        (For(column, const(0), const(PANEL), body, step=tile.columns),) if isinstance(column, Var) else body
    )


def _masked_row(p: Parts, block: Var, r: Var, width: Expr, pitch: Var) -> tuple[Stmt, ...]:
    """Makes scores of a row of products with a panel of keys; what the panel lacks becomes -inf."""
    t, j = Var(INDEX, "t", p.keys), Var(INDEX, "j", const(PANEL))
    begin = Var(INDEX, "panel") * PANEL
    strip = r * pitch
    score = _score(p, block + r, t, Load(F32, SCRATCH, (strip + t,)))
    lanes = p.lanes if all(vectorizable(e, t, gathers=True) for e in score) else 1
    whole: Expr = const(0)
    vectors: tuple[Stmt, ...] = ()
    if lanes > 1:
        whole = Var(INDEX, "whole", const(PANEL + 1))
        scaled, masked = _kept_score(score, t, begin + j, lanes)
        kept = Var(F32, "score", lanes=lanes)
        each = (scaled, Let(kept, masked), Store(SCRATCH, (strip + begin + j,), kept), _raise_peaks(r, kept))
        vectors = (Let(whole, width // lanes * lanes), For(j, const(0), whole, each, step=lanes))
    single, masked = _kept_score(score, t, begin + j, 1)
    last = Load(F32, SCRATCH, (strip + begin + j,), lanes=p.lanes)
    return (
        *vectors,
        For(j, whole, width, (single, Store(SCRATCH, (strip + begin + j,), masked))),
        For(j, width, const(PANEL), (Store(SCRATCH, (strip + begin + j,), _MINUS_INFINITY),)),
        For(j, whole, const(PANEL), (_raise_peaks(r, last),), step=p.lanes),
    )


def _softmax(p: Parts, m: Var, pitch: Var) -> tuple[Stmt, ...]:
    """Makes weights exp(score - peak) of the scores of a tile, and keeps one over the sum of each row.

    What folds vectors has loops of its own: the rows of one do not wait for each other.
    """
    lanes, block = p.lanes, BLOCK_BYTES // F32.bytes
    vectors = ABREAST * block // lanes
    r, t, v = Var(INDEX, "r"), Var(INDEX, "t", p.keys), Var(INDEX, "v", const(vectors))
    zero, one = const(0.0, F32), const(1.0, F32)
    peak, shift, total = Var(F32, "peak"), Var(F32, "by"), Var(F32, "sum")
    at = r * pitch + t + v * lanes
    weight, sums = Var(F32, "weight", lanes=lanes), Load(F32, "sums", (v,), lanes=lanes)
    shifted = Op(F32, "sub", (Load(F32, SCRATCH, (at,), lanes=lanes), shift), lanes=lanes)
    each = (
        Let(weight, unary("exp_nonpositive" if p.dtype is F32 else "exp_for_bf16", shifted)),
        Store(p.packed, (p.weights_at(pitch) + at,), cast(weight, p.dtype)),
        Store("sums", (v,), Op(F32, "add", (sums, weight), lanes=lanes)),
    )
    joined = one_vector("sum", [Load(F32, "sums", (const(n),), lanes=lanes) for n in range(vectors)], block)
    no_key = Op(DType.BOOL, "eq", (peak, _MINUS_INFINITY))
    nothing = Op(DType.BOOL, "eq", (total, zero))
    return (
        For(r, const(0), m, (
            Let(peak, Op(F32, "total_peak", (Load(F32, "peaks", (r,), lanes=lanes),))),
            Store("shift", (r,), Op(F32, "select", (no_key, zero, peak))),
        )),
        For(r, const(0), m, (
            Let(shift, Load(F32, "shift", (r,))),
            Declare("sums", F32, (vectors,), lanes),
            unrolled(v, Store("sums", (v,), zero)),
            For(t, const(0), pitch, (unrolled(v, *each),), step=vectors * lanes),
            Store("row_sums", (r,), joined),
        )),
        For(r, const(0), m, (
            Let(total, Op(F32, "total_sum", (Load(F32, "row_sums", (r,), lanes=lanes),))),
            Store("total", (r,), Op(F32, "select", (nothing, zero, Op(F32, "div", (one, total))))),
        )),
    )  # fmt: skip


def _weighted_sum(p: Parts, m: Var, block: Var, pitch: Var) -> tuple[Stmt, ...]:
    """Out = (weights times values) / sum, a panel of value columns at a time."""
    a = p.a
    r, panel, j = Var(INDEX, "r", const(p.rows)), Var(INDEX, "panel"), Var(INDEX, "j")

    def row(at: Expr) -> Address:
        return Address(p.dtype, p.packed, (p.weights_at(pitch) + at * pitch,))

    step = None if p.step is None else PANEL // p.group
    fill, rows = _rows(p, row, m, pitch, p.summed_keys, step)
    width = Var(INDEX, "width")
    values = Address(p.dtype, p.packed, (p.values_at(pitch) + panel * (pitch * PANEL),))
    product = _product(p, m, rows, values, const(PANEL * p.group), width)
    tile = Load(F32, "tile", (r * PANEL + j,))
    value: Expr = Op(F32, "mul", (tile, Load(F32, "total", (r,))))
    at = {**bound(p), a.row: block + r, a.column: panel * PANEL + j}
    if p.stage.epilogue is not None:
        finish = renamed(p, p.stage.epilogue)
        value = substitute(substitute(finish, {Load(F32, ACCUMULATOR, ()): value}), at)
    value = cast(value, p.stage.dtype)
    address = substitute(p.layouts[p.stage.name].address(p.stage.vars), at)
    write = inner_loop(Domain((j,), value, address), const(0), width, p.lanes, p.names, frozenset({r}))
    body = (
        Let(width, binary("min", extent_of(a.column) - panel * PANEL, const(PANEL))),
        *product,
        For(r, const(0), m, write),
    )
    return (*fill, For(panel, const(0), value_panels(a), body))
