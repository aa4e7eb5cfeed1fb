"""What layers multiply, summed over data as NumPy does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.search.test_calibration import graph

from hasten.passes.quantize import products
from hasten.search.hessians import hessians


def test_matrix_products_in_as_many_passes_as_memory_needs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(0, 1, s).astype(np.float32) for s in ((3, 5), (5, 2)))
    text = "(float[n, s, 3] x) => (float[n, s, 2] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    model = graph(text, w=w, v=v)
    feeds = [{"x": rng.normal(0, 1, (n, 4, 3)).astype(np.float32)} for n in (2, 3)]
    x = np.concatenate([f["x"] for f in feeds]).reshape(-1, 3).astype(np.float64)
    b = np.maximum(x @ w, 0)
    for limit in (1, 1 << 20):
        found = {
            i.activation: m for i, m in hessians(model, feeds, products(model), limit=limit, cache=tmp_path)
        }
        np.testing.assert_allclose(found["x"], x.T @ x, rtol=1e-5)
        np.testing.assert_allclose(found["b"], b.T @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attributes", ["", "pads = [1, 0, 2, 1]", "strides = [2, 1], dilations = [1, 2]"])
def test_convolutions(tmp_path: Path, attributes: str) -> None:
    """The rows are those of torch's unfold."""
    rng = np.random.default_rng(0)
    k = rng.normal(0, 1, (4, 3, 2, 3)).astype(np.float32)
    text = f"(float[n, 3, 9, 8] x) => (float[n, 4, h, w] y) {{ y = Conv<{attributes or 'group = 1'}>(x, k) }}"
    model = graph(text, k=k)
    x = rng.normal(0, 1, (2, 3, 9, 8)).astype(np.float32)
    ((layer, found),) = hessians(model, [{"x": x}], products(model), cache=tmp_path)
    pads = (0, 1, 1, 2) if "pads" in attributes else (0, 0, 0, 0)  # left, right, top, bottom
    padded = torch.nn.functional.pad(torch.from_numpy(x), pads)
    strides, dilations = ((2, 1), (1, 2)) if "strides" in attributes else ((1, 1), (1, 1))
    columns = torch.nn.functional.unfold(padded, (2, 3), dilation=dilations, stride=strides)
    rows = columns.permute(0, 2, 1).reshape(-1, layer.depth).numpy()
    np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_convolutions_in_groups_have_none(tmp_path: Path) -> None:
    k = np.ones((4, 1, 2, 2), np.float32)
    model = graph("(float[n, 4, 5, 5] x) => (float[n, 4, 4, 4] y) { y = Conv<group = 4>(x, k) }", k=k)
    x = np.ones((1, 4, 5, 5), np.float32)
    assert list(hessians(model, [{"x": x}], products(model), cache=tmp_path)) == []
