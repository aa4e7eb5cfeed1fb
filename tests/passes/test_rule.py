import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from hasten.graph.opset import OPSET
from hasten.passes.facts import Facts
from hasten.passes.rule import (
    Const,
    Declined,
    Either,
    Op,
    Rule,
    Var,
    find,
    replace_value,
    sweep,
)


def graph_of(signature, body):
    text = f'<ir_version: 10, opset_import: ["": {OPSET}]> main {signature} {{ {body} }}'
    return ir.from_proto(onnx.parser.parse_model(text)).graph


SIMPLE = graph_of(
    "(float[n] a, float[n] b) => (float[n] y)",
    "two = Constant<value_float = 2.0>() s = Sub(a, b) m = Mul(two, s) y = Add(m, a)",
)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (Op("Add", (Var("x"), Var("y"))), 2),
        (Op("Add", (Var("x"), Var("x"))), 0),
        (Op("Add", (Op("Mul", (Op("Sub", (Var("p"), Var("q"))), Const())), Var("p"))), 1),
        (Op("Add", (Op("Mul", (Op("Sub", (Var("p"), Var("q"))), Const())), Var("q"))), 0),
        (Op("Add", (Op("Mul", (Var("s"), Const("c", lambda a: a == 2))), Var("p"))), 1),
        (Op("Add", (Op("Mul", (Var("s"), Const("c", lambda a: a == 3))), Var("p"))), 0),
        (Op("Add", (Either((Op("Div"), Op("Mul"))), Var("p"))), 1),
        (Op("Add", (Var("x"),)), 0),
        (Op(("Mul", "Add"), test=lambda node: node.op_type == "Mul"), 0),
    ],
)
def test_patterns(pattern, matches):
    root = SIMPLE.outputs[0].producer()
    assert len(list(find(pattern, root))) == matches


def test_a_match_says_what_it_captured():
    pattern = Op("Add", (Op("Mul", (Var("s"), Const("c"))), Var("p")), name="sum")
    (match,) = find(pattern, SIMPLE.outputs[0].producer())
    assert match.nodes["sum"] is match.root
    assert match.constant("c") == np.float32(2)
    assert [node.op_type for node in match.interior] == ["Add", "Mul"]
    with pytest.raises(KeyError):
        match.constant("s")


def _double(match, _facts, build):
    return build.op("Mul", [match.values["x"], build.constant(np.array(2, np.float32), "two")])


TO_DOUBLE = Rule("double", Op("Neg", (Op("Neg", (Var("x"),)),)), _double)


def test_sweep_replaces_and_reports():
    graph = graph_of("(float[n] x) => (float[n] y)", "a = Neg(x) y = Neg(a)")
    names = {node.name for node in graph}
    result = sweep(graph, [TO_DOUBLE], Facts(graph))
    assert [node.op_type for node in graph] == ["Mul"]
    assert graph.outputs[0].name == "y"
    assert graph.outputs[0].producer() is graph[0]
    assert set(result.fused[0].nodes) == {name or "Neg" for name in names}
    assert result.declined == ()


def test_sweep_declines_what_others_use_and_reports_reasons():
    graph = graph_of("(float[n] x) => (float[n] y, float[n] z)", "a = Neg(x) y = Neg(a) z = Abs(a)")
    never = Rule("never", Op("Abs"), lambda _m, _f, _b: Declined("not today"))
    silent = Rule("silent", Op("Abs"), lambda _m, _f, _b: None)
    result = sweep(graph, [TO_DOUBLE, never, silent], Facts(graph))
    assert result.fused == ()
    assert [item.rule for item in result.declined] == ["double", "never"]
    assert "'a' is also used by" in result.declined[0].reason
    assert result.declined[1].reason == "not today"
    assert graph.num_nodes() == 3


def test_outputs_keep_their_names_whatever_takes_their_place():
    graph = graph_of(
        "(float[n] x) => (float[n] y, float[n] z, float[n] w)",
        "y = Neg(x) z = Identity(y) w = Identity(x)",
    )
    for name, node in (("z", graph[1]), ("w", graph[2])):
        old = next(v for v in graph.outputs if v.name == name)
        replace_value(graph, old, node.inputs[0])
        graph.remove(node, safe=True)
    assert [v.name for v in graph.outputs] == ["y", "z", "w"]
    onnx.checker.check_model(ir.to_proto(ir.Model(graph, ir_version=10)))
