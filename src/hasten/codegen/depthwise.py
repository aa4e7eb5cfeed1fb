"""Depthwise convolution, channels innermost: several output positions at a time, their sums in registers.

A block is some positions along the width by a few vectors of channels. For each row of the window its
weights go to registers; each vector of the input is loaded once and added to all the outputs that it
reaches. Columns outside the input are left out, so that only blocks at an edge have conditions.

A small picture is walked channels outside, so that its rows and the block's weights stay in the
first-level cache; a large one row by row, in the order in which it lies in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.codegen.gemm import extent
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import FIRST_LEVEL_CACHE, OUTPUT, decode, finish_kernel, name_buffers, share
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import BUSY
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.codegen.window import conjuncts, find_window, split_guard
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    binary,
    cast,
    const,
    constant_int,
    free_vars,
    substitute,
    walk,
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

STORED = (DType.F32, DType.BF16, DType.U8)
"""Element types of inputs and outputs; sums and weights are f32."""

SUMS = "sums"
"""Name of the array of a block's sums, and in an epilogue of a load that stands for one of them."""

FIRST_ROW, LAST_ROW = Var(INDEX, "first_row"), Var(INDEX, "last_row")

PRODUCTS_PER_WORK = 4
"""Multiply-adds that take as long as one operation of another kernel."""


@dataclass(frozen=True)
class Slide:
    """A sum over a window that slides along one row of a tensor, for each channel by itself.

    Attributes:
        channel: the output variable along which everything is contiguous.
        position: the output variable along which the window slides.
        tap: the window's variable along the same axis.
        stride: input positions from one output to the next.
        rows: first and last (exclusive) value of each other variable of the window.
        edges: expressions, not negative where the input position that they belong to is inside; each
            grows by `1` or `-1` with that position.
        x: the input, at its logical index.
        zero: what is subtracted from each element of the input.
        w: the weight, at its logical index.
        finish: the element, loads at addresses, in terms of a load of `SUMS` at `channel`.
        outer: the other output variables in the order of memory.
        out: address of the element.
    """

    channel: Var
    position: Var
    tap: Var
    stride: int
    rows: Mapping[Var, tuple[Expr, Expr]]
    edges: tuple[Expr, ...]
    x: Load
    zero: float
    w: Load
    finish: Expr
    outer: tuple[Var, ...]
    out: Expr

    @property
    def taps(self) -> int:
        """Elements of a row of the window."""
        return constant_int(self.tap.extent) or 1


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


def depthwise_kernel(stage: Stage, layouts: Layouts, target: Target, name: str) -> Kernel | None:
    """The kernel of a stage that is a depthwise convolution and what follows it, else None."""
    slide = find_slide(stage, layouts)
    if slide is None:
        return None
    builder = _Builder(slide, choose_block(slide, target), layouts)
    body = builder.body()
    products = extent((*stage.vars, *slide.rows, slide.tap))
    work = (products + (PRODUCTS_PER_WORK - 1)) // PRODUCTS_PER_WORK
    return finish_kernel(name, body, builder.buffers, layouts, stage, work=work)


def depthwise_rows(
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
    return Function(name, params, body, "rows of a depthwise convolution"), builder.buffers


def find_slide(stage: Stage, layouts: Layouts) -> Slide | None:
    """The window that a stage sums over, or None if it is anything else."""
    if not isinstance(stage.body, Expr) or len(stage.vars) < 3 or stage.dtype not in STORED:
        return None
    sums = [n for n in walk(stage.body) if isinstance(n, Reduce)]
    channel = stage.vars[layouts[stage.name].order[-1]]
    if len(sums) != 1 or sums[0].op != "sum" or sums[0].dtype is not DType.F32:
        return None
    (total,) = sums
    condition, product = split_guard("sum", total.body) or (const(True, DType.BOOL), total.body)
    operands = _operands(product, stage, channel, layouts)
    extents = [constant_int(v.extent) for v in (*total.vars, channel)]
    if operands is None or None in extents:
        return None
    x, zero, w = operands
    axis = layouts[x.buffer].order[-2]
    taps = [v for v in free_vars(x.index[axis]) if v in total.vars]
    positions = [v for v in free_vars(x.index[axis]) if v in stage.vars]
    if len(taps) != 1 or len(positions) != 1 or positions[0] == channel:
        return None
    (tap,), (position,) = taps, positions
    if any({tap, position} & free_vars(e) for d, e in enumerate(x.index) if d != axis):
        return None
    steps = [constant_int(coefficient(x.index[axis], v) or const(0)) for v in (tap, position)]
    if steps[0] != 1 or steps[1] is None or steps[1] < 1:
        return None
    rows = _rows(total, condition, tap)
    edges = _edges(condition, tap, position, steps[1])
    if rows is None or edges is None or any(position in free_vars(e) for pair in rows.values() for e in pair):
        return None
    accumulator = Load(DType.F32, ACCUMULATOR, ())
    finish = flatten(substitute(stage.body, {total: accumulator}), layouts)
    finish = substitute(finish, {accumulator: Load(DType.F32, SUMS, (channel,))})
    if not vectorizable(finish, channel):
        return None
    layout = layouts[stage.name]
    outer = tuple(stage.vars[d] for d in layout.order if stage.vars[d] not in (position, channel))
    out = layout.address(stage.vars)
    return Slide(channel, position, tap, steps[1], rows, edges, x, zero, w, finish, outer, out)


def _operands(product: Expr, stage: Stage, channel: Var, layouts: Layouts) -> tuple[Load, float, Load] | None:
    """The input with its zero point and the weight, both contiguous along the channel."""
    if not isinstance(product, Op) or product.op != "mul":
        return None
    found = [stored for a in product.args if (stored := _stored(a)) is not None]
    if len(found) != 2:
        return None
    loads, zeros = [load for load, _ in found], [zero for _, zero in found]
    addresses = [layouts[a.buffer].address(a.index) for a in loads]
    if any(constant_int(coefficient(a, channel) or const(0)) != 1 for a in addresses):
        return None
    others = frozenset(stage.vars) - {channel}
    weights = [not others & free_vars(a) for a in addresses]
    (x, w), (zero, shift) = (loads, zeros) if weights[1] else (loads[::-1], zeros[::-1])
    if sum(weights) != 1 or len(x.index) < 2 or w.dtype is not DType.F32 or shift:
        return None
    return x, zero, w


def _stored(e: Expr) -> tuple[Load, float] | None:
    """The load of an operand that is read as it is stored, or widened, and what is subtracted from it."""
    zero = 0.0
    if isinstance(e, Op) and e.op == "sub" and isinstance(e.args[1], Const):
        zero, e = float(e.args[1].value), e.args[0]
    if isinstance(e, Op) and e.op == "cast":
        e = e.args[0]
    return (e, zero) if isinstance(e, Load) and e.dtype in STORED else None


def _rows(total: Reduce, condition: Expr, tap: Var) -> dict[Var, tuple[Expr, Expr]] | None:
    """The part that lies inside of the window's variables other than `tap`."""
    rows = {v: (const(0), v.extent) for v in total.vars if v != tap and v.extent is not None}
    outer = tuple(rows)
    inside: Expr = const(True, DType.BOOL)
    for atom in conjuncts(condition):
        if tap not in free_vars(atom):
            inside = binary("and", inside, atom)
    if inside == const(True, DType.BOOL):
        return dict(rows)
    guarded = Op(DType.F32, "select", (inside, const(1.0, DType.F32), const(0.0, DType.F32)))
    window = find_window("sum", outer, guarded)
    return None if window is None else {**rows, **window.ranges}


def _edges(condition: Expr, tap: Var, position: Var, stride: int) -> tuple[Expr, ...] | None:
    """What must not be negative for an input position to be inside, or None if that is not so simple."""
    found: list[Expr] = []
    for atom in conjuncts(condition):
        if tap not in free_vars(atom):
            continue
        if not isinstance(atom, Op) or atom.op not in ("le", "lt") or atom.args[0].dtype is not INDEX:
            return None
        margin = atom.args[1] - atom.args[0] - (1 if atom.op == "lt" else 0)
        steps = [constant_int(coefficient(margin, v) or const(0)) for v in (tap, position)]
        if steps not in ([1, stride], [-1, -stride]):
            return None
        found.append(margin)
    return tuple(found)


def choose_block(s: Slide, target: Target) -> Block:
    """The block that wastes least: registers all in use, few loads, no position or channel twice."""
    channels, width = constant_int(s.channel.extent) or 1, constant_int(s.position.extent)
    lanes = min(target.vector_bytes // 4, 1 << (channels.bit_length() - 1))

    def cost(b: Block) -> float:
        waste = -(-channels // b.channels) * b.channels / channels
        if width is not None:
            waste *= -(-width // b.positions) * b.positions / width
        products = b.positions * s.taps * b.vectors
        loads = ((b.positions - 1) * s.stride + 2 * s.taps) * b.vectors
        return waste * (1 + loads / products) * max(1.0, BUSY / (b.positions * b.vectors))

    def fits(b: Block) -> bool:
        registers = b.vectors * (b.positions + s.taps + 1)
        return registers < target.registers and b.channels <= channels and b.positions <= (width or 8)

    sizes = itertools.product(range(1, MOST_POSITIONS + 1), range(1, MOST_VECTORS + 1))
    blocks = [b for b in (Block(p, v, lanes) for p, v in sizes) if fits(b)]
    return min(blocks, key=cost) if blocks else Block(1, 1, lanes)


class _Builder:
    """Builds one kernel; holds what its parts share."""

    def __init__(self, slide: Slide, block: Block, layouts: Layouts) -> None:
        self.slide, self.block, self.layouts = slide, block, layouts
        self.channels = constant_int(slide.channel.extent) or 1
        x, w = flatten(slide.x, layouts), flatten(slide.w, layouts)
        assert isinstance(x, Load) and isinstance(w, Load)
        self.x, self.w = x.index[0], w.index[0]
        self.step = coefficient(self.x, slide.tap) or const(0)
        finish, sums = slide.finish, Load(DType.F32, SUMS, (slide.channel,))
        self.finish, names = name_buffers(substitute(finish, {sums: Load(DType.F32, ACCUMULATOR, ())}))
        self.finish = substitute(self.finish, {Load(DType.F32, ACCUMULATOR, ()): sums})
        self.buffers = {"x": x.buffer, "w": w.buffer, **names}
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

        reach = (block.positions - 1) * self.slide.stride + self.slide.taps
        inside: Expr = const(True, DType.BOOL)
        for margin in self.slide.edges:
            grows = constant_int(coefficient(margin, self.slide.tap)) == 1
            inside = binary("and", inside, self.margin(margin, p0, const(0 if grows else reach - 1)))
        return (
            Declare(SUMS, DType.F32, (block.positions, block.vectors), block.lanes),
            each(Store(SUMS, (p, v), const(0.0, DType.F32))),
            *choose(inside, self.window(block, p0, edge=False), self.window(block, p0, edge=True)),
            each(self.finished(block, p0, p, v)),
        )

    def margin(self, margin: Expr, p0: Expr, column: Expr) -> Expr:
        """Whether an edge lets in a column of the input, counted from the first that `p0` needs."""
        values: dict[Expr, Expr] = {self.slide.position: p0, self.slide.tap: const(0)}
        step = coefficient(margin, self.slide.tap) or const(0)
        return binary("le", 0, substitute(margin, values) + column * step)

    def window(self, block: Block, p0: Expr, *, edge: bool) -> tuple[Stmt, ...]:
        """Adds the window's products to the sums; at an edge, those of the columns that exist."""
        s, lanes = self.slide, block.lanes
        p, v = Var(INDEX, "p", const(block.positions)), Var(INDEX, "v", const(block.vectors))
        t, column = Var(INDEX, "t"), Var(INDEX, "column")
        values: dict[Expr, Expr] = {s.position: p0, s.channel: self.c0 + v * lanes}
        x_at = substitute(self.x, {**values, s.tap: const(0)}) + column * self.step
        w_at = substitute(self.w, {**values, s.tap: t})
        sums = Load(DType.F32, SUMS, (p, v), lanes=lanes)
        x = Load(DType.F32, "column_x", (v,), lanes=lanes)
        w = Load(DType.F32, "row_w", (t, v), lanes=lanes)
        loaded = cast(Load(s.x.dtype, "x", (x_at,), lanes=lanes), DType.F32)
        if s.zero:
            loaded = Op(DType.F32, "sub", (loaded, const(s.zero, DType.F32)), lanes=lanes)
        product = Op(DType.F32, "mul", (x, w), lanes=lanes)
        add = Store(SUMS, (p, v), Op(DType.F32, "add", (sums, product), lanes=lanes))
        reached = binary("and", binary("le", 0, t), binary("lt", t, s.taps))
        inner: tuple[Stmt, ...] = (
            Declare("column_x", DType.F32, (block.vectors,), lanes),
            unrolled(v, Store("column_x", (v,), loaded)),
            unrolled(p, Let(t, column - p * s.stride), If(reached, (unrolled(v, add),))),
        )
        if edge:
            exists: Expr = const(True, DType.BOOL)
            for margin in s.edges:
                exists = binary("and", exists, self.margin(margin, p0, column))
            inner = choose(exists, inner)
        columns = Var(INDEX, "column", const((block.positions - 1) * s.stride + s.taps))
        taps = Var(INDEX, "t", const(s.taps))
        body: tuple[Stmt, ...] = (
            Declare("row_w", DType.F32, (s.taps, block.vectors), lanes),
            unrolled(taps, unrolled(v, Store("row_w", (t, v), Load(DType.F32, "w", (w_at,), lanes=lanes)))),
            unrolled(columns, *inner),
        )
        for row in reversed(tuple(s.rows)):
            body = (For(row, *self.bounds[row], body),)
        return body

    def finished(self, block: Block, p0: Expr, p: Var, v: Var) -> Store:
        """Writes the finished element of position `p` and vector `v` of a block."""
        at: dict[Expr, Expr] = {self.slide.position: p0 + p}
        base = self.c0 + v * block.lanes
        value = vectorize(substitute(self.finish, at), self.slide.channel, base, block.lanes)
        stands_for = Load(DType.F32, SUMS, (base,), lanes=block.lanes)
        value = substitute(value, {stands_for: Load(DType.F32, SUMS, (p, v), lanes=block.lanes)})
        return Store(OUTPUT, (substitute(self.slide.out, {**at, self.slide.channel: base}),), value)
