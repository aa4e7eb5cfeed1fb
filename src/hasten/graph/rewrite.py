"""Writes operators of com.microsoft in those of ONNX, wherever there is a definition."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from hasten.graph.contrib import CONTRIB, SIMPLE, Rewrite, is_used
from hasten.graph.contrib_attention import ATTENTION


def write_contrib(model: ir.Model) -> int:
    """Rewrites nodes of com.microsoft in the main graph, in place.

    Nodes whose form has no definition, or whose ranks are not known where that matters, stay.

    Args:
        model: at the internal opset.

    Returns:
        The number of nodes that were rewritten.
    """
    graph = model.graph
    count = 0
    for node in list(graph):
        define = (SIMPLE.get(node.op_type) or ATTENTION.get(node.op_type)) if node.domain == CONTRIB else None
        if define is None:
            continue
        rewrite = Rewrite(node)
        outputs = define(rewrite)
        wanted = [v for v in node.outputs if is_used(v)]
        if outputs is None:
            continue
        found = [o for v, o in zip(node.outputs, outputs, strict=False) if is_used(v) and o is not None]
        if len(found) < len(wanted):
            continue
        for value, new in zip(wanted, found, strict=True):
            new.type, new.shape = value.type or new.type, value.shape or new.shape
        nodes = list(rewrite.tape.nodes)
        for number, made in enumerate(nodes):
            made.name = f"{node.name}/{made.op_type}_{number}"
        replace_nodes_and_values(graph, node, [node], nodes, wanted, found)
        count += 1
    return count
