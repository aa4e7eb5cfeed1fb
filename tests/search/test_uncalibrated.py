"""int8 and int4 without data: a model against itself in float32."""

from __future__ import annotations

import itertools
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten.api import Quantization, Scheme
from hasten.backends.graph_members import whole_graph
from hasten.errors import OptionError
from hasten.runtime.artifact import read_artifact

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


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("int8", "int8: 2 of 3 layers; convolutions (1) need data (--data)"),
        (
            "int4-weights",
            "int4-weights: 1 of 3 layers; convolutions (1) stay as they are, products (1) have inputs that "
            "32 does not divide",
        ),
    ],
)
def test_layers_that_are_left_are_said(precision, said, tmp_path):
    shapes = {"c": (8, 3, 1, 1), "w32": (32, 16), "w16": (16, 4)}
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype("f"), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], "conv"),
        helper.make_node("MatMul", ["a", "w32"], ["b"], "of32"),
        helper.make_node("Tanh", ["b"], ["t"]),
        helper.make_node("MatMul", ["t", "w16"], ["y"], "of16"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    report = hasten.compile(source, precision=precision, cache=tmp_path).report
    assert report["warnings"] == [said]
    assert report["quantization"]["left"] == (["conv"] if precision == "int8" else ["conv", "of16"])
    chosen = Quantization(layers=["of32"])
    report = hasten.compile(source, precision=precision, quantization=chosen, cache=tmp_path).report
    assert report["warnings"] == []


def two_depths(path):
    """Products whose inputs 128 divides, 64 at the most, 32 at the most, and none of them."""
    rng = np.random.default_rng(0)
    sizes = (256, 192, 96, 40, 16)
    nodes, value = [], "x"
    shapes = enumerate(itertools.pairwise(sizes))
    arrays = {f"w{n}": rng.standard_normal(shape) / np.sqrt(shape[0]) for n, shape in shapes}
    for number, name in enumerate(arrays):
        product = "y" if number == len(arrays) - 1 else f"p{number}"
        nodes.append(helper.make_node("MatMul", [value, name], [product], f"of{sizes[number]}"))
        nodes.append(helper.make_node("Tanh", [product], [f"t{number}"]))
        value = f"t{number}"
    graph = helper.make_graph(
        nodes[:-1],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", sizes[-1]])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize("rest", ["f32", "bf16"])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_smaller_groups_are_nearer_and_stand_in_where_larger_do_not_divide(precision, rest, tmp_path):
    source = two_depths(tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((20, 256)).astype(np.float32)
    plain = hasten.compile(source, precision=rest, cache=tmp_path).run({"x": x})["y"]
    off = {}
    for group in (None, 32, 64, 128):
        how = Quantization(scheme=Scheme(group=group), rest=rest)
        made = hasten.compile(source, precision=precision, quantization=how, cache=tmp_path, keep_graph=True)
        about = made.report["quantization"]
        assert about["layers"] == ["of256", "of192", "of96"]
        usual = 128 if precision == "int8-weights" else 32
        assert about["weights_only"]["block"] == (group or usual)
        blocks = {"of256": 128, "of192": 64, "of96": 32}
        assert about["smaller_blocks"] == {n: b for n, b in blocks.items() if b < (group or usual)}
        made.save(tmp_path / "made.hasten")
        nodes = whole_graph(read_artifact(tmp_path / "made.hasten")).graph.node
        sizes = [a.i for node in nodes for a in node.attribute if a.name == "block_size"]
        assert sorted(sizes) == sorted(min(b, group or usual) for b in blocks.values())
        off[group] = float(np.linalg.norm(made.run({"x": x})["y"] - plain) / np.linalg.norm(plain))
    assert off[usual] == off[None]
    assert 0 < off[32] < (0.02 if precision == "int8-weights" else 0.2)
    if rest == "f32":  # rounding to bf16 is as large as 8 bits' own
        assert off[32] < off[64] < off[128]


def test_rounding_follows_from_data_unless_it_is_chosen(tmp_path):
    source = two_depths(tmp_path / "m.onnx")
    data = [{"x": x} for x in np.random.default_rng(1).standard_normal((9, 5, 256)).astype(np.float32)]
    found = {}
    for rounding in (None, "gptq", "nearest"):
        how = Quantization(rounding=rounding)
        options = {"precision": "int4-weights", "quantization": how, "cache": tmp_path}
        session = hasten.compile(source, data=data, **options)
        found[rounding] = session.run(data[0])["y"]
        assert session.report["quantization"]["rounding"] == (rounding or "gptq")
    np.testing.assert_array_equal(found[None], found["gptq"])
    assert not np.array_equal(found["nearest"], found["gptq"])
    with pytest.raises(OptionError, match="rounding='gptq' looks at what layers multiply: give data="):
        hasten.compile(source, precision="int4-weights", quantization=Quantization(rounding="gptq"))
    with pytest.raises(OptionError, match="group=48: give one of 128, 64, 32"):
        Quantization(scheme=Scheme(group=48))
