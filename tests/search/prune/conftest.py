"""A classifier of vectors whose hidden neurons are of known worth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.passes.conftest import build

from hasten.passes.pipeline import optimize_graph
from hasten.search.samples import Samples

WIDTH, HIDDEN, CLASSES = 8, 64, 4
USELESS = 32
"""Neurons from here on hardly reach the output."""


@pytest.fixture
def network() -> ir.Model:
    rng = np.random.default_rng(5)
    weights = {
        "a": rng.standard_normal((WIDTH, HIDDEN)),
        "b": rng.standard_normal(HIDDEN),
        "c": rng.standard_normal((HIDDEN, CLASSES)) / 8,
        "d": rng.standard_normal(CLASSES),
    }
    weights["a"][:, USELESS:] *= 0.01
    weights["b"][USELESS:] *= 0.01
    weights["c"][USELESS:] *= 0.01
    model = ir.from_proto(
        build(
            f"(float[n, {WIDTH}] x) => (float[n, {CLASSES}] y)",
            "p = MatMul(x, a) q = Add(p, b) h = Gelu(q) s = MatMul(h, c) y = Add(s, d)",
            {name: w.astype(np.float32) for name, w in weights.items()},
        )
    )
    optimize_graph(model)
    return model


@pytest.fixture
def samples() -> Samples:
    rng = np.random.default_rng(6)
    feeds = [{"x": rng.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(200)]
    return Samples(tuple(feeds), rng.integers(0, CLASSES, len(feeds)))
