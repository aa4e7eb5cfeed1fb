"""Models of other floats than 32 bits stay what they are, through ranking, repair and training."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from hasten.passes.pipeline import optimize_graph
from hasten.search.prune.plan import Plan
from hasten.search.prune.run import prune_model
from hasten.search.prune.training import Training
from hasten.search.samples import Samples

TYPES = {"float16": np.float16, "double": np.float64, "bfloat16": ml_dtypes.bfloat16}
WIDTH, HIDDEN = 8, 64


def perceptron(name: str) -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((WIDTH, HIDDEN)) / 3, "b": rng.standard_normal(HIDDEN) / 3,
        "c": rng.standard_normal((HIDDEN, 4)) / 8, "d": rng.standard_normal(4),
    }  # fmt: skip
    body = "p = MatMul(x, a) q = Add(p, b) h = Relu(q) s = MatMul(h, c) y = Add(s, d)"
    arrays = {key: w.astype(TYPES[name]) for key, w in weights.items()}
    model = ir.from_proto(build(f"({name}[n, {WIDTH}] x) => ({name}[n, 4] y)", body, arrays))
    optimize_graph(model)
    return model


def inputs(name: str, count: int = 120) -> Samples:
    rng = np.random.default_rng(1)
    return Samples(tuple({"x": rng.standard_normal((1, WIDTH)).astype(TYPES[name])} for _ in range(count)))


def answers(model: ir.Model, name: str, data: Samples) -> np.ndarray:
    x, proto = np.concatenate([feeds["x"] for feeds in data.feeds]), ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    if name == "bfloat16":  # ONNX Runtime has no products of these on a CPU
        return np.asarray(ReferenceEvaluator(proto).run(None, {"x": x})[0]).astype(np.float64)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0]).astype(np.float64)


@pytest.mark.parametrize("repair", ["statistics", "least-squares", "distill"])
@pytest.mark.parametrize("name", list(TYPES))
def test_weights_keep_their_type(name: str, repair: str) -> None:
    model, data = perceptron(name), inputs(name)
    right = answers(model, name, data)
    errors = {}
    for how in ("none", repair):
        plan = Plan(("neurons",), "fisher", 0.6, how, Training(epochs=2, seconds=None, rate=1e-3))
        small = prune_model(model, plan, data)
        types = {v.dtype for v in small.model.graph.initializers.values()}
        assert types == {v.dtype for v in model.graph.initializers.values()}
        errors[how] = float(np.square(answers(small.model, name, data) - right).mean())
    assert errors[repair] < errors["none"], errors


@pytest.mark.parametrize("name", list(TYPES))
@pytest.mark.parametrize("criterion", ["magnitude", "activation", "gradient", "obs"])
def test_each_criterion_ranks_them(name: str, criterion: str) -> None:
    model, data = perceptron(name), inputs(name, 40)
    small = prune_model(model, Plan(("neurons",), criterion, 0.6, "least-squares"), data)
    assert np.isfinite(answers(small.model, name, data)).all()
