import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from hasten.graph.opset import OPSET
from hasten.passes.facts import Facts
from hasten.passes.sizes import is_private


def facts_of(signature, body):
    text = f'<ir_version: 10, opset_import: ["": {OPSET}]> main {signature} {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    facts = Facts(model.graph)
    return facts, {v.name: v for node in model.graph for v in node.outputs}


def test_shape_arithmetic_is_followed():
    facts, values = facts_of(
        "(float[b, s, 12] x) => (float[n, m, k, l] y)",
        """sh = Shape(x) i = Constant<value_ints = [0, 1]>() lead = Gather(sh, i)
        h = Constant<value_ints = [3]>() w = Shape<start = -1>(x) d = Div(w, h)
        t = Concat<axis = 0>(lead, h, d) y = Reshape(x, t)""",
    )
    assert facts.contents(values["sh"]) == ("b", "s", 12)
    assert facts.contents(values["t"]) == ("b", "s", 3, 4)
    assert values["y"].shape is not None
    assert facts.dims(values["y"]) == ("b", "s", 3, 4)


def test_unnamed_sizes_get_names_that_carry_through():
    facts, values = facts_of(
        "(float[b, s] x, bool[s] keep) => (float[n, m] y)",
        "c = Compress<axis = 1>(x, keep) y0 = Relu(c) y = Neg(y0)",
    )
    made = facts.dims(values["c"])
    assert made is not None
    assert made[0] == "b"
    assert is_private(made[1])
    assert facts.dims(values["y0"]) == made
    facts.write_shapes([values["y0"]])
    batch, kept = values["y0"].shape
    assert batch.value == "b"
    assert kept.value is None


def test_a_value_without_a_type_stops_inference_and_nothing_else():
    facts, values = facts_of("(float[b] x) => (float[b] y)", "c = Foreign(x) d = Neg(c) y = Neg(x)")
    assert facts.dims(values["d"]) is None
    assert facts.dims(values["y"]) == ("b",)


def test_two_question_marks_are_two_sizes():
    value = ir.val("x", ir.DataType.FLOAT, [ir.SymbolicDim("?"), ir.SymbolicDim("?")])
    facts = Facts(ir.Graph([value], [], nodes=[], opset_imports={"": OPSET}))
    dims = facts.dims(value)
    assert dims is not None
    assert dims[0] != dims[1]


def test_contents_of_constants_only_where_they_can_be_sizes():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    facts = Facts(graph)
    for array, expected in (
        (np.array([2, 3]), (2, 3)),
        (np.array(4, np.int32), (4,)),
        (np.array([0.5], np.float32), None),
        (np.ones((2, 2), np.int64), None),
        (np.arange(100), None),
    ):
        tensor = ir.tensor(array)
        value = ir.Value(name="c", shape=ir.Shape(array.shape), const_value=tensor)
        graph.initializers.pop("c", None)
        graph.register_initializer(value)
        assert facts.contents(value) == expected


def test_inputs_of_a_slice_that_are_left_out_move_no_others(optimized, rng):
    body = "s = Shape(x) r = Slice(s, last, far, , back) y = Reshape(x, r)"
    constants = {"last": np.array([-1]), "far": np.array([-3]), "back": np.array([-1])}
    x = rng.normal(0, 1, (5, 3)).astype(np.float32)
    optimized("(float[n, 3] x) => (float[a, b] y)", body, constants, {"x": x})


@pytest.mark.parametrize(
    "body", ["z = Add(large, one) y = Mul(z, i)", "z = Cast<to = 6>(large) w = Cast<to = 7>(z) y = Mul(w, i)"]
)
def test_numbers_beyond_their_type_are_not_followed(optimized, body):
    constants = {"large": np.array([2**63 - 1]), "one": np.array([1])}
    used = {name: a for name, a in constants.items() if name in body}
    optimized("(int64[1] i) => (int64[1] y)", body, used, {"i": np.array([1])})
