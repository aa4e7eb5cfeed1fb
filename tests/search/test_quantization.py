"""`hasten.compile(precision="int8")` on small models: answers, options, bad input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import hasten
from hasten import frontends
from hasten.errors import CalibrationError, DataError, OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.search.quantization import Quantization, prepare

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def perceptron(text: str = "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", **more: np.ndarray) -> bytes:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 1, (6, 32)).astype(np.float32),
        "v": rng.normal(0, 1, (32, 3)).astype(np.float32),
    } | more
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> main (float[n, 6] x) => (float[n, 3] y) {' + text + "}"
    )
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    for name, array in weights.items():
        if name in text.replace("(", " ").replace(")", " ").replace(",", " ").split():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return bytes(proto.SerializeToString())


def samples(count: int = 40, seed: int = 1) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (1, 6)).astype(np.float32)} for _ in range(count)]


def compile_int8(source: object, cache: Path, **options: Any) -> hasten.Session:
    return hasten.compile(source, precision="int8", cache=cache, **({"data": samples()} | options))


def test_answers_are_near_those_in_float(cache: Path) -> None:
    x = np.concatenate([s["x"] for s in samples(seed=2)])
    expected = hasten.compile(perceptron(), cache=cache).run({"x": x})["y"]
    session = compile_int8(perceptron(), cache)
    assert session.report["quantization"]["layers"] == ["MatMul0", "MatMul2"]
    assert session.report["quantization"]["samples"] == 40
    error = np.abs(session.run({"x": x})["y"] - expected)
    assert 0 < error.max() < 0.05 * np.ptp(expected)


def test_a_model_of_fixed_batches_is_calibrated(cache: Path) -> None:
    proto = onnx.load_from_string(perceptron())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16
    session = compile_int8(proto, cache)
    assert session.report["quantization"]["samples"] == 3
    assert session.report["warnings"] == [
        "the model takes batches of 16: 40 samples are 3; 8 places repeat a sample"
    ]
    x = {"x": np.concatenate([s["x"] for s in samples(16, seed=2)])}
    expected = hasten.compile(perceptron(), cache=cache).run(x)["y"]
    assert 0 < np.abs(session.run(x)["y"] - expected).max() < 0.05 * np.ptp(expected)


def test_choices(cache: Path) -> None:
    x = {"x": samples(seed=3)[0]["x"]}
    many = {"x": np.random.default_rng(4).normal(0, 1, (8000, 6)).astype(np.float32)}
    answers = [
        compile_int8(perceptron(), cache, data=[many], quantization=how).run(x)["y"]
        for how in (
            None,
            hasten.Quantization(layers=["MatMul2"]),
            hasten.Quantization(ranges="percentile"),
        )
    ]
    for other in answers[1:]:
        assert not np.array_equal(answers[0], other)
        np.testing.assert_allclose(answers[0], other, atol=0.05 * np.ptp(answers[0]) + 0.3)


def test_the_rest_in_bf16(cache: Path) -> None:
    how = hasten.Quantization(layers=["MatMul2"], rest="bf16")
    x = np.concatenate([s["x"] for s in samples(seed=2)])
    found = compile_int8(perceptron(), cache, quantization=how).run({"x": x})["y"]
    expected = hasten.compile(perceptron(), cache=cache).run({"x": x})["y"]
    assert 0 < np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_forms_of_data(cache: Path, tmp_path: Path) -> None:
    every = {"x": np.concatenate([s["x"] for s in samples()])}
    np.savez(tmp_path / "data.npz", **every)
    forms: list[object] = [
        samples(),
        iter(samples()),
        every,
        tmp_path / "data.npz",
        str(tmp_path / "data.npz"),
    ]
    answers = [compile_int8(perceptron(), cache, data=data).run(samples()[0])["y"] for data in forms]
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"data": []}, DataError, "sample"),
        ({"data": "nowhere.npz"}, DataError, "nowhere.npz"),
        ({"data": [{"z": np.zeros((1, 6), np.float32)}]}, DataError, "x"),
        ({"data": [{"x": np.full((1, 6), 3e38, np.float32)}]}, CalibrationError, "infinity|NaN"),
        ({"quantization": hasten.Quantization(layers=["other"])}, OptionError, "'other'"),
        ({"precision": "f32"}, OptionError, "data= is for int8, int8-weights and int4-weights"),
        (
            {"precision": "f32", "data": None, "quantization": hasten.Quantization()},
            OptionError,
            "quantization=",
        ),
    ],
)
def test_bad_input(cache: Path, options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        hasten.compile(perceptron(), **({"precision": "int8", "data": samples(), "cache": cache} | options))


def test_options_that_make_no_sense() -> None:
    with pytest.raises(OptionError, match="ranges='best'"):
        hasten.Quantization(ranges="best")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="rest='f16'"):
        hasten.Quantization(rest="f16")


def test_models_that_cannot_be_quantized(cache: Path) -> None:
    with pytest.raises(OptionError, match="nothing to quantize"):
        compile_int8(perceptron("a = Tanh(x) y = Slice(a, s, e, one)", s=np.array([0]), e=np.array([3]),
                                one=np.array([1])), cache)  # fmt: skip
    scale, codes = np.array(0.1, np.float32), np.ones((6, 3), np.int8)
    with pytest.raises(OptionError, match="quantized already"):
        compile_int8(perceptron("d = DequantizeLinear(c, s) y = MatMul(x, d)", s=scale, c=codes), cache)


def test_after_a_deadline_each_step_reads_a_first_sample_alone(cache: Path) -> None:
    model = frontends.load(perceptron())
    optimize_graph(model)
    how = Quantization(ranges="layer", rounding="gptq")
    ready = prepare(model, samples(), how, cache=cache, until=time.monotonic())
    assert ready.seen.samples == 1
    assert not ready.careful.layers
    low, high = samples()[0]["x"].min(), samples()[0]["x"].max()
    assert (ready.ranges("minmax")["x"].low, ready.ranges("minmax")["x"].high) == (min(low, 0), max(high, 0))
    assert prepare(model, samples(), how, cache=cache).seen.samples == len(samples())
