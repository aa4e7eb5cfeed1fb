"""Kernels for products whose weights are codes (`codegen.codes`), and the register tile that widens them.

A few rows are bound by memory: each word of codes is loaded once, and its codes are widened in registers
between the load and the products. Many rows share what is widened once for each panel: it goes to memory of
the thread's own, and from there through the plain register tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hasten.codegen.codes import WORD, Codes
from hasten.codegen.few_rows import FEW
from hasten.codegen.gemm import ProductBuilder
from hasten.codegen.kernel import SCRATCH_PARAM, Kernel, scratch_view
from hasten.codegen.layout import Layouts
from hasten.codegen.packing import PackedOperand
from hasten.codegen.row_tiles import low_enough
from hasten.codegen.schedule import Order, Schedule
from hasten.codegen.stage import Stage
from hasten.codegen.tiles import (
    HALF_PANEL,
    PANEL,
    TILE,
    Columns,
    Tile,
    covering_tile,
    factor_of,
    finished_sum,
    group,
    suffix,
)
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Expr, Load, Op, Var, binary, cast, const, constant_int, select
from hasten.loops.nest import (
    Call,
    Declare,
    For,
    Function,
    Let,
    Param,
    Prefetch,
    Stmt,
    Store,
    choose,
    unrolled,
)

F32, I32 = DType.F32, DType.I32

HEIGHTS = (1, 2, 4, 8)
"""Rows of the tiles that widen codes: more of them share what is widened by way of memory."""

VECTORS = 4
"""Sums side by side of each of a few rows: what widens weights fills the time from one step to the next."""


@dataclass(frozen=True)
class CodesOperand:
    """Where packed codes lie, and how they are to be read; see `codegen.codes.Codes`.

    Attributes:
        bits: of a code.
        block: depth that shares a scale.
        words: name of the tensor of words.
        scales: of scales.
        zeros: of zero points; None where 0 stands for 0.
    """

    bits: int
    block: int
    words: str
    scales: str
    zeros: str | None

    @staticmethod
    def of(codes: Codes, name: str) -> CodesOperand:
        """Codes whose words are stored by a name, and scales and zero points by the name with an ending."""
        zeros = None if codes.zeros is None else f"{name}_zeros"
        return CodesOperand(codes.bits, codes.block, name, f"{name}_scales", zeros)

    @property
    def together(self) -> int:
        """Codes in a word."""
        return WORD // self.bits

    @property
    def steps(self) -> int:
        """Words of a column in a block."""
        return self.block // self.together

    @property
    def kind(self) -> str:
        """What distinguishes functions for it."""
        return f"codes{self.bits}{'_zeros' if self.zeros else ''}"

    @property
    def params(self) -> tuple[Param, ...]:
        """Parameters of a function that reads a panel: its arrays, and elements from one step to the next."""
        names = ("scales", "zeros") if self.zeros else ("scales",)
        scales = (Param(n, F32, 1) for n in names)
        counts = (Param("blocks", INDEX), Param("steps", INDEX))
        return (*counts, Param("panel", I32, 1), *scales, Param("stride", INDEX))

    def arguments(self, blocks: Expr, panel: Expr, first: Expr, stride: Expr) -> tuple[Expr, ...]:
        """Arguments for `params`: offsets of the panel's words and of its scales."""
        names = ("scales", "zeros") if self.zeros else ("scales",)
        scales = (Address(F32, n, (first,)) for n in names)
        return (blocks, const(self.steps), Address(I32, "b", (panel,)), *scales, stride)

    def widened(self, words: Expr, position: int, at: Expr, lanes: int) -> Expr:
        """The weights at a position of some words, as `lanes` of f32; their scales lie at `at`."""
        up = WORD - self.bits * (position + 1)
        code = words if up == 0 else Op(I32, "shl", (words, const(up, I32)), lanes=lanes)
        code = Op(I32, "shr", (code, const(WORD - self.bits, I32)), lanes=lanes)
        value = cast(code, F32)
        if self.zeros:
            value = binary("sub", value, Load(F32, "zeros", (at,), lanes=lanes))
        return binary("mul", value, Load(F32, "scales", (at,), lanes=lanes))

    def elements(self, words: Expr, step: int, at: Expr, lanes: int, dtype: DType) -> Expr:
        """The same as the register tile takes them for one step of depth: one f32, or a pair of bf16."""
        size = group(dtype)
        parts = [self.widened(words, step * size + n, at, lanes) for n in range(size)]
        if size == 1:
            return parts[0]
        narrow = tuple(cast(p, dtype) for p in parts)
        return Op(dtype, "interleave", narrow, lanes=lanes * size)


def codes_kernel(
    stage: Stage,
    operand: CodesOperand,
    layouts: Layouts,
    tiles: Sequence[Tile],
    schedule: Schedule,
    name: str,
) -> Kernel:
    """The kernel of a matrix product whose second operand is packed codes."""
    schedule = replace(schedule, order=Order.PANELS)
    return _CodesBuilder(stage, operand, layouts, low_enough(tiles, schedule), schedule).kernel(name)


class _CodesBuilder(ProductBuilder):
    """Builds one kernel."""

    adapts = False

    def __init__(
        self,
        stage: Stage,
        operand: CodesOperand,
        layouts: Layouts,
        tiles: Sequence[Tile],
        schedule: Schedule,
    ) -> None:
        super().__init__(stage, PackedOperand(operand.words, const(0), half=True), layouts, tiles, schedule)
        depth = constant_int(self.depth)
        assert depth is not None
        self.low = [t for t in tiles if t.rows in HEIGHTS]
        lanes = tiles[0].lanes
        vectors = max(VECTORS, PANEL // lanes)
        self.lowest = [Tile(rows, vectors, lanes, self.dtype) for rows in range(1, FEW + 1)]
        self.operand, self.blocks = operand, depth // operand.block
        self.factor, self.together = I32, 1
        self.steps = const(depth // operand.together)
        self.buffers["scales"] = operand.scales
        if operand.zeros:
            self.buffers["zeros"] = operand.zeros
        self.scratch = const(depth * PANEL * self.dtype.bytes)
        self.views = tuple(dict.fromkeys((SCRATCH_PARAM, scratch_view(self.dtype))))

    def kernel(self, name: str) -> Kernel:
        """The kernel and the functions that it calls."""
        low = [*self.low, *(self.lowest if self.few_rows else ())]
        tiles = tuple(_tile_function(t, self.operand) for t in low)
        dispatchers = tuple(_dispatcher(low, w, self.operand) for w in sorted({t.columns for t in low}))
        widen = _widen_function(self.operand, self.dtype, self.tiles[0].lanes)
        return replace(super().kernel(name), helpers=(*tiles, *dispatchers, widen))

    def over_block(self, height: Var, panels: tuple[Expr, Expr]) -> tuple[Stmt, ...]:
        """All tiles of a block: directly where all rows fit one tile, more of them through widened panels.

        Both ways add up in the order of depth, and what they multiply is the same.
        """
        r0, m = Var(INDEX, "r0", const(self.row_block)), Var(INDEX, "m", const(self.tallest + 1))
        panel, columns = self.columns_of_panel(r0, height)
        few = (
            Let(r0, const(0)),
            Let(m, height),
            *self.fetch_operands(r0, m),
            *self.multiply_codes(r0, m, columns),
            *self.write(r0, m, columns.width),
        )
        wide, widen = self.widened(columns)
        count = Let(m, binary("min", height - r0, const(self.tallest)))
        tile = self.finished_tile(r0, m, wide)
        many = (widen, For(r0, const(0), height, (count, *tile), step=self.tallest))
        chosen = choose(binary("le", self.rows, max(t.rows for t in self.low)), few, many)
        each = (*panel, *chosen)
        if not self.few_rows:
            return (For(self.panel, *panels, each),)
        begin, end = panels
        middle, together = Var(INDEX, "middle"), self.lowest[0].columns // PANEL
        whole = binary("max", binary("min", end, self.columns // PANEL) - begin, const(0))
        paired = begin + whole // together * together
        lowest = (
            *panel,
            Let(r0, const(0)),
            self.call_tile(self.lowest[0].columns, height, r0, columns, const(0)),
            self.write_few(height, const(together)),
        )
        return (
            Let(middle, select(binary("le", height, const(FEW)), paired, begin)),
            For(self.panel, begin, middle, lowest, step=together),
            For(self.panel, middle, end, each),
        )

    def of_panel(self, columns: Columns, column: Expr) -> tuple[Expr, ...]:
        """Arguments for the arrays of a panel from a column on."""
        (words,) = columns.panel.index
        first = self.panel * (self.blocks * PANEL) + column
        return self.operand.arguments(const(self.blocks), words + column, first, columns.stride)

    def multiply_codes(self, r0: Expr, m: Expr, columns: Columns) -> tuple[Stmt, ...]:
        """Fills the tile with sums, each code widened in a register."""
        widest = max(t.columns for t in self.tiles)
        if widest == PANEL:
            narrow = binary("le", columns.width, HALF_PANEL)
            half, whole = (self.call_tile(w, m, r0, columns, const(0)) for w in (HALF_PANEL, PANEL))
            return choose(narrow, (half,), (whole,))
        column = Var(INDEX, "column", const(PANEL))
        call = self.call_tile(widest, m, r0, columns, column)
        return (For(column, const(0), columns.width, (call,), step=widest),)

    def call_tile(self, wide: int, m: Expr, r0: Expr, columns: Columns, column: Expr) -> Call:
        """Fills the tile, from a column on, with sums of `wide` columns, which may be several panels."""
        steps = (self.steps * PANEL, const(self.blocks * PANEL)) if wide > PANEL else ()
        arguments = (
            m,
            Address(self.dtype, "table", (r0,)),
            *self.of_panel(columns, column),
            *steps,
            columns.ahead,
            columns.ahead_step,
            Address(F32, TILE, (column,)),
            const(PANEL),
        )
        return Call(_dispatcher_name(wide, self.operand, self.dtype), arguments)

    def widened(self, columns: Columns) -> tuple[Columns, Stmt]:
        """A panel in memory of the thread's own, and what widens it."""
        factor = factor_of(self.dtype)
        panel = Address(factor, scratch_view(self.dtype).name, (const(0),))
        widen = Call(_widen_name(self.operand, self.dtype), (*self.of_panel(columns, const(0)), panel))
        stride = columns.stride * group(self.dtype)
        return Columns(panel, stride, columns.width, panel, const(0)), widen


def _tile_name(t: Tile, c: CodesOperand) -> str:
    return f"{t.name}_{c.kind}"


def _dispatcher_name(columns: int, c: CodesOperand, dtype: DType) -> str:
    return f"codes_rows_x{columns}{suffix(dtype)}_{c.kind}"


def _widen_name(c: CodesOperand, dtype: DType) -> str:
    return f"widen{suffix(dtype)}_{c.kind}"


def _tile_params(c: CodesOperand, t: Tile) -> tuple[Param, ...]:
    """Parameters of a tile; if it takes several panels, also how far these and their scales are apart."""
    steps = ("panel_step", "scale_step") if t.columns > PANEL else ()
    return (
        Param("rows", t.dtype, 2),
        *c.params,
        *(Param(n, INDEX) for n in steps),
        Param("ahead", I32, 1),
        Param("ahead_step", INDEX),
        Param("tile", F32, 1, writable=True),
        Param("tile_pitch", INDEX),
    )


def _tile_function(t: Tile, c: CodesOperand) -> Function:
    """tile[r][j] = sum over depth of rows[r][k] * (code[k][j] - zero[j]) * scale[j], by blocks of depth."""
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    block, k, at = Var(INDEX, "block"), Var(INDEX, "k"), Var(INDEX, "at")
    stride, steps, size = Var(INDEX, "stride"), Var(INDEX, "steps"), group(t.dtype)
    inner = c.together // size
    total = finished_sum(t, r, v)

    def each(*body: Stmt) -> For:
        return unrolled(r, unrolled(v, *body))

    def step(n: int) -> tuple[Stmt, ...]:
        words = Load(I32, "words", (v,), lanes=t.lanes)
        columns = Load(factor_of(t.dtype), "columns", (v,), lanes=t.lanes * size)
        scale = block * stride + t.column_offset(v, Var(INDEX, "scale_step"))
        element = c.elements(words, n, scale, t.lanes, t.dtype)
        first = at * c.together + n * size
        if size == 1:
            product = Op(F32, "mul", (Load(t.dtype, "row", (r, first)), columns), lanes=t.lanes)
            summed = Op(F32, "add", (total, product), lanes=t.lanes)
        else:
            pair = Load(t.dtype, "row", (r, first), lanes=size)
            repeated = Op(t.dtype, "repeat", (pair,), lanes=t.lanes * size)
            summed = Op(F32, "dot", (total, repeated, columns), lanes=t.lanes)
        return (
            unrolled(v, Store("columns", (v,), element)),
            each(Store("sums", total.index, summed)),
        )

    load = Load(I32, "panel", (at * stride + t.column_offset(v, Var(INDEX, "panel_step")),), lanes=t.lanes)
    in_block = (
        Let(at, block * steps + k),
        Declare("words", I32, (t.vectors,), t.lanes),
        unrolled(v, Store("words", (v,), load)),
        Prefetch("ahead", (at * Var(INDEX, "ahead_step"),)),
        Declare("columns", factor_of(t.dtype), (t.vectors,), t.lanes * size),
        *(s for n in range(inner) for s in step(n)),
    )
    place = r * Var(INDEX, "tile_pitch") + t.column_offset(v, const(FEW * PANEL))
    body: tuple[Stmt, ...] = (
        Declare("sums", F32, (1, t.rows, t.vectors), t.lanes),
        each(Store("sums", total.index, const(0.0, F32))),
        Declare("row", t.dtype, (t.rows,), pointer=True),
        unrolled(r, Store("row", (r,), Load(t.dtype, "rows", (r,)))),
        For(block, const(0), Var(INDEX, "blocks"), (For(k, const(0), steps, in_block),)),
        each(Store("tile", (place,), total)),
    )
    what = f"{t.rows} rows by {t.columns} columns of a product with codes of {c.bits} bits"
    return Function(_tile_name(t, c), _tile_params(c, t), body, what)


def _dispatcher(tiles: Sequence[Tile], columns: int, c: CodesOperand) -> Function:
    """Calls the lowest tile that covers `m` rows; the other parameters are the tile's."""
    params = _tile_params(c, next(t for t in tiles if t.columns == columns))
    body = covering_tile(tiles, columns, params, lambda t: _tile_name(t, c))
    name = _dispatcher_name(columns, c, tiles[0].dtype)
    return Function(name, (Param("m", INDEX), *params), body, f"up to m rows by {columns} columns")


def _widen_function(c: CodesOperand, dtype: DType, lanes: int) -> Function:
    """wide[k][j] = (code[k][j] - zero) * scale, as the register tile takes a panel of floats."""
    factor, size = factor_of(dtype), group(dtype)
    block, k, column, at = (Var(INDEX, n) for n in ("block", "k", "column", "at"))
    stride, steps = Var(INDEX, "stride"), Var(INDEX, "steps")
    words = Var(I32, "words", lanes=lanes)
    inner = c.together // size

    def store(n: int) -> Store:
        element = c.elements(words, n, block * stride + column, lanes, dtype)
        return Store("wide", (((at * inner + n) * stride + column) * size,), element)

    load = Load(I32, "panel", (at * stride + column,), lanes=lanes)
    inside: tuple[Stmt, ...] = (Let(words, load), *(store(n) for n in range(inner)))
    in_block: tuple[Stmt, ...] = (
        Let(at, block * steps + k),
        For(column, const(0), stride, inside, step=lanes),
    )
    body = For(block, const(0), Var(INDEX, "blocks"), (For(k, const(0), steps, in_block),))
    params = (*c.params, Param("wide", factor, 1, writable=True))
    return Function(_widen_name(c, dtype), params, (body,), f"codes of {c.bits} bits in {factor}")
