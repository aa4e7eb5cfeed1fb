"""Common subexpressions: nodes that compute the same are one, constants that are equal are one."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import onnx_ir as ir

from hasten.passes.rule import replace_value

_RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)


def merge_equal_nodes(graph: ir.Graph) -> int:
    """Keep the first of all nodes with equal operator, attributes and inputs.

    Nodes that carry subgraphs or draw random numbers are left alone.

    Returns:
        The number of nodes removed.
    """
    seen: dict[Hashable, ir.Node] = {}
    merged = 0
    for node in list(graph):
        key = _node_key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if all(any(v.is_graph_output() for v in n.outputs) for n in (first, node)):
            continue  # both names are the model's: one of them would need an Identity
        for old, new in zip(node.outputs, first.outputs, strict=True):
            replace_value(graph, old, new)
        graph.remove(node, safe=True)
        merged += 1
    return merged


def merge_equal_constants(graph: ir.Graph, *, largest: int | None = None) -> int:
    """Keep the first of all initializers with equal type, shape and bytes.

    Initializers that are also inputs or outputs of the model are left alone.

    Args:
        graph: changed in place.
        largest: tensors of more bytes are not compared, which saves reading all weights; None: no
            limit.

    Returns:
        The number of initializers removed.
    """
    candidates: dict[Hashable, list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        if largest is not None and tensor.nbytes > largest:
            continue
        candidates.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    merged = 0
    for group in candidates.values():
        if len(group) == 1:
            continue  # nothing of this type and shape to compare with: no need to read it
        first: dict[bytes, ir.Value] = {}
        for value in group:
            if value.const_value is None:
                continue
            digest = hashlib.sha256(value.const_value.tobytes()).digest()
            kept = first.setdefault(digest, value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                graph.initializers.pop(value.name or "")
                merged += 1
    return merged


def _node_key(node: ir.Node) -> Hashable | None:
    if node.op_type in _RANDOM:
        return None
    attributes: list[Hashable] = []
    for name, attribute in sorted(node.attributes.items()):
        value = attribute.value
        if attribute.type in _LISTS:
            value = tuple(value)
        elif attribute.type not in _PLAIN:
            return None
        attributes.append((name, attribute.type, value))
    inputs = tuple(None if v is None else id(v) for v in node.inputs)
    return (node.domain, node.op_type, node.overload, len(node.outputs), inputs, tuple(attributes))


_LISTS = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
_PLAIN = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
