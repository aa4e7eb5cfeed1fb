import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from hasten.errors import UnsupportedModelError
from hasten.graph.evaluate import evaluate_node, node_model
from hasten.graph.inference import infer_shapes


def _model(text: str) -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 25, "com.microsoft": 1]> g {text}')
    )


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_node_with_a_repeated_and_an_omitted_input() -> None:
    model = _model(
        "(float[2,3] x, float m) => (float[2,3] y, float[2,3] z) { y = Add(x, x) z = Clip(x, , m) }"
    )
    add, clip = model.graph
    np.testing.assert_array_equal(evaluate_node(add, [X, X])[0], X + X)
    clipped = evaluate_node(clip, [X, None, np.float32(2)])[0]
    np.testing.assert_array_equal(clipped, np.minimum(X, 2), strict=True)


def test_omitted_outputs_keep_their_place() -> None:
    model = _model("(float[2,3] x) => (int64[2,3] i) { u, f, i = Unique(x) }")
    node = model.graph.node(0)
    node.outputs[0].name = ""
    model.graph.node(0).outputs[1].name = ""
    outputs = evaluate_node(node, [np.array([3, 1, 3], np.float32)])
    assert outputs[0].size == 0
    np.testing.assert_array_equal(outputs[2], [1, 0, 1])


def test_bodies_may_use_constants_around_them_and_nothing_else() -> None:
    model = _model(
        "(bool c, float[2,3] x) => (float[2,3] y, float[2,3] z) <float[3] w = {1.,2.,3.}> {"
        "y = If(c)<then_branch: graph = t() => (float[3] t1) { t1 = Neg(w) },"
        "else_branch: graph = e() => (float[3] e1) { e1 = Relu(w) }>"
        "z = If(c)<then_branch: graph = t2() => (float[2,3] t3) { t3 = Neg(x) },"
        "else_branch: graph = e2() => (float[2,3] e3) { e3 = Relu(x) }> }"
    )
    constant, captured = model.graph
    (result,) = evaluate_node(constant, [np.array(True)])
    np.testing.assert_array_equal(result, [-1, -2, -3])
    with pytest.raises(ValueError, match="'x' is neither given nor constant"):
        evaluate_node(captured, [np.array(True)])


def test_division_by_zero_is_a_result_and_no_warning() -> None:
    model = _model("(float[2,3] x) => (float[2,3] y) { y = Reciprocal(x) }")
    (result,) = evaluate_node(model.graph.node(0), [X])
    assert np.isinf(result[0, 0])


def test_an_operator_without_a_reference_is_named() -> None:
    model = _model("(float[2,3] x) => (float[2,3] y) { [n] y = com.microsoft.BiasGelu(x, x) }")
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft\.BiasGelu 'n'"):
        evaluate_node(model.graph.node(0), [X, X])


def test_a_part_of_a_graph_stands_alone_and_the_graph_is_left_as_it_is() -> None:
    model = _model(
        "(float[2,3] x, bool c) => (float[2,3] y, float[2,3] z) <float[3] w = {1.,2.,3.}> {"
        "a = Relu(x) b = Mul(a, w) k = Constant<value=float{5}>() d = Add(b, k)"
        "z = If(c)<then_branch: graph = t() => (float[2,3] t1) { t1 = Sub(d, w) },"
        "else_branch: graph = e() => (float[2,3] e1) { e1 = Sub(d, a) }> y = Neg(d) }"
    )
    infer_shapes(model)
    before = ir.to_proto(model).SerializeToString()
    _, mul, _, add, branch, _ = model.graph
    values = {value.name: value for node in model.graph for value in node.outputs}
    condition = model.graph.inputs[1]
    part = node_model([mul, add, branch], [condition, values["a"]], [values["z"], values["d"]])
    assert ir.to_proto(model).SerializeToString() == before
    assert [value.name for value in part.graph.inputs] == ["c", "a"]
    assert sorted(part.graph.initializers) == ["k", "w"]
    onnx.checker.check_model(ir.to_proto(part))
    z, d = ReferenceEvaluator(ir.to_proto(part)).run(None, {"a": X, "c": np.array(False)})
    expected = X * [1, 2, 3] + 5
    np.testing.assert_array_equal(d, expected)
    np.testing.assert_array_equal(z, expected - X)


def test_a_part_that_lacks_an_input_is_refused() -> None:
    model = _model("(float[2,3] x) => (float[2,3] y) { a = Relu(x) y = Neg(a) }")
    neg = model.graph.node(1)
    with pytest.raises(ValueError, match="'a' is neither given nor constant"):
        node_model([neg], [], list(neg.outputs))
