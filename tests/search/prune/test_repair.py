"""Repair where channels go through residual additions, so that products lose inputs and outputs at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from hasten.passes.pipeline import optimize_graph
from hasten.search.prune.plan import Plan
from hasten.search.prune.run import prune_model
from hasten.search.samples import Samples

CHANNELS, SIDE = 32, 8


def convolutions() -> ir.Model:
    """A stem, a residual block, a depthwise convolution and a linear layer."""
    rng = np.random.default_rng(1)

    def filters(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def biases(count: int) -> np.ndarray:
        return rng.standard_normal(count).astype(np.float32) / 4

    c = CHANNELS
    weights = {
        "a": filters(c, 3, 3, 3), "b": biases(c), "d": filters(2 * c, c, 1, 1), "e": biases(2 * c),
        "f": filters(c, 2 * c, 3, 3), "g": biases(c), "h": filters(c, 1, 3, 3), "i": biases(c),
        "j": filters(4, c, 1, 1), "k": biases(4),
    }  # fmt: skip
    body = (
        "p = Conv<pads=[1,1,1,1]>(x, a, b) q = Relu(p) r = Conv(q, d, e) s = Relu(r) "
        "t = Conv<pads=[1,1,1,1]>(s, f, g) u = Add(q, t) "
        f"v = Conv<pads=[1,1,1,1], group={c}>(u, h, i) w = Relu(v) y = Conv(w, j, k)"
    )
    sizes = f"{SIDE}, {SIDE}"
    model = ir.from_proto(build(f"(float[n, 3, {sizes}] x) => (float[n, 4, {sizes}] y)", body, weights))
    optimize_graph(model)
    return model


def samples(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(tuple({"x": rng.standard_normal((1, 3, SIDE, SIDE), np.float32)} for _ in range(count)))


def test_each_repair_is_better_than_the_one_before() -> None:
    model, data, held = convolutions(), samples(80, 0), samples(40, 1)
    x = np.concatenate([feeds["x"] for feeds in held.feeds])

    def run(graph: ir.Model) -> np.ndarray:
        return np.asarray(ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})[0])

    right = run(model)
    plan = Plan(("channels",), "fisher", 0.6, "none")
    errors, means = [], []
    for repair in ("none", "statistics", "least-squares"):
        small = prune_model(model, dataclasses.replace(plan, repair=repair), data)
        found = run(small.model)
        errors.append(float(np.square(found - right).mean()))
        means.append(np.abs(found.mean((0, 2, 3)) - right.mean((0, 2, 3))).max())
    assert errors[2] < 0.7 * errors[1] < 0.7 * errors[0]
    assert means[1] < 0.5 * means[0]
