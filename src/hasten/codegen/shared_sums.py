"""Reductions that many elements of a stage share, computed once before it.

A stage may say its element by a reduction that does not depend on all of its variables: an instance
normalization does, whose mean belongs to a channel. The loops compute it once for what lies side by side in
memory: for all of a channel where its rows are contiguous, but for nothing where channels are, and then the
mean would be summed anew for each position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)
from hasten.loops.simplify import is_nonnegative

FEW = 8
"""Terms of a reduction that may as well be added again."""

_GUESS = 64
"""A length that only the run knows, where the numbers of two sets of variables are compared."""


def share_sums(s: Stage, order: tuple[int, ...], taken: frozenset[str]) -> tuple[list[Stage], Stage]:
    """Takes the reductions out of a stage that its loops would compute again and again.

    Args:
        s: a stage.
        order: the order of its dimensions in memory, outermost first.
        taken: names of tensors.

    Returns:
        A stage for each such reduction, and the stage that reads them instead.
    """
    found: list[Stage] = []
    body = s.body
    while isinstance(body, Expr):
        reductions = {n: _distinct(n, s) for n in walk(body) if isinstance(n, Reduce)}
        repeated = [(r, e) for r, e in reductions.items() if e is not None and _is_repeated(r, e, s, order)]
        if not repeated:
            break
        r, numbers = repeated[-1]  # what it contains is not repeated
        index = sorted(numbers, key=lambda e: order.index(s.vars.index(e)) if isinstance(e, Var) else -1)
        name = f"{s.name}_{r.op}"
        while name in taken or any(name == f.name for f in found):
            name += "_"
        shared = substitute(r, {e: v for e, v in numbers.items() if e != v})
        found.append(Stage(name, r.dtype, tuple(numbers[e] for e in index), shared, None, s.origins))
        body = substitute(body, {r: Load(r.dtype, name, tuple(index))})
    return found, replace(s, body=body) if found else s


def _is_repeated(r: Reduce, numbers: Mapping[Expr, Var], s: Stage, order: tuple[int, ...]) -> bool:
    """Whether a reduction over `numbers` is the same for all of a variable that is not innermost."""
    own = free_vars(r)
    terms = math.prod((constant_int(v.extent) or FEW + 1) for v in r.vars)
    walked = [v for v in (s.vars[d] for d in order) if constant_int(v.extent) != 1]
    if terms <= FEW:
        return False
    if 2 * _about(numbers.values()) <= _about(own):
        return True
    while walked and walked[-1] not in own:
        walked.pop()
    return any(v not in own for v in walked)


def _distinct(r: Reduce, s: Stage) -> dict[Expr, Var] | None:
    """What a reduction depends on: variables of the stage, and quotients such as the group of a channel.

    Returns:
        A variable for each of them; None where it depends on variables of another reduction around it.
    """
    if not free_vars(r) <= frozenset(s.vars):
        return None
    found: dict[Expr, Var] = {}

    def visit(e: Expr) -> Expr | None:
        own = free_vars(e)
        if isinstance(e, Reduce | Load) or not own & set(s.vars):
            return None
        if isinstance(e, Var):
            found[e] = e
        elif isinstance(e, Op) and e.op == "floordiv" and _grows(e, own, s):
            last = substitute(e, {v: v.extent - 1 for v in own if v.extent is not None})
            found.setdefault(e, Var(INDEX, f"part{len(found)}", last + 1))
            return e
        return None

    transform(r.body, visit)
    return found


def _grows(e: Op, own: frozenset[Var], s: Stage) -> bool:
    """Whether a quotient counts from 0 up to what it is for the last value of each of its variables."""
    value, divisor = e.args
    steps = [coefficient(value, v) for v in own]
    plain = own <= frozenset(s.vars) and not any(isinstance(n, Load) for n in walk(e))
    by = constant_int(divisor)
    rising = all(step is not None and is_nonnegative(step) for step in steps)
    return plain and rising and by is not None and by > 0 and is_nonnegative(value)


def _about(variables: Iterable[Var]) -> int:
    """How many values variables have together, with a guess for lengths that the run knows."""
    return math.prod(constant_int(v.extent) or _GUESS for v in variables)
