"""Whole graphs: what is compiled, what stays on the host, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.ops.host import leave_to_host

from hasten.errors import UnsupportedModelError
from hasten.frontends import load
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.descriptions import Attention, Gemm
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Size, size
from hasten.ops.lowered import Branches, Lowered
from hasten.ops.lowering import lower_graph

HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}, "custom": 1]>'
RNG = np.random.default_rng(6)


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEADER + text)))


def sizes(lowered: Lowered, name: str) -> list[str]:
    return [n.name for n in lowered.program.info(name).shape if isinstance(n, Size)]


class Builder:
    """A model written node by node, with random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        array = RNG.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        self.weights.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def constant(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def __call__(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def model(self, name: str, shape: list[str | int], output: str) -> onnx.ModelProto:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        result = onnx.helper.make_empty_tensor_value_info(output)
        graph = onnx.helper.make_graph(self.nodes, "g", [value], [result], self.weights)
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return onnx.shape_inference.infer_shapes(model)


def agree(proto: onnx.ModelProto, *shapes: tuple[int, ...], tolerance: float = 1e-5) -> Lowered:
    """One program gives ONNX Runtime's results for all of these shapes."""
    lowered = lower_graph(ir.from_proto(proto))
    assert not lowered.host_nodes
    session = ort.InferenceSession(proto.SerializeToString())
    for shape in shapes:
        feeds = {proto.graph.input[0].name: RNG.normal(size=shape).astype(np.float32)}
        (wanted,) = session.run(None, feeds)
        found = evaluate(lowered.program, feeds)[lowered.outputs[0]]
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.ptp(wanted), rtol=0)
    return lowered


def test_a_transformer_with_symbolic_batch_and_sequence():
    b, x = Builder(), "x"
    for _ in range(2):
        q, k, v = (b("Add", b("MatMul", x, b.weight(16, 16)), b.weight(16)) for _ in range(3))
        mixed = b("Attention", q, k, v, q_num_heads=4, kv_num_heads=4)
        joined = b("Add", b("MatMul", mixed, b.weight(16, 16)), x)
        normal = b("LayerNormalization", joined, b.weight(16), b.weight(16))
        wide = b("Gelu", b("Add", b("MatMul", normal, b.weight(16, 32)), b.weight(32)))
        joined = b("Add", b("MatMul", wide, b.weight(32, 16)), normal)
        x = b("LayerNormalization", joined, b.weight(16), b.weight(16))
    # As exported models do it: the first token, through shape arithmetic, and a classifier.
    batch = b("Shape", x, start=0, end=1)
    flat = b("Reshape", x, b("Concat", batch, b.constant(-1), axis=0))
    back = b("Reshape", flat, b("Concat", batch, b.constant(-1, 16), axis=0))
    first = b("Gather", back, b.constant(0), axis=1)
    flat_first = b("Flatten", first)
    logits = b("Gemm", flat_first, b.weight(3, 16), b.weight(3), transB=1)
    lowered = agree(b.model("x", ["n", "s", 16], b("Softmax", logits)), (1, 5, 16), (3, 2, 16))
    bodies = [d.body for d in lowered.program.definitions.values()]
    assert sum(isinstance(body, Attention) for body in bodies) == 2
    assert sum(isinstance(body, Gemm) for body in bodies) == 13
    # What only computes shapes is not part of the program.
    assert not [d for d in lowered.program.definitions.values() if "Shape" in d.origin.split()[0:1]]


def test_the_first_blocks_of_a_mobile_network_at_several_picture_sizes():
    b = Builder()

    def conv(x: str, inputs: int, outputs: int, size: int, stride: int = 1, group: int = 1) -> str:
        pads, strides = [size // 2] * 4, [stride, stride]
        w, bias = b.weight(outputs, inputs // group, size, size), b.weight(outputs)
        return b("Conv", x, w, bias, pads=pads, strides=strides, group=group)

    x = b("Clip", conv("x", 3, 8, 3, 2), "", b.weight())
    x = b("HardSwish", conv(x, 8, 8, 3, 1, 8))
    x = conv(x, 8, 4, 1)
    wide = b("Relu", conv(x, 4, 16, 1))
    wide = b("Relu", conv(wide, 16, 16, 5, 1, 16))
    squeezed = b("Sigmoid", conv(b("GlobalAveragePool", wide), 16, 16, 1))
    x = b("Add", conv(b("Mul", wide, squeezed), 16, 4, 1), x)
    x = b("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = b("ConvTranspose", x, b.weight(4, 2, 2, 2), b.weight(2), strides=[2, 2])
    agree(b.model("x", ["n", 3, "h", "w"], x), (1, 3, 12, 16), (2, 3, 7, 5))


@pytest.mark.parametrize(
    ("part", "shapes"),
    [("det", [(1, 3, 32, 64), (2, 3, 64, 32)]), ("rec", [(1, 3, 48, 48), (2, 3, 48, 80)])],
)
def test_text_models_at_several_picture_sizes(part, shapes):
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "models" / f"ch_PP-OCRv4_{part}_infer.onnx"
    lowered = lower_graph(load(path))
    assert not lowered.host_nodes
    session = ort.InferenceSession(path)
    for shape in shapes:
        feeds = {"x": RNG.normal(size=shape).astype(np.float32)}
        (wanted,) = session.run(None, feeds)
        found = evaluate(lowered.program, feeds)[lowered.outputs[0]]
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


def test_an_operator_without_lowering_becomes_a_host_node(monkeypatch):
    leave_to_host(monkeypatch, "NonZero")
    lowered = lower_graph(
        parse("""
        g (float[n, 4] x) => (float[n, 4] y, int64[r, k] where) {
            a = Relu (x)
            where = NonZero (a)
            zero = Constant <value_int = 0> ()
            first = Gather <axis = 0> (where, zero)
            one = Constant <value_int = 1> ()
            next = Add (first, one)
            back = Trilu (a)
            y = Add (back, a)
        }
        """)
    )
    assert [h.node.op_type for h in lowered.host_nodes] == ["NonZero"]
    (host,) = lowered.host_nodes
    assert host.inputs == ("a",)
    assert host.outputs == ("where",)
    assert lowered.reasons == {"NonZero 'where'": "NonZero is not compiled"}
    assert lowered.outputs == ("y", "where")
    # Its output enters the program with sizes of its own, and what nobody needs is gone.
    assert sizes(lowered, "where") == ["where_dim1"]
    assert set(lowered.program.definitions) == {"a", "back", "y"}
    x = RNG.normal(size=(4, 4)).astype(np.float32)
    where = np.zeros((2, 3), np.int64)
    found = evaluate(lowered.program, {"x": x, "where": where}, ["y", "a"])
    np.testing.assert_array_equal(found["y"], np.triu(found["a"]) + found["a"])


def test_what_reads_an_unreadable_value_stays_on_the_host_too():
    lowered = lower_graph(
        parse("""
        g (float[n] x, string[n] h) => (float[n] y, string[n] z) {
            z = StringConcat (h, h)
            again = StringConcat (z, h)
            wide = Cast <to = 1> (z)
            y = Add (wide, x)
        }
        """)
    )
    reasons = {h.node.op_type: h.reason for h in lowered.host_nodes}
    assert set(reasons) == {"StringConcat", "Cast"}
    assert all("string" in reason for reason in reasons.values())
    assert set(lowered.program.inputs) == {"x", "wide"}
    assert lowered.program.outputs == ["y"]
    assert lowered.outputs == ("y", "z")


def test_a_body_reads_the_values_around_it():
    lowered = lower_graph(
        parse("""
        g (bool[] c, float[n] x) => (float[n] y) {
            a = Relu (x)
            y = If (c) <
                then_branch = t () => (float[n] p) { p = Add (a, x) },
                else_branch = e () => (float[n] q) { q = Identity (a) }
            >
        }
        """)
    )
    (node,) = lowered.outside
    assert isinstance(node, Branches)
    assert set(node.inputs) == {"c", "a", "x"}
    assert "a" in lowered.program.definitions
    assert [list(b.lowered.program.inputs) for b in node.bodies] == [["a", "x"], ["a"]]
    assert lowered.program.info("y").shape == (size("n"),)


def test_nodes_that_nothing_can_run_are_named_all_at_once():
    model = parse("""
        g (float[n] x) => (float[n] y) {
            a = custom.Magic (x)
            b = Relu (x)
            y = custom.Wonder (a, b)
        }
        """)
    with pytest.raises(UnsupportedModelError, match=r"2 of .*Magic 'a'.*Wonder 'y'"):
        lower_graph(model)


def test_outputs_that_are_inputs_constants_or_views():
    model = parse("""
        g (float[n] x) => (float[n] x, float[2] w, float[n] y)
        <float[2] w = {1, 2}> {
            y = Identity (x)
        }
        """)
    lowered = lower_graph(model)
    assert lowered.program.outputs == ["x", "w", "y"]
    x = np.array([3, 4, 5], np.float32)
    found = evaluate(lowered.program, {"x": x})
    np.testing.assert_array_equal(found["y"], x)
    np.testing.assert_array_equal(found["w"], [1, 2])


def test_temporaries_never_take_the_name_of_a_value():
    model = parse("""
        g (float[n, 2] x, float[2] v) => (float[n] y, float[n] y_product) {
            y = MatMul (x, v)
            y_product = Relu (y)
        }
        """)
    lowered = lower_graph(model)
    x = RNG.normal(size=(3, 2)).astype(np.float32)
    found = evaluate(lowered.program, {"x": x, "v": np.ones(2, np.float32)})
    np.testing.assert_allclose(found["y_product"], np.maximum(x.sum(1), 0), rtol=1e-6)


def test_a_declined_node_leaves_nothing_behind():
    model = parse("""
        g (float[n, 1, 2, 2] x, int64[n, 1, 2, 2] where) => (float[n, 1, 4, 4] y) {
            y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, where)
        }
        """)
    lowered = lower_graph(model)
    assert "known beforehand" in lowered.host_nodes[0].reason
    assert not lowered.program.definitions
    assert not lowered.program.guards
