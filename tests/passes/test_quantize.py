"""QuantizeLinear and DequantizeLinear around products, against ONNX Runtime and the float graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build, compute

import hasten
from hasten.passes.pipeline import optimize_graph
from hasten.passes.quantize import Layer, Range, Scheme, insert_qdq, observed_values, products
from hasten.passes.quantize_weights import Codes, quantize_weight
from hasten.passes.raise_quantize import raise_quantize

NETWORK = """
    c1 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1, b1)
    r1 = Relu(c1)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
    c2 = Conv<group = 8, pads = [1, 1, 1, 1]>(p, w2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3, b3)
    s = Add(c3, p)
    r3 = Relu(s)
    k = Concat<axis = 1>(r3, p)
    c4 = Conv(k, w4)
    c5 = Conv(r3, w3)
    s2 = Add(c5, c4)
    m = ReduceMean<keepdims = 0>(s2, axes)
    g = Gemm<transB = 1>(m, wg, bg)
    y = MatMul(g, wm)
"""
SIGNATURE = "(float[n, 3, 16, 16] x) => (float[n, 5] y)"


def constants(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]) + 1)).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "w2": normal(8, 1, 3, 3),
        "w3": normal(8, 8, 1, 1),
        "b3": normal(8),
        "w4": normal(8, 16, 1, 1),
        "axes": np.array([2, 3]),
        "wg": normal(6, 8),
        "bg": normal(6),
        "wm": normal(6, 5),
    }


def network(rng: np.random.Generator) -> ir.Model:
    model = ir.from_proto(build(SIGNATURE, NETWORK, constants(rng)))
    optimize_graph(model)
    return with_names(model)


def with_names(model: ir.Model) -> ir.Model:
    """As the frontends leave a model: every node has a name."""
    for number, node in enumerate(model.graph):
        node.name = node.name or f"n{number}"
    return model


def seen_ranges(model: ir.Model, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, Range]:
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    inner = [name for name in names if name not in feeds]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    found = dict(zip(inner, ReferenceEvaluator(proto).run(None, feeds), strict=True)) | feeds
    return {name: Range(float(found[name].min()), float(found[name].max())) for name in names}


def quantized(model: ir.Model, feeds: dict[str, np.ndarray], scheme: Scheme | None = None) -> ir.Model:
    layers = [layer.name for layer in products(model)]
    values = list(observed_values(model, layers, scheme))
    return insert_qdq(model, seen_ranges(model, feeds, values), layers, scheme=scheme)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_a_network_in_int8_is_near_the_one_in_float(rng, tmp_path: Path) -> None:
    model = network(rng)
    x = rng.normal(0, 1, (4, 3, 16, 16)).astype(np.float32)
    before = ir.to_proto(model).SerializeToString()
    made = quantized(model, {"x": x})
    assert ir.to_proto(model).SerializeToString() == before  # the source is left alone
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    (expected,) = compute(ir.to_proto(model), {"x": x}, "reference")
    (reference,) = compute(proto, {"x": x}, "reference")
    (engine,) = compute(proto, {"x": x}, "onnxruntime")
    fast = hasten.compile(proto, cache=tmp_path).run({"x": x})["y"]
    extent = np.ptp(expected)
    assert 0 < np.abs(reference - expected).max() < 0.03 * extent
    # Engines sum in another order, so that a value next to a half may be rounded to either side.
    assert np.abs(engine - reference).max() < 0.01 * extent
    assert np.abs(fast - reference).max() < 0.01 * extent


def test_what_is_stored_between_layers_is_bytes(rng) -> None:
    made = quantized(network(rng), {"x": rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)})
    found = kinds(made)
    # One Quantize for each tensor with a scale: x, r1 (of which p, k and their readers are made), r2, r3,
    # c4 (the sum's other operand comes from registers), m, g.
    assert found["QuantizeLinear"] == 7
    assert {n.inputs[0].name for n in made.graph if n.op_type == "QuantizeLinear"} == {
        "x", "r1", "r2", "r3", "c4", "m", "g",
    }  # fmt: skip
    for node in made.graph:
        if node.op_type in ("MaxPool", "Concat"):
            assert node.outputs[0].dtype == ir.DataType.UINT8
    weights = [n for n in made.graph if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer()]
    assert {n.inputs[0].name for n in weights} == {f"{w}/int8" for w in ("w1", "w2", "w3", "w4", "wg", "wm")}
    assert not {"w1", "wg"} & set(made.graph.initializers)
    sums = [node for node in made.graph if node.op_type == "Add"]
    assert [[v.producer().op_type for v in node.inputs] for node in sums] == [
        ["Conv", "DequantizeLinear"],
        ["Conv", "DequantizeLinear"],
    ]


def test_movements_of_bytes_change_nothing(rng) -> None:
    """Where Quantize stands before or after a movement, the answer is the same to the bit."""
    x = rng.normal(0, 1, (2, 4, 6, 8)).astype(np.float32)
    scale, zero = np.array(0.02, np.float32), np.array(7, np.uint8)
    body = """
        a = Relu(x)
        p = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(a)
        t = Transpose<perm = [0, 2, 3, 1]>(p)
        r = Reshape(t, shape)
        c = Concat<axis = 1>(r, r)
        q = QuantizeLinear(c, s, z)
        y = DequantizeLinear(q, s, z)
    """
    values = {"s": scale, "z": zero, "shape": np.array([0, -1])}
    proto = build("(float[n, 4, 6, 8] x) => (float[n, m] y)", body, values)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert raise_quantize(model.graph) == 4
    assert [n.op_type for n in model.graph][:2] == ["Relu", "QuantizeLinear"]
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    for engine in ("reference", "onnxruntime"):
        np.testing.assert_array_equal(
            compute(after, {"x": x}, engine)[0], compute(proto, {"x": x}, engine)[0]
        )


def test_a_movement_that_somebody_else_reads_in_float_stays(rng) -> None:
    body = "t = Transpose(x) c = MatMul(t, w) d = Exp(t) y = MatMul(d, v) z = MatMul(y, u) "
    normal = rng.normal(0, 1, (4, 4)).astype(np.float32)
    model = ir.from_proto(
        build(
            "(float[4, n] x) => (float[n, 4] c, float[n, 4] z)",
            body,
            {"w": normal, "v": normal.T.copy(), "u": normal + 1},
        )
    )
    optimize_graph(model)
    made = quantized(with_names(model), {"x": rng.normal(0, 1, (4, 3)).astype(np.float32)})
    (transpose,) = (n for n in made.graph if n.op_type == "Transpose")
    assert transpose.outputs[0].dtype != ir.DataType.UINT8
    assert kinds(made)["QuantizeLinear"] == 3


def test_quantized_weights_stay_when_the_graph_is_optimized_again(rng) -> None:
    x = rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    made = quantized(network(rng), {"x": x})
    again = made.clone()
    optimize_graph(again)
    assert kinds(again) == kinds(made)
    found = (compute(ir.to_proto(m), {"x": x}, "reference")[0] for m in (made, again))
    np.testing.assert_array_equal(*found)


def test_residual_sums_may_stay_in_float(rng) -> None:
    x = rng.normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    made = quantized(network(rng), {"x": x}, Scheme(residuals=()))
    for node in made.graph:
        if node.op_type == "Add":
            assert all(v.producer().op_type != "DequantizeLinear" for v in node.inputs)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = MatMul(x, w)", [("MatMul", (4, 6), 1, 4)]),
        ("y = Gemm<transB = 1>(x, t)", [("Gemm", (6, 4), 0, 4)]),
        ("y = Gemm<beta = 0.5>(x, w, b)", [("Gemm", (4, 6), 1, 4)]),
        ("y = Gemm<alpha = 0.5>(x, w)", []),
        ("t4 = Transpose(x) y = Gemm<transA = 1>(t4, w)", []),
        ("y = MatMul(x, k)", []),  # a vector
        ("v = MatMul(x, k) y = Add(v, k)", []),
        ("e = Exp(w) y = MatMul(x, e)", [("MatMul", (4, 6), 1, 4)]),  # constant once it is folded
        ("y = MatMul(x, s)", []),  # a stack of matrices
        ("z = Transpose(x) y = MatMul(x, z)", []),
    ],
)
def test_which_products_can_be_quantized(rng, body: str, found: list[object]) -> None:
    shapes = {"w": (4, 6), "t": (6, 4), "b": (6,), "k": (4,), "s": (2, 4, 6)}
    values = {n: rng.normal(0, 1, s).astype(np.float32) for n, s in shapes.items()}
    model = ir.from_proto(build("(float[n, 4] x) => (float y)", body, values))
    optimize_graph(with_names(model))
    assert [(i.op_type, i.shape, i.axis, i.depth) for i in products(model)] == found


def test_a_layer_that_is_not_there(rng) -> None:
    with pytest.raises(KeyError, match="'nothing'"):
        insert_qdq(network(rng), {}, ["nothing"])


def test_given_codes_are_used(rng) -> None:
    w = rng.normal(0, 1, (4, 3)).astype(np.float32)
    model = ir.from_proto(build("(float[n, 4] x) => (float[n, 3] y)", "y = MatMul(x, w)", {"w": w}))
    (layer,) = products(with_names(model))
    codes = Codes(np.arange(12, dtype=np.int8).reshape(4, 3), np.array([0.5, 1, 2], np.float32))
    made = insert_qdq(model, {"x": Range(-1, 1)}, [layer.name], codes={layer.name: codes})
    (y,) = compute(ir.to_proto(made), {"x": np.eye(4, dtype=np.float32)}, "reference")
    np.testing.assert_allclose(y, codes.weight(1), rtol=0.01)


def test_layers_know_their_size() -> None:
    layer = Layer("n", "Conv", "x", "w", "y", (8, 2, 3, 3), 0, 4)
    assert layer.depth == 18


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(finite, finite, st.floats(0, 1))
def test_a_range_holds_zero_exactly_and_all_else_to_half_a_step(a: float, b: float, share: float) -> None:
    seen = Range(min(a, b), max(a, b))
    scale, zero = (np.asarray(p).astype(np.float64) for p in seen.parameters())
    assert scale.dtype == np.float64 and 0 <= zero <= 255 and scale > 0
    value = seen.low + share * (seen.high - seen.low)
    code = np.clip(np.rint(value / scale) + zero, 0, 255)
    # The zero point is rounded, so that the ends may be half a step further away.
    assert abs((code - zero) * scale - value) <= scale * 1.0001


def test_a_range_must_be_one() -> None:
    for low, high in ((1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="range"):
            Range(low, high)


@given(st.integers(0, 2**32), st.integers(0, 2), st.sampled_from(["absmax", "mse"]))
def test_codes_of_weights(seed: int, axis: int, scale: str) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(2, (3, 4, 5)) * 10.0 ** rng.integers(-12, 12)).astype(np.float32)
    weight[1] = 0  # channels of zeros, where axis is 0
    codes = quantize_weight(weight, axis, scale)
    assert codes.values.dtype == np.int8 and codes.values.shape == weight.shape
    assert codes.values.min() >= -127
    assert codes.scale.shape == (weight.shape[axis],)
    error = np.abs(codes.weight(axis) - weight)
    steps = np.expand_dims(codes.scale, tuple(a for a in range(3) if a != axis))
    if scale == "absmax":
        assert (error <= steps * 0.501).all()
    other = quantize_weight(weight, axis, "absmax").weight(axis) - weight
    assert np.square(error).sum() <= np.square(other).sum() * (1 + 1e-5)
