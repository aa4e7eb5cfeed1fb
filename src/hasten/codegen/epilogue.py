"""What follows a product element by element: applied to a finished tile, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hasten.codegen.domain import OUTPUT, Domain
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import inner_loop, renamed_buffers
from hasten.codegen.reductions import Names
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import PANEL, TILE, Tile
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Load, Op, Var, binary, const, constant_int, substitute, walk
from hasten.loops.nest import Stmt, Store, choose, unrolled


def epilogue_value(stage: Stage, layouts: Layouts) -> Expr:
    """The finished element of a contraction, in terms of its variables and the accumulator."""
    value = stage.epilogue
    if value is None:
        value = Load(stage.dtype, ACCUMULATOR, ())
    return flatten(value, layouts)


@dataclass(frozen=True)
class ColumnRange:
    """Neighbouring columns of a result.

    Attributes:
        column: the variable.
        first: its first value.
        width: number of values, up to `PANEL`.
    """

    column: Var
    first: Expr
    width: Expr


@dataclass(frozen=True)
class VectorEpilogue:
    """The epilogue of a tile as wide as a panel, a vector of columns at a time.

    Attributes:
        tile: the tile.
        finish: the finished element, in terms of the stage's variables and the accumulator.
        address: where it is written.
        at_row: values of the variables other than the column, in terms of `row`.
        row: the row.
        column: the column.
        panels: number of panels.
    """

    tile: Tile
    finish: Expr
    address: Expr
    at_row: Mapping[Expr, Expr]
    row: Var
    column: Var
    panels: Expr

    @property
    def possible(self) -> bool:
        """Whether the tile is as wide, and what is read and written follows the columns in memory."""
        j = Var(INDEX, "j")
        values = {**self.at_row, self.column: Var(INDEX, "panel", self.panels) * PANEL + j}
        factor = coefficient(substitute(self.address, values), j)
        contiguous = constant_int(factor or const(0)) == 1
        return self.tile.columns == PANEL and contiguous and vectorizable(substitute(self.finish, values), j)

    def store(self, row: Var, panel: Expr, first: Expr, sums: Expr) -> Store:
        """Applies the epilogue to a vector of a row's sums, from a column of a panel on, and writes it."""
        t, j = self.tile, Var(INDEX, "j")
        values = {n: substitute(e, {self.row: row}) for n, e in self.at_row.items()}
        values[self.column] = panel * PANEL + j
        value = substitute(
            self.finish, {Load(t.total, ACCUMULATOR, ()): Load(t.total, ACCUMULATOR, (j,)), **values}
        )
        held = Load(t.total, ACCUMULATOR, (first,), lanes=sums.lanes)
        finished = substitute(vectorize(value, j, first, sums.lanes), {held: sums})
        return Store(OUTPUT, (substitute(substitute(self.address, values), {j: first}),), finished)

    def write(self, row: Var, panel: Expr, width: int, held: Callable[[Expr], Load]) -> tuple[Stmt, ...]:
        """Applies the epilogue to the sums of a row of which so many columns exist, and writes them.

        Args:
            row: the row.
            panel: the panel.
            width: columns of the panel that exist, in multiples of half a vector.
            held: the sums by the number of a vector.
        """
        lanes = self.tile.lanes
        v = Var(INDEX, "v", const(width // lanes))
        whole = self.store(row, panel, v * lanes, held(v))
        if width % lanes == 0:
            return (unrolled(v, whole),)
        half = Op(self.tile.total, "lower", (held(const(width // lanes)),), lanes=lanes // 2)
        rest = self.store(row, panel, const(width // lanes * lanes), half)
        return (unrolled(v, whole), rest) if width > lanes else (rest,)


def write_row(
    finish: Expr,
    address: Expr,
    at: Mapping[Expr, Expr],
    r: Expr,
    columns: ColumnRange,
    lanes: int,
    names: Names,
) -> tuple[Stmt, ...]:
    """Applies an epilogue to row `r` of the local array `tile` and writes it.

    Args:
        finish: the finished element, in terms of the stage's variables and the accumulator.
        address: where it is written.
        at: values of the variables other than the column.
        r: row of the tile.
        columns: which columns.
        lanes: width of vectors.
        names: gives names of local variables.
    """
    j = Var(INDEX, "j")
    values = {**at, columns.column: columns.first + j}
    sums: dict[Expr, Expr] = {
        n: Load(n.dtype, TILE, (r * PANEL + j,))
        for n in walk(finish)
        if isinstance(n, Load) and n.buffer == ACCUMULATOR
    }
    value = substitute(substitute(finish, sums), values)
    d = Domain((j,), value, substitute(address, values))
    full = inner_loop(d, const(0), const(PANEL), lanes, names, frozenset())
    part = inner_loop(d, const(0), columns.width, lanes, names, frozenset())
    return choose(binary("eq", columns.width, PANEL), full, part)


def share_names(
    pointer: tuple[Expr | None, Load], finish: Expr
) -> tuple[tuple[tuple[Expr | None, Load], Expr], dict[str, str]]:
    """Renames buffers in the operand and the epilogue: `a`, and x0, x1, ... for what else is read.

    Where a row of the operand lies may be read from a tensor as well, such as an index of tokens.
    """
    condition, load = pointer
    found: dict[str, str] = {}
    finish = renamed_buffers(finish, found)
    index = tuple(renamed_buffers(i, found) for i in load.index)
    condition = None if condition is None else renamed_buffers(condition, found)
    buffers = {"a": load.buffer, **{param: tensor for tensor, param in found.items()}}
    return ((condition, Load(load.dtype, "a", index)), finish), buffers
