"""The register tile: the one inner kernel behind matrix products, convolutions and attention.

A tile multiplies some rows of A with one panel of B and keeps the sums in registers throughout. Rows
are given as a table of pointers, one for each tap and row, so that a convolution is the same kernel
over the taps of its window, without a copy of the input. B is packed in panels of `PANEL` columns,
`[panel][tap][depth][column]`, so that it is read once, in order.

Elements narrower than 32 bits go in *groups* that fill 32 bits: a step of depth multiplies a pair of bf16
of each row with a pair of each column and adds both products to an f32; or four unsigned bytes of each row
with four signed bytes of each column, with sums in i32. A panel is then `[tap][depth / size][column][size]`
for groups of `size` elements, and everything else is as it is for f32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Expr, Load, Op, Var, binary, const
from hasten.loops.nest import (
    Call,
    Comment,
    Declare,
    For,
    Function,
    If,
    Let,
    Param,
    Prefetch,
    Stmt,
    Store,
    choose,
    unrolled,
)
from hasten.target import Target

PANEL = 32
"""Columns of a packed panel; the last one may have `HALF_PANEL` instead. The same on every target."""
HALF_PANEL = 16

SPARE_VECTORS = 2
"""Vectors of a row of sums that the tallest tile leaves registers for."""

BUSY = 8
"""Sums under way that keep the multiply-add units busy: two units, latency of four."""

DISPATCHER = "tile_rows_x"
"""Beginning of the names of the functions that multiply any number of rows."""


@dataclass(frozen=True)
class Tile:
    """Shape of a register tile.

    Attributes:
        rows: rows of A.
        vectors: vectors of B's columns.
        lanes: sums in a vector.
        dtype: element type of A, which decides those of B and of the sums.
    """

    rows: int
    vectors: int
    lanes: int
    dtype: DType = DType.F32

    @property
    def columns(self) -> int:
        """Columns of B."""
        return self.vectors * self.lanes

    @property
    def factor(self) -> DType:
        """Element type of B."""
        return factor_of(self.dtype)

    @property
    def total(self) -> DType:
        """Element type of the sums."""
        return total_of(self.dtype)

    @property
    def chains(self) -> int:
        """Independent sums of each element, over every so many steps, where few rows leave the units idle.

        Of whole numbers only: the order of a sum of floats is that of depth, whatever rows and vectors are.
        """
        return max(1, BUSY // (self.rows * self.vectors)) if self.total is DType.I32 else 1

    def column_offset(self, v: Expr, panel_step: Expr | None, size: int = 1) -> Expr:
        """Where a vector of columns lies from the first on, of `size` elements for each column.

        Args:
            v: number of the vector.
            panel_step: elements from one panel to the next, if the tile may take several.
            size: elements.
        """
        if panel_step is None or self.columns <= PANEL:
            return v * (self.lanes * size)
        across = PANEL // self.lanes
        return v // across * panel_step + v % across * (self.lanes * size)

    @property
    def name(self) -> str:
        """Name of the function."""
        return f"tile_{self.rows}x{self.columns}{suffix(self.dtype)}"


def factor_of(dtype: DType) -> DType:
    """Element type of the second operand where the first has this one."""
    return DType.I8 if dtype is DType.U8 else dtype


def total_of(dtype: DType) -> DType:
    """Element type of the sums where the first operand has this one."""
    return DType.I32 if dtype is DType.U8 else DType.F32


def group(dtype: DType) -> int:
    """Elements that share 32 bits, and that one step of depth multiplies."""
    return 4 // dtype.bytes


def suffix(dtype: DType) -> str:
    """What the names of functions end in for an element type."""
    return "" if dtype is DType.F32 else f"_{dtype}"


def tiles_for(target: Target, dtype: DType = DType.F32) -> tuple[Tile, ...]:
    """The tiles used on a target: of the widest first, and of each width the tallest first.

    With 32 registers 24 hold sums (12 x 2 on AVX-512), with 16 registers 12 (6 x 2): the rest holds
    the row of B and a broadcast element of A.
    """
    lanes = target.vector_bytes // 4
    vectors = max(2, HALF_PANEL // lanes)
    tallest = (24 if target.registers >= 32 else 12) // vectors
    heights = [h for h in (12, 8, 6, 4, 2, 1) if h <= tallest]
    widths = [vectors] if vectors * lanes <= HALF_PANEL else [vectors, HALF_PANEL // lanes]
    return tuple(Tile(h, v, lanes, dtype) for v in widths for h in heights)


def with_one_more(tiles: Sequence[Tile]) -> tuple[Tile, ...]:
    """Tiles, and those that take one row more than the tallest, where its sums leave registers for that.

    A single row at the end waits for its panel as long as several rows do.
    """
    t = tiles[0]
    room = t.lanes * t.vectors == PANEL and t.vectors <= SPARE_VECTORS
    return (*tiles, *(replace(o, rows=o.rows + 1) for o in tiles if room and o.rows == t.rows))


def tile_function(t: Tile) -> Function:
    """tile[r][j] = sum over taps and depth of rows[tap][r][k] * panel[tap][k][j].

    The parameters are what `Rows` and `Columns` hold, the depth in steps of one group, then `tile`, the
    result, its rows `tile_pitch` apart.
    """
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    types = {"rows": t.dtype, "panel": t.factor, "ahead": t.factor}
    pointers = [Address(dtype, name, (const(0),)) for name, dtype in types.items()]
    numbers = [Var(INDEX, name) for name in ("pitch", "taps", "depth", "stride", "ahead_step")]
    (table, panel, ahead), (pitch, taps, steps, stride, ahead_step) = pointers, numbers
    rows = Rows(table, pitch, taps, steps * group(t.dtype))
    columns = Columns(panel, stride, const(t.columns), ahead, ahead_step)
    at = r * Var(INDEX, "tile_pitch") + v * t.lanes
    body: tuple[Stmt, ...] = (
        *tile_sums(t, rows, columns),
        Comment("the epilogue reads the sums from here, in the first-level cache"),
        unrolled(r, unrolled(v, Store("tile", (at,), finished_sum(t, r, v)))),
    )
    return Function(t.name, _params(t.dtype), body, f"{t.rows} rows by {t.columns} columns of a product")


def finished_sum(t: Tile, r: Expr, v: Expr) -> Load:
    """A vector of what `tile_sums` leaves in registers."""
    return Load(t.total, "sums", (const(0), r, v), lanes=t.lanes)


Beside = Callable[[Expr], tuple[Stmt, ...]]
"""What else is done between the steps of a tile's sums, once for each number below the tile's rows."""


def tile_sums(t: Tile, rows: Rows, columns: Columns, beside: Beside | None = None) -> tuple[Stmt, ...]:
    """Statements that compute a whole tile into the local array `sums`, of which `finished_sum` loads.

    Args:
        t: the tile; of `BUSY` sums or more if there is something to do beside.
        rows: the first operand; of one tap if there is something to do beside.
        columns: the second operand.
        beside: what is spread evenly over the steps.
    """
    total, zero = t.total, const(0, t.total)
    size = group(t.dtype)
    depth, ahead = rows.depth // size, columns.ahead
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    chain = Var(INDEX, "chain", const(t.chains))
    tap, k, at, whole = (Var(INDEX, n) for n in ("tap", "k", "at", "whole"))

    def acc(chain: Expr) -> Load:
        return Load(total, "sums", (chain, r, v), lanes=t.lanes)

    def each(*body: Stmt) -> For:
        return unrolled(r, unrolled(v, *body))

    def element(a: Address, offset: Expr, lanes: int = 1) -> Load:
        return Load(a.dtype, a.buffer, (a.index[0] + offset,), lanes=lanes)

    def step(k: Expr, chain: Expr) -> tuple[Stmt, ...]:
        b = Load(t.factor, "columns", (v,), lanes=t.lanes * size)
        if size == 1:
            product = Op(total, "mul", (Load(t.dtype, "row", (r, k)), b), lanes=t.lanes)
            summed = Op(total, "add", (acc(chain), product), lanes=t.lanes)
        else:
            pair = Load(t.dtype, "row", (r, k * size), lanes=size)
            repeated = Op(t.dtype, "repeat", (pair,), lanes=t.lanes * size)
            summed = Op(total, "dot", (acc(chain), repeated, b), lanes=t.lanes)
        column = element(columns.panel, at + t.column_offset(v, columns.panel_step, size), t.lanes * size)
        next_place = ahead.index[0] + (tap * depth + k) * columns.ahead_step
        asked = () if columns.panel_step is not None else (Prefetch(ahead.buffer, (next_place,)),)
        return (
            Let(at, (tap * depth + k) * columns.stride),
            Declare("columns", t.factor, (t.vectors,), t.lanes * size),
            unrolled(v, Store("columns", (v,), column)),
            *asked,
            each(Store("sums", (chain, r, v), summed)),
        )

    steps: tuple[Stmt, ...] = (For(k, const(0), depth, step(k, const(0))),)
    joined: tuple[Stmt, ...] = ()
    if beside is not None:
        turn = Var(INDEX, "turn", const(t.rows))
        length = depth // t.rows
        stretch = For(k, turn * length, turn * length + length, step(k, const(0)))
        rest = For(k, length * t.rows, depth, step(k, const(0)))
        steps = (For(turn, const(0), const(t.rows), (stretch, *beside(turn))), rest)
    if t.chains > 1:
        steps = (
            Let(whole, depth // t.chains * t.chains),
            For(k, const(0), whole, (unrolled(chain, *step(k + chain, chain)),), step=t.chains),
            For(k, whole, depth, step(k, const(0))),
        )
        both = Op(total, "add", (acc(const(0)), acc(chain)), lanes=t.lanes)
        add = each(Store("sums", (const(0), r, v), both))
        joined = (For(chain, const(1), const(t.chains), (add,), unroll=True),)
    pointer: Expr = element(rows.table, tap * rows.pitch + r)
    if rows.first is not None and rows.step is not None:
        pointer = Address(rows.first.dtype, rows.first.buffer, (rows.first.index[0] + r * rows.step,))
    in_tap = (
        Declare("row", t.dtype, (t.rows,), pointer=True),
        unrolled(r, Store("row", (r,), pointer)),
        *steps,
    )
    return (
        Declare("sums", total, (t.chains, t.rows, t.vectors), t.lanes),
        unrolled(chain, each(Store("sums", (chain, r, v), zero))),
        For(tap, const(0), rows.taps, in_tap),
        *joined,
    )


def _params(dtype: DType) -> tuple[Param, ...]:
    return (
        Param("rows", dtype, 2),
        Param("pitch", INDEX),
        Param("taps", INDEX),
        Param("depth", INDEX),
        Param("panel", factor_of(dtype), 1),
        Param("stride", INDEX),
        Param("ahead", factor_of(dtype), 1),
        Param("ahead_step", INDEX),
        Param("tile", total_of(dtype), 1, writable=True),
        Param("tile_pitch", INDEX),
    )


def dispatcher_name(columns: int, dtype: DType) -> str:
    """Name of the function that takes any number of rows up to a tile's."""
    return f"{DISPATCHER}{columns}{suffix(dtype)}"


def dispatcher(tiles: Sequence[Tile], columns: int) -> Function:
    """Calls the lowest tile that covers `m` rows; the other parameters are the tile's."""
    dtype = tiles[0].dtype
    params = _params(dtype)
    body = covering_tile(tiles, columns, params, lambda t: t.name)
    name = dispatcher_name(columns, dtype)
    return Function(name, (Param("m", INDEX), *params), body, f"up to m rows by {columns} columns")


def covering_tile(
    tiles: Sequence[Tile], columns: int, params: Sequence[Param], name: Callable[[Tile], str]
) -> tuple[Stmt, ...]:
    """Passes parameters on to the lowest tile of so many columns that covers `m` rows, by its name."""
    m, below = Var(INDEX, "m"), 0
    arguments = tuple(p.passed_on() for p in params)
    body: tuple[Stmt, ...] = ()
    for t in sorted((t for t in tiles if t.columns == columns), key=lambda t: t.rows):
        call: tuple[Stmt, ...] = (Call(name(t), arguments),)
        # The tallest is asked first: it is the usual one.
        body = (If(binary("lt", below, m), call, body),) if body else call
        below = t.rows
    return body


def tile_functions(target: Target, dtypes: Sequence[DType] = (DType.F32,)) -> list[Function]:
    """All functions of the register tile for some element types, callees first."""
    functions: list[Function] = []
    for dtype in dtypes:
        tiles = with_one_more(tiles_for(target, dtype))
        widths = sorted({t.columns for t in tiles})
        functions += [*(tile_function(t) for t in tiles), *(dispatcher(tiles, w) for w in widths)]
    return functions


@dataclass(frozen=True)
class Columns:
    """The second operand of a product: one panel, and what to fetch into the cache beside it.

    Attributes:
        panel: address of its first element.
        stride: elements from one step of depth (one group) to the next.
        width: columns that are wanted, up to `PANEL`.
        ahead: address of what comes next.
        ahead_step: elements of it to ask for at each step of depth.
        panel_step: elements from one panel to the next, where a tile takes several. It asks for nothing then:
            processors see for themselves that each of the panels is read in order.
    """

    panel: Address
    stride: Expr
    width: Expr
    ahead: Address
    ahead_step: Expr
    panel_step: Expr | None = None


@dataclass(frozen=True)
class Rows:
    """The first operand of a product: a table of row pointers and the extents of the sum.

    Attributes:
        table: address of the first pointer.
        pitch: pointers from one tap to the next.
        taps: outer extent of the sum.
        depth: inner extent of the sum, in elements: a multiple of a group.
        first: address of the first row, where all of a single tap are `step` elements apart: known distances
            need no register each, as pointers do.
        step: elements from one row to the next in that case.
    """

    table: Address
    pitch: Expr
    taps: Expr
    depth: Expr
    first: Address | None = None
    step: Expr | None = None


TILE = "tile"
"""The local array that kernels keep a finished tile in."""


def multiply(
    tiles: Sequence[Tile],
    m: Expr,
    rows: Rows,
    columns: Columns,
    result: Address | None = None,
    result_pitch: Expr | None = None,
) -> tuple[Stmt, ...]:
    """Statements that fill `result`, by default `TILE`, with m rows by `width` columns (up to `PANEL`).

    Rows of the result are `result_pitch` elements apart, by default `PANEL`; up to as many as the tallest
    tile has are written.
    """
    panel, width = columns.panel, columns.width
    dtype = tiles[0].dtype
    size = group(dtype)
    if result is None:
        result = Address(total_of(dtype), TILE, (const(0),))
    to = result

    def call(wide: int, column: Expr) -> tuple[Stmt, ...]:
        arguments = (
            m,
            rows.table,
            rows.pitch,
            rows.taps,
            rows.depth // size,
            Address(panel.dtype, panel.buffer, (panel.index[0] + column * size,)),
            columns.stride,
            columns.ahead,
            columns.ahead_step,
            Address(to.dtype, to.buffer, (to.index[0] + column,)),
            const(PANEL) if result_pitch is None else result_pitch,
        )
        return (Call(dispatcher_name(wide, dtype), arguments),)

    widest = max(t.columns for t in tiles)
    if widest == PANEL:
        return choose(binary("le", width, HALF_PANEL), call(HALF_PANEL, const(0)), call(PANEL, const(0)))
    column = Var(INDEX, "column", const(PANEL))
    return (For(column, const(0), width, call(widest, column), step=widest),)
