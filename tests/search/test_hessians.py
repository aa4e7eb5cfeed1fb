"""What layers multiply, summed over data as NumPy does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.search.test_calibration import graph

from hasten.passes.gptq import gptq
from hasten.passes.quantize import products
from hasten.search.hessians import Hessian, hessians


def test_matrix_products_in_as_many_passes_as_memory_needs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(0, 1, s).astype(np.float32) for s in ((3, 5), (5, 2)))
    text = "(float[n, s, 3] x) => (float[n, s, 2] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    model = graph(text, w=w, v=v)
    feeds = [{"x": rng.normal(0, 1, (n, 4, 3)).astype(np.float32)} for n in (2, 3)]
    x = np.concatenate([f["x"] for f in feeds]).reshape(-1, 3).astype(np.float64)
    b = np.maximum(x @ w, 0)
    for limit in (1, 1 << 20):
        each = hessians(model, feeds, products(model), limit=limit, cache=tmp_path)
        found = {h.layer.activation: h for h in each}
        np.testing.assert_allclose(found["x"].sums, x.T @ x, rtol=1e-5)
        np.testing.assert_allclose(found["b"].sums, b.T @ b, rtol=1e-5, atol=1e-5)
        assert {h.rows for h in found.values()} == {20}


@pytest.mark.parametrize("attributes", ["", "pads = [1, 0, 2, 1]", "strides = [2, 1], dilations = [1, 2]"])
def test_convolutions(tmp_path: Path, attributes: str) -> None:
    """The rows are those of torch's unfold."""
    rng = np.random.default_rng(0)
    k = rng.normal(0, 1, (4, 3, 2, 3)).astype(np.float32)
    text = f"(float[n, 3, 9, 8] x) => (float[n, 4, h, w] y) {{ y = Conv<{attributes or 'group = 1'}>(x, k) }}"
    model = graph(text, k=k)
    x = rng.normal(0, 1, (2, 3, 9, 8)).astype(np.float32)
    (found,) = hessians(model, [{"x": x}], products(model), cache=tmp_path)
    pads = (0, 1, 1, 2) if "pads" in attributes else (0, 0, 0, 0)  # left, right, top, bottom
    padded = torch.nn.functional.pad(torch.from_numpy(x), pads)
    strides, dilations = ((2, 1), (1, 2)) if "strides" in attributes else ((1, 1), (1, 1))
    columns = torch.nn.functional.unfold(padded, (2, 3), dilation=dilations, stride=strides)
    rows = columns.permute(0, 2, 1).reshape(-1, found.layer.depth).numpy()
    np.testing.assert_allclose(found.sums, rows.T @ rows, rtol=1e-4, atol=1e-4)
    assert found.rows == len(rows)


def test_convolutions_in_groups_have_none(tmp_path: Path) -> None:
    k = np.ones((4, 1, 2, 2), np.float32)
    model = graph("(float[n, 4, 5, 5] x) => (float[n, 4, 4, 4] y) { y = Conv<group = 4>(x, k) }", k=k)
    x = np.ones((1, 4, 5, 5), np.float32)
    assert list(hessians(model, [{"x": x}], products(model), cache=tmp_path)) == []


def test_few_rows_are_not_trusted_between_inputs() -> None:
    """Rounding that follows 64 rows of 256 inputs is no worse on others than rounding to the nearest."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (256, 32)).astype(np.float32)
    seen, unseen = (rng.normal(0, 1, (count, 256)) for count in (64, 4096))
    nearest = gptq(weight, 1, np.eye(256))

    def change(hessian: np.ndarray) -> float:
        codes = gptq(weight, 1, hessian)
        return float(np.square(unseen @ (codes.weight(1) - weight)).mean())

    plain = float(np.square(unseen @ (nearest.weight(1) - weight)).mean())
    assert change(seen.T @ seen) > 1.5 * plain  # what trusting them costs
    assert change(hessian_of(seen).trusted()) < 1.05 * plain


def test_many_rows_are_trusted() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(0, 1, (20_000, 32)) @ rng.normal(0, 1, (32, 64))
    mixed[:, 3] *= 1000
    found = hessian_of(mixed)
    trusted = found.trusted()
    np.testing.assert_array_equal(np.diagonal(trusted), np.diagonal(found.sums))
    shares = trusted[~np.eye(64, dtype=bool)] / found.sums[~np.eye(64, dtype=bool)]
    assert shares.min() > 0.99
    assert shares.max() < 1


def test_inputs_that_are_always_zero_or_alone() -> None:
    zeros = hessian_of(np.zeros((5, 3)))
    np.testing.assert_array_equal(zeros.trusted(), zeros.sums)
    lone = hessian_of(np.array([[0.0, 2.0, 0.0]]))
    np.testing.assert_array_equal(lone.trusted(), lone.sums)


def hessian_of(rows: np.ndarray) -> Hessian:
    """Of a layer that does not matter here."""
    (layer,) = products(
        graph("(float[n, 1] x) => (float[n, 1] y) { y = MatMul(x, w) }", w=np.ones((1, 1), np.float32))
    )
    return Hessian(layer, rows.T @ rows, len(rows))
