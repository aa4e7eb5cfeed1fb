"""Another engine as the one that runs an artifact: a graph packed as it is, with the engine's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from hasten.backends.graph_members import graph_members, whole_model
from hasten.backends.native import Payload, io

_MEMBER = "foreign/model.onnx"


def foreign_payload(
    model: ir.Model,
    *,
    engine: str,
    engine_version: str,
    precision: str,
    threads: int | None,
    report: Mapping[str, Any],
    version: str,
) -> Payload:
    """What an artifact is written from that another engine runs.

    Args:
        model: the graph, quantized or not.
        engine: onnxruntime or openvino.
        engine_version: that was measured.
        precision: "f32" or "bf16", of products that are not quantized.
        threads: of a run by default; None for all cores of the machine that runs it.
        report: what is noted for people.
        version: hasten's version.

    Raises:
        ArtifactError: the model is too large for one ONNX file.
    """
    step = {
        "kind": "foreign",
        "engine": engine,
        "version": engine_version,
        "precision": precision,
        "member": _MEMBER,
        "inputs": [v.name for v in model.graph.inputs],
        "outputs": [v.name for v in model.graph.outputs],
    }
    manifest = {
        "format": 1,
        "hasten": version,
        "inputs": [io(v) for v in model.graph.inputs],
        "outputs": [io(v) for v in model.graph.outputs],
        "steps": [step],
        "threads": threads,
        "guards": [],
        "report": {**report, "host": {}, "padding": []},
    }
    return Payload(manifest, {_MEMBER: whole_model(model), **graph_members(model, weights=False)})
