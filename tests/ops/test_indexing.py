import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.ops.conformance import case

from hasten.errors import InputError
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Bounded, walk
from hasten.ops.lowering import lower_graph


def ramp(*shape, dtype="float32"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "bounds", [{}, {"start": 1}, {"end": -1}, {"start": -2, "end": 3}, {"start": 2, "end": 1}]
)
def test_shape_and_size(bounds):
    prepared = case("Shape", [("float32", ["n", 3, "m"])], **bounds)
    for n, m in ((2, 5), (0, 1)):
        prepared.check(ramp(n, 3, m))
    case("Size", [("float32", ["n", 3, "m"])]).check(ramp(2, 3, 4))
    case("Shape", [("float32", [])]).check(np.array(1, np.float32))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather(axis, dtype):
    prepared = case("Gather", [("float32", [5, "n"]), (dtype, ["k", 2])], axis=axis)
    indices = np.array([[0, -1], [2, -3], [1, 1]], dtype)
    prepared.check(ramp(5, 3), indices)
    prepared.check(ramp(5, 4), np.zeros((0, 2), dtype))


def test_gather_outside_is_refused_and_says_where():
    prepared = case("Gather", [("float32", ["n", 2]), ("int64", ["k"])])
    for bad in (4, -5):
        with pytest.raises(InputError, match=r"Gather.*element \[1, 0\]"):
            evaluate(prepared.program, {"x0": ramp(4, 2), "x1": ints(0, bad)})


@pytest.mark.parametrize("indices", [ints(0, 2, 1), ints(-1, 0), np.array(1), np.array([[-2]])])
def test_gather_by_constants_needs_no_check(indices):
    prepared = case("Gather", [("float32", ["n", 3]), indices], axis=1)
    prepared.check(ramp(2, 3))
    body = prepared.program.definitions["y0"].body
    assert not any(isinstance(e, Bounded) for e in walk(body))


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_gather_elements(axis):
    prepared = case("GatherElements", [("float32", ["n", 3]), ("int64", ["n", 3])], axis=axis)
    prepared.check(ramp(3, 3), np.array([[0, -1, 2], [1, 1, 0], [2, 2, -3]]))


@pytest.mark.parametrize(("batch", "depth"), [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)])
def test_gather_nd(batch, depth):
    prepared = case("GatherND", [("float32", ["n", 3, "m"]), ("int64", ["n", "k", depth])], batch_dims=batch)
    rng = np.random.default_rng(0)
    prepared.check(ramp(2, 3, 2), rng.integers(-2, 2, (2, 4, depth)))


@pytest.mark.parametrize(
    ("start", "limit", "delta"), [(0, 5, 1), (3, 11, 3), (10, 0, -4), (5, 5, 1), (5, 0, 1), (-2, 2, 1)]
)
@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64"])
def test_range(dtype, start, limit, delta):
    case("Range", [np.array(v, dtype) for v in (start, limit, delta)]).check()


def test_range_of_fractions():
    case("Range", [np.array(v, np.float32) for v in (0.5, 2.6, 0.25)]).check()


@pytest.mark.parametrize(
    "value", [None, np.array([3], np.int64), np.array([1.5], np.float32), np.array([True])]
)
def test_constant_of_shape(value):
    attributes = {} if value is None else {"value": onnx.numpy_helper.from_array(value)}
    for shape in (ints(2, 3), ints(), ints(0, 2)):
        case("ConstantOfShape", [shape], **attributes).check()


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_one_hot(axis, dtype):
    prepared = case("OneHot", [(dtype, ["n", 2]), np.array(4), ("float32", [2])], axis=axis)
    values = np.array([-1, 5], np.float32)
    prepared.check(np.array([[0, 1], [3, -1], [-4, 2]], dtype), values)


def test_one_hot_of_an_index_outside_is_off():
    prepared = case(
        "OneHot",
        [("int64", ["n"]), np.array(2), np.array([0, 1], np.int32)],
        reference=lambda i: np.zeros((2, 2), np.int32),
    )
    prepared.check(ints(2, -3))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -2, 0, 1, 5])
def test_trilu(upper, k):
    x = ramp(2, 3, 4) + 1
    x[0, 0, 0] = np.nan
    given = [] if k is None else [np.array(k)]
    case("Trilu", [("float32", ["b", "n", "m"]), *given], upper=upper).check(x)
    if k is not None:
        case("Trilu", [("int64", ["n", "m"]), ("int64", [])], upper=upper).check(
            ramp(3, 3, dtype="int64"), np.array(k)
        )


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_eye_like(k):
    case("EyeLike", [("float32", ["n", "m"])], k=k).check(ramp(3, 4))
    case("EyeLike", [("float32", ["n", "m"])], k=k, dtype=onnx.TensorProto.INT32).check(ramp(2, 2))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_cum_sum(exclusive, reverse, axis):
    attributes = {"exclusive": exclusive, "reverse": reverse}
    for dtype in ("float32", "int64"):
        prepared = case("CumSum", [(dtype, ["n", 4]), np.array(axis)], **attributes)
        prepared.check(ramp(3, 4, dtype=dtype))
        prepared.check(ramp(0, 4, dtype=dtype))


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reverse_sequence(time, batch):
    prepared = case(
        "ReverseSequence", [("float32", ["a", "b", 2]), ("int64", ["c"])], time_axis=time, batch_axis=batch
    )
    prepared.check(ramp(4, 4, 2), ints(1, 4, 2, 3))


def test_shape_arithmetic_is_worked_out_when_the_model_is_compiled():
    """Shape, Gather, Mul, Concat and Reshape leave sizes alone, and no definitions of their own."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "minus"], ["w"]),
        helper.make_node("Mul", ["w", "two"], ["w2"]),
        helper.make_node("Div", ["w2", "two"], ["w3"]),
        helper.make_node("Slice", ["s", "one", "last"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["count"]),
        helper.make_node("Concat", ["n", "count"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
        helper.make_node("Squeeze", ["w3", "zero"], ["w3s"]),
        helper.make_node("Range", ["nought", "w3s", "unit"], ["places"]),
    ]
    constants = {"zero": [0], "minus": [-1], "two": [2], "one": [1], "last": [2**62], "nought": 0, "unit": 1}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "m"])],
        [helper.make_empty_tensor_value_info("y"), helper.make_empty_tensor_value_info("places")],
        [onnx.numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    lowered = lower_graph(ir.from_proto(model))
    assert not lowered.host_nodes, lowered.reasons
    assert set(lowered.program.definitions) == {"y", "places"}
    assert not lowered.program.guards
    found = evaluate(lowered.program, {"x": ramp(2, 3, 5)})
    np.testing.assert_array_equal(found["y"], ramp(2, 15))
    np.testing.assert_array_equal(found["places"], np.arange(5))
