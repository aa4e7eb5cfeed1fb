"""The graph in an artifact comes out as it went in, and its weights are not kept twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from tests.passes.conftest import build

import hasten
from hasten import frontends
from hasten.backends.graph_members import whole_graph
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import GRAPH_WEIGHTS, WEIGHTS, read_artifact


def network() -> onnx.ModelProto:
    """An embedding, products whose columns fill no panels, and a convolution of 3 x 3."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((50, 40)),
        "a": rng.standard_normal((40, 75)),
        "b": rng.standard_normal((75, 64)),
        "k": rng.standard_normal((20, 4, 3, 3)),
        "s": np.array([-1, 4, 4, 4], np.int64),
    }
    kept = {n: w if w.dtype == np.int64 else w.astype(np.float32) for n, w in weights.items()}
    layers = "e = Gather(table, ids) p = MatMul(e, a) h = Relu(p) q = MatMul(h, b)"
    text = f"{layers} r = Reshape(q, s) y = Conv(r, k)"
    return build("(int64[n] ids) => (float[n, 20, 2, 2] y)", text, kept)


@pytest.mark.parametrize("precision", ["f32", "int8", "bf16"])
def test_weights_are_kept_once(precision: str, tmp_path: Path) -> None:
    data = [{"ids": np.arange(50)[i : i + 1]} for i in range(50)]
    more = {"data": data} if precision == "int8" else {}
    model = network()
    with hasten.compile(model, precision=precision, keep_graph=True, cache=tmp_path, **more) as session:  # type: ignore[arg-type]
        session.save(tmp_path / "m.hasten")
    artifact = read_artifact(tmp_path / "m.hasten")
    found = whole_graph(artifact)
    onnx.checker.check_model(found)
    if precision != "int8":
        expected = ir.from_proto(model)
        graph = frontends.load(expected)
        optimize_graph(graph)
        arrays = {v.name: v.const_value.numpy() for v in graph.graph.initializers.values() if v.const_value}
        for tensor in found.graph.initializer:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])
    if precision == "f32":
        places = [{e.key: e.value for e in t.external_data} for t in onnx.load_from_string(
            bytes(artifact.members["graph.onnx"])).graph.initializer]  # fmt: skip
        assert sum(p.get("location") == WEIGHTS for p in places) == 4
        assert sum("panels" in p for p in places) == 3
        assert len(artifact.members[GRAPH_WEIGHTS]) == 0
    if precision == "int8":
        assert len(artifact.members[GRAPH_WEIGHTS]) < 75 * 64  # neither product
        with hasten.compile(found, cache=tmp_path) as again, hasten.open(tmp_path / "m.hasten") as first:
            given = {"ids": np.arange(12)}
            np.testing.assert_allclose(again.run(given)["y"], first.run(given)["y"], rtol=1e-4, atol=1e-4)
