"""How often what a program defines is read, and whether several elements of a reader read the same one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hasten.loops.descriptions import Gemm, operands
from hasten.loops.expr import Expr, Load, Op, Reduce, Var, constant_int, free_vars, walk
from hasten.loops.program import Definition, Program


def uses_of(program: Program, live: list[Definition]) -> Counter[str]:
    """How often the elements of each tensor are read: distinct loads, those in a reduction twice."""
    count: Counter[str] = Counter(program.outputs)
    summed: set[str] = set()
    for d in live:
        if isinstance(d.body, Expr):
            nodes = list(walk(d.body))
            if any(isinstance(n, Reduce) or (isinstance(n, Load) and n.buffer in summed) for n in nodes):
                summed.add(d.name)
            _count_loads(d.body, set(d.vars), count)
            count.update(dict.fromkeys(_guarded(nodes) & summed, 2))
        else:
            for e in operands(d.body).values():
                count.update({n.buffer: 2 for n in walk(e) if isinstance(n, Load)})
    return count


def _count_loads(e: Expr, domain: set[Var], count: Counter[str]) -> None:
    inside = {n for r in walk(e) if isinstance(r, Reduce) for n in walk(r.body) if isinstance(n, Load)}
    for node in walk(e):
        if isinstance(node, Load):
            variables = {v for i in node.index for v in free_vars(i)}
            repeated = bool(variables - domain) or not variables >= {v for v in domain if is_wide(v)}
            count[node.buffer] += 2 if repeated or node in inside else 1


def shared_of(program: Program, live: list[Definition]) -> set[str]:
    """Tensors of which several elements of a reader may read the same one.

    A quotient stands without its remainder (a picture that grows), or places are looked up, in a tensor that
    is not known to have as many elements as its reader.
    """
    found: set[str] = set()
    for d in live:
        if isinstance(d.body, Expr):
            readers = _count(d.vars)
            for load in (n for n in walk(d.body) if isinstance(n, Load) and n.buffer in program.definitions):
                read = _count(program.definitions[load.buffer].vars)
                grows = readers is None or read is None or readers > read
                if grows and (_has_lone_quotient(load.index) or is_indirect(load)):
                    found.add(load.buffer)
    return found


def _has_lone_quotient(index: Sequence[Expr]) -> bool:
    parts: dict[tuple[Expr, ...], set[str]] = {}
    for node in (n for i in index for n in walk(i)):
        if isinstance(node, Op) and node.op in ("floordiv", "mod"):
            parts.setdefault(node.args, set()).add(node.op)
    return any(len(ops) == 1 for ops in parts.values())


def _count(variables: Sequence[Var]) -> int | None:
    """How many elements there are; None where that is not known."""
    extents = [None if v.extent is None else constant_int(v.extent) for v in variables]
    return None if None in extents else math.prod(n for n in extents if n is not None)


def _guarded(nodes: Sequence[Expr]) -> set[str]:
    """Tensors that are read where a condition on the index says so, as of what is joined or padded.

    Sums in them would run before their condition is known, over what may lie outside.
    """
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, Op) and node.op == "select":
            condition, *arms = node.args
            if not any(isinstance(n, Load) for n in walk(condition)):
                found |= {n.buffer for arm in arms for n in walk(arm) if isinstance(n, Load)}
    return found


def is_wide(v: Var) -> bool:
    """Whether there is more than one element along an axis, or may be."""
    return v.extent is None or constant_int(v.extent) != 1


def is_indirect(e: Load) -> bool:
    """Whether the index itself is read from memory: vectors must then be gathered."""
    return any(isinstance(n, Load) for i in e.index for n in walk(i))


def plainly_read(live: Sequence[Definition]) -> set[str]:
    """Tensors that only products read, and what is computed of them element by element."""
    read: set[str] = set()
    otherwise: set[str] = set()
    for d in live:
        read |= d.reads()
        if isinstance(d.body, Expr):
            sums = any(isinstance(n, Reduce) for n in walk(d.body))
            loads = [n for n in walk(d.body) if isinstance(n, Load)]
            otherwise |= {n.buffer for n in loads if sums or n.index != tuple(d.vars)}
        elif not isinstance(d.body, Gemm):
            otherwise |= d.reads()
    return read - otherwise
