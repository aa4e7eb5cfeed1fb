"""Layers that can be left out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from benchmarks import models
from hasten import frontends
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.layers import find_layers, remove_layers


@pytest.mark.parametrize(
    ("path", "count"), [(models.minilm_onnx, 6), (models.efficientnet_lite0_onnx, 9), (models.ppocr_rec, 2)]
)
def test_layers_of_real_models(path: object, count: int) -> None:
    model = frontends.load(path())  # type: ignore[operator]
    optimize_graph(model)
    assert len(find_layers(model)) == count


def test_a_branch_that_gives_zero_can_go() -> None:
    """Branches in a row, of which one gives nothing; the last value is the model's output."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((4, 4)).astype(np.float32) for n in "abcdef"}
    weights["d"][:] = 0
    weights["f"][:] = 0
    body = " ".join(
        f"p{k} = MatMul({x}, {w}) r{k} = Relu(p{k}) s{k} = MatMul(r{k}, {v}) {y} = Add({x}, s{k})"
        for k, (x, w, v, y) in enumerate([("x", "a", "b", "t"), ("t", "c", "d", "u"), ("u", "e", "f", "y")])
    )
    model = ir.from_proto(build("(float[n, 4] x) => (float[n, 4] y)", body, weights))
    optimize_graph(model)
    layers = find_layers(model)
    assert len(layers) == 3
    feed = {"x": rng.standard_normal((3, 4)).astype(np.float32)}
    right = ReferenceEvaluator(ir.to_proto(model)).run(None, feed)[0]
    small = ir.to_proto(remove_layers(model, layers[1:]))
    assert [v.name for v in small.graph.output] == ["y"]
    assert sum(n.op_type == "MatMul" for n in small.graph.node) == 2
    np.testing.assert_allclose(ReferenceEvaluator(small).run(None, feed)[0], right, rtol=1e-5)
    changed = ReferenceEvaluator(ir.to_proto(remove_layers(model, layers[:1]))).run(None, feed)[0]
    assert np.abs(changed - right).max() > 0.1
