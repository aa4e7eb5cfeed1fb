"""Windows that slide along rows in row-major order: depthwise convolution and pooling.

A task is a band of rows of one channel. What its windows reach is copied first, in a frame of what has no
effect, so that no window needs a condition. Where it slides by several columns, columns of each remainder
lie side by side, so that vectors are loaded whole. The copy stays in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping

from hasten.codegen.domain import OUTPUT, decode, extent, share
from hasten.codegen.kernel import SCRATCH, Kernel
from hasten.codegen.layout import Layouts
from hasten.codegen.maps import FIRST_LEVEL_CACHE, finish_kernel, renamed_buffers
from hasten.codegen.plane import SUMS, Axis, Plane, find_plane
from hasten.codegen.reductions import UNROLLED_WINDOW, combine, neutral
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.vectorize import vectorize
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Var, binary, const, constant_int, substitute
from hasten.loops.nest import Declare, For, Let, Stmt, Store, choose, unrolled

MOST_ROWS = 32
"""Rows of the result in a band at the most."""

LEAST_ROWS = 4
"""Rows of the result in a band at the least: those that windows share are copied for each band."""

MOST_VECTORS = 4
"""Vectors of a row that are computed side by side."""

TOGETHER = 2
"""Rows of the result that are computed together, so that what both reach is loaded once."""

GUESS = 256
"""A width that only the run knows, where the size of a copy is estimated."""

PRODUCTS_PER_WORK = 4
"""Multiply-adds that take as long as one operation of another kernel."""


def plane_kernel(stage: Stage, layouts: Layouts, vector_bytes: int, name: str) -> Kernel | None:
    """The kernel of a stage that is such a window and what follows it, else None."""
    plane = find_plane(stage, layouts)
    if plane is None:
        return None
    builder = _Builder(plane, vector_bytes // DType.F32.bytes)
    taps = [a.tap for a in (plane.row, plane.column) if a is not None]
    work = (extent((*stage.vars, *taps)) + (PRODUCTS_PER_WORK - 1)) // PRODUCTS_PER_WORK
    body = builder.body()
    scratch = builder.pitch * (builder.phases * builder.rows_read * DType.F32.bytes)
    return finish_kernel(name, body, builder.buffers, layouts, stage, work=work, scratch=scratch)


class _Builder:
    """Builds one kernel; holds what its parts share."""

    def __init__(self, plane: Plane, lanes: int) -> None:
        self.plane, self.column, self.row = plane, plane.column, plane.row
        self.phases = self.column.stride
        width = self.column.position.extent
        assert width is not None
        self.width = width
        self.pitch = width + (self.column.taps - 1) * self.column.dilation // self.phases
        self.rows = self._rows()
        self.rows_read = self.row.reach(self.rows) if self.row else 1
        known = constant_int(width)
        self.lanes = lanes if known is None else min(lanes, 1 << (known.bit_length() - 1))
        self.vectors = 1 if known is None else max(1, min(MOST_VECTORS, known // self.lanes))
        sums, held = Load(DType.F32, SUMS, (self.column.position,)), Load(DType.F32, ACCUMULATOR, ())
        names: dict[str, str] = {}
        finish = renamed_buffers(substitute(plane.finish, {sums: held}), names)
        self.finish = substitute(finish, {held: sums})
        self.weight = None if plane.w is None else renamed_buffers(plane.w, names)
        self.buffers = {"x": plane.x, **{param: tensor for tensor, param in names.items()}}
        self.first_row, self.last_row = Var(INDEX, "first_row"), Var(INDEX, "last_row")

    def _rows(self) -> int:
        """Rows of the result in a band: few enough for the copy to stay in the cache."""
        if self.row is None:
            return 1
        height = constant_int(self.row.position.extent) or MOST_ROWS
        rows = min(MOST_ROWS, max(1, height))
        pitch = (constant_int(self.pitch) or GUESS) * self.phases * DType.F32.bytes
        while rows > LEAST_ROWS and self.row.reach(rows) * pitch > FIRST_LEVEL_CACHE:
            rows = -(-rows // 2)
        return rows

    def body(self) -> tuple[Stmt, ...]:
        """All statements of the kernel."""
        tasks: list[Var] = list(self.plane.outer)
        lets: tuple[Stmt, ...] = ()
        rows = self.block(1)
        if self.row is not None:
            height = self.row.position.extent
            assert height is not None
            band = Var(INDEX, "band", (height + (self.rows - 1)) // self.rows)
            tasks.append(band)
            last = binary("min", self.first_row + self.rows, height)
            lets = (Let(self.first_row, band * self.rows), Let(self.last_row, last))
            rows = self.band(self.row, height)
        task = Var(INDEX, "task", extent(tasks))
        inside = (*decode(task, tasks), *lets, *self.copy(), *rows)
        return (For(task, *share(extent(tasks), const(1)), inside),)

    def copy(self) -> tuple[Stmt, ...]:
        """Copies what the windows of a band reach."""
        r = Var(INDEX, "r", const(self.rows_read))
        to = r * (self.pitch * self.phases)
        nothing = neutral(self.plane.op, DType.F32)
        whole = self.pitch * self.phases
        if self.row is None:
            return self.copied_row(self.plane.start, to=const(0))
        at = Var(INDEX, "input_row")
        j = Var(INDEX, "j", whole)
        empty = (For(j, const(0), whole, (Store(SCRATCH, (to + j,), nothing),)),)
        row = self.copied_row(self.plane.start + at * self.row.step, to)
        inside = binary("and", binary("le", const(0), at), binary("lt", at, self.row.length))
        here = Let(at, self.first_row * self.row.stride + self.row.first + r)
        return (For(r, const(0), const(self.rows_read), (here, *choose(inside, row, empty))),)

    def copied_row(self, start: Expr, to: Expr) -> tuple[Stmt, ...]:
        """Copies the part of a row that is inside, and what has no effect around it."""
        c, nothing = self.column, neutral(self.plane.op, DType.F32)
        result: list[Stmt] = []
        for phase in range(self.phases):
            first = c.first + phase  # of the input, for the first column of the copy
            begin, end = Var(INDEX, f"begin{phase}"), Var(INDEX, f"end{phase}")
            j = Var(INDEX, "j", self.pitch)
            low = binary("min", binary("max", (0 - first + (self.phases - 1)) // self.phases, 0), self.pitch)
            high = (c.length - first + (self.phases - 1)) // self.phases
            place = to + self.pitch * phase + j
            read = Load(DType.F32, "x", (start + (first + j * self.phases) * c.step,))
            result += [
                Let(begin, low),
                Let(end, binary("max", binary("min", high, self.pitch), begin)),
                For(j, const(0), begin, (Store(SCRATCH, (place,), nothing),)),
                For(j, begin, end, (Store(SCRATCH, (place,), read),)),
                For(j, end, self.pitch, (Store(SCRATCH, (place,), nothing),)),
            ]
        return tuple(result)

    def band(self, row: Axis, height: Expr) -> tuple[Stmt, ...]:
        """The rows of a band, several together where their windows share rows."""
        at = row.position
        single = (For(at, self.first_row, self.last_row, self.block(1)),)
        if row.stride != 1 or row.dilation != 1 or row.taps < TOGETHER or self.rows < TOGETHER:
            return single
        count = (self.last_row - self.first_row + (TOGETHER - 1)) // TOGETHER
        pair = Var(INDEX, "pair", const(-(-self.rows // TOGETHER)))
        # The last of them begin early enough to be as many.
        first = Let(at, binary("min", self.first_row + pair * TOGETHER, self.last_row - TOGETHER))
        several = (For(pair, const(0), count, (first, *self.block(TOGETHER))),)
        known = constant_int(height)
        if known is not None and known % self.rows in (0, *range(TOGETHER, self.rows)):
            return several
        return choose(binary("le", TOGETHER, self.last_row - self.first_row), several, single)

    def block(self, rows: int) -> tuple[Stmt, ...]:
        """Some rows of the result side by side, all of their columns."""
        size = self.lanes * self.vectors
        c0, strip = Var(INDEX, "c0"), Var(INDEX, "strip", (self.width + (size - 1)) // size)
        # The last strip begins early enough to be whole.
        at = Let(c0, binary("min", strip * size, self.width - size))
        assert strip.extent is not None
        whole = (at, *self.outputs(c0, self.lanes, self.vectors, rows))
        vectors = (For(strip, const(0), strip.extent, whole),)
        single = (For(c0, const(0), self.width, self.outputs(c0, 1, 1, rows)),)
        return choose(binary("le", const(size), self.width), vectors, single)

    def outputs(self, c0: Var, lanes: int, vectors: int, rows: int) -> tuple[Stmt, ...]:
        """Computes some vectors of some rows from column `c0` on."""
        plane, position = self.plane, self.column.position
        i, v = Var(INDEX, "i", const(rows)), Var(INDEX, "v", const(vectors))
        base = c0 + v * lanes
        held = Load(DType.F32, SUMS, (i, v), lanes=lanes)
        value = vectorize(self.finish, position, base, lanes)
        value = substitute(value, {Load(DType.F32, SUMS, (base,), lanes=lanes): held})
        at = Var(INDEX, "at")  # the row
        own: dict[Expr, Expr] = {} if self.row is None else {self.row.position: at}
        address = substitute(substitute(plane.out, {position: base}), own)
        finished: tuple[Stmt, ...] = (unrolled(v, Store(OUTPUT, (address,), substitute(value, own))),)
        if self.row is not None:
            finished = (Let(at, self.row.position + i), *finished)
        return (
            Declare(SUMS, DType.F32, (rows, vectors), lanes),
            unrolled(i, unrolled(v, Store(SUMS, (i, v), neutral(plane.op, DType.F32)))),
            *self.window(c0, lanes, v, rows),
            unrolled(i, *finished),
        )

    def window(self, c0: Var, lanes: int, v: Var, rows: int) -> tuple[Stmt, ...]:
        """Takes together what the windows of some rows reach, row by row of the copy.

        The first of them belong to the first windows alone, the last ones to the last, those between to all.
        """
        if self.row is None:
            return self.input_row({0: const(0)}, const(0), c0, lanes, v)
        tap, taps = self.row.tap, self.row.taps
        inner = self.input_row({i: tap + (rows - 1 - i) for i in range(rows)}, tap + (rows - 1), c0, lanes, v)
        short = (taps - rows + 1) * self.column.taps <= UNROLLED_WINDOW
        result: list[Stmt] = []
        for q in range(rows - 1):
            result += self.input_row({i: const(q - i) for i in range(q + 1)}, const(q), c0, lanes, v)
        result.append(For(tap, const(0), const(taps - rows + 1), inner, unroll=short))
        for q in range(taps, taps + rows - 1):
            own: dict[int, Expr] = {i: const(q - i) for i in range(q - taps + 1, rows)}
            result += self.input_row(own, const(q), c0, lanes, v)
        return tuple(result)

    def input_row(self, taps: Mapping[int, Expr], q: Expr, c0: Var, lanes: int, v: Var) -> tuple[Stmt, ...]:
        """Adds a row of the copy, number `q` of those that these windows reach, to the rows in `taps`.

        Args:
            taps: by the row of the result, the row of its window that this is.
            q: the number of the row, in rows that the window's rows are apart.
            c0: the first column.
            lanes: elements of a vector.
            v: counts vectors.
        """
        op, column = self.plane.op, self.column
        element = Var(DType.F32, "element", lanes=lanes)
        place = self.place(q) + c0 + v * lanes
        weights: list[Stmt] = []
        added: list[Stmt] = [Let(element, Load(DType.F32, SCRATCH, (place,), lanes=lanes))]
        for i, tap in taps.items():
            held = Load(DType.F32, SUMS, (const(i), v), lanes=lanes)
            term: Expr = element
            if self.weight is not None:
                weight = Var(DType.F32, f"weight{i}")
                own: dict[Expr, Expr] = {} if self.row is None else {self.row.tap: tap}
                weights.append(Let(weight, substitute(self.weight, own)))
                term = Op(DType.F32, "mul", (element, weight), lanes=lanes)
            added.append(Store(SUMS, (const(i), v), combine(op, held, term)))
        body = (*weights, unrolled(v, *added))
        return (For(column.tap, const(0), const(column.taps), body, unroll=column.taps <= UNROLLED_WINDOW),)

    def place(self, q: Expr) -> Expr:
        """Where in the copy the first output's element is, of the row `q` and the column's tap."""
        row: Expr = const(0)
        if self.row is not None:
            row = (self.row.position - self.first_row) * self.row.stride + q * self.row.dilation
        ahead = self.column.tap * self.column.dilation
        phase = ahead % self.phases
        return row * (self.pitch * self.phases) + phase * self.pitch + ahead // self.phases
