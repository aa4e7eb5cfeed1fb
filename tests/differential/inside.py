"""A graph as both branches of an If: what is compiled inside a body gives what it gives outside."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, compose, helper

CONDITION = "inside_condition"
"""Name of the input that chooses a branch."""


def inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with one more input, whatever that is, that gives what a model gives.

    Constants stay outside, so that branches read what is around them.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    outputs = [o for o in graph.output if o.name in made]
    node = helper.make_node(
        "If",
        [CONDITION],
        [o.name for o in outputs],
        "if",
        then_branch=_branch(graph, outputs, "then"),
        else_branch=_branch(graph, outputs, "else"),
    )
    condition = helper.make_tensor_value_info(CONDITION, TensorProto.BOOL, [])
    outer = helper.make_graph([node], graph.name, [*graph.input, condition], graph.output, graph.initializer)
    return helper.make_model(outer, opset_imports=model.opset_import, ir_version=model.ir_version)


def _branch(graph: onnx.GraphProto, outputs: Sequence[onnx.ValueInfoProto], name: str) -> onnx.GraphProto:
    """The nodes of a graph, with other names for what they give."""
    part = helper.make_graph(graph.node, name, graph.input, outputs, graph.initializer)
    copy = compose.add_prefix_graph(part, f"{name}_", rename_inputs=False, rename_initializers=False)
    return helper.make_graph(copy.node, name, [], copy.output)
