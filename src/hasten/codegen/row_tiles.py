"""Rows of a product in tiles: all as tall as the tallest but the last, which may be lower or one row taller.

A single row at the end would be a tile of its own, which waits for a panel as long as several rows do. Every
tile adds in the order of depth: which of them takes a row changes how long it takes, not what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.domain import share
from hasten.codegen.kernel import THREAD, THREADS
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Op, binary, cast, select


@dataclass(frozen=True)
class RowTiles:
    """How rows are cut.

    Attributes:
        more: rows that the last tile may take beyond those of the others: 1 or 0.
    """

    more: int

    def count(self, rows: Expr, height: Expr) -> Expr:
        """Tiles of this height that take some rows."""
        if not self.more:
            return (rows + (height - 1)) // height
        return binary("max", 1, Op(INDEX, "truncdiv", (rows + (height - 1 - self.more), height)))

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
