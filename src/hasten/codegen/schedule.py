"""Schedules: everything that is chosen, not given, about the kernel of a product or convolution.

A schedule is data. It changes how fast a kernel is and, by rounding at most, nothing that it computes, so
that one can be measured, stored and used again. `default_schedule` works one out from the shape alone;
`search/tune.py` measures others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from hasten.codegen.algorithm import WINDOW, Algorithm, precise_enough, suited_algorithm
from hasten.codegen.amx import matrix_step
from hasten.codegen.codes import kept_as_codes
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import PANEL, tiles_for, with_one_more
from hasten.codegen.vectorize import coefficient
from hasten.errors import OptionError
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Load, Op, Size, Var, const, constant_int, walk
from hasten.loops.program import Program
from hasten.loops.scope import size_value
from hasten.target import Target

ROW_BLOCK = 192
"""Rows of a block: 16 tiles of 12, 24 of 8, 32 of 6, 48 of 4."""

ROW_BLOCKS = (48, 96, ROW_BLOCK, 384, 768)
"""Rows of a block that are worth trying: whole tiles of 12, 8, 6 and 4 rows."""

TILE_BLOCKS = (24, 48, ROW_BLOCK)
"""Most tiles of a block that are worth trying after Winograd; the kernel has limits of its own."""

LEAST_TILE_ROWS = 4
"""Rows of the lowest register tile that is worth trying as the tallest."""

LARGEST_ROW_BLOCK = 4096
"""Bound of `Schedule.row_block`: the table of row pointers lies on the stack."""

NOMINAL = 128
"""What a symbolic size is taken for where nothing says how large it will be."""


LOW_TILE = 3.4
"""What a register tile costs beside half a row for each of its rows, where that is more than its rows."""

RESIDUAL_ROWS = 6
"""Rows of a tile whose epilogue reads a tensor as wide as the result. Wide rows lie at nearly the same place
of their pages, and the more of them are read and written at once, the more they get in each other's way:
ResNet-50 gains 2% over tiles of 12 in f32, and loses 1% in bf16, whose rows are half as long."""

SHORT_DEPTH, WIDE_RESULT = 256, 256
"""Elements of depth up to which, and columns from which on, that decides the height."""

TIE = 0.02
"""Gain below which a lower tile is not worth leaving the tallest."""


class Split(StrEnum):
    """What is divided among the threads."""

    AUTO = "auto"
    """Decided at the call from sizes and threads: entries if there are enough, else rows or panels."""
    ENTRIES = "entries"
    ROWS = "rows"
    PANELS = "panels"


class Order(StrEnum):
    """Which loop is outside within a block of rows."""

    PANELS = "panels"
    """A panel of weights stays in the first-level cache while the rows of the block pass by."""
    ROWS = "rows"
    """A tile of rows stays there while all panels pass by."""


@dataclass(frozen=True)
class Schedule:
    """What is chosen for one kernel.

    Attributes:
        algorithm: how the sums are formed.
        split: what is divided among the threads.
        order: the outer loop within a block of rows.
        row_block: rows of a block; after Winograd most tiles of a block.
        tile_rows: most rows of a register tile; None for the tallest that the target has.
    """

    algorithm: Algorithm = Algorithm.DIRECT
    split: Split = Split.AUTO
    order: Order = Order.PANELS
    row_block: int = ROW_BLOCK
    tile_rows: int | None = None

    def __str__(self) -> str:
        """For people: only what differs from the plain schedule, or "plain"."""
        plain = Schedule()
        labels = {"algorithm": "{}", "split": "split {}", "order": "{} outside", "row_block": "blocks of {}",
                  "tile_rows": "tiles of {}"}  # fmt: skip
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = [labels[n].format(v) for n, v in values.items() if v != getattr(plain, n)]
        return ", ".join(changed) or "plain"

    def data(self) -> dict[str, Any]:
        """Every attribute, as JSON has it."""
        return asdict(self)


def parse_schedule(data: object) -> Schedule:
    """The schedule that `Schedule.data` gave.

    Raises:
        OptionError: something is missing, unknown or out of range.
    """
    if not isinstance(data, dict):
        raise OptionError(f"a schedule is an object with a value for each choice: received {data!r}")
    names = {f.name for f in fields(Schedule)}
    if data.keys() != names:
        odd = sorted(map(repr, data.keys() ^ names))
        raise OptionError(f"a schedule has exactly {', '.join(sorted(names))}: look at {', '.join(odd)}")
    try:
        algorithm = Algorithm(data["algorithm"])
        split, order = Split(data["split"]), Order(data["order"])
    except ValueError as error:
        raise OptionError(f"{error}: a schedule of another version of hasten") from None
    block, tile = data["row_block"], data["tile_rows"]
    if type(block) is not int or not 1 <= block <= LARGEST_ROW_BLOCK:
        raise OptionError(f"row_block={block!r}: a whole number from 1 to {LARGEST_ROW_BLOCK} is needed")
    if tile is not None and (type(tile) is not int or tile < 1):
        raise OptionError(f"tile_rows={tile!r}: a whole number from 1 on, or null, is needed")
    return Schedule(algorithm, split, order, block, tile)


@dataclass(frozen=True)
class Extent:
    """A number of elements, which is only likely where it depends on symbolic sizes.

    Attributes:
        count: the number; for a symbolic one a power of two, so that similar sizes share a schedule.
        symbolic: whether each call has another one.
    """

    count: int
    symbolic: bool = False

    def __str__(self) -> str:
        return f"~{self.count}" if self.symbolic else str(self.count)


@dataclass(frozen=True)
class ProductShape:
    """What decides how fast a product or convolution can be; as text, the key of its kernel.

    Attributes:
        dtype: element type of what is multiplied.
        batch: independent products: batch entries, groups.
        rows: extents of the rows: for a convolution images, height and width.
        columns: columns: output channels.
        taps: extents of the window, outer first; none for a matrix product.
        depth: elements that are summed for each tap: input channels.
        strides: step of the window in the input for each of its taps' axes.
        dilations: distance in the input from one tap to the next along each axis.
        padded: whether the window reaches beyond the input.
        packs: whether the second operand is computed, and therefore packed at each call.
        operands: tensors that the epilogue reads.
        codes: whether the second operand may be kept in 8 bits or less.
    """

    dtype: DType
    batch: Extent
    rows: tuple[Extent, ...]
    columns: Extent
    taps: tuple[int, ...]
    depth: Extent
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padded: bool
    packs: bool
    operands: int
    codes: bool = False

    def __str__(self) -> str:
        """Such as "f32: 56x56 rows, 3x3 taps by 1x1 padded, depth 64, 64 columns, reads 2"."""
        several = f"{self.batch} times " if self.batch != Extent(1) else ""
        parts = [f"{self.dtype.value}: {several}{'x'.join(map(str, self.rows)) or 1} rows"]
        if self.taps:
            steps = "x".join(map(str, self.strides))
            dilated = f" dilated {'x'.join(map(str, self.dilations))}" if set(self.dilations) != {1} else ""
            padded = " padded" if self.padded else ""
            parts.append(f"{'x'.join(map(str, self.taps))} taps by {steps}{dilated}{padded}")
        parts += [f"depth {self.depth}", f"{self.columns} columns"]
        if self.packs:
            parts.append("packs")
        if self.codes:
            parts.append("codes")
        if self.operands:
            parts.append(f"reads {self.operands}")
        return ", ".join(parts)

    @property
    def allows_winograd(self) -> bool:
        """Whether it is a convolution that Winograd's algorithms compute."""
        moves_by_one = set(self.strides) == set(self.dilations) == {1}
        alone = self.batch == Extent(1) and not self.packs and not self.depth.symbolic
        floats = self.dtype in (DType.F32, DType.BF16)
        return floats and self.taps == (WINDOW, WINDOW) and moves_by_one and alone

    @property
    def products(self) -> int:
        """Multiplications, at the likely sizes."""
        total = self.batch.count * self.columns.count * self.depth.count
        for n in (*(r.count for r in self.rows), *self.taps):
            total *= n
        return total


@dataclass(frozen=True)
class Product:
    """A product or convolution with what was chosen for it.

    Attributes:
        stage: what is computed, the second operand as it was before it was packed.
        shape: the key.
        schedule: how.
    """

    stage: Stage
    shape: ProductShape
    schedule: Schedule


@dataclass(frozen=True)
class Schedules:
    """Schedules to use instead of the defaults.

    Attributes:
        chosen: by the text of the kernel's shape.
        sizes: what the symbolic sizes will likely be; `NOMINAL` for others.
        winograd: whether convolutions may go by Winograd's algorithms.
    """

    chosen: Mapping[str, Schedule] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    winograd: bool = True

    def of(self, shape: ProductShape, target: Target) -> Schedule:
        """The schedule for a kernel."""
        chosen = self.chosen.get(str(shape)) or default_schedule(shape, target)
        if self.winograd or chosen.algorithm is Algorithm.DIRECT:
            return chosen
        return Schedule(tile_rows=_tile_rows(shape, target))

    def likely_sizes(self, program: Program) -> dict[str, int]:
        """Likely values of all sizes that a program derives from others or measures, and of those given.

        A measured size is taken for its bound: the most that it can be. What the program derives is worked
        out again, whatever is given for it: where parts hand tensors on, their lengths look like any.
        """
        sizes = dict(self.sizes)
        known = {**program.derived, **{name: m.bound for name, m in program.measured.items()}}
        for name, e in known.items():
            free = {n.name: NOMINAL for n in walk(e) if isinstance(n, Size)}
            sizes[name] = max(1, size_value(e, free | sizes))
        return sizes


DEFAULTS = Schedules()
"""No choices but the defaults."""


def default_schedule(shape: ProductShape, target: Target) -> Schedule:
    """The schedule that the shape suggests, without measuring."""
    if _on_matrices(shape, target):
        return Schedule()
    if not shape.allows_winograd:
        return Schedule(tile_rows=_tile_rows(shape, target))
    *images, height, width = [Extent(1), Extent(1), *shape.rows][-3:]
    # An unknown number of images is taken for one: that is what time is asked of.
    count = math.prod(1 if n.symbolic else n.count for n in images)
    algorithm = suited_algorithm(
        count, height.count, width.count, shape.depth.count, shape.columns.count, shape.dtype
    )
    return Schedule(algorithm)


def _on_matrices(shape: ProductShape, target: Target) -> bool:
    """Whether tiles of matrices multiply, whose kernels have blocks and an order of their own."""
    depth = math.prod(shape.taps) * shape.depth.count
    return matrix_step(target, shape.dtype, depth) is not None


def _tile_rows(shape: ProductShape, target: Target) -> int | None:
    """The tile height for few rows: 16 are better two tiles of 8 than one of 12 and one of 4.

    Only there does the height matter: with many rows, all from 6 on were within 2% of each other on AVX-512,
    and no height beat the tallest on AVX2. A thread has all rows where they are fewer than columns.
    """
    tiles = tiles_for(target, shape.dtype)
    heights, last = [t.rows for t in tiles], max(t.rows for t in with_one_more(tiles))
    rows = math.prod(r.count for r in shape.rows)
    tallest = max(heights)
    short = not shape.taps and shape.depth.count <= SHORT_DEPTH and shape.columns.count >= WIDE_RESULT
    if shape.dtype is DType.F32 and shape.operands > 1 and short and rows > tallest > RESIDUAL_ROWS:
        return RESIDUAL_ROWS if RESIDUAL_ROWS in heights else None
    if rows > shape.columns.count:
        return None
    costs = {h: _rows_cost(rows, h, heights, last) for h in heights if h >= LEAST_TILE_ROWS}
    best = min(costs, key=lambda h: (costs[h], -h))
    return best if costs[best] * (1 + TIE) < costs[tallest] else None


def _rows_cost(rows: int, most: int, heights: Sequence[int], last: int) -> float:
    """Cost of all tiles over some rows, in rows of tall tiles; the last tile takes up to `last` rows."""
    whole, rest = divmod(rows, most)
    if whole and rest and most + rest == last:
        return (whole - 1) * tile_cost(most) + tile_cost(last)
    last = min((h for h in heights if h >= rest), default=0) if rest else 0
    return whole * tile_cost(most) + (tile_cost(last) if rest else 0)


def tile_cost(height: int) -> float:
    """Low tiles wait for the panel and for their own sums: what they take in rows of tall tiles, measured."""
    return max(height, LOW_TILE + height / 2)


def candidate_schedules(shape: ProductShape, target: Target) -> list[Schedule]:
    """Every schedule worth trying for a kernel, the default first.

    What divides the work stays open where the sizes are symbolic: which division is good depends on them
    more than anything else does, and a schedule must serve all.
    """
    rows = math.prod(r.count for r in shape.rows)
    fixed = not shape.batch.symbolic and not any(r.symbolic for r in shape.rows)
    heights = [t.rows for t in tiles_for(target, shape.dtype) if t.rows >= LEAST_TILE_ROWS]
    tallest = max(heights)
    default = default_schedule(shape, target)
    blocks = dict.fromkeys([default.row_block, *(b for b in ROW_BLOCKS if b < rows)])
    splits = [Split.AUTO]
    if fixed:
        useful = {
            Split.ENTRIES: shape.batch.count > 1,
            Split.ROWS: rows > tallest,
            Split.PANELS: shape.columns.count > PANEL,
        }
        splits += [s for s, is_useful in useful.items() if is_useful]
    if _on_matrices(shape, target):
        return [replace(default, split=s) for s in splits]
    orders = list(Order) if rows > min(heights) and shape.columns.count > PANEL else [Order.PANELS]
    found = [default]
    for height in dict.fromkeys(heights):
        tile = None if height == tallest else height
        for block, order, split in itertools.product(blocks, orders, splits):
            found.append(Schedule(Algorithm.DIRECT, split, order, block, tile))
    if shape.allows_winograd:
        by_panels = [Split.PANELS] if Split.PANELS in splits else []
        algorithms = precise_enough(shape.depth.count)
        for algorithm, block, split in itertools.product(algorithms, TILE_BLOCKS, [Split.AUTO, *by_panels]):
            found.append(Schedule(algorithm, split, Order.PANELS, block))
    return list(dict.fromkeys(found))


def product_shape(stage: Stage, sizes: Mapping[str, int], constants: frozenset[str]) -> ProductShape:
    """The shape of a contraction stage, before its second operand is packed.

    Args:
        stage: a stage whose body is a `Gemm`.
        sizes: likely values of the symbolic sizes.
        constants: names of the tensors that are known now.
    """
    g = stage.body
    assert isinstance(g, Gemm)
    load = g.a.args[1] if isinstance(g.a, Op) and g.a.op == "select" else g.a
    read = {n.buffer for n in walk(g.b) if isinstance(n, Load)}
    epilogue = [] if stage.epilogue is None else [n for n in walk(stage.epilogue) if isinstance(n, Load)]
    batch: Expr = const(1)
    for v in g.batch:
        batch = batch * (v.extent or const(1))
    return ProductShape(
        dtype=load.dtype,
        batch=_extent(batch, sizes),
        rows=tuple(e for v in g.rows if (e := _extent(v.extent, sizes)) != Extent(1)),
        columns=_extent(g.column.extent, sizes),
        taps=tuple(_extent(v.extent, sizes).count for v in g.taps),
        depth=_extent(g.depth.extent, sizes),
        strides=tuple(_stride(load, v, g.rows) for v in g.taps),
        dilations=tuple(_dilation(load, v) for v in g.taps),
        padded=load is not g.a,
        packs=not read <= constants,
        operands=len({n.buffer for n in epilogue} - {ACCUMULATOR}),
        codes=kept_as_codes(g, constants) is not None,
    )


def _extent(e: Expr | None, sizes: Mapping[str, int]) -> Extent:
    assert e is not None
    count = constant_int(e)
    if count is not None:
        return Extent(count)
    known = {n.name: sizes.get(n.name, NOMINAL) for n in walk(e) if isinstance(n, Size)}
    likely = max(1, size_value(e, known))
    return Extent(1 << (likely - 1).bit_length(), symbolic=True)


def _stride(load: Expr, tap: Var, rows: tuple[Var, ...]) -> int:
    """How far the window moves along a tap's axis from one row to the next; 0 if it does not."""
    if isinstance(load, Load):
        for index in load.index:
            if constant_int(coefficient(index, tap) or const(0)) == 0:
                continue
            steps = [constant_int(coefficient(index, r) or const(0)) for r in rows]
            return next((s for s in steps if s), 0)
    return 0


def _dilation(load: Expr, tap: Var) -> int:
    """How far apart the window's elements are along a tap's axis."""
    indices = load.index if isinstance(load, Load) else ()
    steps = [constant_int(coefficient(index, tap) or const(0)) for index in indices]
    return next((s for s in steps if s), 0)
