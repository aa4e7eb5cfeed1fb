"""If, Loop and Scan: their bodies are programs of their own, which the runtime calls.

A body sees what is around it as inputs; its other inputs are what a run of it is given.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.ops.base import Declined
from hasten.ops.bodies import LowerBody, body_of, enter, in_order, inside_of, named, require_compiled
from hasten.ops.graph_state import Dims, GraphState
from hasten.ops.iteration import lower_loop, lower_scan
from hasten.ops.lowered import Branches, Control


def is_control(node: ir.Node) -> bool:
    """Whether a node runs bodies."""
    return node.domain == "" and node.op_type in _LOWERINGS


def lower_control(state: GraphState, node: ir.Node, lower_body: LowerBody) -> Control | str | None:
    """Compiles the bodies of a node and enters its outputs.

    Returns:
        What runs the bodies; None where they went into the program around; the reason where they cannot
        be compiled.

    Raises:
        UnsupportedModelError: a Loop would never end.
    """
    undo = state.ctx.mark()
    try:
        made = _LOWERINGS[node.op_type](state, node, lower_body)
    except Declined as declined:
        undo()
        return str(declined)
    return made


def _lower_if(state: GraphState, node: ir.Node, lower_body: LowerBody) -> Control:
    """Two branches, of which a condition chooses one."""
    graphs = [body_of(node, "then_branch"), body_of(node, "else_branch")]
    if any(len(g.inputs) or len(g.outputs) != len(node.outputs) for g in graphs):
        raise Declined("a branch has inputs, or another number of outputs than the If")
    condition = named(state, node, node.inputs[0])
    branches = [inside_of(state, g, lambda _: None, lower_body) for g in graphs]
    require_compiled(branches)
    shapes: list[tuple[Dims | None, DType | None]] = []
    for k in range(len(node.outputs)):
        one, other = (b.tensor(k) for b in branches)
        if one is not None and other is not None and one.dtype is not other.dtype:
            raise Declined("its branches give different element types")
        dims = _common(*(b.dims_around(k) for b in branches))
        shapes.append((dims, None if one is None or other is None else one.dtype))
    around = {condition}.union(*(b.captures(()) for b in branches))
    for value, (shape, dtype) in zip(node.outputs, shapes, strict=True):
        if value.name:
            enter(state, value, shape, dtype)
    outputs = tuple(v.name or "" for v in node.outputs)
    bodies = tuple(b.body(()) for b in branches)
    return Branches(node, condition, bodies, in_order(node, around), outputs)


def _common(a: Dims | None, b: Dims | None) -> Dims | None:
    """What two shapes have in common."""
    if a is None or b is None or len(a) != len(b):
        return None
    return [n if n is not None and n == m else None for n, m in zip(a, b, strict=True)]


_LOWERINGS: dict[str, Callable[[GraphState, ir.Node, LowerBody], Control | None]] = {
    "If": _lower_if,
    "Loop": lower_loop,
    "Scan": lower_scan,
}
