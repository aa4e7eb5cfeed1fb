"""Equations trust samples as far as other samples bear them out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.passes.conftest import build

from hasten.search.prune.equations import Equations, shrunk
from hasten.search.prune.products import grouped_product_of, product_of

UNKNOWNS, OUTPUTS = 40, 6


def equations(x: torch.Tensor, y: torch.Tensor, runs: int = 4) -> Equations:
    found = Equations.of(UNKNOWNS, OUTPUTS)
    for part, right in zip(x.chunk(runs), y.chunk(runs), strict=True):
        found.add(part, right)
    found.finish()
    return found


def drawn(rows: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is read, what should come out, and the weights with which it does but for noise."""
    torch.manual_seed(0)
    x, weights = torch.randn(rows, UNKNOWNS), torch.randn(UNKNOWNS, OUTPUTS)
    return x, x @ weights + noise * torch.randn(rows, OUTPUTS), weights.double()


def test_many_exact_equations_are_solved() -> None:
    x, y, weights = drawn(4000, 0.0)
    solved = equations(x, y).solve(torch.zeros(UNKNOWNS, OUTPUTS), centered=False)
    torch.testing.assert_close(solved, weights, atol=1e-3, rtol=0)


def test_few_noisy_equations_change_little() -> None:
    """As many rows as unknowns: a fixed small ridge would fit noise; the weights before are nearly right."""
    x, y, weights = drawn(UNKNOWNS + 4, 5.0)
    near = weights + 0.5 * torch.randn(weights.shape, dtype=torch.float64)
    found = equations(x, y)
    inner, cross = found.total.moments(centered=False)
    fitted = near + torch.linalg.solve(found.system(1e-3, centered=False), cross - inner @ near)
    solved = found.solve(near, centered=False)
    assert (solved - weights).norm() < 1.1 * (near - weights).norm() < 0.5 * (fitted - weights).norm()


def test_what_samples_do_not_bear_out_stays() -> None:
    x, _, weights = drawn(UNKNOWNS, 0.0)
    y = x @ weights.float() + 5 * torch.randn(len(x), OUTPUTS)
    found = equations(x, y)
    assert torch.isinf(found.ridges(weights, centered=False))
    torch.testing.assert_close(found.solve(weights, centered=False), weights, atol=0, rtol=0)


def test_moments_of_few_samples_are_shrunk() -> None:
    """Independent unknowns: with fewer rows than unknowns each seems to follow from the others."""
    torch.manual_seed(0)
    few = [torch.randn(30, UNKNOWNS, dtype=torch.float64) for _ in range(2)]
    raw = sum(x.T @ x / len(x) for x in few) / 2
    kept = 1 / torch.linalg.inv(shrunk(*(x.T @ x / len(x) for x in few))).diagonal()  # 1 is right
    assert kept.mean() > 0.6
    assert (1 / torch.linalg.inv(raw).diagonal()).mean() < 0.5
    mixed = torch.randn(20_000, UNKNOWNS, dtype=torch.float64) @ torch.randn(
        UNKNOWNS, UNKNOWNS, dtype=torch.float64
    )
    many = [x.T @ x / len(x) for x in mixed.chunk(2)]
    error = (shrunk(*many) - (many[0] + many[1]) / 2).norm() / many[0].norm()
    assert error < 0.01


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_rows_times_weights_are_what_a_convolution_gives(groups: int) -> None:
    shape = (16, 8 // groups, 3, 3)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    model = ir.from_proto(
        build(
            "(float[n, 8, 9, 9] x) => (float[n, 16, 5, 5] y)",
            f"y = Conv<pads=[1,1,1,1], strides=[2,2], group={groups}>(x, w)",
            {"w": weights},
        )
    )
    (node,) = model.graph
    product = (product_of if groups == 1 else grouped_product_of)(node, shape)
    assert product is not None
    x, w = torch.from_numpy(rng.standard_normal((3, 8, 9, 9)).astype(np.float32)), torch.from_numpy(weights)
    y = torch.nn.functional.conv2d(x, w, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(product.rows(x) @ product.matrix(w), product.outputs(y), atol=1e-4, rtol=0)
    torch.testing.assert_close(product.weights(product.matrix(w)), w, atol=0, rtol=0)
