"""Made-up inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from hasten.errors import InputError, OptionError
from hasten.runtime.manifest import TensorInfo
from hasten.search.measure_inputs import make_inputs, parse_shapes, table_rows

TEXT = (
    TensorInfo("input_ids", "int64", ("batch", "sequence")),
    TensorInfo("attention_mask", "int64", ("batch", "sequence")),
    TensorInfo("token_type_ids", "int64", ("batch", "sequence")),
    TensorInfo("position_ids", "int64", ("batch", "sequence")),
)


def test_shapes_are_read() -> None:
    assert parse_shapes(["input_ids=1x128", "a=b=3", "x=2,5"]) == {
        "input_ids": (1, 128),
        "a=b": (3,),
        "x": (2, 5),
    }
    for text in ("input_ids", "input_ids=", "input_ids=1xN", "=3"):
        with pytest.raises(OptionError, match="--shape"):
            parse_shapes([text])


def test_text() -> None:
    made = make_inputs(TEXT, {"input_ids": (2, 6)}, batch=1)
    assert {array.shape for array in made.values()} == {(2, 6)}
    assert {array.dtype for array in made.values()} == {np.dtype(np.int64)}
    assert len(np.unique(made["input_ids"])) > 3
    assert made["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert not made["token_type_ids"].any()
    assert made["position_ids"].tolist() == [list(range(6))] * 2
    again = make_inputs(TEXT, {"input_ids": (2, 6)})
    np.testing.assert_array_equal(made["input_ids"], again["input_ids"])


def test_ids_stay_within_the_table_that_they_index() -> None:
    table = helper.make_tensor_value_info("table", TensorProto.FLOAT, [7, 4])
    node = helper.make_node("Gather", ["table", "input_ids"], ["rows"])
    graph = helper.make_graph([node], "g", [], [], value_info=[table])
    assert table_rows(graph) == {"input_ids": 7}
    ids = make_inputs(TEXT, {"input_ids": (50, 6)}, graph=graph)["input_ids"]
    assert set(np.unique(ids)) == set(range(1, 7))


def test_pictures_and_lengths() -> None:
    picture = TensorInfo("x", "float32", ("x_dim0", 3, "x_dim2", "x_dim3"))
    made = make_inputs([picture], {}, batch=2)["x"]
    assert made.shape == (2, 3, 224, 224)
    assert made.dtype == np.float32
    tokens = (TensorInfo("token_ids", "int64", ("b", "t")), TensorInfo("length", "int64", ("l",)))
    assert make_inputs(tokens, {"token_ids": (1, 9)})["length"].tolist() == [9]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int4", "uint4", "int8"])
def test_narrow_types_are_filled_with_different_numbers(dtype: str) -> None:
    made = make_inputs([TensorInfo("x", dtype, (50,))], {})["x"]
    assert made.dtype == np.dtype(dtype)
    assert len(np.unique(made.astype(np.float32))) > 4
    assert (made.astype(np.float32) < 0).any() == ("float" in dtype)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match="no input 'ids'"):
        make_inputs(TEXT, {"ids": (1, 2)})
    with pytest.raises(InputError, match="'sequence'"):
        make_inputs(TEXT, {"input_ids": (1, 2), "attention_mask": (1, 3)})


def test_texts_are_among_those_that_the_model_knows() -> None:
    nodes = [helper.make_node("LabelEncoder", ["city"], ["code"], keys_strings=["oslo", "rome"])]
    graph = helper.make_graph(nodes, "g", [], [])
    inputs = [TensorInfo("city", "object", ("n", 1)), TensorInfo("title", "object", ("n",))]
    made = make_inputs(inputs, {"city": (40, 1)}, graph=graph)
    assert set(made["city"].flat) == {"oslo", "rome"}
    assert made["city"].shape == (40, 1)
    assert made["title"].shape == (40,)
    assert all(isinstance(text, str) for array in made.values() for text in array.flat)
    assert all(array.dtype == object for array in made.values())
