"""A graph inside a node, lowered by itself, and what it takes from the graph around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hasten.graph.bodies import captured, reads
from hasten.graph.describe import describe_node
from hasten.loops.dtypes import DType
from hasten.ops.base import Declined, Tensor
from hasten.ops.graph_state import Dims, GraphState
from hasten.ops.lowered import Body, Lowered

LowerBody = Callable[[GraphState, ir.Graph], Lowered]
"""Lowers a body in whose state its inputs are entered."""


@dataclass(frozen=True)
class Inside:
    """A body that is lowered.

    Attributes:
        graph: the body.
        state: what was known while it was walked.
        lowered: what came of it.
    """

    graph: ir.Graph
    state: GraphState
    lowered: Lowered

    def tensor(self, output: int) -> Tensor | None:
        """An output, if compiled code can read it."""
        return self.state.tensors.get(self.graph.outputs[output])

    def dims_around(self, output: int) -> Dims | None:
        """Its shape for the graph around."""
        tensor = self.tensor(output)
        return None if tensor is None else [self.state.length_around(n) for n in tensor.shape]

    def body(self, inputs: Sequence[str]) -> Body:
        """It as a body that is given values of these names."""
        return Body(self.lowered, tuple(inputs), self.lowered.outputs)

    def captures(self, given: Sequence[str]) -> set[str]:
        """Names of what it takes from around."""
        program, outside = self.lowered.program, self.lowered.outside
        wanted = {*program.inputs, *self.lowered.outputs, *(n for o in outside for n in o.inputs)}
        return wanted - {*given, *program.definitions, *(n for o in outside for n in o.outputs)}


def body_of(node: ir.Node, name: str) -> ir.Graph:
    """The graph that an attribute of a node holds.

    Raises:
        Declined: there is none.
    """
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type is not ir.AttributeType.GRAPH:
        raise Declined(f"{node.op_type} has no body {name}")
    return attribute.as_graph()


def inside_of(
    state: GraphState, body: ir.Graph, give: Callable[[GraphState], None], lower_body: LowerBody
) -> Inside:
    """Lowers a body; `give` enters its inputs."""
    inner = GraphState.of(body, state.opsets, state)
    for value in captured(body):
        inner.capture(value)
    give(inner)
    return Inside(body, inner, lower_body(inner, body))


def require_compiled(bodies: Sequence[Inside]) -> None:
    """Leaves a node whole to the host where its bodies are left to it whole.

    Raises:
        Declined: that is so.
    """
    hosts = [h for b in bodies for h in b.lowered.host_nodes]
    if hosts and not any(b.lowered.compiles for b in bodies):
        raise Declined(f"nothing of its body can be compiled: {hosts[0].reason}")


def named(state: GraphState, node: ir.Node, value: ir.Value | None) -> str:
    """The name of a value that a run finds: a copy, if it is a constant."""
    assert value is not None and value.name is not None
    if value not in state.constants:
        return value.name
    tensor = state.tensors.get(value)
    if tensor is None:
        raise Declined(state.opaque[value])
    state.ctx.begin(describe_node(node), (state.ctx.fresh(f"{value.name}_start"),))
    return state.ctx.define(tensor.shape, tensor.at, tensor.dtype).name


def known_flag(state: GraphState, value: ir.Value | None) -> bool | None:
    """A condition that is known now."""
    array = None if value is None else state.ctx.constant_of(state.tensors.get(value))
    return None if array is None or array.size != 1 else bool(array.reshape(-1)[0])


def enter(state: GraphState, value: ir.Value, dims: Dims | None, dtype: DType | None) -> None:
    """Enters an output of a node with bodies."""
    if dims is not None and dtype is not None:
        state.enter(value, dims, dtype)
    else:
        state.enter(value, None)


def in_order(node: ir.Node, names: set[str]) -> tuple[str, ...]:
    """Names in the order in which the node reads their values, copies of constants at the end."""
    order = {v.name or "": k for k, v in enumerate(reads(node))}
    return tuple(sorted(names, key=lambda n: (order.get(n, len(order)), n)))
