import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.ops.conformance import case

from hasten.loops.evaluate import evaluate
from hasten.loops.verify import verify
from hasten.ops.lowering import lower_graph

TYPES = ["bool", "uint8", "int8", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_cast(source, target):
    x = np.array([0, 1, 2, 100, 3], source)
    if source.startswith("float"):
        x = np.append(x, [0.5, 1.75, 99.99]).astype(source)
        if target.startswith("float") or target == "bool":
            x = np.append(x, [np.nan, np.inf, -np.inf]).astype(source)
    if source.startswith(("i", "f")) and target != "uint8":
        x = np.append(x, -x)
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    case("Cast", [(source, ["n"])], to=code).check(x)
    case("CastLike", [(source, ["n"]), np.zeros(1, target)]).check(x)


def test_integers_wrap_when_cast_to_narrower_ones():
    x = np.array([-1, 255, 256, 2**31, -(2**40) + 5], np.int64)
    for target in ("uint8", "int8", "int32", "uint32"):
        code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
        case("Cast", [("int64", ["n"])], to=code).check(x)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_where_broadcasts_three_ways(dtype):
    prepared = case("Where", [("bool", ["n", 1]), (dtype, ["m"]), (dtype, ["n", "m"])])
    for n, m in ((2, 3), (1, 1), (0, 3), (3, 0)):
        a = np.arange(m).astype(dtype)
        b = -np.arange(n * m).reshape(n, m).astype(dtype) if dtype != "bool" else np.ones((n, m), dtype)
        prepared.check(np.arange(n).reshape(n, 1) % 2 == 0, a, b)


def test_where_passes_on_values_that_are_not_finite():
    prepared = case("Where", [("bool", ["n"]), ("float32", []), ("float32", ["n"])])
    prepared.check(
        np.array([True, False, False]), np.array(np.inf, np.float32), np.array([1, np.nan, -0.0], np.float32)
    )


def test_comparisons_of_booleans_and_nan():
    both = np.array([True, True, False, False]), np.array([True, False, True, False])
    case("Equal", [("bool", ["n"])] * 2).check(*both)
    values = np.array([np.nan, 1, np.inf], np.float32)
    for name in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        case(name, [("float32", ["n"])] * 2).check(values, values)


@pytest.mark.parametrize(
    ("source", "target"),
    [("float32", "int32"), ("uint32", "float32"), ("float64", "uint64"), ("int8", "uint8")],
)
def test_bit_cast(source, target):
    before, after = (onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (source, target))
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("BitCast", ["x"], ["y"], to=after)
    graph = onnx.helper.make_graph([node], "g", [value("x", before, ["n"])], [value("y", after, ["n"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 26)])
    program = lower_graph(ir.from_proto(model)).program
    verify(program)
    x = np.random.default_rng(5).integers(0, 256, 6 * np.dtype(source).itemsize, np.uint8).view(source)
    found = evaluate(program, {"x": x})["y"]
    assert found.dtype == target
    assert found.tobytes() == x.tobytes()
