"""Kernels for 3x3 convolutions after Winograd: fewer products, between two transforms.

A tile of m x m results is computed from the (m + 2) x (m + 2) inputs that it depends on. Each of those
*points* gives one matrix product over all tiles: [tiles, channels] by [channels, columns]. Weights are
transformed when compiling (`winograd_transforms`).

Threads divide the tiles, or panels of columns where there are few tiles or many weights. A thread takes its
tiles in blocks: it transforms the block's inputs into scratch memory, which stays in the second-level cache;
then, for one panel of columns after the other, it makes the products of all points with the register tile and
transforms their results back, through the epilogue, to memory. There is no barrier in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.codegen.convolution import Convolution, find_convolution
from hasten.codegen.domain import extent, share, split_flat
from hasten.codegen.epilogue import ColumnRange, epilogue_value, write_row
from hasten.codegen.gemm import PRODUCTS_PER_WORK
from hasten.codegen.kernel import SCRATCH, THREADS, Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, name_buffers
from hasten.codegen.packing import PADDING, PackedOperand, padding_name
from hasten.codegen.reductions import Names
from hasten.codegen.row_tiles import low_enough
from hasten.codegen.schedule import Schedule, Split
from hasten.codegen.stage import Stage
from hasten.codegen.tiles import HALF_PANEL, PANEL, Columns, Rows, Tile, multiply
from hasten.codegen.winograd_transforms import apply_matrix, transforms
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
)
from hasten.loops.nest import Comment, Declare, For, Let, Stmt, Store

F32 = DType.F32

BLOCK_BYTES = 512 << 10
"""Transformed inputs of a block: about half of a second-level cache, which also sees the weights pass."""

LARGEST_BLOCK = 60
"""Tiles of a block at the most; it bounds the table of row pointers, which lies on the stack."""

LINE = 16
"""Elements by which points lie further apart than they must: a cache line, for sets
of their own."""

PANEL_COST = 4
"""What reading a panel of weights costs a thread, if the products of a tile and a panel cost 2 and the
transform of a tile's inputs 1."""

TRANSFORM_WORK = 4
"""Operations for each element of a transformed input or of a product, in and out together."""


@dataclass(frozen=True)
class _Sizes:
    """Extents that all parts of a kernel use.

    Attributes:
        results: results of a tile along an axis (m).
        side: inputs and products of a tile along an axis (m + 2).
        depth: input channels.
        down, across: tiles of an image along its axes.
        tiles: tiles of all images.
        block: most tiles of a block, a multiple of the register tile's rows.
    """

    results: int
    side: int
    depth: int
    down: Expr
    across: Expr
    tiles: Expr
    block: int

    @property
    def points(self) -> int:
        """Products of a tile for each channel."""
        return self.side * self.side

    @property
    def input_pitch(self) -> int:
        """Elements from one point's transformed inputs to the next one's."""
        return self.block * self.depth + LINE

    @property
    def product_pitch(self) -> int:
        """Elements from one point's products to the next one's."""
        return self.block * PANEL + LINE

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a thread's transformed inputs and products."""
        return self.points * (self.input_pitch + self.product_pitch) * F32.bytes


def winograd_kernel(
    stage: Stage,
    packed: PackedOperand,
    layouts: Layouts,
    tiles: Sequence[Tile],
    schedule: Schedule,
    name: str,
) -> Kernel:
    """The kernel of a convolution whose weights are packed after `transform_weights`, points as taps."""
    convolution = find_convolution(stage)
    assert convolution is not None
    builder = _Builder(stage, convolution, packed, layouts, low_enough(tiles, schedule), schedule)
    s, columns = builder.sizes, extent((convolution.column,))
    products = s.tiles * columns * (s.points * s.depth)
    moved = s.tiles * (columns + s.depth) * (s.points * TRANSFORM_WORK)
    work = (products + PRODUCTS_PER_WORK) // PRODUCTS_PER_WORK + moved
    return finish_kernel(
        name, builder.body(), builder.buffers, layouts, stage, work=work, scratch=const(s.scratch_bytes)
    )


def _sizes(c: Convolution, schedule: Schedule, tallest: int) -> _Sizes:
    t = transforms(schedule.algorithm)
    depth = constant_int(c.depth.extent)
    _, oh, ow = c.rows
    assert depth is not None and oh.extent is not None and ow.extent is not None
    m = t.results
    down, across = (oh.extent + (m - 1)) // m, (ow.extent + (m - 1)) // m
    tiles = extent((c.rows[0],)) * down * across
    count = constant_int(tiles)
    fitting = BLOCK_BYTES // (t.points * t.points * depth * F32.bytes)
    fitting = min(fitting, LARGEST_BLOCK, schedule.row_block)
    most = max(1, fitting if count is None else min(fitting, count))
    return _Sizes(m, t.points, depth, down, across, tiles, -(-most // tallest) * tallest)


class _Builder:
    """Builds one kernel; holds what its parts share."""

    def __init__(
        self,
        stage: Stage,
        c: Convolution,
        packed: PackedOperand,
        layouts: Layouts,
        tiles: Sequence[Tile],
        schedule: Schedule,
    ) -> None:
        self.stage, self.c, self.packed, self.layouts, self.tiles = stage, c, packed, layouts, tiles
        self.transforms = transforms(schedule.algorithm)
        self.tallest, self.lanes = tiles[0].rows, tiles[0].lanes
        self.sizes = _sizes(c, schedule, self.tallest)
        self.split = schedule.split
        self.columns = extent((c.column,))
        self.panels = (self.columns + (PANEL - 1)) // PANEL
        self.names = Names()
        self.block, self.height = Var(INDEX, "block"), Var(INDEX, "height")
        self.image, self.top, self.left = (Var(INDEX, n) for n in ("image", "top", "left"))
        self.panel, self.point = Var(INDEX, "panel", self.panels), Var(INDEX, "point")
        load = flatten(c.load, layouts)
        assert isinstance(load, Load)
        self.address = load.index[0]
        self.finish, names = name_buffers(epilogue_value(stage, layouts))
        self.buffers = {
            "a": load.buffer,
            **names,
            PADDING: padding_name(const(0, c.load.dtype)),
            "b": packed.tensor,
        }

    def body(self) -> tuple[Stmt, ...]:
        """All statements of the kernel."""
        s = self.sizes
        shares, tiles, panels = self.partition()
        number, blocks, size = Var(INDEX, "number"), Var(INDEX, "blocks"), Var(INDEX, "size")
        mine = tiles[1] - tiles[0]
        even = (mine + blocks - 1) // binary("max", blocks, const(1))
        rounded = round_up(even, self.tallest)
        in_block = (
            Let(self.block, tiles[0] + number * size),
            Let(self.height, binary("min", tiles[1] - self.block, size)),
            Comment("inputs of the block, transformed: [point][tile][channel]"),
            self.over_tiles(self.read_tile()),
            *self.row_table(),
            For(self.panel, *panels, self.over_points()),
        )
        return (
            *shares,
            Comment("blocks of about equal size"),
            Let(blocks, (mine + (s.block - 1)) // s.block),
            Let(size, rounded),
            Declare("pixel", self.c.load.dtype, (s.points,), pointer=True),
            Declare("table", F32, (s.points * s.block,), pointer=True),
            Declare("tile", F32, (s.results * s.results * PANEL,)),
            For(number, const(0), blocks, in_block),
        )

    def partition(self) -> tuple[list[Stmt], tuple[Expr, Expr], tuple[Expr, Expr]]:
        """This thread's ranges of tiles and panels.

        Tiles are divided by whole stacks of the register tile, from the first on, so that a tile is summed in
        a register tile of the same height, and thus in the same order, however many threads there are.
        """
        tiles, panels = self.sizes.tiles, self.panels
        split, statements = self.by_panels()
        ranges: list[tuple[Expr, Expr]] = []
        for label, total, grain in (("tile", tiles, self.tallest), ("panel", panels, 1)):
            first, last = share(total, const(grain))
            if label == "tile":
                values = select(split, const(0), first), select(split, total, last)
            else:
                values = select(split, first, const(0)), select(split, last, total)
            names = Var(INDEX, f"first_{label}"), Var(INDEX, f"last_{label}")
            statements += [Let(n, v) for n, v in zip(names, values, strict=True)]
            ranges.append(names)
        return statements, ranges[0], ranges[1]

    def by_panels(self) -> tuple[Expr, list[Stmt]]:
        """Whether threads divide panels, not tiles; statements work it out where that is left open."""
        if self.split is not Split.AUTO:
            return const(self.split is Split.PANELS, DType.BOOL), []
        threads, split = cast(THREADS, INDEX), Var(DType.BOOL, "split_panels")
        tiles, tall = self.sizes.tiles, self.tallest
        stacks = (tiles + (tall - 1)) // tall

        def divided(total: Expr) -> Expr:
            return Op(INDEX, "truncdiv", (total, threads))

        def cost(count: Expr, panels: Expr) -> Expr:
            return count * (panels * 2 + 1) + panels * PANEL_COST

        # The last thread takes what is left over, and its last stack may be low.
        last, other = tiles - divided(stacks * (threads - 1)) * tall, divided(stacks + threads - 2) * tall
        by_tiles = cost(binary("max", last, other), self.panels)
        by_panels = cost(tiles, divided(self.panels + threads - 1))
        return split, [
            Comment(
                "threads divide tiles, or panels: then each transforms all inputs and reads fewer weights"
            ),
            Let(split, binary("lt", by_panels, by_tiles)),
        ]

    def over_tiles(self, body: tuple[Stmt, ...]) -> For:
        """The loop over the tiles of a block; `top` and `left` are a tile's place in the result."""
        t, m = Var(INDEX, "t"), self.sizes.results
        flat = Var(INDEX, "flat", self.sizes.tiles)
        grid = (
            self.image,
            Var(INDEX, "down", self.sizes.down),
            Var(INDEX, "across", self.sizes.across),
        )
        place = split_flat(flat, grid)
        lets = (
            Let(Var(INDEX, "flat"), self.block + t),
            Let(self.image, place[grid[0]]),
            Let(self.top, place[grid[1]] * m),
            Let(self.left, place[grid[2]] * m),
        )
        return For(t, const(0), self.height, (*lets, *body))

    def read_tile(self) -> tuple[Stmt, ...]:
        """B^T d B of one tile, all channels."""
        s, depth = self.sizes, self.sizes.depth
        i, j = Var(INDEX, "i", const(s.side)), Var(INDEX, "j", const(s.side))
        y, x = Var(INDEX, "y"), Var(INDEX, "x")
        at = substitute(
            self.address,
            {self.c.rows[0]: self.image, self.c.y: y, self.c.x: x, self.c.depth: const(0)},
        )
        stored = self.c.load.dtype
        zeros = Address(stored, PADDING, (const(0),))
        here = select(self.c.inside(y, x), Address(stored, "a", (at,)), zeros)
        store = (Let(x, self.left + j), Store("pixel", (i * s.side + j,), here))
        columns = For(j, const(0), const(s.side), store, unroll=True)
        fill = For(i, const(0), const(s.side), (Let(y, self.top + i), columns), unroll=True)
        k, whole = Var(INDEX, "k"), depth // self.lanes * self.lanes
        loops: list[Stmt] = [fill]
        if whole:
            loops.append(For(k, const(0), const(whole), self.transform_input(k, self.lanes), step=self.lanes))
        if depth > whole:
            loops.append(For(k, const(whole), const(depth), self.transform_input(k, 1)))
        return tuple(loops)

    def transform_input(self, k: Var, lanes: int) -> tuple[Stmt, ...]:
        """B^T d B of one tile for `lanes` channels from k on."""
        s, t = self.sizes, Var(INDEX, "t")
        i, j = Var(INDEX, "i", const(s.side)), Var(INDEX, "j", const(s.side))
        side = range(s.side)
        stored = self.c.load.dtype
        down = [cast(Load(stored, "pixel", (const(p * s.side) + j, k), lanes=lanes), F32) for p in side]
        first, half = apply_matrix(self.transforms.inputs, down, self.names)
        across = [Load(F32, "half", (i, const(p)), lanes=lanes) for p in side]
        second, done = apply_matrix(self.transforms.inputs, across, self.names)
        place = t * s.depth + k
        stores = [Store(SCRATCH, ((i * s.side + p) * s.input_pitch + place,), e) for p, e in enumerate(done)]
        halves = [Store("half", (const(p), j), e) for p, e in enumerate(half)]
        return (
            Declare("half", F32, (s.side, s.side), lanes),
            For(j, const(0), const(s.side), (*first, *halves), unroll=True),
            For(i, const(0), const(s.side), (*second, *stores), unroll=True),
        )

    def row_table(self) -> tuple[Stmt, ...]:
        """Fills the table of rows for all points of a block; beyond the last tile it repeats that one."""
        s, t = self.sizes, Var(INDEX, "t")
        rounded = round_up(self.height, self.tallest)
        row = self.point * s.input_pitch + binary("min", t, self.height - 1) * s.depth
        store = Store("table", (self.point * s.block + t,), Address(F32, SCRATCH, (row,)))
        return (For(self.point, const(0), const(s.points), (For(t, const(0), rounded, (store,)),)),)

    def over_points(self) -> tuple[Stmt, ...]:
        """Products of all points for one panel, then their results."""
        s = self.sizes
        stride, packed, width = (Var(INDEX, n) for n in ("stride", "packed", "width"))
        r0, ahead_step = Var(INDEX, "r0"), Var(INDEX, "ahead_step")
        left = self.columns - self.panel * PANEL
        tall = const(self.tallest)
        pieces = (self.height + (self.tallest - 1)) // tall
        # While a panel of one point is in use, each of its tiles asks for a part of the next point's.
        at = packed + self.point * (s.depth * stride)
        ahead = at + s.depth * stride + r0 // tall * (s.depth * ahead_step)
        columns = Columns(Address(F32, "b", (at,)), stride, width, Address(F32, "b", (ahead,)), ahead_step)
        rows = Rows(Address(F32, "table", (self.point * s.block + r0,)), const(1), const(1), const(s.depth))
        into = Address(F32, SCRATCH, (self.products() + r0 * PANEL,))
        m = binary("min", self.height - r0, tall)
        product = For(
            r0, const(0), self.height, multiply(self.tiles, m, rows, columns, into), step=self.tallest
        )
        narrow = binary("le", left, HALF_PANEL)
        return (
            Let(width, binary("min", left, const(PANEL))),
            Let(stride, select(narrow, const(HALF_PANEL), const(PANEL))),
            Let(packed, self.panel * (s.points * s.depth * PANEL)),
            Let(ahead_step, (pieces + (PANEL - 1)) // pieces),
            Comment("products of all points: [point][tile][column]"),
            For(self.point, const(0), const(s.points), (product,)),
            Comment("results of the block, transformed back"),
            self.over_tiles(self.write_tile(width)),
        )

    def products(self) -> Expr:
        """Where the products of a point lie in the scratch memory."""
        s = self.sizes
        return self.point * s.product_pitch + s.points * s.input_pitch

    def write_tile(self, width: Var) -> tuple[Stmt, ...]:
        """A^T m A of one tile, the epilogue, and the results that are inside the picture."""
        s = self.sizes
        j, dy, dx = Var(INDEX, "j"), Var(INDEX, "dy"), Var(INDEX, "dx")
        y, x = Var(INDEX, "y"), Var(INDEX, "x")
        image, oh, ow = self.c.rows
        assert oh.extent is not None and ow.extent is not None
        at: dict[Expr, Expr] = {image: self.image, oh: y, ow: x}
        address = self.layouts[self.stage.name].address(self.stage.vars)
        columns = ColumnRange(self.c.column, self.panel * PANEL, width)
        row = write_row(self.finish, address, at, dy * s.results + dx, columns, self.lanes, self.names)
        m = const(s.results)
        over_x = For(dx, const(0), binary("min", ow.extent - self.left, m), (Let(x, self.left + dx), *row))
        over_y = For(dy, const(0), binary("min", oh.extent - self.top, m), (Let(y, self.top + dy), over_x))
        return (For(j, const(0), width, self.transform_products(j), step=self.lanes), over_y)

    def transform_products(self, j: Var) -> tuple[Stmt, ...]:
        """A^T m A of one tile for a vector of columns from j on, into the local array `tile`."""
        s, t = self.sizes, Var(INDEX, "t")
        i, p = Var(INDEX, "i"), Var(INDEX, "p")
        start = self.products()
        down = [
            Load(
                F32, SCRATCH,
                (substitute(start, {self.point: const(q * s.side) + p}) + t * PANEL + j,), lanes=self.lanes,
            )
            for q in range(s.side)
        ]  # fmt: skip
        first, half = apply_matrix(self.transforms.outputs, down, self.names)
        across = [Load(F32, "half", (i, const(q)), lanes=self.lanes) for q in range(s.side)]
        second, done = apply_matrix(self.transforms.outputs, across, self.names)
        halves = [Store("half", (const(q), p), e) for q, e in enumerate(half)]
        stores = [Store("tile", ((i * s.results + q) * PANEL + j,), e) for q, e in enumerate(done)]
        return (
            Declare("half", F32, (s.results, s.side), self.lanes),
            For(p, const(0), const(s.side), (*first, *halves), unroll=True),
            For(i, const(0), const(s.results), (*second, *stores), unroll=True),
        )
