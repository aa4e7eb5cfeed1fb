"""Rows of a product in tiles: all as tall as the tallest but the last, which may be lower or one row taller.

A single row at the end would be a tile of its own, which waits for a panel as long as several rows do. Every
tile adds in the order of depth: which of them takes a row changes how long it takes, not what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hasten.codegen.domain import share
from hasten.codegen.kernel import THREAD, THREADS
from hasten.codegen.schedule import TIE, Schedule, tile_cost
from hasten.codegen.tiles import Tile, with_one_more
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Op, Var, binary, cast, const, constant_int, select
from hasten.loops.nest import Let, Stmt
from hasten.loops.simplify import is_nonnegative

POINTERS = 1 << 16
"""Row pointers of a block at the most, one for each row and tap: 512 KB of the stack."""


@dataclass(frozen=True)
class RowTiles:
    """How rows are cut.

    Attributes:
        tallest: rows of the tallest tile.
        more: rows that the last tile may take beyond those of the others: 1 or 0.
        lower: rows of two lower tiles that take less time than a tall one and what it leaves, where a call
            can have so few rows; else None.
    """

    tallest: int
    more: int = 0
    lower: int | None = None

    @property
    def tall(self) -> Expr:
        """Rows of the tiles of a call, except the last."""
        return const(self.tallest) if self.lower is None else Var(INDEX, "tall", const(self.tallest + 1))

    def choose(self, rows: Expr) -> tuple[Stmt, ...]:
        """Defines `tall` for a call of so many rows, where it depends on them."""
        if self.lower is None:
            return ()
        above = binary("lt", self.tallest + self.more, rows)
        few = binary("and", above, binary("le", rows, 2 * self.lower))
        assert isinstance(self.tall, Var)
        return (Let(self.tall, select(few, const(self.lower), const(self.tallest))),)

    def count(self, rows: Expr, height: Expr) -> Expr:
        """Tiles of this height that take some rows."""
        if not self.more:
            return (rows + (height - 1)) // height
        return binary("max", 1, Op(INDEX, "truncdiv", (rows + (height - 1 - self.more), height)))

    def pieces(self, rows: Expr) -> Expr:
        """Tiles of some rows of a block."""
        if self.lower is None or self.more:
            return self.count(rows, self.tall)
        return Op(INDEX, "truncdiv", (rows + (self.tall - 1), self.tall))

    def share(self, rows: Expr, height: Expr) -> tuple[Expr, Expr]:
        """First and last (exclusive) of this thread's rows, in whole tiles."""
        if not self.more:
            return share(rows, height)
        tiles, thread = self.count(rows, height), cast(THREAD, INDEX)

        def bound(index: Expr) -> Expr:
            at = Op(INDEX, "truncdiv", (tiles * index, cast(THREADS, INDEX)))
            return select(binary("lt", at, tiles), at * height, rows)

        return bound(thread), bound(thread + 1)

    def taken(self, left: Expr, whole: Expr) -> Expr:
        """Rows that a tile or a block takes of those that are left: a whole number, or all."""
        if not self.more:
            return binary("min", left, whole)
        return select(binary("le", left, whole + self.more), left, whole)

    def end(self, first: Expr, last: Expr) -> Expr:
        """Where tiles or blocks of these rows begin no more: a single row is none."""
        if not self.more:
            return last
        return binary("max", binary("min", first + 1, last), last - self.more)


def adapted(tiles: Sequence[Tile], rows: Expr) -> RowTiles:
    """Cuts that depend on how many rows a call has.

    Args:
        tiles: the tallest first.
        rows: of a call.
    """
    tallest = tiles[0].rows
    return RowTiles(tallest, max(t.rows for t in with_one_more(tiles)) - tallest, _lower(tiles, rows))


def _lower(tiles: Sequence[Tile], rows: Expr) -> int | None:
    """The height of two tiles for a few rows more than the tallest takes, if their number is open."""
    if constant_int(rows) is not None:
        return None
    tall = tiles[0].rows
    lower = next((t.rows for t in tiles if tall < 2 * t.rows < 2 * tall), None)
    if lower is None or 2 * tile_cost(lower) * (1 + TIE) >= tile_cost(tall) + tile_cost(2 * lower - tall):
        return None
    # There are more rows at any size: no size of what is computed is 0.
    return None if is_nonnegative(rows - (2 * lower + 1)) else lower


def low_enough(tiles: Sequence[Tile], schedule: Schedule) -> tuple[Tile, ...]:
    """The tiles that a schedule allows; there is one of a single row for any."""
    most = schedule.tile_rows or tiles[0].rows
    return tuple(t for t in tiles if t.rows <= most)


def on_the_stack(schedule: Schedule, taps: int, tallest: int) -> Schedule:
    """The schedule with blocks, and for the widest windows tiles, so low that their row pointers fit.

    Args:
        schedule: what was chosen.
        taps: of the window.
        tallest: rows of the tallest tile there is.
    """
    rows, tall = max(1, POINTERS // taps), schedule.tile_rows or tallest
    # A block is rounded up to whole tiles, and its last one may be taller.
    if schedule.row_block + 2 * tall <= rows:
        return schedule
    if rows < 3 * tall:
        tall = max(1, rows // 3)
        return replace(schedule, row_block=max(1, rows - 2 * tall), tile_rows=tall)
    return replace(schedule, row_block=rows - 2 * tall)
