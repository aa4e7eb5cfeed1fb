"""Writes operators of other domains in those of ONNX, wherever there is a definition."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from hasten.graph.classical import CLASSICAL, ML, OPSET_ML
from hasten.graph.constants import constant_value
from hasten.graph.contrib import CONTRIB, SIMPLE
from hasten.graph.contrib_attention import ATTENTION
from hasten.graph.contrib_fused import FUSED
from hasten.graph.contrib_grouped import GROUPED
from hasten.graph.definition import Definition, Rewrite, is_used
from hasten.graph.inference import infer_node

DEFINITIONS: Mapping[str, Mapping[str, Definition]] = MappingProxyType(
    {CONTRIB: MappingProxyType({**SIMPLE, **FUSED, **ATTENTION, **GROUPED}), ML: CLASSICAL}
)
"""Definitions by domain and operator."""

_LARGEST = 64  # elements of what may be a shape


def write_definitions(model: ir.Model) -> int:
    """Rewrites nodes of the domains com.microsoft and ai.onnx.ml, those in bodies too, in place.

    Nodes whose form has no definition, or whose ranks are not known where that matters, stay.

    Args:
        model: at the internal opset.

    Returns:
        The number of nodes that were rewritten.
    """
    graphs = list(model.graphs())
    if not any(_definition(node) for graph in graphs for node in graph):
        return 0
    return sum(_write(model, graph, node) for graph in graphs for node in list(graph))


def _definition(node: ir.Node) -> Definition | None:
    return DEFINITIONS.get(node.domain, {}).get(node.op_type)


def _write(model: ir.Model, graph: ir.Graph, node: ir.Node) -> bool:
    """Rewrites a node if that can be done; those that it reads come first."""
    define = _definition(node)
    if define is None:
        _infer(node, model.opset_imports)
        return False
    rewrite = Rewrite(node)
    outputs = define(rewrite)
    wanted = [v for v in node.outputs if is_used(v)]
    if outputs is None:
        return False
    found = [o for v, o in zip(node.outputs, outputs, strict=False) if is_used(v) and o is not None]
    if len(found) < len(wanted):
        return False
    for value, new in zip(wanted, found, strict=True):
        new.type, new.shape = value.type or new.type, value.shape or new.shape
    nodes = list(rewrite.tape.nodes)
    for number, made in enumerate(nodes):
        made.name = f"{node.name}/{made.op_type}_{number}"
        _import(model, made.domain)
    replace_nodes_and_values(graph, node, [node], nodes, wanted, found)
    for made in nodes:
        _infer(made, model.opset_imports)
    return True


def _infer(node: ir.Node, imports: Mapping[str, int]) -> None:
    """Types and ranks of a node's outputs where they are not known: what follows is defined by them."""
    if all(v.type is not None and v.shape is not None for v in node.outputs):
        return
    inferred = infer_node(node, imports, _dims, _small)
    for value in node.outputs:
        found = inferred.get(value.name or "")
        if found is None:
            continue
        if value.type is None and found.elem_type:
            value.type = ir.TensorType(ir.DataType(found.elem_type))
        if value.shape is None and found.HasField("shape"):
            value.shape = ir.Shape(
                [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in found.shape.dim]
            )


def _dims(value: ir.Value) -> list[int | str | None] | None:
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _small(value: ir.Value) -> np.ndarray | None:
    """What a value always holds, if it may be a shape or axes."""
    known = constant_value(value)
    return known if known is not None and known.size <= _LARGEST and known.dtype.kind in "iu" else None


def _import(model: ir.Model, domain: str) -> None:
    """Makes sure that the model imports a domain of ours, or one of ONNX in the version that is written."""
    if domain in ("", CONTRIB):
        return
    wanted = OPSET_ML if domain == ML else 1
    version = max(model.opset_imports.get(domain, 0), wanted)
    model.opset_imports[domain] = version
    model.graph.opset_imports[domain] = version
