"""The register tile: the one inner kernel behind matrix products, convolutions and attention.

A tile multiplies some rows of A with one panel of B and keeps the sums in registers throughout. Rows
are given as a table of pointers, one for each tap and row, so that a convolution is the same kernel
over the taps of its window, without a copy of the input. B is packed in panels of `PANEL` columns,
`[panel][tap][depth][column]`, so that it is read once, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Var, const
from hasten.loops.nest import Comment, Declare, For, Function, Let, Param, Prefetch, Stmt, Store
from hasten.target import Target

PANEL = 32
"""Columns of a packed panel; the last one may have `HALF_PANEL` instead. The same on every target."""
HALF_PANEL = 16

PREFETCH_AHEAD = 16
"""Steps of depth by which the panel is asked for before it is needed."""


@dataclass(frozen=True)
class Tile:
    """Shape of a register tile.

    Attributes:
        rows: rows of A.
        vectors: vectors of B's columns.
        lanes: elements of a vector.
    """

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Columns of B."""
        return self.vectors * self.lanes

    @property
    def name(self) -> str:
        """Name of the function."""
        return f"tile_{self.rows}x{self.columns}"


def tiles_for(target: Target) -> tuple[Tile, ...]:
    """The tiles used on a target: of the widest first, and of each width the tallest first.

    With 32 registers 24 hold sums (12 x 2 on AVX-512), with 16 registers 12 (6 x 2): the rest holds
    the row of B and a broadcast element of A.
    """
    lanes = target.vector_bytes // 4
    vectors = max(2, HALF_PANEL // lanes)
    tallest = (24 if target.registers >= 32 else 12) // vectors
    heights = [h for h in (12, 8, 6, 4, 2, 1) if h <= tallest]
    widths = [vectors] if vectors * lanes <= HALF_PANEL else [vectors, HALF_PANEL // lanes]
    return tuple(Tile(h, v, lanes) for v in widths for h in heights)


def tile_function(t: Tile) -> Function:
    """tile[r][j] = sum over taps and depth of rows[tap][r][k] * panel[tap][k][j].

    Parameters of the function: `rows` the table of row pointers, `pitch` entries for each tap; `taps`,
    `depth` the extents of the sum; `panel` the packed columns, `stride` apart; `tile` the result,
    `PANEL` columns to a row.
    """
    f32, zero = DType.F32, const(0.0, DType.F32)
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    tap, k = Var(INDEX, "tap"), Var(INDEX, "k")
    taps, depth, stride, pitch = (Var(INDEX, n) for n in ("taps", "depth", "stride", "pitch"))
    at = Var(INDEX, "at")

    def acc() -> Load:
        return Load(f32, "sums", (r, v), lanes=t.lanes)

    def each_row(*body: Stmt) -> For:
        return For(r, const(0), const(t.rows), body, unroll=True)

    def each_vector(*body: Stmt) -> For:
        return For(v, const(0), const(t.vectors), body, unroll=True)

    product = Op(f32, "mul", (Load(f32, "row", (r, k)), Load(f32, "b", (v,), lanes=t.lanes)), lanes=t.lanes)
    column: Expr = at + v * t.lanes
    step: tuple[Stmt, ...] = (
        Let(at, (tap * depth + k) * stride),
        Declare("b", f32, (t.vectors,), t.lanes),
        each_vector(Store("b", (v,), Load(f32, "panel", (column,), lanes=t.lanes))),
        Prefetch("panel", (at + stride * PREFETCH_AHEAD,)),
        each_row(each_vector(Store("sums", (r, v), Op(f32, "add", (acc(), product), lanes=t.lanes)))),
    )
    body: tuple[Stmt, ...] = (
        Declare("sums", f32, (t.rows, t.vectors), t.lanes),
        each_row(each_vector(Store("sums", (r, v), zero))),
        For(
            tap,
            const(0),
            taps,
            (
                Declare("row", f32, (t.rows,), pointer=True),
                each_row(Store("row", (r,), Load(f32, "rows", (tap * pitch + r,)))),
                For(k, const(0), depth, step),
            ),
        ),
        Comment("the epilogue reads the sums from here, in the first-level cache"),
        each_row(each_vector(Store("tile", (r * PANEL + v * t.lanes,), acc()))),
    )
    params = (
        Param("rows", f32, 2),
        Param("pitch", INDEX),
        Param("taps", INDEX),
        Param("depth", INDEX),
        Param("panel", f32, 1),
        Param("stride", INDEX),
        Param("tile", f32, 1, writable=True),
    )
    return Function(t.name, params, body, f"{t.rows} rows by {t.columns} columns of a product")
