"""Rows that repeat their way of being computed every few elements, as those of an enlarged picture do.

What divides the position of an element by a small number is the same expression for every second or third of
them. Each of these phases is computed on vectors by itself, and their results are put in turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.codegen.domain import OUTPUT, Domain
from hasten.codegen.reductions import NARROWEST
from hasten.codegen.segments import segments
from hasten.codegen.transpose import shuffled
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Reduce, Var, const, constant_int, free_vars, substitute, walk
from hasten.loops.nest import Declare, For, Stmt, Store, unrolled

MOST = 8
"""Phases of a row at the most."""

PHASE = "phase"
"""What the names of arrays begin with that hold the vectors of all phases."""


@dataclass(frozen=True)
class Phases:
    """A row whose elements are computed in turns.

    Attributes:
        part: counts rounds through the phases.
        values: the element of each phase.
        address: where the first element of a round is written, the others behind it.
    """

    part: Var
    values: tuple[Expr, ...]
    address: Expr


def find_phases(d: Domain) -> Phases | None:
    """The phases of a map's innermost loop, or None where it has none."""
    v = d.vars[-1]
    length = constant_int(v.extent)
    if length is None or any(isinstance(n, Reduce) for n in walk(d.value)):
        return None
    count = 1
    for n in walk(d.value):
        if isinstance(n, Op) and n.op in ("floordiv", "mod") and v in free_vars(n):
            step, by = constant_int(coefficient(n.args[0], v) or const(0)), constant_int(n.args[1])
            if not step or not by or by < 0:
                return None
            count = math.lcm(count, by // math.gcd(by, step))
    contiguous = constant_int(coefficient(d.address, v) or const(0)) == 1
    if not 1 < count <= MOST or length % count or not contiguous:
        return None
    part = Var(INDEX, f"{v.name}_part", const(length // count))
    values = tuple(substitute(d.value, {v: part * count + phase}) for phase in range(count))
    divided = (n for e in values for n in walk(e) if isinstance(n, Op) and n.op in ("floordiv", "mod"))
    if any(part in free_vars(n) for n in divided):
        return None
    return Phases(part, values, substitute(d.address, {v: part * count}))


def phased_row(p: Phases, lanes: int) -> tuple[Stmt, ...]:
    """The loops of a row: on vectors where what is read is contiguous and phases can be put in turns."""
    loops: list[Stmt] = []
    for start, stop, values in segments(p.values, p.part):
        first = start
        widths = (lanes, lanes // 2, lanes // 4) if _on_vectors(p, values, lanes) else ()
        for n in widths:
            last = first + (stop - first) // max(n, 1) * n
            if n >= max(NARROWEST, len(values)) and last > first:
                loops.append(For(p.part, const(first), const(last), _interleaved(p, values, n), step=n))
                first = last
        single = tuple(Store(OUTPUT, (p.address + phase,), value) for phase, value in enumerate(values))
        if stop > first:
            loops.append(For(p.part, const(first), const(stop), single))
    return tuple(loops)


def _on_vectors(p: Phases, values: tuple[Expr, ...], lanes: int) -> bool:
    count = len(values)
    plain = count & (count - 1) == 0 and values[0].dtype in (DType.F32, DType.I32)
    return plain and lanes > 1 and all(vectorizable(e, p.part) for e in values)


def _interleaved(p: Phases, values: tuple[Expr, ...], lanes: int) -> tuple[Stmt, ...]:
    """Computes a vector of each phase and writes their elements in turns."""
    dtype, count = values[0].dtype, len(values)
    rounds, result = shuffled(PHASE, dtype, count, lanes)
    body: list[Stmt] = [Declare(f"{PHASE}_0", dtype, (count,), lanes)]
    for phase, value in enumerate(values):
        vector = vectorize(value, p.part, p.part, lanes)
        if vector.lanes != lanes:
            vector = Op(dtype, "broadcast", (vector,), lanes=lanes)
        body.append(Store(f"{PHASE}_0", (const(phase),), vector))
    i = Var(INDEX, "i", const(count))
    written = Store(OUTPUT, (p.address + i * lanes,), Load(dtype, result, (i,), lanes=lanes))
    return (*body, *rounds, unrolled(i, written))
