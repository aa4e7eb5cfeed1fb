"""What other tools quantize: compiled to sums of bytes, and the answers are those of ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from tests.passes.conftest import build, compute

import hasten
from hasten import frontends
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.quantized import quantize_products
from hasten.errors import HostOperatorWarning
from hasten.graph.constants import constant_value
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.ops.lowering import lower_graph
from hasten.passes.pipeline import optimize_graph
from hasten.target import native

MLP = (
    "float[n, 20] x",
    "float[n, 5] y",
    """g = Gemm<transB = 1>(x, wg, bg) r = Relu(g) h = MatMul(r, w1) s = Sigmoid(h)
    m = Mul(s, h) y = MatMul(m, w2)""",
    {"wg": (24, 20), "bg": (24,), "w1": (24, 16), "w2": (16, 5)},
)
RESIDUAL = (
    "float[n, 3, 12, 12] x",
    "float[n, 5] y",
    """c1 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1, b1) r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2) a = Add(c2, r1) r2 = Relu(a)
    m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r2) k = Concat<axis = 1>(m, m)
    p = GlobalAveragePool(k) f = Flatten(p) y = Gemm<transB = 1>(f, wg, bg)""",
    {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "wg": (5, 16), "bg": (5,)},
)
DEPTHWISE = (
    "float[n, 6, 10, 10] x",
    "float[n, 8, 5, 5] y",
    """c1 = Conv(x, w1, b1) r1 = LeakyRelu<alpha = 0.1>(c1)
    c2 = Conv<group = 12, pads = [1, 1, 1, 1]>(r1, w2, b2) r2 = Clip(c2, low, high)
    v = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(r2) y = Conv(v, w3, b3)""",
    {"w1": (12, 6, 1, 1), "b1": (12,), "w2": (12, 1, 3, 3), "b2": (12,), "w3": (8, 12, 1, 1), "b3": (8,)},
)
NETWORKS = {"mlp": (MLP, 3, 0), "residual": (RESIDUAL, 3, 0), "depthwise": (DEPTHWISE, 2, 1)}
"""Networks, how many products of theirs have register tiles, and how many are sums over a window."""

Network = tuple[str, str, str, dict[str, tuple[int, ...]]]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network(which: Network, path: Path) -> Path:
    given, result, body, shapes = which
    rng = np.random.default_rng(0)
    arrays = {name: normal(rng, shape) for name, shape in shapes.items()}
    arrays |= {"low": np.float32(0), "high": np.float32(6)} if "low" in body else {}
    proto = build(f"({given}) => ({result})", body, arrays)
    proto.opset_import[0].version = 17  # what quantizers of other tools are given
    onnx.save(proto, path)
    return path


def feed(which: Network, seed: int) -> dict[str, np.ndarray]:
    sizes = [3, *(int(d) for d in which[0].split("[")[1].split("]")[0].split(",")[1:])]
    return {"x": np.random.default_rng(seed).normal(0, 1, sizes).astype(np.float32)}


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, which: Network) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = (feed(which, seed) for seed in range(1, 5))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The quantizer logs advice."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def optimized(path: Path) -> ir.Model:
    model = frontends.load(path)
    optimize_graph(model)
    return model


def assert_products_are_of_bytes(model: ir.Model, tiled: int, windows: int) -> None:
    lowered = lower_graph(model)
    assert not lowered.host_nodes, lowered.reasons
    program = quantize_products(lowered.program)
    products = [d.body.a.dtype for d in program.definitions.values() if isinstance(d.body, Gemm)]
    assert products == [DType.U8] * tiled
    assert sum(name.endswith("_whole") for name in program.constants) == windows
    kernels = lower_program(lowered.program, native())
    packed = [a.dtype for n, a in kernels.constants.items() if n.endswith("_packed")]
    assert packed == [np.dtype(np.int8)] * tiled


def step_of(path: Path) -> float:
    """The scale of the last codes of a quantized model."""
    (scale,) = {
        float(onnx.numpy_helper.to_array(t))
        for t in onnx.load(path).graph.initializer
        if t.name in ("y_scale", "y_quantized_scale")
    }
    return scale


def assert_answers(path: Path, which: Network, tolerance: float) -> None:
    feeds = feed(which, 9)
    (expected,) = onnxruntime.InferenceSession(path).run(None, feeds)
    (found,) = hasten.compile(path).run(feeds).values()
    assert np.abs(expected).max() > 20 * tolerance
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
def test_static(tmp_path: Path, name: str, kind: QuantFormat, activation: QuantType) -> None:
    which, tiled, windows = NETWORKS[name]
    source = network(which, tmp_path / "source.onnx")
    per_channel = (kind is QuantFormat.QDQ) == (activation is QuantType.QUInt8)  # every pair once
    path = tmp_path / "quantized.onnx"
    quantize_static(
        source,
        path,
        Feeds(which),
        quant_format=kind,
        per_channel=per_channel,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # ONNX Runtime's sums of 16 bits saturate on some processors
    )
    assert_products_are_of_bytes(optimized(path), tiled, windows)
    assert_answers(path, which, 1.01 * step_of(path))


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_what_onnxruntime_has_optimized(tmp_path: Path, name: str) -> None:
    """Its convolutions of bytes have channels last then."""
    which, tiled, windows = NETWORKS[name]
    source = network(which, tmp_path / "source.onnx")
    quantize_static(
        source,
        tmp_path / "quantized.onnx",
        Feeds(which),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )
    path = tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that the file is for processors like this one
    onnxruntime.InferenceSession(tmp_path / "quantized.onnx", options)
    nodes = onnx.load(path).graph.node
    assert any(a.name == "channels_last" and a.i for n in nodes for a in n.attribute)
    assert_products_are_of_bytes(optimized(path), tiled, windows)
    assert_answers(path, which, 1.01 * step_of(path))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weight", [QuantType.QInt8, QuantType.QUInt8])
def test_dynamic(tmp_path: Path, name: str, weight: QuantType) -> None:
    which, tiled, windows = NETWORKS[name]
    source, path = network(which, tmp_path / "source.onnx"), tmp_path / "quantized.onnx"
    signed = weight is QuantType.QInt8  # and then of 7 bits, as above
    quantize_dynamic(source, path, per_channel=not signed, reduce_range=signed, weight_type=weight)
    assert_products_are_of_bytes(optimized(path), tiled, windows)
    assert_answers(path, which, 5e-3)


def test_codes_of_weights_lose_their_zero_point_where_they_are_signed_bytes_without() -> None:
    rng = np.random.default_rng(0)
    body = "wd = DequantizeLinear<axis = 1>(w, ws, wz) y = MatMul(x, wd)"
    x = {"x": rng.normal(0, 1, (4, 8)).astype(np.float32)}
    scales = rng.uniform(0.01, 0.02, 3).astype(np.float32)
    for zero, low, inputs in ((128, 0, 2), (130, 2, 2), (90, 0, 3)):
        codes = rng.integers(low, 256, (8, 3)).astype(np.uint8)
        codes[0] = 255
        arrays = {"w": codes, "ws": scales, "wz": np.full(3, zero, np.uint8)}
        proto = build("(float[n, 8] x) => (float[n, 3] y)", body, arrays)
        model = ir.from_proto(proto)
        optimize_graph(model)
        (node,) = (n for n in model.graph if n.op_type == "DequantizeLinear")
        assert len(node.inputs) == inputs
        for left, right in zip(
            compute(ir.to_proto(model), x, "onnxruntime"), compute(proto, x, "onnxruntime"), strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_weights_that_are_quantized_in_the_graph() -> None:
    """As NNCF has written them: floats, QuantizeLinear, DequantizeLinear; and a bias of 32 bits."""
    rng = np.random.default_rng(0)
    body = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        wq = QuantizeLinear<axis = 0>(w, ws, wz) wd = DequantizeLinear<axis = 0>(wq, ws, wz)
        bd = DequantizeLinear<axis = 0>(b, bs) y = Conv(d, wd, bd)"""
    w = normal(rng, (4, 8, 3, 3))
    scales = (np.abs(w).max((1, 2, 3)) / 127).astype(np.float32)
    arrays = {"w": w, "ws": scales, "wz": np.zeros(4, np.int8), "s": np.float32(0.03), "z": np.int8(-3)}
    arrays |= {"b": rng.integers(-99, 99, 4).astype(np.int32), "bs": np.full(4, 0.01, np.float32)}
    proto = build("(float[n, 8, 6, 6] x) => (float[n, 4, 4, 4] y)", body, arrays)
    model = ir.from_proto(proto)
    optimize_graph(model)
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    weight, bias = conv.inputs[1:]
    assert weight is not None and weight.producer() is not None
    codes = constant_value(weight.producer().inputs[0])
    assert codes is not None and codes.dtype == np.int8
    np.testing.assert_array_equal(constant_value(bias), arrays["b"].astype(np.float32) * np.float32(0.01))
    assert_products_are_of_bytes(model, 1, 0)
    x = {"x": rng.normal(0, 1, (2, 8, 6, 6)).astype(np.float32)}
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, x)
    np.testing.assert_allclose(hasten.compile(proto).run(x)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_one_scale_with_several_zero_points_of_a_result_stays_as_it_is(known: bool) -> None:
    """Which axis the zero points are along is not said: two of the definition's say another than ours."""
    rng = np.random.default_rng(0)
    body = "y = QLinearMatMul(x, s, z, w, s, z, ys, yz)"
    arrays = {"w": rng.integers(0, 256, (4, 5)).astype(np.uint8), "s": np.float32(0.1), "z": np.uint8(128)}
    x = {"x": rng.integers(0, 256, (2, 3, 4)).astype(np.uint8)}
    zeros = {"yz": np.arange(90, 140, 10).astype(np.uint8)}
    arrays |= {"ys": np.float32(2.0)} | (zeros if known else {})
    x |= {} if known else zeros
    more = "" if known else ", uint8[5] yz"
    proto = build(f"(uint8[2, 3, 4] x{more}) => (uint8[2, 3, 5] y)", body, arrays)
    model = ir.from_proto(proto)
    optimize_graph(model)
    assert [node.op_type for node in model.graph] == ["QLinearMatMul"]
    (expected,) = compute(proto, x, "reference")
    with pytest.warns(HostOperatorWarning):
        session = hasten.compile(proto)
    np.testing.assert_array_equal(session.run(x)["y"], expected)
