"""Narrow element types against ml_dtypes, and operators compiled by ONNX's definition of them."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.ops.host import leave_to_host

from hasten.onnx_backend import HastenRep, prepare_all

FLOATS = {
    "FLOAT16": np.float16,
    "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}


def model(nodes, inputs, outputs, opset=25):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def test_conversion_rounds_as_the_types_do():
    models = [
        model(
            [helper.make_node("Cast", ["x"], ["y"], to=getattr(onnx.TensorProto, name))],
            [("x", onnx.TensorProto.FLOAT, ["n"])],
            [("y", getattr(onnx.TensorProto, name), ["n"])],
        )
        for name in FLOATS
    ]
    for (name, dtype), rep in zip(FLOATS.items(), prepare_all(models), strict=True):
        assert isinstance(rep, HastenRep), rep
        assert not rep.host
        codes = np.arange(1 << (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
        numbers = np.unique(codes.view(dtype).astype(np.float32))
        numbers = numbers[np.isfinite(numbers)]
        middle = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
        x = np.concatenate([numbers, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
        (found,) = rep.run([x.astype(np.float32)])
        assert found.dtype == np.dtype(dtype)
        right = x.astype(np.float32).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found.astype(np.float32), right, err_msg=name)


@pytest.mark.parametrize("name", ["FLOAT16", "BFLOAT16"])
def test_arithmetic_is_rounded_after_each_operator(name):
    code = getattr(onnx.TensorProto, name)
    nodes = [helper.make_node("Mul", ["x", "y"], ["p"]), helper.make_node("Sub", ["p", "x"], ["z"])]
    given = [("x", code, ["n"]), ("y", code, ["n"])]
    (rep,) = prepare_all([model(nodes, given, [("z", code, ["n"])])])
    assert isinstance(rep, HastenRep), rep
    assert not rep.host
    x, y = (np.random.default_rng(n).normal(size=500).astype(FLOATS[name]) for n in (1, 2))
    (found,) = rep.run([x, y])
    np.testing.assert_array_equal(found.astype(np.float32), (x * y - x).astype(np.float32))


def test_what_the_host_makes_of_narrow_values_has_their_type(monkeypatch):
    leave_to_host(monkeypatch, "NonZero")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("NonZero", ["a"], ["i"]),
        helper.make_node("Neg", ["a"], ["z"]),
    ]
    half = onnx.TensorProto.FLOAT16
    made = [("z", half, ["n"]), ("i", onnx.TensorProto.INT64, [1, None])]
    (rep,) = prepare_all([model(nodes, [("x", half, ["n"])], made)])
    assert isinstance(rep, HastenRep), rep
    z, i = rep.run([np.array([1, -2, 3], np.float16)])
    assert z.dtype == np.float16
    assert z.tolist() == [-1, 0, -3]
    assert i.tolist() == [[0, 2]]


def test_an_operator_without_a_kernel_is_compiled_by_its_definition():
    nodes = [
        helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t"], ["y"], reduction="sum"),
        helper.make_node("Attention", ["q", "q", "q"], ["a"], q_num_heads=2, kv_num_heads=2, softcap=2.0),
    ]
    f = onnx.TensorProto.FLOAT
    proto = model(
        nodes,
        [("x", f, ["n", 5]), ("t", onnx.TensorProto.INT64, ["n"]), ("q", f, ["n", 3, 8])],
        [("y", f, []), ("a", f, ["n", 3, 8])],
    )
    (rep,) = prepare_all([proto])
    assert isinstance(rep, HastenRep), rep
    assert not rep.host
    rng = np.random.default_rng(0)
    for n in (1, 4):
        feeds = {
            "x": rng.normal(size=(n, 5)).astype(np.float32),
            "t": rng.integers(0, 5, n),
            "q": rng.normal(size=(n, 3, 8)).astype(np.float32),
        }
        for found, right in zip(rep.run(feeds), ReferenceEvaluator(proto).run(None, feeds), strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
