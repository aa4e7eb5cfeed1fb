import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from hasten.errors import ModelError
from hasten.frontends.prepare import prepare
from hasten.graph.opset import OPSET


def _parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def test_functions_are_written_out_and_constants_become_initializers() -> None:
    model = _parse(
        '<ir_version: 10, opset_import: ["": 18, "own": 1]>'
        "g (float[?, 2] x, float[2] w) => (float[k, 2] y) <float[2] w = {3.,4.}>"
        "{ h = own.Scale<by=2.0>(x) c = Constant<value_floats=[1.,1.]>() d = Mul(h, w)"
        "  y = Add(d, c) }"
        '<domain: "own", opset_import: ["": 18]>'
        "Scale<by>(a) => (b) { s = Constant<value_float: float = @by>() b = Mul(a, s) }"
    )
    prepared = prepare(model)
    graph = prepared.graph
    assert prepared.opset_imports == {"": OPSET}
    assert not prepared.functions
    assert [node.op_type for node in graph] == ["Mul", "Mul", "Add"]
    assert [value.name for value in graph.inputs] == ["x"]
    assert [str(value.shape) for value in (*graph.inputs, *graph.outputs)] == ["[x_dim0,2]"] * 2
    x = np.ones((3, 2), np.float32)
    (y,) = ReferenceEvaluator(ir.to_proto(prepared)).run(None, {"x": x})
    np.testing.assert_array_equal(y, x * 2 * np.array([3, 4], np.float32) + 1)


def test_names_become_unique_but_those_of_inputs_and_outputs_stay() -> None:
    model = _parse(
        '<ir_version: 10, opset_import: ["": 25]> g (float[n] x) => (float[n] y)'
        "{ [a] h = Relu(x) [a] i = Neg(h) y = Abs(i) }"
    )
    model.graph.node(0).outputs[0].name = "y"
    model.graph.node(1).outputs[0].name = None
    prepared = prepare(model)
    names = [value.name for node in prepared.graph for value in node.outputs]
    assert len({*names, "x"}) == 4
    assert all(names)
    assert names[-1] == "y"
    assert len({node.name for node in prepared.graph}) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("(float[n] x) => () { y = Relu(x) }", "no outputs"),
        ("(float[n] x) => (float[n] y, float[n] y) { y = Relu(x) }", "same name"),
        ("(float[n] x) => (float[n] y) { y = Rleu(x) }", "No Op registered for Rleu"),
        ("(float[3] x, float[4] z) => (float[n] y) { y = Add(x, z) }", "contradicts itself"),
    ],
)
def test_invalid_models_are_refused(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(_parse(f'<ir_version: 10, opset_import: ["": 13]> g {model}'))


def test_a_function_that_calls_itself_is_refused() -> None:
    model = _parse(
        '<ir_version: 10, opset_import: ["": 18, "own": 1]> g (float[n] x) => (float[n] y)'
        '{ y = own.F(x) } <domain: "own", opset_import: ["": 18, "own": 1]>'
        "F(a) => (b) { b = own.F(a) }"
    )
    with pytest.raises(ModelError, match="calls itself"):
        prepare(model)
