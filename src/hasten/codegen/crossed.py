"""Maps that read one tensor across: contiguous along another variable than that of the output.

A row of the output would read a column of the input, an element of each cache line, and all lines again for
the next row. Here square blocks of the input are read in its own order and transposed in registers; what is
computed from them follows on vectors along the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.codegen.domain import OUTPUT, Domain
from hasten.codegen.transpose import shuffled
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    substitute,
    walk,
)
from hasten.loops.nest import Declare, For, Let, Stmt, Store, choose, unrolled

STRETCH = 1024
"""Elements along the output that one task takes."""

TILE = "block"
"""What the names of arrays begin with that hold a block while it is transposed."""


@dataclass(frozen=True)
class Crossed:
    """A map that reads across.

    Attributes:
        load: what is contiguous along `across`.
        across: an outer variable.
        along: the innermost variable.
        outer: the other variables, outermost first.
        rows: counts blocks of `across`.
        stretch: counts stretches of `along`.
    """

    load: Load
    across: Var
    along: Var
    outer: tuple[Var, ...]
    rows: Var
    stretch: Var

    @property
    def tasks(self) -> tuple[Var, ...]:
        """What the threads share: a task is one block of rows along one stretch."""
        return (*self.outer, self.rows, self.stretch)


def find_crossed(d: Domain, lanes: int) -> Crossed | None:
    """What a map reads across, or None if it reads nothing so, or more than one thing.

    Nor what is read under a condition: blocks are read whole, also where that would be outside the tensor.
    """
    if len(d.vars) < 2 or lanes & (lanes - 1) or any(isinstance(n, Reduce) for n in walk(d.value)):
        return None
    *outer, along = d.vars
    loads = [n for n in walk(d.value) if isinstance(n, Load) and n.index and along in free_vars(n)]
    strided = [n for n in loads if constant_int(coefficient(n.index[0], along)) != 1]
    if len(strided) != 1:
        return None
    (load,) = strided
    arms = [arm for n in walk(d.value) if isinstance(n, Op) and n.op == "select" for arm in n.args[1:]]
    if any(n == load for arm in arms for n in walk(arm)):
        return None
    if load.dtype is not DType.F32 or load.lanes > 1 or coefficient(load.index[0], along) is None:
        return None
    across = [v for v in outer if constant_int(coefficient(load.index[0], v) or const(0)) == 1]
    contiguous = constant_int(coefficient(d.address, along) or const(0)) == 1
    if len(across) != 1 or not contiguous or d.value.dtype is not DType.F32:
        return None
    short = any((n := constant_int(v.extent)) is not None and n < lanes for v in (along, across[0]))
    rest = substitute(d.value, {load: Load(DType.F32, TILE, (along,))})
    if short or not vectorizable(rest, along):
        return None
    (row,) = across
    assert row.extent is not None and along.extent is not None
    rows = Var(INDEX, "rows", (row.extent + (lanes - 1)) // lanes)
    stretch = Var(INDEX, "stretch", (along.extent + (STRETCH - 1)) // STRETCH)
    return Crossed(load, row, along, tuple(v for v in outer if v != row), rows, stretch)


def crossed_body(
    d: Domain, c: Crossed, lanes: int, rest: Sequence[Stmt], begin: Var, end: Var
) -> tuple[Stmt, ...]:
    """The statements of a task.

    Args:
        d: the map.
        c: what it reads across.
        lanes: elements of a vector.
        rest: computes the rows of a block that is not whole, from `begin` to `end`.
        begin: where the stretch begins.
        end: where it ends.
    """
    assert c.across.extent is not None and c.along.extent is not None
    first, at, whole = Var(INDEX, "first_row"), Var(INDEX, f"{c.along.name}_0"), Var(INDEX, "whole")
    i = Var(INDEX, "i", const(lanes))
    read = substitute(c.load, {c.across: first, c.along: at + i})
    assert isinstance(read, Load)
    rounds, result = shuffled(TILE, DType.F32, lanes, lanes)
    stands_for = Load(DType.F32, TILE, (c.along,))
    value = substitute(d.value, {c.load: stands_for, c.across: first + i})
    vector = vectorize(value, c.along, at, lanes)
    vector = substitute(
        vector, {Load(DType.F32, TILE, (at,), lanes=lanes): Load(DType.F32, result, (i,), lanes=lanes)}
    )
    place = substitute(d.address, {c.across: first + i, c.along: at})
    block: tuple[Stmt, ...] = (
        Declare(f"{TILE}_0", DType.F32, (lanes,), lanes),
        unrolled(i, Store(f"{TILE}_0", (i,), Load(DType.F32, read.buffer, read.index, lanes=lanes))),
        *rounds,
        unrolled(i, Store(OUTPUT, (place,), vector)),
    )
    here: dict[Expr, Expr] = {c.across: first + i}
    single = For(
        i, const(0), const(lanes), (Store(OUTPUT, (substitute(d.address, here),), substitute(d.value, here)),)
    )
    fast = (
        Let(whole, begin + Op(INDEX, "truncdiv", (end - begin, const(lanes))) * lanes),
        For(at, begin, whole, block, step=lanes),
        For(c.along, whole, end, (single,)),
    )
    left = For(c.across, first, c.across.extent, tuple(rest))
    fits = binary("le", first + lanes, c.across.extent)
    whole_blocks = constant_int(c.across.extent % lanes) == 0
    return (
        Let(first, c.rows * lanes),
        Let(begin, c.stretch * STRETCH),
        Let(end, binary("min", begin + STRETCH, c.along.extent)),
        *(fast if whole_blocks else choose(fits, fast, (left,))),
    )
