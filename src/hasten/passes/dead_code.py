"""Dead code: nodes and constants that no output of the model needs."""

from __future__ import annotations

import onnx_ir as ir

from hasten.passes.rule import remove_dead


def remove_dead_code(graph: ir.Graph) -> int:
    """Remove unused nodes and initializers; the model's inputs stay, used or not.

    Returns:
        The number of nodes removed.
    """
    removed = 0
    for node in reversed(list(graph)):
        removed += len(remove_dead(graph, node))
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
            del graph.initializers[name]
    return removed
