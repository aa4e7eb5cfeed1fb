"""What kernels loop over: the elements of a tensor, how many there are, and the part that a thread takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.codegen.kernel import THREAD, THREADS
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Op, Var, cast, const, constant_int
from hasten.loops.nest import Let, Stmt

OUTPUT = "out"
"""Name of the parameter that a kernel writes, the first of them where there are several."""


def output_name(number: int) -> str:
    """Name of the parameter of a kernel's result by its number."""
    return f"{OUTPUT}{number or ''}"


@dataclass(frozen=True)
class Domain:
    """Loops over a tensor in memory order.

    Attributes:
        vars: the loop variables, outermost first, merged where their loops are one.
        value: the element in terms of them, loads at addresses.
        address: where it is written.
    """

    vars: tuple[Var, ...]
    value: Expr
    address: Expr


def extent(variables: Sequence[Var]) -> Expr:
    """Product of the extents of some variables."""
    total: Expr = const(1)
    for v in variables:
        assert v.extent is not None
        total = total * v.extent
    return total


def share(total: Expr, grain: Expr) -> tuple[Expr, Expr]:
    """First and last (exclusive) of this thread's part of `total` items, in multiples of `grain`."""
    grains = (total + grain - 1) // grain
    thread, threads = cast(THREAD, INDEX), cast(THREADS, INDEX)

    def bound(index: Expr) -> Expr:
        at = Op(INDEX, "truncdiv", (grains * index, threads))
        if constant_int(grain) == 1:
            return at
        return Op(INDEX, "min", (at * grain, total))

    return bound(thread), bound(thread + 1)


def decode(task: Var, outer: Sequence[Var]) -> list[Stmt]:
    """The outer variables of a flat position; nothing where there are none."""
    if not outer:
        return []
    lets: list[Stmt] = []
    rest: Expr = task
    for v in reversed(outer[1:]):
        assert v.extent is not None
        lets.append(Let(Var(INDEX, v.name), Op(INDEX, "mod", (rest, v.extent))))
        above = Var(INDEX, f"above_{v.name}", const(1))
        lets.append(Let(above, Op(INDEX, "floordiv", (rest, v.extent))))
        rest = above
    lets.append(Let(Var(INDEX, outer[0].name), rest))
    return lets


def split_flat(flat: Expr, variables: Sequence[Var]) -> dict[Expr, Expr]:
    """Values of variables at a row-major position in their common range."""
    values: dict[Expr, Expr] = {}
    rest = flat
    for v in reversed(variables[1:]):
        assert v.extent is not None
        values[v] = rest % v.extent
        rest = rest // v.extent
    if variables:
        values[variables[0]] = rest
    return values
