"""What the threads of a product divide: batch entries, rows, or panels of columns."""

from __future__ import annotations

from hasten.codegen.kernel import THREADS
from hasten.codegen.schedule import Split
from hasten.codegen.tiles import PANEL
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Op, Var, binary, cast, const, constant_int, select, unary
from hasten.loops.nest import Let, Stmt

NO = const(False, DType.BOOL)

_FEW, _MANY = 16, 17
"""The shares of two ways of dividing are about equal where they differ by less than this ratio."""


def divided(
    split: Split, batch: Expr, rows: Expr, columns: Expr, tiles: Expr
) -> tuple[list[Stmt], dict[Split, Expr]]:
    """Whether the threads divide entries, rows or panels; statements work it out where it is open.

    Args:
        split: what the schedule says.
        batch: number of entries.
        rows: of an entry.
        columns: of an entry.
        tiles: what the rows of an entry make.
    """
    single = constant_int(batch) == 1
    if split is not Split.AUTO and not (split is Split.ENTRIES and single):
        return [], {s: const(s is split, DType.BOOL) for s in Split}
    threads, panels = cast(THREADS, INDEX), (columns + (PANEL - 1)) // PANEL
    statements: list[Stmt] = []
    by_entries: Expr = NO
    if not single:
        by_entries = Var(DType.BOOL, "split_entries")
        statements.append(Let(by_entries, binary("le", threads, batch)))
    # Tiles of the thread that has the most. Where both ways are about equal, less memory is moved.
    most_rows, most_panels = Var(INDEX, "by_rows"), Var(INDEX, "by_panels")
    statements.append(Let(most_rows, Op(INDEX, "truncdiv", (tiles + threads - 1, threads)) * panels))
    statements.append(Let(most_panels, Op(INDEX, "truncdiv", (panels + threads - 1, threads)) * tiles))
    tall = select(
        binary("lt", columns, rows),
        binary("le", most_rows * _FEW, most_panels * _MANY),
        binary("lt", most_rows * _MANY, most_panels * _FEW),
    )
    by_rows, by_panels = Var(DType.BOOL, "split_rows"), Var(DType.BOOL, "split_panels")
    rest = unary("not", by_entries)
    statements.append(Let(by_rows, binary("and", rest, tall)))
    statements.append(Let(by_panels, binary("and", rest, unary("not", by_rows))))
    return statements, {Split.ENTRIES: by_entries, Split.ROWS: by_rows, Split.PANELS: by_panels}
