"""Products of one or two rows: several panels at once.

A tile of one row has as many sums as its panel has vectors, and each step of a sum waits for the one before:
the units that multiply and add would be idle most of the time. More panels side by side keep them busy, and
leave the order of every sum what it is in a tile of many rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.codegen.tiles import (
    BUSY,
    HALF_PANEL,
    PANEL,
    TILE,
    Columns,
    Rows,
    Tile,
    dispatcher_name,
    finished_sum,
    group,
    tile_sums,
    total_of,
)
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Expr, Var, binary, const
from hasten.loops.nest import Call, For, Function, If, Let, Param, Store, unrolled
from hasten.target import Target

FEW = 2
"""Most rows that are multiplied so."""

PANELS = 4
"""Most panels of a call."""

FEW_SUMS = PANELS * FEW * PANEL
"""Elements of the results of a call: of each panel a tile of `FEW` rows."""


def has_few_rows(dtype: DType) -> bool:
    """Whether there are such functions for an element type: whole numbers are added in any order."""
    return total_of(dtype) is DType.F32


def few_rows_name(dtype: DType) -> str:
    """Name of the function that multiplies few rows with up to `PANELS` panels."""
    return f"few_rows_{dtype}"


def few_rows_functions(target: Target, dtype: DType) -> list[Function]:
    """What multiplies few rows, callees first; it calls dispatchers of the register tile too."""
    if not has_few_rows(dtype):
        return []
    lanes = target.vector_bytes // 4
    tiles = [
        Tile(rows, panels * PANEL // lanes, lanes, dtype)
        for rows in range(1, FEW + 1)
        for panels in dict.fromkeys((max(1, BUSY * lanes // (rows * PANEL)), 1))
    ]
    return [*(_tile_function(t) for t in tiles), _few_rows_function(tiles)]


def multiply_few(
    m: Expr,
    rows: Rows,
    panel: Address,
    stride: Expr,
    panel_step: Expr,
    panels: Expr,
    narrow: Expr,
    result: Address | None = None,
) -> Call:
    """Fills `result` with the sums of up to `FEW` rows, a tile of `FEW` rows for each panel.

    Args:
        m: number of rows.
        rows: the first operand, `FEW` pointers for each tap.
        panel: the first of the panels.
        stride: elements from one step of depth to the next.
        panel_step: elements from one panel to the next.
        panels: their number, from 1 to `PANELS`.
        narrow: 1 if the last of them is packed with half the columns, else 0.
        result: where the tiles go, by default `TILE`; each row takes `PANEL` elements.
    """
    dtype = panel.dtype
    depth = rows.depth // group(dtype)
    of_rows = (m, rows.table, rows.pitch, rows.taps, depth)
    tile = Address(total_of(dtype), TILE, (const(0),)) if result is None else result
    return Call(few_rows_name(dtype), (*of_rows, panel, stride, panel_step, panels, narrow, tile))


_NUMBERS = ("pitch", "taps", "depth", "stride", "panel_step")


def _tile_function(t: Tile) -> Function:
    """The sums of neighbouring panels, each panel's in a tile of its own."""
    r, v = Var(INDEX, "r", const(t.rows)), Var(INDEX, "v", const(t.vectors))
    pitch, taps, depth, stride, panel_step = (Var(INDEX, n) for n in _NUMBERS)
    table, panel = (Address(t.dtype, n, (const(0),)) for n in ("rows", "panel"))
    columns = Columns(panel, stride, const(t.columns), panel, const(0), panel_step)
    at = r * PANEL + t.column_offset(v, const(FEW * PANEL))
    body = (
        *tile_sums(t, Rows(table, pitch, taps, depth * group(t.dtype)), columns),
        unrolled(r, unrolled(v, Store("tile", (at,), finished_sum(t, r, v)))),
    )
    return Function(
        _name(t), _params(t.dtype), body, f"{t.rows} rows by {t.columns // PANEL} panels of a product"
    )


def _params(dtype: DType, *more: Param) -> tuple[Param, ...]:
    pitch, taps, depth, stride, panel_step = (Param(n, INDEX) for n in _NUMBERS)
    rows, panel = Param("rows", dtype, 2), Param("panel", dtype, 1)
    tile = Param("tile", total_of(dtype), 1, writable=True)
    return (rows, pitch, taps, depth, panel, stride, panel_step, *more, tile)


def _name(t: Tile) -> str:
    return f"few_{t.name}"


def _few_rows_function(tiles: Sequence[Tile]) -> Function:
    """Calls the tiles for so many rows, the widest first, and the register tile for half a panel."""
    dtype = tiles[0].dtype
    m, whole, panel_step = Var(INDEX, "m"), Var(INDEX, "whole"), Var(INDEX, "panel_step")
    panels, narrow, first = Var(INDEX, "panels"), Var(INDEX, "narrow"), Var(INDEX, "first")

    def passed(panel: Expr) -> dict[str, Expr]:
        """The parameters of a tile as arguments, from a panel on."""
        offsets = {"panel": panel * panel_step, "tile": panel * (FEW * PANEL)}
        return {p.name: p.passed_on(offsets.get(p.name, const(0))) for p in _params(dtype)}

    def of_rows(rows: int) -> tuple[For, ...]:
        loops: list[For] = []
        begin: Expr = const(0)
        for t in (t for t in tiles if t.rows == rows):
            wide = t.columns // PANEL
            end = whole // wide * wide
            loops.append(For(first, begin, end, (Call(_name(t), (*passed(first).values(),)),), step=wide))
            begin = end
        return tuple(loops)

    table, pitch, taps, depth, panel, _, _, tile = passed(whole).values()
    half = (panel, const(HALF_PANEL * group(dtype)), panel, const(0), tile, const(PANEL))
    rest = Call(dispatcher_name(HALF_PANEL, dtype), (m, table, pitch, taps, depth, *half))
    body = (
        Let(whole, panels - narrow),
        If(binary("eq", m, const(1)), of_rows(1), of_rows(FEW)),
        If(binary("lt", const(0), narrow), (rest,)),
    )
    params = (Param("m", INDEX), *_params(dtype, Param("panels", INDEX), Param("narrow", INDEX)))
    return Function(few_rows_name(dtype), params, body, f"up to {FEW} rows by some panels of a product")
