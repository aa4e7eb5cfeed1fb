import onnx.parser
import onnx_ir as ir
import pytest

from hasten.errors import ModelError
from hasten.graph.inference import check, infer_shapes
from hasten.passes.facts import Facts


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 25]> g {text}'))


def _shapes(model: ir.Model) -> dict[str | None, str]:
    return {value.name: str(value.shape) for node in model.graph for value in node.outputs}


def test_wrong_declared_shapes_give_way_and_generated_names_are_dropped() -> None:
    model = _model(
        "(float[batch, 4] x, float[k] s) => (float[7, other] y, int64[m, n] z)"
        "<float[2] h> { h = Relu(x) y = Transpose<perm=[1,0]>(h) z = NonZero(s) }"
    )
    infer_shapes(model)
    assert _shapes(model) == {"h": "[batch,4]", "y": "[4,batch]", "z": "[1,None]"}


def test_shapes_that_only_the_exporter_knows_are_kept() -> None:
    model = _model("(float[batch, 4] x, int64[2] s) => (float[batch, 4] y) { y = Reshape(x, s) }")
    infer_shapes(model)
    assert _shapes(model) == {"y": "[batch,4]"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul(x, w) }", "Incompatible"),
        ("(float[2] x, int64[2] w) => (float[2] y) { y = Add(x, w) }", "inconsistent type"),
    ],
)
def test_a_contradiction_is_found(body: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"contradicts itself: .*{message}"):
        infer_shapes(_model(body))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("y = Foo(x)", "No Op registered for Foo"),
        ("y = Relu<slope=1>(x)", "Unrecognized attribute: slope"),
        ("y = Relu(x, x)", "input size 2"),
    ],
)
def test_what_is_not_onnx_is_refused(node: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"not valid ONNX: .*{message}"):
        check(_model(f"(float[2] x) => (float[2] y) {{ {node} }}"))


def test_group_normalization_has_the_shape_of_its_input() -> None:
    """ONNX has no rule for it, so that nothing behind it would have a shape; in bodies too."""
    model = _model(
        "(float[n, 4, 8] x, float[4] s, float[4] b, bool c) => (float[k, l, m] y)"
        "{ h = GroupNormalization<num_groups=2>(x, s, b) z = Concat<axis=2>(h, h)"
        "  y = If(c) <then_branch = t () => (float[i,j,o] u) { u = GroupNormalization<num_groups=4>(z,s,b) }"
        ", else_branch = e () => (float[i, j, o] v) { v = Relu(z) }> }"
    )
    infer_shapes(model)
    assert _shapes(model) == {"h": "[n,4,8]", "z": "[n,4,16]", "y": "[None,4,16]"}
    facts = Facts(model.graph)
    assert facts.dims(model.graph[0].outputs[0]) == ("n", 4, 8)
