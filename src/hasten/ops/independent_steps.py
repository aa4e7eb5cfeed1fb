"""Steps of a Loop or Scan that do not depend on each other, as definitions with an axis for the step.

Where no state changes, a body says what a slice of a larger tensor is: it needs no loop, and its steps can
be computed in any order, side by side. scikit-learn's converters write distances between all pairs so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Bounded, Const, Expr, Load, Size, Var, bounded, const, transform
from hasten.loops.program import Definition
from hasten.ops.base import Tensor
from hasten.ops.bodies import Inside
from hasten.ops.graph_state import GraphState

STEP = "step_of_all"
"""Name of the variable that counts the steps: no other variable has it."""


@dataclass(frozen=True)
class Given:
    """What a body is given.

    Attributes:
        step: name of the number of the step.
        going: name of the condition, which is true.
        states: the tensor around the body that each state is, by the name of the state.
    """

    step: str
    going: str
    states: Mapping[str, Tensor]


@dataclass(frozen=True)
class Slices:
    """A result of a body.

    Attributes:
        tensor: with an axis for the steps in front, or without where each step gives the same.
        stepped: whether it has that axis.
    """

    tensor: Tensor
    stepped: bool


def are_independent(inside: Inside) -> bool:
    """Whether the definitions of a body can have an axis more, and hardly cost memory by it.

    They can where each is a plain expression and no size depends on data. Slices, and what is read once,
    disappear into their readers; anything else between inputs and results would be kept for all steps.
    """
    program = inside.lowered.program
    if inside.lowered.outside or program.measured or program.elements or program.derived:
        return False
    if any(not isinstance(d.body, Expr) for d in program.definitions.values()):
        return False
    if any(not isinstance(outer, Size | Const) or outer != own for outer, own in inside.state.inner.items()):
        return False
    readers = Counter(n for d in program.definitions.values() for n in d.reads())
    return all(
        readers[n] <= 1 or n in program.outputs or isinstance(d.body, Load)
        for n, d in program.definitions.items()
    )


def side_by_side(state: GraphState, inside: Inside, given: Given, steps: Expr, name: str) -> list[Slices]:
    """Defines what a body does, for all its steps, in the program around it.

    Args:
        state: of the graph around; the node has begun.
        inside: the body, whose steps are independent.
        given: what it is given.
        steps: how many there are.
        name: what the names of new definitions begin with.

    Returns:
        The body's outputs.
    """
    ctx, program = state.ctx, inside.lowered.program
    step = Var(INDEX, STEP, steps)
    constants = {n: ctx.constant(array, n) for n, array in program.constants.items()}
    around = {v.name or "": tensor for v, tensor in state.tensors.items()}
    fixed = {**around, **constants, **given.states}
    made: dict[str, Tensor] = {}

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Bounded):
            return bounded(transform(node.index, visit), node.limit)
        if not isinstance(node, Load):
            return None
        if node.buffer == given.step:
            return step
        if node.buffer == given.going:
            return const(True, DType.BOOL)
        index = [transform(i, visit) for i in node.index]
        if node.buffer in made:
            return made[node.buffer].at(step, *index)
        return fixed[node.buffer].at(*index)

    for d in program.definitions.values():
        assert isinstance(d.body, Expr)
        body = transform(d.body, visit)
        new = Definition(ctx.fresh(f"{name}_{d.name}"), d.dtype, (step, *d.vars), body, d.origin)
        ctx.program.definitions[new.name] = new
        made[d.name] = Tensor(new.name, d.dtype, new.shape)
    for guard in program.guards:
        # What a step needs, nobody does where no step is taken.
        needed = replace(guard, right=guard.right * steps)
        if guard.kind == "equal":
            needed = replace(needed, left=guard.left * steps)
        if needed not in ctx.program.guards:
            ctx.program.guards.append(needed)
    return [Slices(made[n], True) if n in made else Slices(fixed[n], False) for n in inside.lowered.outputs]
