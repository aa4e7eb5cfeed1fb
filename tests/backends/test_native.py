"""What compiled parts give to other steps is whole, though padding is left out of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.conftest import build

import hasten

ATTENTION = """
    m = Cast<to = 9>(mask) mk = Unsqueeze(m, middle) q = MatMul(x, qw) k = MatMul(x, kw) v = MatMul(x, vw)
    a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, mk) h = MatMul(a, ow) z = Relu(h)
"""
CHOICE = """
    w = If(flag) <then_branch = t () => (t1) { t1 = ReduceMean<keepdims = 0>(READ, axis) },
                  else_branch = e () => (e1) { e1 = ReduceMax<keepdims = 0>(READ, axis) }>
"""
LATER = {
    "a body": CHOICE.replace("READ", "h") + "y = Neg(w)",
    "another part": CHOICE.replace("READ", "x")
    + "u = Unsqueeze(w, axis) n = Add(h, u) y = ReduceMax<keepdims = 0>(n, axis)",
}


@pytest.mark.parametrize("name", LATER)
def test_what_another_step_reads_is_computed_with_its_padding(name: str) -> None:
    rng = np.random.default_rng(0)
    weights = {n: (0.4 * rng.standard_normal((8, 8))).astype(np.float32) for n in ("qw", "kw", "vw", "ow")}
    weights |= {"middle": np.array([1, 2]), "axis": np.array([1])}
    signature = "(float[b, s, 8] x, int64[b, s] mask, bool flag) => (float[b, 8] y, float[b, s, 8] z)"
    model = build(signature, ATTENTION + LATER[name], weights)
    skip, compute = (hasten.compile(model, padding=choice) for choice in ("skip", "compute"))
    shown = np.arange(6) < np.array([[4], [1], [6]])
    for flag in (True, False):
        feeds = {"x": rng.standard_normal((3, 6, 8)), "mask": shown.astype(np.int64), "flag": np.array(flag)}
        feeds["x"] = feeds["x"].astype(np.float32)
        found, right = skip.run(feeds), compute.run(feeds)
        np.testing.assert_allclose(found["y"], right["y"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["z"][shown], right["z"][shown], rtol=1e-5, atol=1e-5)
