"""Operators that make and read maps, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hasten.errors import InputError
from hasten.onnx_backend import HastenRep, prepare_all

Kind = onnx.TypeProto


def map_of(key: int, value: int) -> Kind:
    return helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, []))


def model(
    op: str, attributes: dict[str, Any], entry: Kind, output: Kind, *after: onnx.NodeProto
) -> onnx.ModelProto:
    """One node; what follows reads `m` and makes `y`."""
    node = helper.make_node(op, ["x"], ["m" if after else "y"], domain="ai.onnx.ml", **attributes)
    values = [helper.make_value_info("x", entry)], [helper.make_value_info("y", output)]
    graph = helper.make_graph([node, *after], "g", *values)
    opsets = [helper.make_opsetid("ai.onnx.ml", 1), helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [None, None])
DOUBLES = helper.make_tensor_type_proto(TensorProto.DOUBLE, [None, None])
WHOLE = helper.make_tensor_type_proto(TensorProto.INT64, [None, None])
TEXTS = helper.make_tensor_type_proto(TensorProto.STRING, [None, None])
BY_TEXT, BY_NUMBER = (
    map_of(TensorProto.STRING, TensorProto.FLOAT),
    map_of(TensorProto.INT64, TensorProto.FLOAT),
)
DOUBLES_BY_TEXT = map_of(TensorProto.STRING, TensorProto.DOUBLE)
TEXTS_BY_NUMBER = map_of(TensorProto.INT64, TensorProto.STRING)
ROWS = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32)
VOCABULARY = {"string_vocabulary": ["b", "a", "c"]}

CASES = [
    (
        model(
            "ZipMap", {"classlabels_strings": ["a", "b"]}, FLOATS, helper.make_sequence_type_proto(BY_TEXT)
        ),
        ROWS,
    ),
    (
        model("ZipMap", {"classlabels_int64s": [7, 3]}, FLOATS, helper.make_sequence_type_proto(BY_NUMBER)),
        ROWS,
    ),
    (model("DictVectorizer", VOCABULARY, BY_TEXT, FLOATS), {"a": 1.5, "c": -2.0}),
    (model("DictVectorizer", {"int64_vocabulary": [5, 1]}, BY_NUMBER, FLOATS), {1: 4.0}),
    (
        model("DictVectorizer", VOCABULARY, BY_TEXT, FLOATS, helper.make_node("Neg", ["m"], ["y"])),
        {"a": 1.5, "b": 2.0},
    ),
    (model("CastMap", {"cast_to": "TO_FLOAT"}, BY_NUMBER, FLOATS), {3: 1.5, 1: 2.5}),
    (model("CastMap", {"cast_to": "TO_INT64"}, BY_NUMBER, WHOLE), {3: 1.5, -1: -2.5}),
    (model("CastMap", {"cast_to": "TO_STRING"}, BY_NUMBER, TEXTS), {3: 1.5, 1: 2.5}),
    (model("CastMap", {"map_form": "SPARSE", "max_map": 5}, BY_NUMBER, FLOATS), {3: 1.5, 1: 2.5}),
]


def test_maps_agree_with_onnxruntime():
    for (proto, value), rep in zip(CASES, prepare_all([proto for proto, _ in CASES]), strict=True):
        assert isinstance(rep, HastenRep), rep
        (right,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": value})
        (found,) = rep.run({"x": value})
        text = str(proto.graph.node[0])
        if isinstance(right, list):
            assert found == right, text
        else:
            assert found.shape == right.shape, text
            assert found.tolist() == right.tolist(), text
            assert right.dtype in (object, found.dtype), text


def test_what_is_no_map_is_refused():
    (rep,) = prepare_all([CASES[2][0]])
    assert isinstance(rep, HastenRep)
    with pytest.raises(InputError, match="DictVectorizer"):
        rep.run({"x": np.zeros(3, np.float32)})


def test_maps_that_onnxruntime_does_not_take_from_python():
    doubles = model("DictVectorizer", VOCABULARY, DOUBLES_BY_TEXT, DOUBLES)
    texts = model("CastMap", {"cast_to": "TO_FLOAT"}, TEXTS_BY_NUMBER, FLOATS)
    given = ({"b": 1 / 3, "unknown": 2.0}, {3: "1.5", 1: "-2e3"})
    results = (np.array([[1 / 3, 0, 0]]), np.array([[-2000, 1.5]], np.float32))
    for value, right, rep in zip(given, results, prepare_all([doubles, texts]), strict=True):
        assert isinstance(rep, HastenRep)
        (found,) = rep.run({"x": value})
        assert found.dtype == right.dtype
        assert found.tolist() == right.tolist()
