import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from hasten.graph.constants import constant_value, lift_constants


def _model(body: str, initializers: str = "") -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 25]>'
            f"g (float[2] x) => (float[2] y) {initializers} {{ {body} }}"
        )
    )


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value=float[2]{1.,2.}", np.array([1, 2], np.float32)),
        ("value_int=7", np.array(7, np.int64)),
        ("value_ints=[7,8]", np.array([7, 8], np.int64)),
        ("value_float=1.5", np.array(1.5, np.float32)),
        ("value_floats=[1.5]", np.array([1.5], np.float32)),
        ('value_string="数"', np.array("数".encode(), object)),
        ('value_strings=["a","b"]', np.array([b"a", b"b"], object)),
    ],
)
def test_every_kind_of_constant_is_read_and_lifted(attribute: str, expected: np.ndarray) -> None:
    model = _model(f"c = Constant<{attribute}>() d = Identity(c) y = Relu(x)")
    identity = next(node for node in model.graph if node.op_type == "Identity")
    before = constant_value(identity.inputs[0])
    lift_constants(model)
    after = constant_value(identity.inputs[0])
    assert [node.op_type for node in model.graph] == ["Identity", "Relu"]
    for found in (before, after):
        assert found is not None
        np.testing.assert_array_equal(found, expected)
        assert found.shape == expected.shape


def test_what_is_known_only_at_run_time_is_no_constant() -> None:
    model = _model("h = Relu(x) y = Add(h, x)")
    add = model.graph.node(1)
    assert [constant_value(value) for value in add.inputs] == [None, None]
    assert constant_value(None) is None


def test_an_initializer_that_a_caller_may_override_is_no_constant() -> None:
    model = _model("y = Add(x, w)", "<float[2] w = {1.,2.}>")
    weight = model.graph.initializers["w"]
    assert constant_value(weight) is not None
    model.graph.inputs.append(weight)
    assert constant_value(weight) is None


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    model = _model("y = Constant<value=float[2]{1.,2.}>()")
    lift_constants(model)
    assert [node.op_type for node in model.graph] == ["Constant"]


def test_constants_of_a_body_stay_in_the_body() -> None:
    model = _model(
        "c = Constant<value=bool{1}>() y = If(c)<"
        "then_branch: graph = t() => (float[2] t1) { k = Constant<value_floats=[1.,2.]>() "
        "t1 = Add(x, k) }, else_branch: graph = e() => (float[2] e1) { e1 = Neg(x) }>"
    )
    lift_constants(model)
    branch = model.graph.node(0).attributes["then_branch"].as_graph()
    assert list(branch.initializers) == ["k"]
    assert list(model.graph.initializers) == ["c"]
