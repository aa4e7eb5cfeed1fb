"""int8 and int4 without data: a model against itself in float32."""

from __future__ import annotations

import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten.errors import OptionError

TOKENS, WIDTH = 400, 256


def model(path, *, convolution=False):
    """A lookup of rows, two products with a Relu between them; or one convolution."""
    rng = np.random.default_rng(0)
    if convolution:
        arrays = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32)}
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 6, 6])
    else:
        arrays = {
            "table": (rng.standard_normal((TOKENS, WIDTH)) * rng.uniform(0.1, 10, (TOKENS, 1))).astype(
                np.float32
            ),
            "w0": rng.standard_normal((WIDTH, 256)).astype(np.float32),
            "w1": rng.standard_normal((256, 64)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Gather", ["table", "x"], ["e"]),
            helper.make_node("MatMul", ["e", "w0"], ["p"], name="first"),
            helper.make_node("Relu", ["p"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.INT64, ["b", "m"])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "m", 64])
    constants = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


# Rows differ a hundredfold in size: one scale for all of them would lose the small ones.
PRECISIONS = (("int8", 0.02, 3.5), ("int8-weights", 0.02, 3.5), ("int4-weights", 0.2, 4))


@pytest.mark.parametrize(("precision", "error", "smaller"), PRECISIONS)
def test_each_row_is_near_that_of_floats(precision, error, smaller, tmp_path):
    source = model(tmp_path / "m.onnx")
    ids = np.random.default_rng(1).integers(0, TOKENS, (3, 7))
    plain = hasten.compile(source, cache=tmp_path)
    narrow = hasten.compile(source, precision=precision, cache=tmp_path)
    assert not narrow.report["host"]
    assert narrow.report["quantization"]["layers"] == ["first", "second"]
    assert narrow.report["quantization"]["tables"] == ["table"]
    expected, found = (s.run({"x": ids})["y"] for s in (plain, narrow))
    off = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert 1e-4 < off.max() < error
    sizes = []
    for session in (plain, narrow):
        session.save(tmp_path / "saved.hasten")
        with zipfile.ZipFile(tmp_path / "saved.hasten") as members:
            sizes.append(members.getinfo("weights.bin").file_size)
    assert sizes[1] * smaller < sizes[0]


def test_rows_of_zeros_stay_zeros(tmp_path):
    source = onnx.load(model(tmp_path / "m.onnx"))
    table = numpy_helper.to_array(source.graph.initializer[0]).copy()
    table[5] = 0
    source.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    onnx.save(source, tmp_path / "m.onnx")
    session = hasten.compile(tmp_path / "m.onnx", precision="int8", cache=tmp_path)
    assert not session.run({"x": np.full((1, 2), 5)})["y"].any()


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_a_model_without_matrix_products_is_refused_in_words(precision, tmp_path):
    source = model(tmp_path / "m.onnx", convolution=True)
    with pytest.raises(OptionError, match=r"nothing to quantize.*give precision='int8' with data="):
        hasten.compile(source, precision=precision, cache=tmp_path)
