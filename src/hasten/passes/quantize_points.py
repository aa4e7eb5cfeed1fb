"""Which values of a graph are quantized when some of its products are, and who reads them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.raise_quantize import moved_inputs

Reader = tuple[ir.Node, int]
"""A node and the index of one of its inputs."""

_ELEMENTWISE = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Identity"})


def quantized_readers(
    graph: ir.Graph, products: Mapping[str, ir.Node], residuals: Sequence[str]
) -> dict[ir.Value, list[Reader]]:
    """For each value that is quantized the places where it is read so, in the order of the graph.

    They are the first operands of the products, and operands of residual sums: of two tensors that are
    added, the product computed last gives its own from registers, and the other is read from memory. That one
    is read in 8 bits if it is quantized anyway, or is made by a quantized product too.

    Args:
        graph: the main graph.
        products: the nodes to quantize, by name.
        residuals: kinds of products behind which sums are looked at.
    """
    found: dict[ir.Value, list[Reader]] = {}
    for node in products.values():
        value = node.inputs[0]
        if value is not None:
            found.setdefault(value, []).append((node, 0))
    place = {node: index for index, node in enumerate(graph)}
    chosen = set(products.values())
    for node in graph:
        for value, index in _stored_operands(node, chosen, residuals, place, found):
            found.setdefault(value, []).append((node, index))
    order = dict.fromkeys(graph.inputs, -1)
    order |= {value: place[node] for node in graph for value in node.outputs}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _stored_operands(
    node: ir.Node,
    chosen: set[ir.Node],
    residuals: Sequence[str],
    place: Mapping[ir.Node, int],
    quantized: Mapping[ir.Value, list[Reader]],
) -> list[tuple[ir.Value, int]]:
    """The operands of a residual sum that come from memory and may be read in 8 bits."""
    if node.op_type != "Add" or node.domain or node.inputs[0] is node.inputs[1]:
        return []
    operands = [v for v in node.inputs if v is not None and constant_value(v) is None]
    if len(operands) != 2 or any(v.dtype not in (ir.DataType.FLOAT, None) for v in operands):
        return []
    makers = [_product_behind(v, chosen, residuals) for v in operands]
    if not any(makers):
        return []
    alone = {
        place[maker]: index
        for index, (value, maker) in enumerate(zip(operands, makers, strict=True))
        if maker is not None and len(value.uses()) == 1
    }
    last = alone[max(alone)] if alone else None
    return [
        (value, index)
        for index, value in enumerate(operands)
        if index != last and (value in quantized or makers[index] is not None)
    ]


def _product_behind(value: ir.Value, chosen: set[ir.Node], kinds: Sequence[str]) -> ir.Node | None:
    """The quantized product that makes a value, with nothing but functions of single elements after it."""
    node = value.producer()
    while node is not None and node not in chosen:
        others = [v for v in node.inputs if v is not None and constant_value(v) is None]
        simple = node.op_type in _ELEMENTWISE or (node.op_type == "Add" and len(others) == 1)
        if node.domain or not simple or len(others) != 1 or len(others[0].uses()) != 1:
            return None
        node = others[0].producer()
    return node if node is not None and node.op_type in kinds else None


def tied(values: Sequence[ir.Value]) -> dict[ir.Value, list[ir.Value]]:
    """For each value those that should have the same scale, itself included.

    A tensor that is another one moved, or a concatenation of several, has the scale of those, so that the
    movement is one of bytes.
    """
    known = set(values)
    group = {value: {value} for value in values}
    for value in values:
        reached: set[ir.Value] = set()
        stack = [value]
        while stack:
            current = stack.pop()
            for source in moved_inputs(current.producer()):
                if source not in reached:
                    reached.add(source)
                    stack.append(source)
        for other in reached & known:
            joined = group[value] | group[other]
            for member in joined:
                group[member] = joined
    return {value: [v for v in values if v in group[value]] for value in values}
