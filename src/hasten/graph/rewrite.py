"""Writes operators of other domains in those of ONNX, wherever there is a definition."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from hasten.graph.classical import CLASSICAL, ML, OPSET_ML
from hasten.graph.contrib import CONTRIB, SIMPLE
from hasten.graph.contrib_attention import ATTENTION
from hasten.graph.contrib_fused import FUSED
from hasten.graph.contrib_grouped import GROUPED
from hasten.graph.definition import Definition, Rewrite, is_used

DEFINITIONS: Mapping[str, Mapping[str, Definition]] = MappingProxyType(
    {CONTRIB: MappingProxyType({**SIMPLE, **FUSED, **ATTENTION, **GROUPED}), ML: CLASSICAL}
)
"""Definitions by domain and operator."""


def write_definitions(model: ir.Model) -> int:
    """Rewrites nodes of the domains com.microsoft and ai.onnx.ml in the main graph, in place.

    Nodes whose form has no definition, or whose ranks are not known where that matters, stay.

    Args:
        model: at the internal opset.

    Returns:
        The number of nodes that were rewritten.
    """
    graph = model.graph
    count = 0
    for node in list(graph):
        define = DEFINITIONS.get(node.domain, {}).get(node.op_type)
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
            _import(model, made.domain)
        replace_nodes_and_values(graph, node, [node], nodes, wanted, found)
        count += 1
    return count


def _import(model: ir.Model, domain: str) -> None:
    """Makes sure that the model imports a domain of ours, or one of ONNX in the version that is written."""
    if domain in ("", CONTRIB):
        return
    wanted = OPSET_ML if domain == ML else 1
    version = max(model.opset_imports.get(domain, 0), wanted)
    model.opset_imports[domain] = version
    model.graph.opset_imports[domain] = version
