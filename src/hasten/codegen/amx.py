"""Products on the tile registers of processors that multiply matrices (AMX).

The counterpart of the register tile (`codegen.tiles`) for narrow elements: it takes the same packed panels,
but rows that lie at one distance from each other, instead of a table of pointers, and as many of them as
there are: the functions go through them in pairs of tiles. The sum of an element goes in order through the
steps of depth, whichever rows are beside it, so that results do not depend on how rows are divided.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.c_amx import BEGIN, DOTS, END, TILE_ROWS, matrix_statements
from hasten.codegen.tiles import HALF_PANEL, PANEL, TILE, Columns, factor_of, group, suffix, total_of
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Expr, Load, Op, Var, binary, const
from hasten.loops.nest import Call, Declare, For, Function, Param, Stmt, Store, choose, unrolled
from hasten.target import Target

MATRIX = "matrix_x"
"""Beginning of the names of the functions."""

LEAST_STEP = 4
"""Groups of a step below which the instructions that go without tiles are as fast."""

BEGIN_NAME, END_NAME = "matrix_begin", "matrix_end"
"""Functions to call before and after products, which need not follow one upon the other."""

LANES = 16
"""Sums in a row of a tile register."""


@dataclass(frozen=True)
class Strided:
    """The first operand of a product: rows at one distance from each other.

    Attributes:
        first: address of the first element of the first row.
        pitch: elements from one row to the next.
        depth: extent of the sum, in elements: a multiple of what a step takes.
        step: groups of a step.
    """

    first: Address
    pitch: Expr
    depth: Expr
    step: int


def matrix_step(target: Target, dtype: DType, depth: int) -> int | None:
    """Groups of depth that one instruction takes, or None where the register tile serves better.

    Steps are equal, so that nothing is left over: the largest divisor of the depth that a tile has room for.

    Args:
        target: instruction set.
        dtype: element type of what is multiplied.
        depth: extent of the whole sum, in elements.
    """
    if not target.matrix or dtype not in DOTS:
        return None
    groups = depth // group(dtype)
    step = max((n for n in range(1, TILE_ROWS + 1) if groups % n == 0), default=1)
    return step if step >= min(LEAST_STEP, groups) else None


def joined_group(target: Target, dtype: DType) -> int:
    """What the depth of joined taps (`codegen.shallow`) shall be a multiple of, in elements.

    The windows of such a convolution are copied side by side: then in vectors of 16 bytes.
    """
    return 16 // dtype.bytes if target.matrix and dtype in DOTS else group(dtype)


def matrix_functions(target: Target, dtype: DType) -> list[Function]:
    """The functions for an element type; none where the target multiplies no matrices of it."""
    if not target.matrix or dtype not in DOTS:
        return []
    return [matrix_function(dtype, columns) for columns in (HALF_PANEL, PANEL)]


def matrix_frame(target: Target) -> list[Function]:
    """The functions before and after products of any type; in the IR they do nothing."""
    params = (Param("m", INDEX), Param("step", INDEX))
    begin = Function(BEGIN_NAME, params, (), "sizes of tiles for products of m rows", native=BEGIN)
    return [begin, Function(END_NAME, (), (), "gives the tiles up", native=END)] if target.matrix else []


def begin_products(m: Expr, step: int) -> Call:
    """What has to be called before products of `m` rows, or, from a pair of tiles on, of any such number."""
    return Call(BEGIN_NAME, (m, const(step)))


END_PRODUCTS = Call(END_NAME, ())
"""What has to be called after the last product."""


def matrix_function(dtype: DType, columns: int) -> Function:
    """tile[r][j] = sum over depth of rows[r][k] * panel[k][j], for r below m.

    Parameters: m; what `Strided` holds, the depth in groups; the panel and elements from one of its groups to
    the next; `tile`, the result, and elements from one of its rows to the next.
    """
    size, factor, total = group(dtype), factor_of(dtype), total_of(dtype)
    m, pitch, depth, stride, tile_pitch = (
        Var(INDEX, n) for n in ("m", "pitch", "depth", "stride", "tile_pitch")
    )
    r, k, v = Var(INDEX, "r"), Var(INDEX, "k"), Var(INDEX, "v", const(columns // LANES))
    held = Load(total, "sums", (v,), lanes=LANES)
    both = Load(dtype, "rows", (r * pitch + k * size,), lanes=size)
    repeated = Op(dtype, "repeat", (both,), lanes=LANES * size)
    column = Load(factor, "panel", (k * stride + v * (LANES * size),), lanes=LANES * size)
    summed = Op(total, "dot", (held, repeated, column), lanes=LANES)
    body = For(
        r,
        const(0),
        m,
        (
            Declare("sums", total, (columns // LANES,), LANES),
            unrolled(v, Store("sums", (v,), const(0, total))),
            For(k, const(0), depth, (unrolled(v, Store("sums", (v,), summed)),)),
            unrolled(v, Store("tile", (r * tile_pitch + v * LANES,), held)),
        ),
    )
    params = (
        Param("m", INDEX),
        Param("rows", dtype, 1),
        Param("pitch", INDEX),
        Param("depth", INDEX),
        Param("step", INDEX),
        Param("panel", factor, 1),
        Param("stride", INDEX),
        Param("tile", total, 1, writable=True),
        Param("tile_pitch", INDEX),
    )
    return Function(
        f"{MATRIX}{columns}{suffix(dtype)}",
        params,
        (body,),
        f"m rows by {columns} columns of a product",
        native=matrix_statements(dtype, columns),
    )


def multiply_matrix(
    m: Expr, rows: Strided, columns: Columns, result: Address | None = None, result_pitch: Expr | None = None
) -> tuple[Stmt, ...]:
    """Statements that fill `result`, by default `TILE`, with m rows by `width` columns (up to `PANEL`).

    Rows of the result are `result_pitch` elements apart, by default `PANEL`.
    """
    dtype = rows.first.dtype
    arguments = (
        m,
        rows.first,
        rows.pitch,
        rows.depth // group(dtype),
        const(rows.step),
        columns.panel,
        columns.stride,
        result or Address(total_of(dtype), TILE, (const(0),)),
        const(PANEL) if result_pitch is None else result_pitch,
    )
    half, full = ((Call(f"{MATRIX}{columns}{suffix(dtype)}", arguments),) for columns in (HALF_PANEL, PANEL))
    return choose(binary("le", columns.width, HALF_PANEL), half, full)
