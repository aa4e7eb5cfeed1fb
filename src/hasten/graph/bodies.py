"""Graphs inside a node: the bodies of If, Loop and Scan, and what they read of the graph around them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators of ONNX that run their bodies. What others hold becomes a part of their definition, as text."""


def reads(node: ir.Node) -> list[ir.Value]:
    """The values of the node's own graph that it and the bodies inside it read, each once."""
    found: dict[ir.Value, None] = {v: None for v in node.inputs if v is not None}
    for body in bodies(node):
        found |= dict.fromkeys(captured(body))
    return list(found)


def captured(body: ir.Graph) -> list[ir.Value]:
    """The values that a graph reads and does not have itself, each once."""
    inside = [v for inner in body for v in reads(inner)]
    own = {*body.inputs, *body.initializers.values(), *(v for inner in body for v in inner.outputs)}
    return list(dict.fromkeys(v for v in (*inside, *body.outputs) if v not in own))


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()
