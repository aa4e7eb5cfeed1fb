"""The kernel of decision trees: blocks of rows, to which a tree asks all its questions or that walk down it.

Where trees are small, all their questions are asked, for a vector of rows at once (`forest_tables`; Lucchese
et al., Exploiting CPU SIMD extensions to speed-up document scoring with tree ensembles, 2016). A question
costs a comparison and a masked AND for many rows, and nothing is mispredicted. Large trees, and all trees
for few rows, are walked down without branches, several walks side by side (Asadi et al., Runtime
optimizations for tree-based machine learning models, 2014): rows in one tree, or trees for one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hasten.codegen.domain import OUTPUT, share
from hasten.codegen.forest_tables import (
    QUESTION,
    TOGETHER,
    Nodes,
    Record,
    measure,
    pack_bits,
    pack_walk,
)
from hasten.codegen.kernel import THREADS, Kernel, scratch_view
from hasten.codegen.layout import Layout, Layouts, flatten
from hasten.codegen.maps import finish_kernel, name_buffers
from hasten.codegen.reductions import combine, neutral
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Forest
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
    round_up,
    select,
    substitute,
    unary,
)
from hasten.loops.nest import Declare, For, If, Let, Stmt, Store, unrolled
from hasten.loops.tabulate import tabulate

BLOCK_BYTES = 128
"""Bytes of a feature that lie together: a block has so many rows."""

WALKED_BYTES = 128 << 10
"""Bytes of features of a block whose rows walk down a large tree one after the other, while it is in a cache
of the second level."""

MOST_ROWS = 1024
"""Rows of such a block at the most."""

FEW_ROWS = 8
"""Rows below which trees are walked down side by side for one row after the other."""

STEPS_AT_ONCE = 2
"""Steps after which it is looked whether all walks have ended."""

QUESTIONS_PER_STEP = 1.6
"""Questions to one vector of rows that take as long as a step of each of these rows."""


@dataclass(frozen=True)
class PackedForest:
    """Where a forest's packed tables are.

    Attributes:
        names: constants by the parameter of the kernel that they are.
        record: how nodes are written that are walked through.
        rows: rows of a block.
        bits: whether small trees are asked all at once.
        signs: whether negatives of features are compared.
        trees: trees of a part, filled up.
        work: for a row, in elementary operations.
    """

    names: Mapping[str, str]
    record: Record
    rows: int
    bits: bool
    signs: bool
    trees: int
    work: int


def pack_forest(
    stage: Stage, constants: Mapping[str, np.ndarray], lanes: int
) -> tuple[PackedForest, dict[str, np.ndarray]]:
    """Packs the tables of a forest.

    Args:
        stage: its body is a `Forest` whose tables are constants.
        constants: all constants.
        lanes: elements of a vector.

    Returns:
        Where they are, and the new constants.
    """
    c = stage.body
    assert isinstance(c, Forest) and c.feature.extent is not None
    nodes = Nodes(
        tabulate(c.root, (c.part, c.tree), constants),
        tabulate(c.split, (c.node,), constants),
        tabulate(c.limit, (c.node,), constants),
        tabulate(c.below, (c.node,), constants),
        tabulate(c.end, (c.node,), constants),
        tabulate(c.value, (c.leaf, c.target), constants),
    )
    sizes = measure(nodes)
    questions, steps = float((sizes.leaves - 1).sum()), float(sizes.steps.sum())
    bits = questions <= QUESTIONS_PER_STEP * lanes * steps
    features = constant_int(c.feature.extent) or 0
    signs = bool((nodes.split >= features).any())
    rows = BLOCK_BYTES // stage.dtype.bytes
    while not bits and rows < MOST_ROWS and 2 * rows * features * stage.dtype.bytes << signs <= WALKED_BYTES:
        rows *= 2
    walk = pack_walk(nodes, sizes, stage.dtype)
    tables = {"nodes": walk.nodes, "roots": walk.roots, "steps": walk.steps, "values": walk.values}
    if bits:
        asked = pack_bits(nodes, rows, stage.dtype)
        tables |= {
            "questions": asked.questions,
            "parts": asked.parts,
            "trees": asked.trees,
            "words": asked.words,
            "leaves": asked.leaves,
            "ends": asked.values,
        }
    names = {param: f"{stage.name}_{param}" for param in tables}
    work = int(min(steps * 4, questions))
    packed = PackedForest(names, walk.record, rows, bits, signs, walk.roots.shape[1], max(work, 1))
    return packed, {names[param]: array.reshape(-1) for param, array in tables.items()}


def forest_kernel(
    stage: Stage, packed: PackedForest, layouts: Layouts, vector_bytes: int, name: str
) -> Kernel:
    """The kernel of a `Forest`; threads take blocks of rows, and parts of the trees where rows are few."""
    c = stage.body
    assert isinstance(c, Forest) and c.row.extent is not None and c.part.extent is not None
    x, buffers = name_buffers(flatten(c.x, layouts))
    build = _Builder(c, packed, x, layouts[stage.name], vector_bytes // c.dtype.bytes)
    view = scratch_view(c.dtype)
    return finish_kernel(
        name,
        build.tasks(),
        {**buffers, **packed.names},
        layouts,
        stage,
        work=c.row.extent * packed.work,
        scratch=const(build.scratch * c.dtype.bytes),
        views=(view,),
    )


FILLED = Var(INDEX, "filled")


class _Builder:
    """The statements of a forest's kernel.

    Its scratch memory has the features of a block, one behind the other for all its rows, and behind them
    the results for each target.
    """

    def __init__(self, c: Forest, packed: PackedForest, x: Expr, out: Layout, lanes: int) -> None:
        assert c.row.extent is not None and c.feature.extent is not None
        self.c, self.packed, self.x, self.out, self.lanes = c, packed, x, out, lanes
        self.dtype = c.dtype
        self.word = DType.I64 if c.dtype is DType.F64 else DType.I32
        self.block, self.rows = packed.rows, c.row.extent
        self.features = constant_int(c.feature.extent) or 0
        self.columns = constant_int(c.target.extent) or 0
        width = self.features << packed.signs
        self.total = width * self.block
        # Vectors of rows have a feature of all of them together, walks have what a row walks with.
        self.apart, self.next_row = (self.block, 1) if packed.bits else (1, width)
        self.scratch = self.total + self.columns * self.block
        self.memory = scratch_view(c.dtype).name
        self.first, self.count = Var(INDEX, "first"), Var(INDEX, "count")
        # Rows that are computed: those that there are, and what fills up the last vector or group of walks.
        self.filled: Expr = const(self.block) if packed.bits else FILLED

    def tasks(self) -> tuple[Stmt, ...]:
        """All blocks of rows, with all parts each or with one."""
        parts = constant_int(self.c.part.extent) or 1
        blocks = Var(INDEX, "blocks")
        chosen: list[Stmt] = [Let(blocks, (self.rows + (self.block - 1)) // self.block)]
        shared: Expr = const(1)
        if parts > 1:
            shared = Var(INDEX, "shared")
            many = binary("le", cast(THREADS, INDEX) * 2, blocks)
            chosen.append(Let(shared, select(many, const(1), const(parts))))
        each = Op(INDEX, "truncdiv", (const(parts), shared))
        total = blocks * shared
        task = Var(INDEX, "task", total)
        block = Op(INDEX, "truncdiv", (task, shared)) if parts > 1 else task
        begin = Var(INDEX, "begin")
        part_start = (task - block * shared) * each if parts > 1 else const(0)
        body: tuple[Stmt, ...] = (
            Let(self.first, block * self.block),
            Let(self.count, binary("min", self.rows - self.first, const(self.block))),
            *(() if self.packed.bits else (Let(FILLED, round_up(self.count, TOGETHER)),)),
            *self.fill(),
            Let(begin, part_start),
            For(self.c.part, begin, begin + each, self.part()),
        )
        return (*chosen, For(task, *share(total, const(1)), body))

    def place(self, feature: Expr, row: Expr) -> Expr:
        """Where a feature of a row of the block is in scratch memory."""
        return feature * self.apart + row * self.next_row

    def at(self, offset: Expr, lanes: int = 1) -> Load:
        return Load(self.dtype, self.memory, (offset,), lanes=lanes)

    def fill(self) -> tuple[Stmt, ...]:
        """Copies the features of a block; rows that are missing are zeros."""
        r, f, rest = Var(INDEX, "r"), self.c.feature, Var(INDEX, "rest")
        value = Var(self.dtype, "value")
        element = substitute(self.x, {self.c.row: self.first + r})
        store: list[Stmt] = [Let(value, element), Store(self.memory, (self.place(f, r),), value)]
        zero: list[Stmt] = [Store(self.memory, (self.place(f, rest),), const(0.0, self.dtype))]
        if self.packed.signs:
            negative = f + self.features
            store.append(Store(self.memory, (self.place(negative, r),), unary("neg", value)))
            zero.append(Store(self.memory, (self.place(negative, rest),), const(0.0, self.dtype)))
        last = const(self.features)
        filled = For(r, const(0), self.count, (For(f, const(0), last, tuple(store)),))
        blank = For(rest, self.count, self.filled, tuple(zero))
        return (filled, For(f, const(0), last, (blank,)))

    def part(self) -> tuple[Stmt, ...]:
        """Evaluates the trees of a part for a block, and writes the results."""
        r, k = Var(INDEX, "r"), self.c.target
        result = self.total + k * self.block + r
        start = Store(self.memory, (result,), neutral(self.c.op, self.dtype))
        columns = const(self.columns)
        clear = For(k, const(0), columns, (For(r, const(0), self.filled, (start,)),))
        address = self.out.address((self.c.part, self.first + r, k))
        write = Store(OUTPUT, (address,), self.at(result))
        copy = For(r, const(0), self.count, (For(k, const(0), columns, (write,)),))
        many = self.ask() if self.packed.bits else self.walk_rows()
        few = binary("lt", self.count, const(FEW_ROWS))
        return (clear, If(few, self.walk_trees(), many), copy)

    # Walking

    def table(self, name: str, index: Expr) -> Expr:
        """An integer of a packed table."""
        dtype = DType.I32 if name in ("roots", "steps") else self.word
        return cast(Load(dtype, name, (index,)), INDEX)

    def walk(self, roots: Expr, step: int, rows: Expr, row_step: int, steps: Expr) -> tuple[Stmt, ...]:
        """Some walks side by side, from roots and for rows that are `step` and `row_step` apart."""
        record, word = self.packed.record, self.packed.record.word
        j, s = Var(INDEX, "j", const(TOGETHER)), Var(INDEX, "s")
        node = Load(INDEX, "node", (j,))
        second = Var(word, "second")
        feature = cast(binary("shr", second, const(record.distance, word)), INDEX)
        unused = const(8 * word.bytes - record.distance, word)
        distance = cast(binary("shr", binary("shl", second, unused), unused), INDEX)
        limit = Op(record.limit, "bitcast", (Load(word, "nodes", (node * 2,)),))
        x = cast(self.at(self.place(feature, rows + j * row_step)), record.limit)
        move = Var(INDEX, "move")
        go: tuple[Stmt, ...] = (
            Let(second, Load(word, "nodes", (node * 2 + 1,))),
            Let(move, distance + cast(unary("not", binary("le", x, limit)), INDEX)),
            Store("node", (j,), Op(INDEX, "apart", (node + move,))),
        )
        moving = Load(INDEX, "moving", ())
        last = (*go, Store("moving", (), Op(INDEX, "bitor", (moving, move))))
        some: tuple[Stmt, ...] = (
            *(unrolled(j, *go) for _ in range(STEPS_AT_ONCE - 1)),
            Store("moving", (), const(0)),
            unrolled(j, *last),
        )
        return (
            Declare("node", INDEX, (TOGETHER,)),
            Declare("moving", INDEX, value=const(1)),
            unrolled(j, Store("node", (j,), self.table("roots", roots + j * step))),
            For(s, const(0), steps, (If(binary("ne", moving, const(0)), some),), step=STEPS_AT_ONCE),
        )

    def walk_trees(self) -> tuple[Stmt, ...]:
        """Groups of trees for one row after the other."""
        r, g, k = Var(INDEX, "r"), Var(INDEX, "g"), self.c.target
        roots = self.c.part * self.packed.trees + g
        result = self.total + k * self.block + r
        said = [self.said(const(j), k) for j in range(TOGETHER)]
        while len(said) > 1:  # a tree of sums, which do not wait for each other
            said = [combine(self.c.op, a, b) for a, b in zip(said[::2], said[1::2], strict=True)]
        add = Store(self.memory, (result,), combine(self.c.op, self.at(result), said[0]))
        body: tuple[Stmt, ...] = (
            *self.walk(roots, 1, r, 0, self.table("steps", roots)),
            For(k, const(0), const(self.columns), (add,)),
        )
        groups = For(g, const(0), const(self.packed.trees), body, step=TOGETHER)
        return (For(r, const(0), self.count, (groups,)),)

    def walk_rows(self) -> tuple[Stmt, ...]:
        """Groups of rows in one tree after the other."""
        t, r, k = Var(INDEX, "t"), Var(INDEX, "r"), self.c.target
        j = Var(INDEX, "j", const(TOGETHER))
        root, steps = Var(INDEX, "root"), Var(INDEX, "steps_")
        result = self.total + k * self.block + r + j
        add = Store(self.memory, (result,), combine(self.c.op, self.at(result), self.said(j, k)))
        body: tuple[Stmt, ...] = (
            *self.walk(root, 0, r, 1, steps),
            For(k, const(0), const(self.columns), (unrolled(j, add),)),
        )
        rows = For(r, const(0), self.count, body, step=TOGETHER)
        lets = (Let(root, self.c.part * self.packed.trees + t), Let(steps, self.table("steps", root)))
        return (For(t, const(0), const(self.packed.trees), (*lets, rows)),)

    def said(self, j: Expr, k: Expr) -> Expr:
        """What the leaf says that a walk has ended at."""
        record = self.packed.record
        bits = Load(record.word, "nodes", (Load(INDEX, "node", (j,)) * 2,))
        end = cast(binary("bitand", bits, const((1 << record.payload) - 1, record.word)), INDEX)
        return Load(self.dtype, "values", (end * self.columns + k,))

    # Asking everything

    def ask(self) -> tuple[Stmt, ...]:
        """All questions of a tree, a word of leaves at a time, for all rows of the block."""
        count = self.block // self.lanes
        t, w = Var(INDEX, "t"), Var(INDEX, "w")
        part, columns = self.c.part, self.columns
        zero = const(0, self.word)
        declared = tuple(Declare(f"leaf{v}", self.word, lanes=self.lanes, value=zero) for v in range(count))
        words = For(w, self.table("trees", t), self.table("trees", t + 1), self.ask_word(w, count))
        said: list[Stmt] = []
        k = self.c.target
        for v in range(count):
            leaf = Load(self.word, f"leaf{v}", (), lanes=self.lanes)
            value = Load(self.dtype, "ends", (_wide(leaf) * columns + k,), lanes=self.lanes)
            place = self.total + k * self.block + v * self.lanes
            said.append(Store(self.memory, (place,), combine(self.c.op, self.at(place, self.lanes), value)))
        body: tuple[Stmt, ...] = (*declared, words, For(k, const(0), const(columns), tuple(said)))
        return (For(t, self.table("parts", part), self.table("parts", part + 1), body),)

    def ask_word(self, w: Var, count: int) -> tuple[Stmt, ...]:
        lanes, word = self.lanes, self.word
        q = Var(INDEX, "q")
        place, limit, kept = Var(INDEX, "place"), Var(self.dtype, "limit"), Var(word, "kept")
        lets: tuple[Stmt, ...] = (
            Let(place, self.table("questions", q * QUESTION)),
            Let(limit, Op(self.dtype, "bitcast", (Load(word, "questions", (q * QUESTION + 1,)),))),
            Let(kept, Load(word, "questions", (q * QUESTION + 2,))),
        )
        declared = tuple(Declare(f"bits{v}", word, lanes=lanes, value=const(-1, word)) for v in range(count))
        asked: list[Stmt] = []
        found: list[Stmt] = []
        # The exponent of the lowest bit as a float says which one it is.
        fraction, bias = (52, 1023) if word is DType.I64 else (23, 127)
        start = Var(word, "start")
        for v in range(count):
            bits = Load(word, f"bits{v}", (), lanes=lanes)
            yes = binary("le", self.at(place + v * lanes, lanes), limit)
            asked.append(Store(f"bits{v}", (), select(yes, bits, binary("bitand", bits, kept))))
            lowest = binary("bitand", bits, unary("neg", bits))
            as_float = Op(word, "bitcast", (cast(lowest, self.dtype),), lanes=lanes)
            shifted = binary("shr", as_float, const(fraction, word))
            exponent = binary("bitand", shifted, const(2 * bias + 1, word))
            some = binary("ne", bits, const(0, word))
            leaf = Load(word, f"leaf{v}", (), lanes=lanes)
            found.append(Store(f"leaf{v}", (), select(some, binary("add", exponent, start), leaf)))
        first = Let(start, binary("sub", Load(word, "leaves", (w,)), const(bias, word)))
        loop = For(q, self.table("words", w), self.table("words", w + 1), (*lets, *asked))
        return (*declared, loop, first, *found)


def _wide(e: Expr) -> Expr:
    return Op(INDEX, "cast", (e,), lanes=e.lanes) if e.dtype is not INDEX else e
