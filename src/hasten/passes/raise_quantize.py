"""QuantizeLinear before movements of data instead of after: what is moved, and stored, is bytes."""

from __future__ import annotations

import onnx_ir as ir

from hasten.graph.constants import constant_value

_MOVEMENTS = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Concat", "MaxPool"}
)


def moved_inputs(node: ir.Node | None) -> list[ir.Value]:
    """The inputs whose elements a node moves; none if it does anything else.

    Rounding to codes is monotone, so that the largest code of a window is the code of the largest element.
    Nodes that take a part of a tensor (Slice, Gather, Split) are not among them: the rest would be
    quantized for nothing.
    """
    if node is None or node.domain or node.op_type not in _MOVEMENTS or len(node.outputs) != 1:
        return []
    values = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
    moved = [v for v in values if v is not None and constant_value(v) is None]
    return moved if len(moved) == len(values) else []


def raise_quantize(graph: ir.Graph) -> int:
    """Let movements whose only reader is a QuantizeLinear of one scale move its codes, in place.

    Returns:
        The number of movements that were changed.
    """
    changed = 0
    stack = [node for node in graph if node.op_type == "QuantizeLinear"]
    made = {(node.inputs[0], _parameters(node)): node for node in stack}
    while stack:
        quantize = stack.pop()
        parameters = _parameters(quantize)
        source = quantize.inputs[0]
        moving = None if source is None else source.producer()
        moved = moved_inputs(moving)
        if parameters is None or source is None or moving is None or not moved:
            continue
        if len(source.uses()) != 1 or source.is_graph_output():
            continue
        made.pop((source, parameters), None)
        for index, value in enumerate(moving.inputs):
            if value not in moved or value is None:
                continue
            key = (value, parameters)
            earlier = made.get(key)
            if earlier is None:
                earlier = _quantized(graph, value, quantize)
                made[key] = earlier
                stack.append(earlier)
            moving.replace_input_with(index, earlier.outputs[0])
        result = quantize.outputs[0]
        source.type = result.type
        result.replace_all_uses_with(source)
        graph.remove(quantize, safe=True)
        changed += 1
    return changed


def _parameters(quantize: ir.Node) -> tuple[float, int, ir.DataType | None] | None:
    """Scale, zero point and type of a QuantizeLinear of a whole tensor; None if it has several scales."""
    scale = constant_value(quantize.inputs[1])
    zero = constant_value(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if scale is None or scale.size != 1 or zero is None:
        return None
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), quantize.outputs[0].dtype


def _quantized(graph: ir.Graph, value: ir.Value, like: ir.Node) -> ir.Node:
    """A QuantizeLinear of a value, by the scale of another, right behind what makes the value."""
    node = ir.node("QuantizeLinear", [value, *like.inputs[1:]], name=f"{like.name}/{value.name}")
    output = node.outputs[0]
    output.name = f"{value.name}/{like.outputs[0].name}"
    output.type = like.outputs[0].type
    output.shape = None if value.shape is None else value.shape.copy()
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node
