"""Transposes a square block in registers: what packs keys for attention."""

from __future__ import annotations

from hasten.codegen.tiles import group, suffix
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Load, Op, Var, const
from hasten.loops.nest import Comment, Declare, Function, Param, Stmt, Store, unrolled
from hasten.target import Target


def transpose_name(lanes: int, dtype: DType) -> str:
    """Name of the function for a number of groups of an element type."""
    return f"transpose_{lanes}x{lanes}{suffix(dtype)}"


def transpose_function(target: Target, dtype: DType) -> Function:
    """to[column][row] = rows[row][column] for as many rows and columns as a vector has groups of 32 bits.

    Parameters of the function: `rows` a table of row pointers, `offset` the element at which the block begins
    in each; `to` the result, its rows `pitch` apart.

    """
    size, lanes = group(dtype), target.vector_bytes // 4
    width = lanes * size
    i = Var(INDEX, "i", const(lanes))
    offset, pitch = Var(INDEX, "offset"), Var(INDEX, "pitch")

    body: list[Stmt] = [
        Declare("row", dtype, (lanes,), pointer=True),
        unrolled(i, Store("row", (i,), Load(dtype, "rows", (i,)))),
        Declare("round_0", dtype, (lanes,), width),
        unrolled(i, Store("round_0", (i,), Load(dtype, "row", (i, offset), lanes=width))),
    ]
    rounds, last = shuffled("round", dtype, lanes, width)
    body += rounds
    result = Load(dtype, last, (i,), lanes=width)
    body += [Comment("row i is now column i"), unrolled(i, Store("to", (i * pitch,), result))]
    params = (
        Param("rows", dtype, 2),
        Param("offset", INDEX),
        Param("to", dtype, 1, writable=True),
        Param("pitch", INDEX),
    )
    return Function(transpose_name(lanes, dtype), params, tuple(body), "a square block, transposed")


def shuffled(name: str, dtype: DType, lanes: int, width: int) -> tuple[list[Stmt], str]:
    """Transposes the vectors of an array `name`_0 [lanes] in registers.

    The rows are shuffled as cards are: halves of the block are interleaved, which doubles the length of
    the runs that lie in place, so that log2 of the number of rows such rounds transpose it.

    Args:
        name: what the names of arrays begin with.
        dtype: element type.
        lanes: number of rows and of columns, a power of 2.
        width: elements of a row, each column's side by side.

    Returns:
        The statements, and the name of the array whose row i is column i.
    """
    half, rounds = lanes // 2, lanes.bit_length() - 1
    pair = Var(INDEX, "pair", const(half))
    body: list[Stmt] = []
    for n in range(rounds):
        old, new = f"{name}_{n}", f"{name}_{n + 1}"
        arguments = (Load(dtype, old, (pair,), lanes=width), Load(dtype, old, (pair + half,), lanes=width))
        low, high = (Op(dtype, op, arguments, lanes=width) for op in ("zip_low", "zip_high"))
        body += [
            Declare(new, dtype, (lanes,), width),
            unrolled(pair, Store(new, (pair * 2,), low), Store(new, (pair * 2 + 1,), high)),
        ]
    return body, f"{name}_{rounds}"
