"""Tables that are looked up row by row (embeddings) in int8, with a scale for each row.

In the graph the table is behind a DequantizeLinear, which is fused into the lookup: a row is widened where it
is read.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.facts import integer
from hasten.passes.insertion import Insertion
from hasten.passes.quantize_weights import quantize_weight

LARGE_TABLE = 1 << 16
"""Elements below which a table is not worth rounding."""


def quantize_tables(graph: ir.Graph) -> list[str]:
    """Rewrites large tables of float32 that nothing but lookups of rows reads, in place.

    Returns:
        Names of the tables.
    """
    found: list[str] = []
    insert = Insertion(graph)
    for value in list(graph.initializers.values()):
        readers = list(value.uses())
        table = constant_value(value)
        if table is None or table.dtype != np.float32 or table.ndim != 2 or table.size < LARGE_TABLE:
            continue
        if not readers or not all(_looks_up(use.node, use.idx) for use in readers):
            continue
        codes = quantize_weight(np.asarray(table, np.float32), axis=0)
        inputs = [
            insert.constant(a, f"{value.name}/{n}")
            for a, n in ((codes.values, "int8"), (codes.scale, "scale"))
        ]
        up = insert.node("DequantizeLinear", inputs, "dequantized", value)
        up.attributes["axis"] = ir.AttrInt64("axis", 0)
        graph.insert_before(graph[0], up)
        for use in readers:
            use.node.replace_input_with(use.idx, up.outputs[0])
        found.append(value.name or "")
    remove_dead_code(graph)
    return found


def _looks_up(node: ir.Node, index: int) -> bool:
    return not node.domain and node.op_type == "Gather" and index == 0 and integer(node, "axis", 0) == 0
