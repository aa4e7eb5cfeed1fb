"""Ranges and statistics of values of a graph, as NumPy finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hasten.errors import CalibrationError, DataError, InputError
from hasten.frontends import load
from hasten.passes.pipeline import optimize_graph
from hasten.passes.quantize import observed_values, products
from hasten.search.calibration import calibrate, observe


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def graph(text: str, **constants: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> main {text}')
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = load(proto)
    optimize_graph(model)
    return model


def perceptron(rng: np.random.Generator) -> tuple[ir.Model, np.ndarray]:
    w = rng.normal(0, 1, (3, 5)).astype(np.float32)
    v = rng.normal(0, 1, (5, 2)).astype(np.float32)
    text = "(float[n, 3] x) => (float[n, 2] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    return graph(text, w=w, v=v), w


def test_ranges_and_channels(cache: Path) -> None:
    rng = np.random.default_rng(0)
    model, w = perceptron(rng)
    layers = [layer.name for layer in products(model)]
    feeds = [{"x": rng.normal(0, 1, (n, 3)).astype(np.float32)} for n in (4, 1, 7)]
    x = np.concatenate([f["x"] for f in feeds])
    b = np.maximum(x @ w, 0)
    ranges = calibrate(model, feeds, layers, "minmax", cache=cache)
    assert list(ranges) == ["x", "b"]
    assert (ranges["x"].low, ranges["x"].high) == (x.min(), x.max())
    assert (ranges["b"].low, ranges["b"].high) == pytest.approx((0, b.max()), rel=1e-6)
    seen = observe(model, iter(feeds), observed_values(model, layers), cache=cache)
    assert seen.samples == 3
    np.testing.assert_allclose(seen.channels["b"].high, b.max(0), rtol=1e-6)
    np.testing.assert_allclose(seen.channels["b"].mean, b.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(seen.channels["x"].low, x.min(0))
    np.testing.assert_array_equal(seen.channels["x"].largest, np.abs(x).max(0))
    assert seen.histograms["b"].counts.sum() == b.size


def test_channels_of_a_convolution(cache: Path) -> None:
    rng = np.random.default_rng(0)
    model = graph(
        "(float[n, 3, h, w] x) => (float[n, 4, h2, w2] y) { y = Conv(x, k) }",
        k=rng.normal(0, 1, (4, 3, 2, 2)).astype(np.float32),
    )
    x = rng.normal(0, 1, (2, 3, 5, 4)).astype(np.float32)
    values = observed_values(model, [products(model)[0].name])
    seen = observe(model, [{"x": x}], values, cache=cache)
    np.testing.assert_array_equal(seen.channels["x"].high, x.max((0, 2, 3)))


def test_hidden_positions_do_not_count(cache: Path) -> None:
    """A row whose hidden positions hold large numbers has the statistics of its tokens alone."""
    rng = np.random.default_rng(0)
    names = ("wq", "wk", "wv", "wo")
    text = """(float[b, s, 4] x, bool[b, s] mask) => (float[b, s, 4] y) {
        t = Tanh(x)
        q = MatMul(t, wq) k = MatMul(t, wk) v = MatMul(t, wv)
        m = Unsqueeze(mask, axes)
        a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v, m)
        y = MatMul(a, wo)
    }"""
    weights = {n: rng.normal(0, 1, (4, 4)).astype(np.float32) for n in names}
    model = graph(text, **weights, axes=np.array([1, 2]))
    layers = [layer.name for layer in products(model)]
    x = rng.normal(0, 1, (2, 6, 4)).astype(np.float32)
    mask = np.ones((2, 6), bool)
    mask[1, 3:] = False
    x[1, 3:] = 1000
    seen = observe(model, [{"x": x, "mask": mask}], observed_values(model, layers), cache=cache)
    rows = [{"x": x[:1], "mask": mask[:1]}, {"x": x[1:, :3], "mask": mask[1:, :3]}]
    alone = observe(model, rows, observed_values(model, layers), cache=cache)
    assert len(seen.histograms) == 2
    for name, found in seen.histograms.items():
        expected = alone.histograms[name]
        assert found.counts.sum() == expected.counts.sum() == 9 * 4
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
        np.testing.assert_allclose(seen.channels[name].mean, alone.channels[name].mean, rtol=1e-4)


def test_no_data(cache: Path) -> None:
    model, _ = perceptron(np.random.default_rng(0))
    layers = [layer.name for layer in products(model)]
    with pytest.raises(DataError, match="no calibration data"):
        calibrate(model, [], layers, "minmax", cache=cache)


@pytest.mark.parametrize(("bad", "what"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_numbers_that_are_none(cache: Path, bad: float, what: str) -> None:
    model, _ = perceptron(np.random.default_rng(0))
    layers = [layer.name for layer in products(model)]
    good, broken = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    broken[1, 1] = bad
    with pytest.raises(CalibrationError, match=f"input 'x' has {what} in sample 1"):
        calibrate(model, [{"x": good}, {"x": broken}], layers, "minmax", cache=cache)
    large = np.full((2, 3), 3e38, np.float32)  # finite, and what follows from it is not
    with pytest.raises(CalibrationError, match="value 'b' has"):
        calibrate(model, [{"x": large}], layers, "minmax", cache=cache)


def test_arrays_that_do_not_fit(cache: Path) -> None:
    model, _ = perceptron(np.random.default_rng(0))
    layers = [layer.name for layer in products(model)]
    with pytest.raises(InputError, match="x"):
        calibrate(model, [{"x": np.ones((2, 4), np.float32)}], layers, "minmax", cache=cache)
    with pytest.raises(InputError, match="x"):
        calibrate(model, [{"z": np.ones((2, 3), np.float32)}], layers, "minmax", cache=cache)
