import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from hasten.errors import ModelError
from hasten.graph.opset import OPSET, to_internal_opset

# Operators whose meaning, attributes or inputs changed between the opset given and ours.
CHANGED = {
    "softmax": (11, "float[a,b,4] x", "float[a,b,4] y", "y = Softmax(x)"),
    "log_softmax": (12, "float[a,b,4] x", "float[a,b,4] y", "y = LogSoftmax<axis=0>(x)"),
    "hardmax": (11, "float[a,b,4] x", "float[a,b,4] y", "y = Hardmax(x)"),
    "hardmax_last": (12, "float[a,b,4] x", "float[a,b,4] y", "y = Hardmax<axis=-1>(x)"),
    "unsqueeze": (11, "float[a,b,4] x", "float[a,1,b,4] y", "y = Unsqueeze<axes=[1]>(x)"),
    "squeeze": (
        11,
        "float[a,b,4] x",
        "float[a,b,4] y",
        "u = Unsqueeze<axes=[0,-1]>(x) y = Squeeze<axes=[0,-1]>(u)",
    ),
    "reduce_sum": (
        11,
        "float[a,b,4] x",
        "float[a,4] y",
        "y = ReduceSum<axes=[1],keepdims=0>(x)",
    ),
    "reduce_mean": (
        17,
        "float[a,b,4] x",
        "float[a,1,1] y",
        "y = ReduceMean<axes=[1,2],keepdims=1>(x)",
    ),
    "reduce_all": (13, "float[a,b,4] x", "float y", "y = ReduceMax<keepdims=0>(x)"),
    "split": (11, "float[a,b,4] x", "float[a,b,1] y", "y, z = Split<axis=2,split=[1,3]>(x)"),
    "split_equal": (13, "float[a,b,4] x", "float[a,b,2] y", "y, z = Split<axis=2>(x)"),
    "dropout": (11, "float[a,b,4] x", "float[a,b,4] y", "y = Dropout<ratio=0.3>(x)"),
    "cast": (12, "float[a,b,4] x", "int64[a,b,4] y", "y = Cast<to=7>(x)"),
    "resize": (
        11,
        "float[a,b,4] x",
        "float[a,m,n] y",
        "r = Constant<value=float[0]{}>() s = Constant<value=float[3]{1.,2.,2.5}>()"
        'y = Resize<mode="linear",coordinate_transformation_mode="align_corners">(x, r, s)',
    ),
    "resize_nearest": (
        13,
        "float[a,b,4] x",
        "float[a,m,n] y",
        "s = Constant<value=float[3]{1.,3.,0.5}>()"
        'y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",'
        'nearest_mode="floor">(x, , s)',
    ),
    "pad": (
        12,
        "float[a,b,4] x",
        "float[a,b,m] y",
        'p = Constant<value=int64[6]{0,0,1,0,0,2}>() y = Pad<mode="reflect">(x, p)',
    ),
    "batch_norm": (
        13,
        "float[a,b,4] x",
        "float[a,b,4] y",
        "s = Constant<value=float[3]{1.,2.,3.}>() v = Constant<value=float[3]{1.,0.5,3.}>() "
        "y = BatchNormalization<epsilon=0.1>(x, s, v, s, v)",
    ),
    "average_pool": (
        11,
        "float[a,b,4] x",
        "float[a,b,m] y",
        "y = AveragePool<kernel_shape=[3],strides=[2],pads=[1,1],ceil_mode=1>(x)",
    ),
    "scatter": (
        13,
        "float[a,b,4] x",
        "float[a,b,4] y",
        "i = Constant<value=int64[1,1,2]{0,3}>() u = Constant<value=float[1,1,2]{5.,7.}>()"
        "y = ScatterElements<axis=2>(x, i, u)",
    ),
    "body": (
        11,
        "float[a,b,4] x",
        "float[m,n,o] y",
        "n = Size(x) z = Constant<value=int64{7}>() c = Greater(n, z)"
        "y = If(c)<then_branch: graph = t() => (float[p,q,r] t1) { t1 = Softmax(x) },"
        "else_branch: graph = e() => (float[p,q,r] e1) { e1 = Identity(x) }>",
    ),
}


def _parse(opset: int, inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )


def _run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


@pytest.mark.parametrize("case", CHANGED)
def test_an_operator_that_changed_gives_the_same_answer(case: str) -> None:
    proto = _parse(*CHANGED[case])
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    expected = _run(proto, x=x)
    converted = to_internal_opset(ir.from_proto(proto))
    assert converted.opset_imports[""] == OPSET
    actual = _run(ir.to_proto(converted), x=x)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-6, strict=True)


def test_group_normalization_with_one_scale_for_each_group() -> None:
    # Opset 18 scaled each group, opset 21 each channel.
    proto = _parse(
        18,
        "float[a,4,5] x, float[2] s, float[2] b",
        "float[a,4,5] y",
        "y = GroupNormalization<num_groups=2>(x, s, b)",
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 4, 5), np.float32)}
    feeds |= {name: rng.standard_normal(2, np.float32) for name in "sb"}
    grouped = feeds["x"].reshape(2, 2, 10)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    expected = normal * feeds["s"][:, None] + feeds["b"][:, None]
    converted = to_internal_opset(ir.from_proto(proto))
    (actual,) = _run(ir.to_proto(converted), **feeds)
    np.testing.assert_allclose(actual, expected.reshape(2, 4, 5), rtol=1e-5, atol=1e-5)


def test_keeps_names_dims_metadata_other_domains_and_tensors() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 7, opset_import: ["": 11, "com.microsoft": 1], metadata_props: ["k": "v"]>'
        "g (float[batch, 64] x) => (float[batch, 64] y) <float[64, 64] w> {"
        "[first] h = com.microsoft.FusedMatMul<alpha=2.0>(x, w) [second] y = Softmax(h) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    converted = to_internal_opset(model)
    graph = converted.graph
    assert [str(value.shape) for value in graph.inputs] == ["[batch,64]"]
    assert [str(value.shape) for value in graph.outputs] == ["[batch,64]"]
    assert graph.node(0).domain == "com.microsoft"
    assert graph.node(0).name == "first"
    assert converted.metadata_props == {"k": "v"}
    assert graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    # The converter leaves the softmax's two-dimensional output with a wrong shape.
    assert next(node for node in graph if node.op_type == "Softmax").outputs[0].shape is None
    assert ir.to_proto(model).SerializeToString() == before


def test_a_large_tensor_of_a_body_survives() -> None:
    proto = _parse(
        12,
        "bool c, float[300] x",
        "float[300] y",
        "y = If(c)<then_branch: graph = t() => (float[300] t1) { t1 = Add(x, w) },"
        "else_branch: graph = e() => (float[300] e1) { e1 = Neg(x) }>",
    )
    weights = np.arange(300, dtype=np.float32)
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    converted = ir.to_proto(to_internal_opset(ir.from_proto(proto)))
    x = np.ones(300, np.float32)
    np.testing.assert_array_equal(_run(converted, c=np.array(True), x=x)[0], x + weights)


def test_a_converted_model_is_returned_as_it_is() -> None:
    model = ir.from_proto(_parse(OPSET, "float[a] x", "float[a] y", "y = Relu(x)"))
    assert to_internal_opset(model) is model


def test_an_opset_out_of_range_is_refused() -> None:
    model = ir.from_proto(_parse(99, "float[a] x", "float[a] y", "y = Relu(x)"))
    with pytest.raises(ModelError, match=r"opset 99; 1 to .* newer onnx"):
        to_internal_opset(model)


def test_an_operator_that_cannot_be_converted_is_named() -> None:
    model = ir.from_proto(_parse(13, "float[a] x", "float[a] y", "y = Upsampel(x)"))
    with pytest.raises(ModelError, match=r"operator Upsampel cannot be converted from .* 13"):
        to_internal_opset(model)


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (9, 's = Constant<value = float[3] {1., 1., 2.}>() y = Upsample<mode = "linear">(x, s)'),
        (9, 's = Constant<value = float[3] {1., 2., 2.5}>() y = Upsample<mode = "nearest">(x, s)'),
        (10, 's = Constant<value = float[3] {1., 1., 0.4}>() y = Resize<mode = "nearest">(x, s)'),
        (10, 's = Constant<value = float[3] {1., 1., 0.5}>() y = Resize<mode = "linear">(x, s)'),
        (10, 's = Constant<value = float[3] {1., 1., 1.7}>() y = Resize<mode = "nearest">(x, s)'),
    ],
)
def test_pictures_were_resized_from_other_places(version: int, body: str) -> None:
    proto = _parse(version, "float[2,3,5] x", "float[a,b,c] y", body)
    x = np.random.default_rng(0).standard_normal((2, 3, 5), np.float32)
    proto.ir_version = 4
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    (actual,) = _run(ir.to_proto(to_internal_opset(ir.from_proto(proto))), x=x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6, strict=True)


def test_a_prelu_had_a_slope_for_each_channel() -> None:
    proto = _parse(6, "float[2,4,3,4] x, float[4] s", "float[2,4,3,4] y", "y = PRelu(x, s)")
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 4), np.float32)
    slope = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    (actual,) = _run(ir.to_proto(to_internal_opset(ir.from_proto(proto))), x=x, s=slope)
    np.testing.assert_array_equal(actual, np.where(x < 0, x * slope[:, None, None], x))
