"""Graphs of which only the time matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.search.test_calibration import graph

import hasten
from hasten.passes.quantize import products
from hasten.runtime.artifact import read_artifact
from hasten.runtime.manifest import NativeStep
from hasten.search.build import Build
from hasten.search.candidates import own_engine, quantized
from hasten.search.pruning import build_thinned
from hasten.search.quantization import Quantization
from hasten.target import native


def test_a_thinned_graph_is_quantized_whatever_its_activations_are_called(tmp_path: Path) -> None:
    """Ranges are those of the smoothed graph, in which what layers read may have another name."""
    rng = np.random.default_rng(0)
    w, v = (rng.normal(0, 1, s).astype(np.float32) for s in ((64, 96), (96, 10)))
    s = np.ones(64, np.float32)
    text = """(float[n, 64] x) => (float[n, 10] y) {
        layer_norm = LayerNormalization(x, s) a = MatMul(layer_norm, w) b = Relu(a) y = MatMul(b, v) }"""
    model = graph(text, s=s, w=w, v=v)
    names = [layer.name for layer in products(model)]
    like = quantized(dict.fromkeys(names, "int8"), Quantization(), own_engine("f32"), len(names))
    artifact = tmp_path / "thinned.hasten"
    how = Build((native().name,), 1, "skip", str(tmp_path), "0")
    small = build_thinned(model, ("neurons",), 0.5, like, artifact, how)
    assert {tuple(i.shape) for i in small.graph.initializers.values()} >= {(64, 48), (48, 10)}
    with hasten.open(artifact) as session:
        assert session.run({"x": np.ones((3, 64), np.float32)})["y"].shape == (3, 10)
    (step,) = read_artifact(artifact).manifest.steps
    assert isinstance(step, NativeStep)
    assert any("QuantizeLinear" in kernel for kernel in step.kernels)
