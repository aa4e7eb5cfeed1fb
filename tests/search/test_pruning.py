"""Graphs of which only the time matters, and samples whose labels are classes or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.search.test_calibration import graph

import hasten
from hasten.passes.quantize import products
from hasten.runtime.artifact import read_artifact
from hasten.runtime.manifest import NativeStep
from hasten.search.build import Build
from hasten.search.candidates import own_engine, quantized
from hasten.search.metrics import metric_named
from hasten.search.pruning import build_thinned, samples_for
from hasten.search.quantization import Quantization
from hasten.search.samples import Samples
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


@pytest.mark.parametrize(
    ("metric", "output", "there"),
    [("accuracy", None, True), ("f1", "y", True), ("accuracy", "z", False), ("cosine", None, False)],
)
def test_labels_are_looked_at_where_the_metric_takes_them_for_classes(
    metric: str, output: str | None, there: bool
) -> None:
    text = "(float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = Relu(x) z = Exp(x) }"
    calibration = Samples(({"x": np.ones((1, 4), np.float32)},), np.array([1]))
    problem: Any = SimpleNamespace(
        asked=SimpleNamespace(metric=metric_named(metric, output=output)),
        graph=graph(text),
        calibration=calibration,
    )
    found = samples_for(problem)
    assert found.feeds == calibration.feeds
    assert (found.labels is not None) == there
