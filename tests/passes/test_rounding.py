"""Rounding by GPTQ, and the mean error of quantized weights taken back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.passes.conftest import build, compute
from tests.passes.test_quantize import with_names

from hasten.passes.correct_bias import add_biases, mean_error
from hasten.passes.gptq import gptq, gptq_blocks
from hasten.passes.quantize import products
from hasten.passes.quantize_weights import Codes, quantize_weight
from hasten.passes.weight_blocks import BlockCodes, WeightBlocks, round_blocks


def correlated(rng: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    return (
        rng.normal(0, 1, (rows, 4)) @ rng.normal(0, 1, (4, inputs)) + rng.normal(0, 0.3, (rows, inputs))
    ).astype(np.float32)


def few_levels(codes: Codes, axis: int, weight: np.ndarray) -> float:
    return float(np.abs(codes.weight(axis) - weight).max() / codes.scale.max())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("inputs", [40, 300])  # less than a block, and more than two
def test_results_are_nearer_than_with_nearest_codes(rng, axis: int, inputs: int) -> None:
    x = correlated(rng, 500, inputs)
    rows = rng.normal(0, 1, (inputs, 20)).astype(np.float32)
    weight = rows.T.copy() if axis == 0 else rows
    hessian = (x.T @ x).astype(np.float64)

    def error(codes: Codes) -> float:
        found = codes.weight(axis)
        return float(np.square(x @ (found.T if axis == 0 else found) - x @ rows).mean())

    nearest, made = quantize_weight(weight, axis), gptq(weight, axis, hessian)
    np.testing.assert_array_equal(made.scale, nearest.scale)
    assert made.values.shape == weight.shape
    assert error(made) < 0.5 * error(nearest)


@pytest.mark.parametrize(
    "how", [WeightBlocks(4, 32, zero_points=True), WeightBlocks(4, 64), WeightBlocks(8, 128)]
)
def test_blocks_are_nearer_too(rng, how: WeightBlocks) -> None:
    x = correlated(rng, 500, 256)
    weight = rng.normal(0.1, 1, (256, 20)).astype(np.float32)

    def error(codes: BlockCodes) -> float:
        return float(np.square(x @ codes.weight() - x @ weight).mean())

    nearest, made = round_blocks(weight, how), gptq_blocks(weight, how, (x.T @ x).astype(np.float64))
    assert (made.values.dtype, made.scale.shape) == (nearest.values.dtype, nearest.scale.shape)
    assert error(made) < 0.5 * error(nearest)
    # Where no input says anything of another, the nearest codes are best.
    for codes, wanted in ((gptq_blocks(weight, how, np.eye(256)), nearest),):
        np.testing.assert_array_equal(codes.values, wanted.values)
        np.testing.assert_array_equal(codes.weight(), wanted.weight())


def test_inputs_without_correlation_leave_nearest_codes(rng) -> None:
    weight = rng.normal(0, 1, (30, 6)).astype(np.float32)
    made = gptq(weight, 1, np.eye(30) * 7)
    np.testing.assert_array_equal(made.values, quantize_weight(weight, 1).values)


def test_inputs_that_are_always_zero(rng) -> None:
    weight = rng.normal(0, 1, (30, 6)).astype(np.float32)
    for hessian in (np.zeros((30, 30)), np.diag(np.arange(30) % 2.0)):
        assert few_levels(gptq(weight, 1, hessian), 1, weight) <= 0.51


def test_a_convolution(rng) -> None:
    weight = rng.normal(0, 1, (5, 3, 2, 2)).astype(np.float32)
    x = correlated(rng, 200, 12)
    made = gptq(weight, 0, (x.T @ x).astype(np.float64))
    assert made.values.shape == weight.shape
    flat = gptq(weight.reshape(5, 12), 0, (x.T @ x).astype(np.float64))
    np.testing.assert_array_equal(made.values.reshape(5, 12), flat.values)


BODIES = {
    "y = MatMul(x, w)": 2,
    "a = MatMul(x, w) y = Add(b, a)": 2,
    "a = MatMul(x, w) c = Add(a, one) d = Mul(a, one) y = Add(c, d)": 2,
    "y = Gemm(x, w, b)": 2,
    "y = Gemm<transB = 1>(x, t)": 2,
    "y = Gemm<beta = 0.5>(x, w, b)": 2,
    "y = Conv(x, k)": 4,
    "y = Conv(x, k, b)": 4,
    "y = Conv<group = 2>(x, g, b)": 4,
    "c = Tanh(b) y = Conv(x, k, c)": 4,
    "c = Tanh(b) y = Conv(x, k1, c)": 3,
}


@pytest.mark.parametrize("body", BODIES)
def test_the_mean_of_results_is_as_before(rng, body: str) -> None:
    shapes = {
        "w": (4, 6),
        "t": (6, 4),
        "k": (6, 4, 3, 3),
        "k1": (6, 4, 3),
        "g": (6, 2, 3, 3),
        "b": (6,),
        "one": (1,),
    }
    arrays = {n: rng.normal(0, 1, s).astype(np.float32) for n, s in shapes.items()}
    used = {
        n: a for n, a in arrays.items() if any(c in body for c in (f"({n},", f" {n})", f" {n},", f"({n})"))
    }
    rank = BODIES[body]
    spaces = {2: "", 3: ", h", 4: ", h, w2"}[rank]
    proto = build(
        f"(float[n, 4{spaces}] x) => (float[n, 6{spaces.replace('h', 'i').replace('w2', 'j')}] y)", body, used
    )
    model = with_names(ir.from_proto(proto))
    (layer,) = products(model)
    x = rng.normal(0.7, 1, (40, 4, 5, 5)[:rank]).astype(np.float32)
    weight = used[layer.weight]
    coarse = quantize_weight(weight, layer.axis)
    step = np.float32(40)  # so few levels that the error shows
    codes = Codes((np.rint(coarse.values / step)).astype(np.int8), coarse.scale * step)
    axes = (0, 2, 3)[: rank - 1]
    # Without padding, what a window's places see differs a little from the mean of the whole.
    added = mean_error(layer, weight, codes.weight(layer.axis), x.mean(axes))
    rounded = ir.from_proto(proto)
    rounded.graph.initializers[layer.weight].const_value = ir.tensor(codes.weight(layer.axis))
    rounded = with_names(rounded)
    corrected = add_biases(rounded, {layer.name: added})
    assert ir.to_proto(rounded).SerializeToString() != ir.to_proto(corrected).SerializeToString()
    onnx.checker.check_model(ir.to_proto(corrected))
    assert [v.name for v in corrected.graph.outputs] == ["y"]
    found = [
        compute(ir.to_proto(m), {"x": x}, "reference")[0].mean(axes) for m in (model, rounded, corrected)
    ]
    before, after = np.abs(found[1] - found[0]).max(), np.abs(found[2] - found[0]).max()
    assert after < 1e-5 if rank == 2 else after < 0.3 * before
