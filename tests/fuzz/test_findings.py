"""Models that fuzzing once found: each ends in a result, or in an error that says why."""

import contextlib
import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fuzz.loading import as_far_as_c

from hasten.errors import HastenError, ModelError

INFO = helper.make_tensor_value_info


def model(nodes, *, inputs=(), weights=(), functions=(), output=("y", 1, [2, 3])):
    graph = helper.make_graph(nodes, "g", [INFO("x", 1, [2, 3]), *inputs], [INFO(*output)], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    return made.SerializeToString()


@pytest.mark.parametrize("op", ["Neg", "Sigmoid", "Mish"])
@pytest.mark.parametrize("product", [False, True])
def test_a_long_chain_of_operators_is_several_kernels(op, product):
    # One expression of all of them was deeper than Python goes.
    names = ["x", *(f"v{k}" for k in range(299)), "y"]
    nodes = [helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)]
    weights = [numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")]
    if product:
        nodes[0] = helper.make_node("MatMul", ["x", "w"], ["v0"])
    as_far_as_c(model(nodes, weights=weights if product else ()))


def function(name, called):
    nodes = [helper.make_node(f, [f"v{k}"], [f"v{k + 1}"], domain="own") for k, f in enumerate(called)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["v0"], [f"v{len(called)}"], nodes, opsets)


def test_functions_that_call_each_other_twice_are_refused_before_they_are_written_out():
    functions = [function(f"F{k}", [f"F{k + 1}"] * 2) for k in range(40)]
    functions.append(helper.make_function(
        "own", "F40", ["v"], ["w"], [helper.make_node("Neg", ["v"], ["w"])], [helper.make_opsetid("", 20)]
    ))  # fmt: skip
    with pytest.raises(ModelError, match=r"[0-9]{13} nodes when its functions are written out"):
        as_far_as_c(model([helper.make_node("F0", ["x"], ["y"], domain="own")], functions=functions))


def test_functions_that_nobody_calls_are_not_written_out():
    functions = [function(f"F{k}", [f"F{k + 1}"] * 2) for k in range(1, 40)]
    functions.append(function("F40", []))
    as_far_as_c(model([helper.make_node("Neg", ["x"], ["y"])], functions=functions))


@pytest.mark.parametrize(
    ("op", "extra"),
    [("LayerNormalization", INFO("w", 1, [1, 2, 3])), ("GatherElements", INFO("w", 7, [1, 2, 3]))],
)
def test_operands_of_more_axes_than_there_are_end_in_an_error_of_ours(op, extra):
    with contextlib.suppress(HastenError):
        as_far_as_c(model([helper.make_node(op, ["x", "w"], ["y"])], inputs=[extra]))


def test_a_function_that_calls_itself_through_others_is_refused():
    functions = [function("F0", ["F1"]), function("F1", ["F0"])]
    with pytest.raises(ModelError, match="calls itself"):
        as_far_as_c(model([helper.make_node("F0", ["x"], ["y"], domain="own")], functions=functions))


def test_weights_in_a_file_without_a_name_are_refused():
    w = TensorProto(name="w", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="a\0b")
    with pytest.raises(ModelError, match="no name of a file"):
        as_far_as_c(model([helper.make_node("Add", ["x", "w"], ["y"])], weights=[w]))


def test_many_axes_that_data_place_are_left_to_the_host():
    # Where each goes depends on all others, in an expression that doubles with each of them.
    node = helper.make_node("Unsqueeze", ["x", "axes"], ["y"])
    as_far_as_c(model([node], inputs=[INFO("axes", 7, [35])], output=("y", 1, [None] * 37)))
