"""If whose condition is known: the nodes of the branch that is taken stand in its place."""

from __future__ import annotations

import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.rule import free_name, names_of_values, replace_value


def inline_branches(graph: ir.Graph, outermost: ir.Graph) -> int:
    """Replace each If whose condition is a constant by the nodes of one branch, in place.

    Args:
        graph: a model's, or a body.
        outermost: the model's, in which new names are free.

    Returns:
        The number of nodes that were replaced.
    """
    replaced = 0
    for node in list(graph):
        if node.op_type != "If" or node.domain:
            continue
        condition = constant_value(node.inputs[0])
        if condition is None or condition.size != 1:
            continue
        taken = node.attributes.get("then_branch" if condition.reshape(-1)[0] else "else_branch")
        if taken is None or taken.type is not ir.AttributeType.GRAPH:
            continue
        branch = taken.as_graph()
        if branch.inputs or len(branch.outputs) != len(node.outputs):
            continue
        _inline(graph, node, branch, names_of_values(outermost))
        replaced += 1
    return replaced


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph, taken: set[str | None]) -> None:
    outputs, nodes = list(branch.outputs), list(branch)
    while branch.outputs:
        branch.outputs.pop()
    prefix = node.name or node.outputs[0].name or "If"

    def renamed(value: ir.Value) -> None:
        value.name = free_name(f"{prefix}/{value.name}", taken)
        taken.add(value.name)

    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        renamed(value)
        graph.register_initializer(value)
    branch.remove(nodes)
    for inner in nodes:
        for value in inner.outputs:
            if value.name:
                renamed(value)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        replace_value(graph, old, new)
    graph.remove(node, safe=True)
