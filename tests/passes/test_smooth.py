"""Outliers moved into weights: the same results, and smaller ones after quantization."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.passes.conftest import build, compute
from tests.passes.test_quantize import with_names

from hasten.passes.quantize import Range, insert_qdq, products
from hasten.passes.smooth import smooth, smoothing_factors

OUTLIER = np.array([1, 1, 300, 1, 0.1, 1, 1, 0], np.float32)


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 1, shape).astype(np.float32)

    return {"w": normal(8, 5), "t": normal(6, 8), "scale": OUTLIER, "bias": 0.1 * OUTLIER}


BODIES = {
    "the model's input": ("y = MatMul(x, w)", "Mul"),
    "a normalization": ("h = LayerNormalization(x, scale, bias) y = MatMul(h, w)", None),
    "one without bias": ("h = RMSNormalization(x, scale) y = MatMul(h, w)", None),
    "two products": ("h = LayerNormalization(x, scale, bias) a = MatMul(h, w) b = Gemm<transB = 1>(h, t) "
                     "y = Concat<axis = 1>(a, b)", None),
    "a residual": ("h = LayerNormalization(x, scale, bias) a = MatMul(h, w) s = Tanh(h) "
                   "y = Concat<axis = 1>(a, s)", "Mul"),
    "any other function": ("h = Gelu(x) y = MatMul(h, w)", "Mul"),
}  # fmt: skip


def value_of(model: ir.Model, feeds: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name in feeds:
        return feeds[name]
    proto = ir.to_proto(model)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return np.asarray(compute(proto, feeds, "reference")[-1])


@pytest.mark.parametrize("case", BODIES)
def test_results_stay_and_quantized_ones_come_nearer(rng, case: str) -> None:
    body, divided = BODIES[case]
    used = {n: a for n, a in weights(rng).items() if any(c in body for c in (f", {n}", f"{n})"))}
    proto = build("(float[n, 8] x) => (float[n, m] y)", body, used)
    model = with_names(ir.from_proto(proto))
    x = rng.normal(0, 1, (50, 8)).astype(np.float32)
    if "Normalization" not in body:
        x *= OUTLIER
    layers = products(model)
    (activation,) = {layer.activation for layer in layers}
    names = [layer.name for layer in layers]
    largest = {activation: np.abs(value_of(model, {"x": x}, activation)).max(0)}
    made = smooth(model, largest, names, 0.7)
    assert ("Mul" in [n.op_type for n in made.graph]) == (divided == "Mul")
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    (expected,) = compute(proto, {"x": x}, "reference")
    (found,) = compute(ir.to_proto(made), {"x": x}, "reference")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    errors = []
    for graph in (model, made):
        (name,) = {layer.activation for layer in products(graph)}
        values = value_of(graph, {"x": x}, name)
        ranges = {name: Range(float(values.min()), float(values.max()))}
        (y,) = compute(ir.to_proto(insert_qdq(graph, ranges, names)), {"x": x}, "reference")
        errors.append(np.square(y - expected).mean())
    assert errors[1] < 0.5 * errors[0]


def test_factors() -> None:
    x, w = np.array([100, 1, 1, 1e-6], np.float32), np.array([1, 1, 0, 1], np.float32)
    even = smoothing_factors(x, w, 0.5)
    assert even is not None
    # A channel that no weight reads keeps 1; one that was tiny counts as the median.
    np.testing.assert_allclose(even * even[0] ** -1, [1, 0.1, 1 / even[0], 0.1], rtol=1e-6)
    assert smoothing_factors(np.zeros(3, np.float32), np.ones(3, np.float32), 0.5) is None
    assert smoothing_factors(np.array([3, 2, 1, 1], np.float32), np.ones(4, np.float32), 0.5) is None
    all_of_it = smoothing_factors(x, w, 1.0)
    assert all_of_it is not None
    assert (x / all_of_it)[0] == pytest.approx((x / all_of_it)[1])


def test_layers_that_stay_in_float_are_left_alone(rng) -> None:
    (body, _) = BODIES["two products"]
    model = with_names(ir.from_proto(build("(float[n, 8] x) => (float[n, 11] y)", body, weights(rng))))
    (chosen, other) = products(model)
    made = smooth(model, {"h": OUTLIER}, [chosen.name], 0.7)
    by_name = {layer.name: layer for layer in products(made)}
    assert by_name[other.name] == other
    assert by_name[chosen.name].activation != "h"
