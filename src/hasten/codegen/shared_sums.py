"""Reductions that many elements of a stage share, computed once before it.

A stage may say its element by a reduction that does not depend on all of its variables: an instance
normalization does, whose mean belongs to a channel. The loops compute it once for what lies side by side in
memory: for all of a channel where its rows are contiguous, but for nothing where channels are, and then the
mean would be summed anew for each position.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hasten.codegen.stage import Stage
from hasten.loops.expr import Expr, Load, Reduce, constant_int, free_vars, substitute, walk

FEW = 8
"""Terms of a reduction that may as well be added again."""


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
        repeated = [n for n in walk(body) if isinstance(n, Reduce) and _is_repeated(n, s, order)]
        if not repeated:
            break
        r = repeated[-1]  # what it contains is not repeated
        variables = tuple(s.vars[d] for d in order if s.vars[d] in free_vars(r))
        name = f"{s.name}_{r.op}"
        while name in taken or any(name == f.name for f in found):
            name += "_"
        found.append(Stage(name, r.dtype, variables, r, None, s.origins))
        body = substitute(body, {r: Load(r.dtype, name, variables)})
    return found, replace(s, body=body) if found else s


def _is_repeated(r: Reduce, s: Stage, order: tuple[int, ...]) -> bool:
    """Whether a reduction is the same for all of a variable that is not among the innermost ones."""
    own = free_vars(r)
    terms = math.prod((constant_int(v.extent) or FEW + 1) for v in r.vars)
    walked = [v for v in (s.vars[d] for d in order) if constant_int(v.extent) != 1]
    if terms <= FEW or not own <= frozenset(s.vars):
        return False
    while walked and walked[-1] not in own:
        walked.pop()
    return any(v not in own for v in walked)
