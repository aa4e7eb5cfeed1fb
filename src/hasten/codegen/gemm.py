"""Kernels for matrix products and convolutions: blocking, threads and epilogue around the register tile.

Threads divide batch entries, rows or panels of columns, as the schedule says; where it leaves that to the
call, entries if there are enough, else rows or panels, whichever leaves the busiest thread less to do or
moves less memory. A thread walks its rows in blocks; for a block it makes the table of row pointers once,
then takes one panel after the other over all tiles of the block, so that a panel stays in the first-level
cache and the block's rows in the second, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from hasten.codegen.domain import extent, share, split_flat
from hasten.codegen.epilogue import ColumnRange, VectorEpilogue, epilogue_value, share_names, write_row
from hasten.codegen.few_rows import FEW, FEW_SUMS, PANELS, has_few_rows, multiply_few
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import LINE, Layouts, flatten
from hasten.codegen.maps import finish_kernel, same_place, written_over
from hasten.codegen.packing import (
    PADDING,
    PackedOperand,
    padding_name,
    padding_of,
    row_pitch,
    whole_depth,
)
from hasten.codegen.reductions import Names
from hasten.codegen.row_tiles import RowTiles, adapted, low_enough, on_the_stack
from hasten.codegen.schedule import Order, Schedule, Split
from hasten.codegen.stage import Stage
from hasten.codegen.threads import NO, divided
from hasten.codegen.tiles import (
    HALF_PANEL,
    PANEL,
    TILE,
    Columns,
    Rows,
    Tile,
    factor_of,
    finished_sum,
    group,
    multiply,
    tile_sums,
    total_of,
)
from hasten.codegen.waiting import (
    PANEL_BEFORE,
    ROW_BEFORE,
    WAITING,
    declare_waiting,
    waiting_sum,
    waiting_tile,
)
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Address,
    Expr,
    Load,
    Op,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    round_up,
    select,
    substitute,
    walk,
)
from hasten.loops.nest import Declare, For, If, Let, Param, Prefetch, Stmt, Store, choose, unrolled
from hasten.loops.simplify import spell

PRODUCTS_PER_WORK = 8
"""Multiply-adds of a register tile that take as long as one operation of another kernel."""

STEPS_AHEAD = 16
"""Steps of depth by which a panel that one tile reads is asked for before it is needed: 2 kB."""

SMALL_WEIGHTS = 1 << 17
"""Bytes of weights that stay in the second-level cache from one call to the next: nothing is asked for."""

LEAST_ROWS = 4
"""Rows whose multiply-adds take as long as the weights do on their way from the last-level cache."""

SHORT = 512
"""Steps of a sum up to which whole tiles are finished in registers, by code of their own in each kernel."""

LEAST_TURN = 4
"""Steps between two rows of an epilogue that waits, at least: fewer do not hide it."""


def gemm_kernel(
    stage: Stage,
    packed: PackedOperand,
    layouts: Layouts,
    tiles: Sequence[Tile],
    schedule: Schedule,
    name: str,
) -> Kernel:
    """The kernel of a contraction stage whose second operand is packed."""
    assert isinstance(stage.body, Gemm)
    schedule = on_the_stack(schedule, constant_int(extent(stage.body.taps)) or 1, tiles[0].rows)
    return ProductBuilder(stage, packed, layouts, low_enough(tiles, schedule), schedule).kernel(name)


class ProductBuilder:
    """Builds one kernel; holds what its parts share.

    Attributes:
        row_tiles: how rows are cut.
        adapts: whether that may depend on how many rows a call has.
        may_wait: whether epilogues may wait for the sums of the next tile.
        joins: whether few rows take several panels at once.
        scratch: bytes of memory of its own that a thread needs, or None.
        views: the parameters for that.
    """

    scratch: Expr | None = None
    views: tuple[Param, ...] = ()
    adapts = True
    may_wait = True
    joins = True

    def __init__(
        self,
        stage: Stage,
        packed: PackedOperand,
        layouts: Layouts,
        tiles: Sequence[Tile],
        schedule: Schedule,
    ) -> None:
        g = stage.body
        assert isinstance(g, Gemm)
        self.stage, self.g, self.packed, self.layouts, self.tiles = stage, g, packed, layouts, tiles
        self.schedule = schedule
        self.rows, self.columns = extent(g.rows), extent((g.column,))
        adapts = self.adapts and schedule.tile_rows is None
        self.row_tiles = adapted(tiles, self.rows) if adapts else RowTiles(tiles[0].rows)
        self.taps, self.batch = extent(g.taps), extent(g.batch)
        assert g.depth.extent is not None and constant_int(self.taps) is not None
        self.depth = whole_depth(g)
        self.dtype = g.a.dtype
        self.group = group(self.dtype)
        # Of the packed operand: the type of its elements, those of a column in a step, and the steps.
        self.factor, self.together = factor_of(self.dtype), self.group
        self.steps = self.taps * (self.depth // self.group)
        self.panels = (self.columns + (PANEL - 1)) // PANEL
        self.single = constant_int(self.batch) == 1
        self.entry: Expr = const(0) if self.single else Var(INDEX, "entry", self.batch)
        self.part_panels = self.panels // self.packed.parts
        self.panel = Var(INDEX, "panel", self.panels)
        # Known to be within bounds, divisions of rows into positions are plain ones.
        self.block, self.row = Var(INDEX, "block", self.rows), Var(INDEX, "row", self.rows)
        self.names = Names()
        self.at_row = {**split_flat(self.entry, g.batch), **split_flat(self.row, g.rows)}
        self.address = layouts[stage.name].address(stage.vars)
        raw = self.operand_pointer()
        self.pitch = row_pitch(g, layouts)
        finish = epilogue_value(stage, layouts)
        (self.pointer, self.finish), self.buffers = share_names(raw, finish)
        padding = padding_of(g)
        if padding is not None:
            self.buffers[PADDING] = padding_name(padding)
        self.buffers["b"] = packed.tensor
        self.by_vectors = VectorEpilogue(
            tiles[0], self.finish, self.address, self.at_row, self.row, g.column, self.panels
        )

    @property
    def grain(self) -> Expr:
        """Rows that a thread has a multiple of: which tile takes a row must not depend on the threads."""
        return self.row_tiles.tall

    @property
    def tallest(self) -> int:
        """Rows of the largest result that is finished at a time."""
        return self.row_tiles.tallest

    @property
    def more(self) -> int:
        """Rows that the last tile may take beyond those of the tallest."""
        return self.row_tiles.more

    def kernel(self, name: str) -> Kernel:
        """The kernel as a function of this name."""
        g = self.g
        rows = binary("max", self.rows, const(LEAST_ROWS))
        products = self.batch * rows * self.taps * extent((g.depth, g.column))
        work = (products + PRODUCTS_PER_WORK) // PRODUCTS_PER_WORK
        kernel = finish_kernel(
            name,
            self.body(),
            self.buffers,
            self.layouts,
            self.stage,
            work=work,
            scratch=self.scratch,
            views=self.views,
        )
        residual = same_place(self.finish, {spell(self.address)}, self.buffers, self.layouts, self.stage)
        return written_over(kernel, residual)

    def body(self) -> tuple[Stmt, ...]:
        """All statements of the kernel."""
        shares, (entries, rows, panels) = self.partition()
        step = self.row_block
        height = Var(INDEX, "height", const(step + 1 + self.more))
        in_block = (
            Let(height, self.row_tiles.taken(rows[1] - self.block, const(step))),
            *self.prepare(height),
            *self.over_block(height, panels),
        )
        if self.waits:
            r = Var(INDEX, "r", const(self.tallest))
            last = For(r, const(0), const(self.tallest), self.finish_waiting(r))
            in_block = (*declare_waiting(self.tiles[0]), *in_block, last)
        blocks = For(self.block, rows[0], self.row_tiles.end(*rows), in_block, step=step)
        return (
            *self.row_tiles.choose(self.rows),
            *shares,
            *self.locals(),
            *self.over_entries(entries, (blocks,)),
        )

    def locals(self) -> tuple[Stmt, ...]:
        """The arrays of a block."""
        capacity = constant_int(self.taps) or 1
        sums = max((self.tallest + self.more) * PANEL, FEW_SUMS if self.few_rows else 0)
        return (
            Declare("table", self.dtype, (capacity * self.pointers,), pointer=True),
            Declare(TILE, total_of(self.dtype), (sums,)),
        )

    def prepare(self, height: Var) -> tuple[Stmt, ...]:
        """What is done once for the rows of a block."""
        return self.row_table(height)

    def over_entries(self, entries: tuple[Expr, Expr], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The loop over batch entries, if there are several."""
        return (For(self.entry, *entries, body),) if isinstance(self.entry, Var) else body

    @property
    def row_block(self) -> int:
        """Rows of a block: whole tiles, so that only the last rows of all go through lower ones.

        Lower tiles take longer, and which rows they take is the same for any number of threads.
        """
        return -(-self.schedule.row_block // self.tallest) * self.tallest

    @property
    def pointers(self) -> int:
        """Pointers to rows of a block in the table, for each tap."""
        return self.row_block + self.more * self.tallest

    def partition(self) -> tuple[list[Stmt], list[tuple[Expr, Expr]]]:
        """This thread's ranges of batch entries, rows and panels."""
        tiles = self.row_tiles.count(self.rows, self.grain)
        statements, split = divided(self.schedule.split, self.batch, self.rows, self.columns, tiles)
        ranges: list[tuple[Expr, Expr]] = []
        for label, total, grain, mine in (
            ("entry", self.batch, const(1), split[Split.ENTRIES]),
            ("row", self.rows, self.grain, split[Split.ROWS]),
            ("panel", self.part_panels, const(1), split[Split.PANELS]),
        ):
            first, last = (self.row_tiles.share if label == "row" else share)(total, grain)
            begin, end = Var(INDEX, f"first_{label}"), Var(INDEX, f"last_{label}")
            if (label == "entry" and self.single) or mine == NO:
                ranges.append((const(0), total))
                continue
            statements.append(Let(begin, select(mine, first, const(0))))
            statements.append(Let(end, select(mine, last, total)))
            ranges.append((begin, end))
        return statements, ranges

    def operand_pointer(self) -> tuple[Expr | None, Load]:
        """Condition (None: always) and load of the first operand at depth 0, in terms of `entry`, `row`."""
        values = {**self.at_row, self.g.depth: const(0)}
        e = substitute(flatten(self.g.a, self.layouts), values)
        if isinstance(e, Op) and e.op == "select":
            condition, value = e.args[0], e.args[1]
            assert isinstance(value, Load)
            return condition, value
        assert isinstance(e, Load)
        return None, e

    def row_table(self, height: Var) -> tuple[Stmt, ...]:
        """Fills the table of row pointers of a block; beyond the last row it repeats that row."""
        r = Var(INDEX, "r", const(self.pointers))
        condition, load = self.pointer
        here: Expr = Address(self.dtype, load.buffer, load.index)
        if condition is not None:
            here = Op(self.dtype, "select", (condition, here, Address(self.dtype, PADDING, (const(0),))))
        tap_index: Expr = const(0)
        for v in self.g.taps:
            assert v.extent is not None
            tap_index = tap_index * v.extent + v
        fill: tuple[Stmt, ...] = (Store("table", (tap_index * self.pointers + r,), here),)
        for v in reversed(self.g.taps):
            assert v.extent is not None
            fill = (For(v, const(0), v.extent, fill),)
        rounded = round_up(height, self.tallest)
        at = Let(self.row, self.block + binary("min", r, height - 1))
        return (For(r, const(0), rounded, (at, *fill)),)

    def over_block(self, height: Var, panels: tuple[Expr, Expr]) -> tuple[Stmt, ...]:
        """All tiles of a block over this thread's panels: several panels at once where it has few rows."""
        if not self.few_rows:
            return self.over_tall(height, panels)
        always = (constant_int(self.rows) or FEW + 1) <= FEW
        few = const(True, DType.BOOL) if always else binary("le", height, const(FEW))
        return choose(few, self.over_few(height, panels), () if always else self.over_tall(height, panels))

    @property
    def few_rows(self) -> bool:
        """Whether a block can have so few rows that single panels would leave the units idle."""
        rows = constant_int(self.rows)
        possible = rows is None or (rows % self.row_block or self.row_block) <= FEW
        return self.joins and possible and has_few_rows(self.dtype)

    def over_few(self, height: Var, panels: tuple[Expr, Expr]) -> tuple[Stmt, ...]:
        """The rows of a low block over this thread's panels, some panels at a time."""
        return self.over_parts(panels, lambda begin, end: self.few_of_part(height, begin, end))

    def few_of_part(self, height: Var, begin: Expr, end: Expr) -> For:
        """The same for panels that lie one behind the other."""
        packed, count = Var(INDEX, "packed"), Var(INDEX, "together")
        stride = const(PANEL * self.together)
        step = self.steps * stride
        panel = Address(self.factor, "b", (packed,))
        narrow: Expr = const(0)
        if self.packed.half:
            rest = self.columns - (self.panel + count - 1) * PANEL
            narrow = select(binary("le", rest, const(HALF_PANEL)), const(1), const(0))
        rows = Rows(Address(self.dtype, "table", (const(0),)), const(self.pointers), self.taps, self.depth)
        body = (
            Let(packed, self.entry * self.packed.batch_stride + self.panel * step),
            Let(count, binary("min", end - self.panel, const(PANELS))),
            multiply_few(height, rows, panel, stride, step, count, narrow),
            self.write_few(height, count),
        )
        return For(self.panel, begin, end, body, step=PANELS)

    def write_few(self, height: Var, count: Expr) -> For:
        """Applies the epilogue to few rows of some panels, each with a tile of its own, and writes them."""
        sub, r = Var(INDEX, "sub", const(PANELS)), Var(INDEX, "r", const(FEW))
        width = binary("min", self.columns - (self.panel + sub) * PANEL, const(PANEL))
        columns = ColumnRange(self.g.column, (self.panel + sub) * PANEL, width)
        at, lanes = sub * FEW + r, self.tiles[0].lanes
        row = write_row(self.finish, self.address, self.at_row, at, columns, lanes, self.names)
        return For(sub, const(0), count, (For(r, const(0), height, (Let(self.row, self.block + r), *row)),))

    def over_tall(self, height: Var, panels: tuple[Expr, Expr]) -> tuple[Stmt, ...]:
        """All tiles of a block over this thread's panels, in the order of the schedule."""
        r0, m = Var(INDEX, "r0", const(self.row_block)), Var(INDEX, "m", const(self.tallest + 1 + self.more))
        panel, columns = self.columns_of_panel(r0, height)
        count = Let(m, self.row_tiles.taken(height - r0, self.row_tiles.tall))
        tile = self.finished_tile(r0, m, columns)
        if self.schedule.order is Order.ROWS:
            return (self.over_tiles(r0, height, (count, *self.over_panels(panels, (*panel, *tile)))),)
        return self.over_panels(panels, (*panel, self.over_tiles(r0, height, (count, *tile))))

    def over_tiles(self, r0: Var, height: Var, body: tuple[Stmt, ...]) -> For:
        """The loop over the tiles of a block, by their first rows."""
        if self.row_tiles.lower is None:
            return For(r0, const(0), self.row_tiles.end(const(0), height), body, step=self.tallest)
        piece = Var(INDEX, "piece", const(self.row_block))
        return For(
            piece, const(0), self.row_tiles.pieces(height), (Let(r0, piece * self.row_tiles.tall), *body)
        )

    def over_panels(self, panels: tuple[Expr, Expr], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The loop over this thread's panels."""

        def of_part(begin: Expr, end: Expr) -> For:
            if self.packed.parts == 1:
                return For(self.panel, begin, end, body)
            after = select(binary("lt", self.panel + 1, end), self.panel + 1, begin + self.part_panels)
            return For(self.panel, begin, end, (Let(Var(INDEX, "following"), after), *body))

        return self.over_parts(panels, of_part)

    def over_parts(self, panels: tuple[Expr, Expr], of_part: Callable[[Expr, Expr], For]) -> tuple[Stmt, ...]:
        """What is done for neighbouring panels, for those of this thread: of each part the same stretch."""
        begin, end = panels
        if self.packed.parts == 1:
            return (of_part(begin, end),)
        part = Var(INDEX, "part", const(self.packed.parts))
        first, last = Var(INDEX, "part_begin"), Var(INDEX, "part_end")
        lets = (Let(first, part * self.part_panels + begin), Let(last, part * self.part_panels + end))
        return (For(part, const(0), const(self.packed.parts), (*lets, of_part(first, last))),)

    def finished_tile(self, r0: Var, m: Var, columns: Columns) -> tuple[Stmt, ...]:
        """One tile: its sums, and its epilogue."""
        rows = Rows(Address(self.dtype, "table", (r0,)), const(self.pointers), self.taps, self.depth)
        tile = (*multiply(self.tiles, m, rows, columns), *self.write(r0, m, columns.width))
        for width in self.whole_widths():
            finished = self.whole_tile(r0, rows, columns, width)
            if finished is not None:
                whole = binary(
                    "and", binary("eq", m, const(self.tallest)), binary("eq", columns.width, width)
                )
                tile = choose(whole, finished, tile)
        return (*self.fetch_operands(r0, m), *tile)

    def columns_of_panel(self, r0: Expr, height: Var) -> tuple[tuple[Stmt, ...], Columns]:
        """Statements at the beginning of a panel, and its columns."""
        stride, packed = Var(INDEX, "stride"), Var(INDEX, "packed")
        left = self.columns if constant_int(self.panels) == 1 else self.columns - self.panel * PANEL
        width = binary("min", left, const(PANEL))
        lets: list[Stmt] = []
        if constant_int(width) is None:
            lets.append(Let(Var(INDEX, "width"), width))
            width = Var(INDEX, "width")
        narrow = binary("le", left, HALF_PANEL) if self.packed.half else NO
        wide, half = const(PANEL * self.together), const(HALF_PANEL * self.together)
        offset = self.entry * self.packed.batch_stride + self.panel * (self.steps * wide)
        lets += [
            Let(stride, select(narrow, half, wide) if self.packed.half else wide),
            Let(packed, offset),
        ]
        next_part = packed + self.steps * wide
        if self.packed.parts > 1:
            next_part = packed + (Var(INDEX, "following") - self.panel) * (self.steps * wide)
        ahead_step: Expr = wide  # rows outside: one tile, and the next panel is needed
        if self.schedule.order is Order.PANELS:
            # While a panel is in use, each of its tiles asks for a part of the next one.
            ahead_step = Var(INDEX, "ahead_step")
            pieces = self.row_tiles.pieces(height)
            lets.append(Let(ahead_step, (pieces + (PANEL * self.together - 1)) // pieces))
            # Where one tile takes a panel, the next one would have left the cache before it is needed: it
            # asks for what it reads itself a little later.
            number = (
                r0 // self.row_tiles.tall
                if self.row_tiles.lower is None
                else Var(INDEX, "piece", const(self.row_block))
            )
            far = next_part + number * (self.steps * ahead_step)
            elements = constant_int(self.columns * self.steps * self.together)
            small = elements is not None and elements * self.factor.bytes <= SMALL_WEIGHTS
            near = packed if small else packed + wide * STEPS_AHEAD
            next_part = select(binary("eq", pieces, 1), near, far)
        columns = Columns(
            Address(self.factor, "b", (packed,)),
            stride,
            width,
            Address(self.factor, "b", (next_part,)),
            ahead_step,
        )
        return tuple(lets), columns

    def write(self, r0: Expr, m: Var, width: Expr) -> tuple[Stmt, ...]:
        """Applies the epilogue to a finished tile and writes it."""
        r = Var(INDEX, "r", const(self.tallest + self.more))
        columns = ColumnRange(self.g.column, self.panel * PANEL, width)
        lanes = self.tiles[0].lanes
        inner = write_row(self.finish, self.address, self.at_row, r, columns, lanes, self.names)
        return (For(r, const(0), m, (Let(self.row, self.block + r0 + r), *inner)),)

    def fetch_operands(self, r0: Expr, m: Var) -> tuple[Stmt, ...]:
        """Asks for what the epilogue of a tile will read row by row, while the sums are computed.

        Each row of a residual is a cache line or two, far from the next: too few for the processor to see a
        pattern, and all are missed at once at the end of the tile.
        """
        r = Var(INDEX, "r", const(self.tallest + self.more))
        lines: list[Stmt] = []
        for load in dict.fromkeys(n for n in walk(self.finish) if isinstance(n, Load) and n.index):
            if not free_vars(load.index[0]) & set(self.g.rows):
                continue
            for column in range(0, PANEL, LINE // load.dtype.bytes):
                values = {**self.at_row, self.g.column: self.panel * PANEL + column}
                lines.append(Prefetch(load.buffer, (substitute(load.index[0], values),)))
        if not lines:
            return ()
        return (For(r, const(0), m, (Let(self.row, self.block + r0 + r), *lines)),)

    def whole_widths(self) -> tuple[int, ...]:
        """Columns of panels whose whole tiles may have code of their own: the last one's, all others'."""
        count = constant_int(self.columns)
        if count is None:
            return (PANEL,)
        last, half = count % PANEL, self.tiles[0].lanes // 2
        return tuple(w for w in (last, PANEL) if 0 < w <= count and w % half == 0)

    def whole_tile(self, r0: Var, rows: Rows, columns: Columns, width: int) -> tuple[Stmt, ...] | None:
        """A whole tile by code of its own, or None where nothing is gained by it or it cannot be.

        Its epilogue waits for the next tile, or is applied before short sums leave the registers.
        """
        wide = PANEL if width > HALF_PANEL else HALF_PANEL
        t = next((t for t in self.tiles if (t.rows, t.columns) == (self.tallest, wide)), self.tiles[0])
        steps = constant_int(self.taps * (self.depth // self.group))  # of the tile, whatever is packed
        if steps is None or not self.by_vectors.possible:
            return None
        if constant_int(self.pitch) is not None:
            load = substitute(self.pointer[1], {self.row: self.block + r0})
            assert isinstance(load, Load)
            rows = replace(rows, first=Address(self.dtype, load.buffer, load.index), step=self.pitch)
        if self.waits and width == PANEL:
            return waiting_tile(t, rows, columns, self.block + r0, self.panel, self.finish_waiting)
        if steps > SHORT:
            return None
        r = Var(INDEX, "r", const(t.rows))
        write = self.by_vectors.write(self.row, self.panel, width, partial(finished_sum, t, r))
        return (*tile_sums(t, rows, columns), unrolled(r, Let(self.row, self.block + r0 + r), *write))

    @property
    def waits(self) -> bool:
        """Whether the epilogue of a whole tile waits until the next one's sums are formed."""
        if PANEL not in self.whole_widths():
            return False
        t, steps = self.tiles[0], constant_int(self.depth // self.group)
        if not self.may_wait or steps is None or constant_int(self.taps) != 1:
            return False
        return steps >= LEAST_TURN * t.rows and t.chains == 1 and self.by_vectors.possible

    def finish_waiting(self, r: Expr) -> tuple[Stmt, ...]:
        """Applies the epilogue to row `r` of the tile that waits for it."""
        t = self.tiles[0]
        row, panel = Var(INDEX, "row_before", self.rows), Var(INDEX, "panel_before", self.panels)
        write = self.by_vectors.write(row, panel, PANEL, partial(waiting_sum, t, r))
        return (If(WAITING, (Let(panel, PANEL_BEFORE), Let(row, ROW_BEFORE + r), *write)),)
