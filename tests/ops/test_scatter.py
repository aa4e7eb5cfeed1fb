import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.ops.conformance import case

from hasten.errors import InputError
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.evaluate import evaluate
from hasten.ops.lowering import lower_graph

REDUCTIONS = ["none", "add", "mul", "min", "max"]


def random(rng, *shape, dtype="float32"):
    return rng.integers(-9, 9, shape).astype(dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_scatter_elements(reduction, axis, dtype):
    rng = np.random.default_rng(0)
    prepared = case(
        "ScatterElements",
        [(dtype, [4, 5, 3]), ("int64", [3, 2, 3]), (dtype, [3, 2, 3])],
        axis=axis,
        reduction=reduction,
    )
    for _ in range(3):  # several updates name the same element
        indices = rng.integers(-2, 3, (3, 2, 3))
        prepared.check(random(rng, 4, 5, 3, dtype=dtype), indices, random(rng, 3, 2, 3, dtype=dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(reduction, depth):
    rng = np.random.default_rng(1)
    tail = ["n", 3, 4][depth:]
    prepared = case(
        "ScatterND",
        [("float32", ["n", 3, 4]), ("int64", [2, 5, depth]), ("float32", [2, 5, *tail])],
        reduction=reduction,
    )
    for n in (2, 4):
        updates = random(rng, 2, 5, *[n, 3, 4][depth:])
        prepared.check(random(rng, n, 3, 4), rng.integers(-2, 2, (2, 5, depth)), updates)


def test_scatter_without_updates_changes_nothing():
    prepared = case("ScatterND", [("float32", [3]), ("int64", [0, 1]), ("float32", [0])])
    prepared.check(np.ones(3, np.float32), np.zeros((0, 1), np.int64), np.zeros(0, np.float32))


@pytest.mark.parametrize("bad", [3, -4])
def test_scatter_outside_is_refused(bad):
    prepared = case("ScatterElements", [("float32", [3]), ("int64", [2]), ("float32", [2])])
    with pytest.raises(InputError, match="ScatterElements"):
        evaluate(
            prepared.program,
            {"x0": np.zeros(3, np.float32), "x1": np.array([0, bad]), "x2": np.ones(2, np.float32)},
        )


@pytest.mark.parametrize("updates", ["k", 100_000])
def test_many_updates_are_left_to_the_host(updates):
    values = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [200_000]),
        helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [updates]),
        helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, [updates]),
    ]
    made = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [200_000])]
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"])
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
        helper.make_graph([node], "g", values, made), opset_imports=[opset], ir_version=IR_VERSION
    )
    (reason,) = lower_graph(ir.from_proto(model)).reasons.values()
    assert "compares each element with each update" in reason


CACHE = [("float32", ["n", 3, 6, 2]), ("float32", ["n", 3, "k", 2]), ("int64", ["n"])]


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_stretch_of_a_cache(mode):
    prepared = case("TensorScatter", CACHE, mode=mode)
    cache, update = np.zeros((3, 3, 6, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    places = [0, 4, 1] if mode == "linear" else [5, 4, 0]
    prepared.check(cache, update, np.array(places))
    if mode == "linear":
        for wrong in ([0, 5, 0], [0, 0, 7]):
            with pytest.raises(InputError, match="TensorScatter"):
                evaluate(prepared.program, {"x0": cache, "x1": update, "x2": np.array(wrong)})
