"""Which positions of a padded batch an attention sees: its mask in terms of batch entry and key alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.loops.descriptions import Attention
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    select,
    substitute,
    transform,
    unary,
    walk,
)
from hasten.loops.program import Definition, Program

LOW = -1e4
"""What is added to a score and is not above this leaves nothing of its weight beside one that has nothing low
added. Models that compute in float16 hide scores by this number: none of theirs is near it (`passes` takes it
for a fill of scores alike)."""

MODERATE = 1e3
"""What is added and is no farther from 0 than this brings no hidden score near to one that is shown, as
`exp` is 0 in float32 at 104 below the largest."""

TRUE, FALSE = const(True, DType.BOOL), const(False, DType.BOOL)


@dataclass(frozen=True)
class SeenKeys:
    """The keys of a batch entry that some query may see.

    Attributes:
        batch, key: the variables of the attention.
        condition: holds for every such key, in terms of both.
        plain: where masked scores have a low number added instead of being left out, what holds for keys that
            have none added, in terms of both; TRUE elsewhere. An entry without such a key weighs hidden keys
            too.
    """

    batch: Var
    key: Var
    condition: Expr
    plain: Expr

    def at(self, batch: Var, key: Var) -> SeenKeys:
        """The same in terms of other variables."""
        there: dict[Expr, Expr] = {self.batch: batch, self.key: key}
        return SeenKeys(batch, key, substitute(self.condition, there), substitute(self.plain, there))


def inlined(program: Program, e: Expr) -> Expr:
    """An expression seen through the definitions that it loads from, and constants of one element.

    Contractions and reductions stay loads: what is looked for are masks, which are computed element by
    element, and no variable of a reduction can be confused with one around it.
    """
    known: dict[str, Expr | None] = {}

    def body(name: str) -> Expr | None:
        if name not in known:
            d = program.definitions.get(name)
            plain = d is not None and isinstance(d.body, Expr)
            if d is None or not plain or any(isinstance(n, Reduce) for n in walk(d.expr)):
                known[name] = None
            else:
                known[name] = transform(d.expr, visit)
        return known[name]

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load):
            return None
        array = program.constants.get(node.buffer)
        if array is not None and array.size == 1:
            return const(array.item(), node.dtype)
        index = tuple(transform(i, visit) for i in node.index)
        inner = body(node.buffer)
        if inner is None:
            return Load(node.dtype, node.buffer, index)
        return substitute(inner, dict(zip(program.definitions[node.buffer].vars, index, strict=True)))

    return transform(e, visit)


def seen_keys(program: Program, a: Attention) -> SeenKeys | None:
    """The keys that an attention's masks leave, or None where they do not tell, or tell nothing.

    A boolean mask may depend on the query in addition (a causal one does): what it leaves out for every
    query is left out. Nothing may where a mask is added, but what is surely not low (a bias by distance):
    a query whose keys all have a low number added would weigh them all alike, hidden or not.
    """
    own = frozenset({a.batch, a.key})
    keep = TRUE if a.keep is None else inlined(program, a.keep)
    condition = _may_hold(keep, own)
    plain: Expr = TRUE
    if a.bias is not None and free_vars(keep) <= own:
        terms = _terms(inlined(program, a.bias))
        shown = _all(_above(program, t, LOW, own) for t in terms)
        if shown is not None:
            condition = binary("and", condition, shown)
            # Known too: which terms tell does not depend on the number.
            plain = _all(_above(program, t, -MODERATE, own) for t in terms) or TRUE
    reads = {n.buffer for n in walk(condition) if isinstance(n, Load)}
    if a.key not in free_vars(condition) or not reads - program.constants.keys():
        return None
    plain = TRUE if plain == TRUE else binary("and", keep, plain)
    return SeenKeys(a.batch, a.key, condition, plain)


def hides_by_query(program: Program, a: Attention) -> bool:
    """Whether an attention adds what may hide keys, by inputs, from some queries and not from others.

    Or from all, of those that a condition leaves to each. It tells nothing, then: a query from which it hides
    all keys weighs them all alike.
    """
    own = frozenset({a.batch, a.key})
    causal = a.keep is not None and not free_vars(inlined(program, a.keep)) <= own
    for term in () if a.bias is None else _terms(inlined(program, a.bias)):
        reads = {n.buffer for n in walk(term) if isinstance(n, Load)} - program.constants.keys()
        above = _above(program, term, LOW, own)
        by_query = free_vars(term) >= {a.row, a.key} and above is None
        if reads and (by_query or (causal and above is not None and above != TRUE)):
            return True
    return False


def _may_hold(e: Expr, own: frozenset[Var]) -> Expr:
    """A condition in terms of some variables that holds wherever `e` does for some values of the others."""
    if free_vars(e) <= own:
        return e
    if isinstance(e, Op) and e.op in ("and", "or"):
        return binary(e.op, _may_hold(e.args[0], own), _may_hold(e.args[1], own))
    if isinstance(e, Op) and e.op == "not" and isinstance(e.args[0], Op) and e.args[0].op in ("and", "or"):
        other = "or" if e.args[0].op == "and" else "and"
        return _may_hold(binary(other, *(unary("not", a) for a in e.args[0].args)), own)
    if isinstance(e, Op) and e.op == "select" and e.args[2] == FALSE:
        return binary("and", _may_hold(e.args[0], own), _may_hold(e.args[1], own))
    return TRUE


def _terms(e: Expr) -> Sequence[Expr]:
    if isinstance(e, Op) and e.op == "add":
        return [t for a in e.args for t in _terms(a)]
    return [e]


def _all(conditions: Iterable[Expr | None]) -> Expr | None:
    """All of some conditions, None if one is not known."""
    result: Expr = TRUE
    for condition in conditions:
        if condition is None:
            return None
        result = binary("and", result, condition)
    return result


def _above(program: Program, e: Expr, limit: float, own: frozenset[Var]) -> Expr | None:
    """The condition e > limit in terms of some variables; None where it depends on others."""
    if isinstance(e, Const):
        return const(e.value > limit, DType.BOOL)
    if isinstance(e, Op) and e.op == "select" and free_vars(e.args[0]) <= own:
        condition, a, b = e.args[0], *(_above(program, side, limit, own) for side in e.args[1:])
        if (a, b) == (TRUE, FALSE):
            return condition
        if (a, b) == (FALSE, TRUE):
            return unary("not", condition)
        return None if a is None or b is None else select(condition, a, b)
    if _magnitude(program, e) <= MODERATE:
        return TRUE
    return binary("lt", const(limit, e.dtype), e) if free_vars(e) <= own else None


def _magnitude(program: Program, e: Expr) -> float:
    """How far from 0 a number is at most: one of weights and integers by simple arithmetic, else infinite.

    Integers that are not constant count as 1: they are masks, or distances of which weights make little.
    """
    if isinstance(e, Const):
        return abs(float(e.value))
    if isinstance(e, Load) and e.buffer in program.constants:
        return float(np.max(np.abs(program.constants[e.buffer].astype(np.float64)), initial=0.0))
    if isinstance(e, Op) and e.op in ("cast", "add", "sub", "mul", "neg", "abs", "select"):
        values = [_magnitude(program, v) for v in (e.args[1:] if e.op == "select" else e.args)]
        if e.op in ("add", "sub"):
            return sum(values)
        return max(values) if e.op != "mul" else values[0] * values[1]
    return math.inf if e.dtype.is_float else 1.0


def is_at(index: Expr, own: Expr) -> bool:
    """Whether an index is a variable; if that has one value, it may have been replaced by 0."""
    return index == own or (
        isinstance(own, Var) and constant_int(own.extent) == 1 and constant_int(index) == 0
    )


def hiding_value(program: Program, seen: SeenKeys) -> int | None:
    """The value 0 or 1 of the input that says of each position whether it is seen, where it is not.

    None where the condition is another one.
    """
    loads = {n for n in walk(seen.condition) if isinstance(n, Load)}
    if len(loads) != 1 or any(isinstance(n, Size) for n in walk(seen.condition)):
        return None
    (load,) = loads
    own = (seen.batch, seen.key)
    if load.buffer not in program.inputs or len(load.index) != 2 or not all(map(is_at, load.index, own)):
        return None
    at = Var(INDEX, "at", const(2))
    body = substitute(seen.condition, {load: Load(load.dtype, "values", (at,))})
    if free_vars(body) != {at}:
        return None
    values = np.arange(2).astype(load.dtype.numpy)
    d = Definition("seen", DType.BOOL, (at,), body)
    both = evaluate(Program(constants={"values": values}, definitions={"seen": d}, outputs=["seen"]), {})
    hidden = np.flatnonzero(~both["seen"])
    return int(hidden[0]) if hidden.size == 1 else None
