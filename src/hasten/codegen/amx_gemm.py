"""Kernels for matrix products and convolutions on tile registers that hold matrices.

Blocking, threads and epilogue are those of `codegen.gemm`. Rows that lie at one distance from each other are
read where they are; others, those of windows that reach over edges of a picture, are copied side by side once
for each block, which serves all panels. All rows of a block are multiplied with a panel before their
epilogue, so that a part of the panel that is in the first-level cache serves them all.
"""

from __future__ import annotations

from hasten.codegen.amx import END_PRODUCTS, Strided, begin_products, matrix_step, multiply_matrix
from hasten.codegen.c_amx import PAIR
from hasten.codegen.domain import extent
from hasten.codegen.gemm import ProductBuilder, gemm_kernel
from hasten.codegen.kernel import SCRATCH_PARAM, Kernel, scratch_view
from hasten.codegen.layout import Layouts
from hasten.codegen.packing import PackedOperand, whole_depth
from hasten.codegen.row_tiles import RowTiles
from hasten.codegen.schedule import Schedule
from hasten.codegen.stage import Stage
from hasten.codegen.tiles import PANEL, TILE, tiles_for, total_of
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Address, Expr, Load, Var, const, constant_int, substitute
from hasten.loops.nest import Declare, For, Stmt, Store
from hasten.target import Target

ROW_BLOCK = 256
"""Rows of a block at the most: their sums for one panel fill 32 KB."""

BLOCK_BYTES = 1 << 20
"""Bytes of a block's rows at the most: half of the second-level cache of the processors that have tiles."""


def product_kernel(
    stage: Stage, packed: PackedOperand, layouts: Layouts, target: Target, schedule: Schedule, name: str
) -> Kernel:
    """The kernel of a contraction stage whose second operand is packed, on a target."""
    g = stage.body
    assert isinstance(g, Gemm)
    dtype = g.a.dtype
    depth = constant_int(extent(g.taps) * whole_depth(g))
    step = None if depth is None else matrix_step(target, dtype, depth)
    if step is None:
        return gemm_kernel(stage, packed, layouts, tiles_for(target, dtype), schedule, name)
    return _MatrixBuilder(stage, packed, layouts, target, schedule, step).kernel(name)


class _MatrixBuilder(ProductBuilder):
    """Builds one kernel."""

    adapts = False
    may_wait = False
    joins = False

    def __init__(
        self,
        stage: Stage,
        packed: PackedOperand,
        layouts: Layouts,
        target: Target,
        schedule: Schedule,
        step: int,
    ) -> None:
        assert isinstance(stage.body, Gemm)
        super().__init__(stage, packed, layouts, tiles_for(target, stage.body.a.dtype), schedule)
        self.step = step
        depth = self.length = constant_int(self.taps * self.depth) or 0
        self.row_tiles = RowTiles(self.row_block)
        if self.pitch is None:
            self.scratch = const(self.row_block * depth * self.dtype.bytes)
            self.views = (SCRATCH_PARAM, scratch_view(self.dtype))

    @property
    def grain(self) -> Expr:
        """Rows that a thread has a multiple of."""
        return const(PAIR)

    @property
    def row_block(self) -> int:
        """Rows of a block: as many as fit, and where their number is known, blocks of about equal size."""
        fit = BLOCK_BYTES // (self.length * self.dtype.bytes) // PAIR * PAIR
        most = max(PAIR, min(ROW_BLOCK, fit))
        rows = constant_int(self.rows)
        if not rows:
            return most
        blocks = -(-rows // most)
        return -(-rows // (blocks * PAIR)) * PAIR

    def locals(self) -> tuple[Stmt, ...]:
        """The sums of a block, and a table of pointers where rows are copied."""
        sums = Declare(TILE, total_of(self.dtype), (self.row_block * PANEL,))
        if self.pitch is not None:
            return (sums,)
        capacity = (constant_int(self.taps) or 1) * self.row_block
        return (sums, Declare("table", self.dtype, (capacity,), pointer=True))

    def prepare(self, height: Var) -> tuple[Stmt, ...]:
        """Copies the rows of a block side by side, tap after tap, where they do not lie at one distance."""
        if self.pitch is not None:
            return ()
        r, tap, k = Var(INDEX, "r"), Var(INDEX, "tap"), Var(INDEX, "k")
        depth = constant_int(self.depth) or 1
        lanes = min(64 // self.dtype.bytes, depth & -depth)
        copied = scratch_view(self.dtype).name
        from_ = Load(self.dtype, "source", (const(0), k), lanes=lanes)
        at = r * self.length + tap * depth + k
        copy = (
            Declare("source", self.dtype, (1,), pointer=True),
            Store("source", (const(0),), Load(self.dtype, "table", (tap * self.row_block + r,))),
            For(k, const(0), const(depth), (Store(copied, (at,), from_),), step=lanes),
        )
        return (
            *self.row_table(height),
            For(r, const(0), height, (For(tap, const(0), self.taps, copy),)),
        )

    def over_block(self, height: Var, panels: tuple[Expr, Expr]) -> tuple[Stmt, ...]:
        """All rows of a block with one of this thread's panels after the other."""
        panel, columns = self.columns_of_panel(const(0), height)
        tile = (
            *self.fetch_operands(const(0), height),
            *multiply_matrix(height, self.strided(), columns),
            *self.write(const(0), height, columns.width),
        )
        return (
            begin_products(height, self.step),
            *self.over_panels(panels, (*panel, *tile)),
            END_PRODUCTS,
        )

    def strided(self) -> Strided:
        """The rows of a block."""
        depth = const(self.length)
        if self.pitch is None:
            return Strided(
                Address(self.dtype, scratch_view(self.dtype).name, (const(0),)), depth, depth, self.step
            )
        load = substitute(self.pointer[1], {self.row: self.block})
        assert isinstance(load, Load)
        return Strided(Address(self.dtype, load.buffer, load.index), self.pitch, depth, self.step)
