"""Windows that slide, channels innermost: depthwise convolution and pooling, several positions at a time.

A block is some positions along the width by a few vectors of channels, their results in registers. With
weights, those of a row of the window go to registers too; each vector of the input is loaded once and added
to all the outputs that it reaches. Without weights the rows of the window are taken together first, column by
column, and then the columns for each position: k + k steps instead of k * k. Columns outside the input are
left out, so that only blocks at an edge have conditions.

A small picture is walked channels outside, so that its rows and the block's weights stay in the
first-level cache; a large one row by row, in the order in which it lies in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.codegen.domain import OUTPUT, decode, extent, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import FIRST_LEVEL_CACHE, finish_kernel, name_buffers
from hasten.codegen.reductions import combine, neutral
from hasten.codegen.slide import SUMS, Slide, find_slide
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import BUSY
from hasten.codegen.vectorize import coefficient, vectorize
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Var,
    binary,
    cast,
    const,
    constant_int,
    free_vars,
    substitute,
)
from hasten.loops.nest import (
    Declare,
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
    unrolled,
)
from hasten.target import Target

MOST_POSITIONS = 14
"""Output positions of a block at the most."""

MOST_VECTORS = 3
"""Vectors of channels of a block at the most."""


COLUMNS = "columns"
"""Name of the array of what the columns of a block come to, over all rows of the window."""

FIRST_ROW, LAST_ROW = Var(INDEX, "first_row"), Var(INDEX, "last_row")

PRODUCTS_PER_WORK = 4
"""Multiply-adds that take as long as one operation of another kernel."""


@dataclass(frozen=True)
class Block:
    """What is computed in registers at a time.

    Attributes:
        positions: outputs along the width.
        vectors: vectors of channels.
        lanes: channels of a vector.
    """

    positions: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return self.vectors * self.lanes


def slide_kernel(stage: Stage, layouts: Layouts, target: Target, name: str) -> Kernel | None:
    """The kernel of a stage that is a depthwise convolution or pooling and what follows it, else None."""
    slide = find_slide(stage, layouts)
    if slide is None:
        return None
    builder = _Builder(slide, choose_block(slide, target), layouts)
    body = builder.body()
    products = extent((*stage.vars, *slide.rows, slide.tap))
    work = (products + (PRODUCTS_PER_WORK - 1)) // PRODUCTS_PER_WORK
    return finish_kernel(name, body, builder.buffers, layouts, stage, work=work)


def slide_rows(
    slide: Slide, layouts: Layouts, target: Target, name: str
) -> tuple[Function, Mapping[str, str]]:
    """A function that computes the rows of the output from `first_row` up to `last_row` (exclusive).

    Returns:
        The function, and the tensor for each of its buffers but the output.
    """
    builder = _Builder(slide, choose_block(slide, target), layouts)
    body = builder.rows(FIRST_ROW, LAST_ROW)
    sizes = sorted(sizes_of(body))
    params = (
        *(Param(p, layouts[tensor].dtype, 1) for p, tensor in builder.buffers.items()),
        Param(OUTPUT, slide.finish.dtype, 1, writable=True),
        *(Param(size_parameter(s), INDEX) for s in sizes),
        Param(FIRST_ROW.name, INDEX),
        Param(LAST_ROW.name, INDEX),
    )
    return Function(name, params, body, "rows of a window that slides"), builder.buffers


def choose_block(s: Slide, target: Target) -> Block:
    """The block that wastes least: registers all in use, few loads, no position or channel twice."""
    channels, width = constant_int(s.channel.extent) or 1, constant_int(s.position.extent)
    lanes = min(target.vector_bytes // 4, 1 << (channels.bit_length() - 1))
    lines = math.prod(constant_int(v.extent) or 1 for v in s.rows)

    def cost(b: Block) -> float:
        waste = -(-channels // b.channels) * b.channels / channels
        if width is not None:
            waste *= -(-width // b.positions) * b.positions / width
        if s.w is None:
            steps = lines * s.reach(b.positions) + (s.taps - 1) * b.positions
            return waste * (steps / b.positions) * max(1.0, BUSY / (s.reach(b.positions) * b.vectors))
        products = b.positions * s.taps * b.vectors
        loads = (s.reach(b.positions) + s.taps) * b.vectors
        return waste * (1 + loads / products) * max(1.0, BUSY / (b.positions * b.vectors))

    def fits(b: Block) -> bool:
        held = s.reach(b.positions) if s.w is None else b.positions + s.taps
        registers = b.vectors * (held + 1)
        return registers < target.registers and b.channels <= channels and b.positions <= (width or 8)

    sizes = itertools.product(range(1, MOST_POSITIONS + 1), range(1, MOST_VECTORS + 1))
    blocks = [b for b in (Block(p, v, lanes) for p, v in sizes) if fits(b)]
    return min(blocks, key=cost) if blocks else Block(1, 1, lanes)


class _Builder:
    """Builds one kernel; holds what its parts share."""

    def __init__(self, slide: Slide, block: Block, layouts: Layouts) -> None:
        self.slide, self.block, self.layouts = slide, block, layouts
        self.channels = constant_int(slide.channel.extent) or 1
        x = flatten(slide.x, layouts)
        assert isinstance(x, Load)
        self.x = x.index[0]
        self.step = (coefficient(self.x, slide.tap) or const(0)) // slide.dilation
        finish, sums = slide.finish, Load(DType.F32, SUMS, (slide.channel,))
        self.finish, names = name_buffers(substitute(finish, {sums: Load(DType.F32, ACCUMULATOR, ())}))
        self.finish = substitute(self.finish, {Load(DType.F32, ACCUMULATOR, ()): sums})
        weight = {} if slide.w is None else {"w": slide.w.buffer}
        self.buffers = {"x": x.buffer, **weight, **names}
        self.group = Var(INDEX, "group", const(-(-self.channels // block.channels)))
        self.p0, self.c0 = Var(INDEX, "p0"), Var(INDEX, "c0")
        self.bounds = {v: (Var(INDEX, f"first_{v.name}"), Var(INDEX, f"last_{v.name}")) for v in slide.rows}

    def body(self) -> tuple[Stmt, ...]:
        """All statements of the kernel: this thread's rows of the output, or rows of blocks of channels."""
        if not self.channels_outside():
            return self.rows(*share(extent(self.slide.outer), const(1)))
        tasks = [self.group, *self.slide.outer]
        row = (*self.row_bounds(), self.first_channel(), *self.over_width(self.outputs))
        return self.over_tasks(tasks, *share(extent(tasks), const(1)), row)

    def rows(self, first: Expr, last: Expr) -> tuple[Stmt, ...]:
        """Rows of the output, each over all channels."""

        def over_groups(block: Block, p0: Expr) -> tuple[Stmt, ...]:
            groups = self.group.extent
            assert groups is not None
            return (For(self.group, const(0), groups, (self.first_channel(), *self.outputs(block, p0))),)

        row = (*self.row_bounds(), *self.over_width(over_groups))
        return self.over_tasks(self.slide.outer, first, last, row)

    def over_tasks(
        self, tasks: Sequence[Var], first: Expr, last: Expr, row: tuple[Stmt, ...]
    ) -> tuple[Stmt, ...]:
        """A loop over a range of the values of some variables, counted as one."""
        task = Var(INDEX, "task", extent(tasks))
        return (For(task, first, last, (*decode(task, tasks), *row)),)

    def first_channel(self) -> Let:
        """Where a group of channels begins; the last one early enough to be whole."""
        start, last = self.group * self.block.channels, self.channels - self.block.channels
        return Let(self.c0, binary("min", start, const(last)))

    def channels_outside(self) -> bool:
        """Whether all that a block of channels reads stays in the first-level cache.

        Not where blocks overlap: two threads would write the same elements.
        """
        taps = {self.slide.tap, *self.slide.rows}
        shape = self.layouts[self.slide.x.buffer].shape
        read: Expr = const(self.block.channels * DType.F32.bytes)
        for d, index in enumerate(self.slide.x.index):
            if taps & free_vars(index):
                read = read * shape[d]
        size = constant_int(read)
        return size is not None and size <= FIRST_LEVEL_CACHE and self.channels % self.block.channels == 0

    def row_bounds(self) -> tuple[Stmt, ...]:
        """The rows of the window that lie inside the input, for a row of the output."""
        lets: list[Stmt] = []
        for v, (low, high) in self.slide.rows.items():
            first, last = self.bounds[v]
            lets += [Let(first, low), Let(last, high)]
        return tuple(lets)

    def over_width(self, each: Callable[[Block, Expr], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
        """A row in blocks; the last one begins early enough to be whole."""
        width, size = self.slide.position.extent, self.block.positions
        assert width is not None
        count = (width + (size - 1)) // size
        if constant_int(count) == 1:
            return each(self.block, const(0))
        strip = Var(INDEX, "strip", count)
        p0 = Let(self.p0, binary("min", strip * size, width - size))
        whole = For(strip, const(0), count, (p0, *each(self.block, self.p0)))
        single = For(self.p0, const(0), width, each(replace(self.block, positions=1), self.p0))
        return choose(binary("le", size, width), (whole,), (single,))

    def outputs(self, block: Block, p0: Expr) -> tuple[Stmt, ...]:
        """Computes a block of outputs from position `p0` and channel `c0` on."""
        p, v = Var(INDEX, "p", const(block.positions)), Var(INDEX, "v", const(block.vectors))

        def each(statement: Stmt) -> Stmt:
            return unrolled(p, unrolled(v, statement))

        reach = self.slide.reach(block.positions)
        window = self.columns if self.slide.w is None else self.window
        start = neutral(self.slide.op, DType.F32)
        inside: Expr = const(True, DType.BOOL)
        for margin in self.slide.edges:
            grows = constant_int(coefficient(margin, self.slide.tap)) == self.slide.dilation
            inside = binary("and", inside, self.margin(margin, p0, const(0 if grows else reach - 1)))
        return (
            Declare(SUMS, DType.F32, (block.positions, block.vectors), block.lanes),
            each(Store(SUMS, (p, v), start)),
            *choose(inside, window(block, p0, edge=False), window(block, p0, edge=True)),
            each(self.finished(block, p0, p, v)),
        )

    def margin(self, margin: Expr, p0: Expr, column: Expr) -> Expr:
        """Whether an edge lets in a column of the input, counted from the first that `p0` needs."""
        values: dict[Expr, Expr] = {self.slide.position: p0, self.slide.tap: const(0)}
        step = (coefficient(margin, self.slide.tap) or const(0)) // self.slide.dilation
        return binary("le", 0, substitute(margin, values) + column * step)

    def loaded(self, block: Block, p0: Expr, column: Expr, v: Var) -> Expr:
        """A vector of a column of the input, counted from the first that `p0` needs."""
        s, lanes = self.slide, block.lanes
        values: dict[Expr, Expr] = {s.position: p0, s.channel: self.c0 + v * lanes, s.tap: const(0)}
        at = substitute(self.x, values) + column * self.step
        x = cast(Load(s.x.dtype, "x", (at,), lanes=lanes), DType.F32)
        return Op(DType.F32, "sub", (x, const(s.zero, DType.F32)), lanes=lanes) if s.zero else x

    def where_it_exists(self, column: Var, p0: Expr, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """What is done with a column of the input, left out where there is none."""
        exists: Expr = const(True, DType.BOOL)
        for margin in self.slide.edges:
            exists = binary("and", exists, self.margin(margin, p0, column))
        return choose(exists, body)

    def over_rows(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The loops over the rows of the window."""
        for row in reversed(tuple(self.slide.rows)):
            body = (For(row, *self.bounds[row], body),)
        return body

    def window(self, block: Block, p0: Expr, *, edge: bool) -> tuple[Stmt, ...]:
        """Adds the window's products to the sums; at an edge, those of the columns that exist."""
        s, lanes = self.slide, block.lanes
        assert s.w is not None
        p, v = Var(INDEX, "p", const(block.positions)), Var(INDEX, "v", const(block.vectors))
        t, ahead, column = Var(INDEX, "t"), Var(INDEX, "ahead"), Var(INDEX, "column")
        values: dict[Expr, Expr] = {s.channel: self.c0 + v * lanes, s.tap: t}
        weight = flatten(s.w, self.layouts)
        assert isinstance(weight, Load)
        sums = Load(DType.F32, SUMS, (p, v), lanes=lanes)
        x = Load(DType.F32, "column_x", (v,), lanes=lanes)
        w = Load(DType.F32, "row_w", (t, v), lanes=lanes)
        product = Op(DType.F32, "mul", (x, w), lanes=lanes)
        add: Stmt = unrolled(v, Store(SUMS, (p, v), Op(DType.F32, "add", (sums, product), lanes=lanes)))
        reached = binary("and", binary("le", 0, ahead), binary("lt", ahead, s.taps * s.dilation))
        reached = binary("and", reached, binary("eq", ahead % s.dilation, 0))
        inner: tuple[Stmt, ...] = (
            Declare("column_x", DType.F32, (block.vectors,), lanes),
            unrolled(v, Store("column_x", (v,), self.loaded(block, p0, column, v))),
            unrolled(p, Let(ahead, column - p * s.stride), If(reached, (Let(t, ahead // s.dilation), add))),
        )
        if edge:
            inner = self.where_it_exists(column, p0, inner)
        columns = Var(INDEX, "column", const(s.reach(block.positions)))
        taps = Var(INDEX, "t", const(s.taps))
        w_at = substitute(weight.index[0], values)
        return self.over_rows(
            (
                Declare("row_w", DType.F32, (s.taps, block.vectors), lanes),
                unrolled(
                    taps, unrolled(v, Store("row_w", (t, v), Load(DType.F32, "w", (w_at,), lanes=lanes)))
                ),
                unrolled(columns, *inner),
            )
        )

    def columns(self, block: Block, p0: Expr, *, edge: bool) -> tuple[Stmt, ...]:
        """Takes the rows of each column together, then for each position its columns."""
        s, lanes = self.slide, block.lanes
        p, v = Var(INDEX, "p", const(block.positions)), Var(INDEX, "v", const(block.vectors))
        t = Var(INDEX, "t", const(s.taps))
        column = Var(INDEX, "column", const(s.reach(block.positions)))
        held = Load(DType.F32, COLUMNS, (column, v), lanes=lanes)
        taken = Store(COLUMNS, (column, v), combine(s.op, held, self.loaded(block, p0, column, v)))
        body: tuple[Stmt, ...] = (unrolled(v, taken),)
        if edge:
            body = self.where_it_exists(column, p0, body)
        sums = Load(DType.F32, SUMS, (p, v), lanes=lanes)
        one = Load(DType.F32, COLUMNS, (p * s.stride + t * s.dilation, v), lanes=lanes)
        start = Store(COLUMNS, (column, v), neutral(s.op, DType.F32))
        together = Store(SUMS, (p, v), combine(s.op, sums, one))
        return (
            Declare(COLUMNS, DType.F32, (s.reach(block.positions), block.vectors), lanes),
            unrolled(column, unrolled(v, start)),
            *self.over_rows((unrolled(column, *body),)),
            unrolled(t, unrolled(p, unrolled(v, together))),
        )

    def finished(self, block: Block, p0: Expr, p: Var, v: Var) -> Store:
        """Writes the finished element of position `p` and vector `v` of a block."""
        at: dict[Expr, Expr] = {self.slide.position: p0 + p}
        base = self.c0 + v * block.lanes
        value = vectorize(substitute(self.finish, at), self.slide.channel, base, block.lanes)
        stands_for = Load(DType.F32, SUMS, (base,), lanes=block.lanes)
        value = substitute(value, {stands_for: Load(DType.F32, SUMS, (p, v), lanes=block.lanes)})
        return Store(OUTPUT, (substitute(self.slide.out, {**at, self.slide.channel: base}),), value)
