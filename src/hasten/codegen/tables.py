"""Tables of places that are found by division, such as those that a resized picture is read at.

A definition without data disappears into what reads it, and is computed for each of its elements. That is
well where it is a sum or a difference. Quotients by what is no small number are written down instead: now,
where their number is known, else by a kernel.
"""

from __future__ import annotations

from dataclasses import replace

from hasten.loops.descriptions import Description
from hasten.loops.expr import Expr, Load, Op, Reduce, Size, Var, constant_int, walk
from hasten.loops.program import Program
from hasten.loops.tabulate import tabulate

SMALL = 16
"""Divisors up to which a quotient is not worth a table: `phases` computes rows without dividing."""

LONGEST = 1 << 16
"""Entries of the longest table that is made when compiling."""


def is_table(body: Expr | Description, variables: tuple[Var, ...]) -> bool:
    """Whether a definition of one axis reads nothing and divides."""
    if not isinstance(body, Expr) or len(variables) != 1:
        return False
    nodes = list(walk(body))
    if any(isinstance(n, Load | Reduce) for n in nodes):
        return False
    return any(_divides(n) for n in nodes)


def with_tables(program: Program) -> Program:
    """The program with tables of a known length as constants."""
    kept = {*program.outputs, *(m.tensor for m in program.measured.values())}
    kept |= {e.tensor for e in program.elements.values()}
    made = {}
    for d in program.definitions.values():
        if d.name in kept or not isinstance(d.body, Expr) or not is_table(d.body, d.vars):
            continue
        length = constant_int(d.vars[0].extent)
        if length is not None and length <= LONGEST and not any(isinstance(n, Size) for n in walk(d.body)):
            made[d.name] = tabulate(d.body, d.vars, {})
    if not made:
        return program
    definitions = {name: d for name, d in program.definitions.items() if name not in made}
    return replace(program, definitions=definitions, constants={**program.constants, **made})


def _divides(e: Expr) -> bool:
    if not isinstance(e, Op) or e.op not in ("floordiv", "mod"):
        return False
    by = constant_int(e.args[1])
    return by is None or abs(by) > SMALL
