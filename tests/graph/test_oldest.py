"""What is written says the oldest opset in which it means the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from hasten.graph.oldest import oldest_opset, stamp_oldest, with_oldest_opset

QKV = "float[1, 2, 3, 4] x"
MASK = "m = Constant<value = bool[3, 3] {1, 1, 0, 0, 1, 1, 1, 0, 1}>()"


def parsed(
    body: str, opset: int = 25, inputs: str = "float[2, 4] x", outputs: str = "float[2, 4] y"
) -> onnx.ModelProto:
    text = f'<ir_version: 12, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("body", "oldest", "more"),
    [
        (f"{MASK} y = Attention(x, x, x, m)", 24, {"inputs": QKV, "outputs": "float[1, 2, 3, 4] y"}),
        ("s = Constant<value = int64[2] {4, 2}>() r = Reshape(x, s) y = Transpose(r)", 21, {}),
        ("y = Gelu(x)", 21, {}),
        ("y = Round(x)", 21, {}),
        ("y = Round(x)", 22, {"inputs": "bfloat16[2, 4] x", "outputs": "bfloat16[2, 4] y"}),
        ("y = Swish(x)", 24, {}),
        ("y = Attention(x, x, x)", 23, {"inputs": QKV, "outputs": "float[1, 2, 3, 4] y"}),
        ("h = Cast<to = 1>(x) y = Relu(h)", 21, {}),
        ('y = Cast<to = 1, round_mode = "down">(x)', 24, {}),
        ("s = Constant<value = float {0.1}>() z = Constant<value = int8 {3}>() "
         "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", 21, {}),
        ("s = Constant<value = float {0.1}>() z = Constant<value = int8 {3}>() "
         "y = QuantizeLinear(x, s, z)", 23, {"inputs": "float16[2, 4] x", "outputs": "int8[2, 4] y"}),
        ("y = MaxPool<kernel_shape = [2]>(x)", 21,
         {"inputs": "float[1, 2, 4] x", "outputs": "float[1, 2, 3] y"}),
        ("y = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)", 22,
         {"inputs": "float[1, 2, 5] x", "outputs": "float[1, 2, 3] y"}),
        ("y = LpPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)", 22,
         {"inputs": "float[1, 2, 5] x", "outputs": "float[1, 2, 3] y"}),
        ("c = Constant<value = bool {1}>() "
         "y = If(c) <then_branch = a () => (float[2, 4] t) { t = Swish(x) },"
         " else_branch = b () => (float[2, 4] e) { e = Identity(x) }>", 24, {}),
        ("y = Gelu(x)", 20, {"opset": 20}),
    ],
)  # fmt: skip
def test_oldest_opset(body: str, oldest: int, more: dict[str, str]) -> None:
    proto = parsed(body, **more)  # type: ignore[arg-type]
    model = ir.from_proto(proto)
    own = model.opset_imports[""]
    assert oldest_opset(model) == oldest
    written = ir.to_proto(with_oldest_opset(model))
    assert model.opset_imports[""] == own
    stamp_oldest(proto)
    for made in (written, proto):
        assert [entry.version for entry in made.opset_import] == [oldest]
        assert made.ir_version == (10 if oldest < own else 12)
        onnx.checker.check_model(made, full_check=True)


def check_answers(proto: onnx.ModelProto, x: np.ndarray, oldest: int) -> None:
    def answer() -> np.ndarray:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])

    before = answer()
    stamp_oldest(proto)
    assert proto.opset_import[0].version == oldest
    np.testing.assert_allclose(answer(), before, rtol=1e-5, atol=1e-6)


def test_the_answers_are_the_same() -> None:
    rng = np.random.default_rng(0)
    body = """s = Constant<value = float {0.1}>() z = Constant<value = int8 {3}>()
    n = Constant<value = int64[2] {4, 2}>() q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    g = Gelu(d) e = Elu(g) r = Reshape(e, n) y = Transpose(r)"""
    check_answers(parsed(body), rng.standard_normal((2, 4)).astype(np.float32), 21)
    for attention, oldest in (("y = Attention(x, x, x)", 23), (f"{MASK} y = Attention(x, x, x, m)", 24)):
        proto = parsed(attention, inputs=QKV, outputs="float[1, 2, 3, 4] y")
        check_answers(proto, rng.standard_normal((1, 2, 3, 4)).astype(np.float32), oldest)


def test_types_that_are_not_known_keep_the_opset() -> None:
    proto = parsed("h = Round(x) y = Round(h)")
    del proto.graph.value_info[:]
    assert oldest_opset(ir.from_proto(proto)) == 22
