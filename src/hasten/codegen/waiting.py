"""Epilogues that wait: that of a whole tile is applied while the sums of the next tile are formed.

At the end of a tile nothing is left to multiply, and what follows element by element is a chain of
operations for each vector: too long for the processor to reach the next tile's products meanwhile. Spread
over the steps of the next tile it takes what they leave: loads, stores, conversions, bounds and sums of other
units go for nothing, and only its own multiplications are added to theirs.

The sums of the tile that waits lie in the first-level cache, with the tile's first row and its panel.
"""

from __future__ import annotations

from hasten.codegen.tiles import Beside, Columns, Rows, Tile, finished_sum, tile_sums
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Var, const
from hasten.loops.nest import Comment, Declare, Stmt, Store, unrolled

_SUMS, _ROW, _PANEL, _WAITING = "sums_before", "row_of_sums", "panel_of_sums", "waiting"

ROW_BEFORE = Load(INDEX, _ROW, ())
"""First row of the tile that waits."""

PANEL_BEFORE = Load(INDEX, _PANEL, ())
"""Its panel."""

WAITING = Load(DType.BOOL, _WAITING, ())
"""Whether there is one."""


def declare_waiting(t: Tile) -> tuple[Stmt, ...]:
    """The local variables, of no tile."""
    return (
        Declare(_SUMS, t.total, (t.rows, t.vectors), t.lanes),
        Declare(_ROW, INDEX, value=const(0)),
        Declare(_PANEL, INDEX, value=const(0)),
        Declare(_WAITING, DType.BOOL, value=const(False, DType.BOOL)),
    )


def waiting_sum(t: Tile, r: Expr, v: Expr) -> Load:
    """A vector of the sums that wait."""
    return Load(t.total, _SUMS, (r, v), lanes=t.lanes)


def waiting_tile(
    t: Tile, rows: Rows, columns: Columns, row: Expr, panel: Expr, finish: Beside
) -> tuple[Stmt, ...]:
    """Forms the sums of a whole tile, finishes the one that waits meanwhile, and lets this one wait.

    Args:
        t: the tile.
        rows: its first operand.
        columns: its second operand.
        row: its first row.
        panel: its panel.
        finish: finishes a row of the tile that waits, if there is one.
    """
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    return (
        *tile_sums(t, rows, columns, finish),
        Comment("these sums wait for the next tile"),
        unrolled(r, unrolled(v, Store(_SUMS, (r, v), finished_sum(t, r, v)))),
        Store(_ROW, (), row),
        Store(_PANEL, (), panel),
        Store(_WAITING, (), const(True, DType.BOOL)),
    )
