import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.ops.host import leave_to_host

import hasten
from hasten.codegen.partition import NativePart, partition
from hasten.errors import HostOperatorWarning, InputError
from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.verify import verify
from hasten.ops.lowered import HostNode
from hasten.ops.lowering import lower_graph

MIDDLE = (
    "(float[n, m] x) => (float[k] y, float[n, m] e) { e = Exp(x) p = Sub(e, one) q = Relu(p) "
    "i = NonZero(q) t = Transpose(i) g = GatherND(e, t) y = Neg(g) }"
)


def model(text, **constants):
    proto = onnx.parser.parse_model(f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]> g {text}')
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(proto)


def steps(text, **constants):
    return partition(lower_graph(ir.from_proto(model(text, **constants))))


def test_a_host_node_between_two_parts(monkeypatch):
    leave_to_host(monkeypatch, "NonZero")
    first, host, second = steps(MIDDLE, one=np.float32(1))
    assert isinstance(first, NativePart)
    assert isinstance(host, HostNode)
    assert isinstance(second, NativePart)
    assert host.node.op_type == "NonZero"
    assert "e" in first.program.outputs
    assert "e" in second.program.inputs
    for part in (first, second):
        verify(part.program)
        bound = {n.name for i in part.program.inputs.values() for n in i.shape if hasattr(n, "name")}
        assert set(part.sizes) <= bound


@pytest.mark.filterwarnings("ignore::hasten.errors.HostOperatorWarning")
def test_it_runs(tmp_path, monkeypatch):
    leave_to_host(monkeypatch, "NonZero")
    session = hasten.compile(model(MIDDLE, one=np.float32(1)), cache=tmp_path)
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    for given in (x, x[:2, :3], -np.abs(x)):
        found = session.run({"x": given})
        e = np.exp(given)
        np.testing.assert_allclose(found["y"], -e[given > 0], rtol=1e-6)
        np.testing.assert_allclose(found["e"], e, rtol=1e-6)


def test_results_that_are_constants_or_inputs(tmp_path):
    text = (
        "(float[n] x) => (float[n] y, float[3] c, float[n] z) { y = Neg(x) z = Identity(x) c = Identity(w) }"
    )
    w = np.array([1, 2, 3], np.float32)
    session = hasten.compile(model(text, w=w), cache=tmp_path)
    x = np.array([1.5, -2], np.float32)
    found = session.run({"x": x})
    np.testing.assert_array_equal(found["y"], -x)
    np.testing.assert_array_equal(found["z"], x)
    np.testing.assert_array_equal(found["c"], w)


def test_empty_batches_and_bad_indices(tmp_path):
    text = (
        "(float[n, 4] x, int64[n] i) => (float[n, 4] y, float[n, 3] z) "
        "{ s = Softmax(x) y = Gather(s, i) z = MatMul(y, w) }"
    )
    session = hasten.compile(model(text, w=np.ones((4, 3), np.float32)), cache=tmp_path)
    found = session.run({"x": np.zeros((0, 4), np.float32), "i": np.zeros(0, np.int64)})
    assert found["y"].shape == (0, 4)
    assert found["z"].shape == (0, 3)
    with pytest.raises(InputError, match=r"index 2 is outside its axis of length 2 in .*Gather"):
        session.run({"x": np.zeros((2, 4), np.float32), "i": np.array([0, 2])})
    assert session.run({"x": np.zeros((2, 4), np.float32), "i": np.array([1, -2])})["y"].shape == (2, 4)


READERS = ["y = Relu(g)", "r = Neg(g) y = MatMul(r, w)", "y = MatMul(g, w)", "y = MatMul(w, g)"]


@pytest.mark.parametrize("rest", READERS)
def test_an_operator_that_disappears_into_its_reader_is_named_all_the_same(tmp_path, rest):
    text = f"(float[n, 4] x, int64[4] i) => (float[4, 4] y) {{ g = Gather(x, i) {rest} }}"
    constants = {"w": np.ones((4, 4), np.float32)} if "w" in rest else {}
    session = hasten.compile(model(text, **constants), cache=tmp_path)
    with pytest.raises(InputError, match=r"index -3 is outside its axis of length 2 in .*Gather"):
        session.run({"x": np.zeros((2, 4), np.float32), "i": np.array([0, 1, -3, 0])})


def test_the_host_is_named_in_a_warning(tmp_path, monkeypatch):
    leave_to_host(monkeypatch, "NonZero")
    with pytest.warns(HostOperatorWarning, match="NonZero"):
        hasten.compile(model(MIDDLE, one=np.float32(1)), cache=tmp_path)


COUNTED = (
    "(float[n] x, int64[2] axes, int64[n] lengths) => (float[n, k] mask, float[a, b] total) {"
    " longest = ReduceMax<keepdims=0>(lengths) steps = Range(zero, longest, one)"
    " ends = Unsqueeze(lengths, one_) shown = Less(steps, ends) f = Cast<to=1>(shown)"
    " e = Exp(x) column = Unsqueeze(e, one_) mask = Mul(f, column) total = ReduceSum(mask, axes) }"
)


def test_sizes_that_a_part_computes_are_read_before_the_next_part(tmp_path):
    given = {"zero": np.int64(0), "one": np.int64(1), "one_": np.array([1])}
    found = steps(COUNTED, **given)
    assert [type(s) for s in found] == [NativePart, NativePart]
    for part in found:
        verify(part.program)
    assert [len(part.program.elements) for part in found] == [
        2,
        3,
    ]
    session = hasten.compile(model(COUNTED, **given), cache=tmp_path)
    assert not session.report["host"]
    x = np.linspace(-1, 1, 3, dtype=np.float32)
    for lengths in ([2, 4, 1], [1, 1, 1], [0, 0, 0], [9, 2, 2]):
        right = np.exp(x)[:, None] * (np.arange(max(lengths)) < np.array(lengths)[:, None])
        for axes in ([0, 1], [1, -2]):
            feeds = {"x": x, "axes": np.array(axes), "lengths": np.array(lengths)}
            out = session.run(feeds)
            np.testing.assert_allclose(out["mask"], right, rtol=1e-6)
            np.testing.assert_allclose(out["total"], right.sum(keepdims=True), rtol=1e-6)
    with pytest.raises(
        InputError, match=r"these values break.*an axis from -2 to 1 \(ReduceSum.*axes\[1\] = 2"
    ):
        session.run({**feeds, "axes": np.array([0, 2])})
    np.testing.assert_allclose(session.run(feeds)["mask"], right, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1 << 40, 1 << 40), (1 << 62, 4), (-1, 3), (1 << 45, 0)])
def test_shapes_that_no_memory_has(tmp_path, shape):
    text = "(float[1] x, int64[2] s) => (float[b] y) { e = Expand(x, s) t = Transpose(e) r = Exp(t) "
    text += "c = CumSum(r, zero) y = ReduceMax<keepdims=0>(c, zero_) }"
    session = hasten.compile(model(text, zero=np.int64(0), zero_=np.array([0])), cache=tmp_path)
    x = np.ones(1, np.float32)
    found = session.run({"x": x, "s": np.array([2, 3])})["y"]
    np.testing.assert_allclose(found, [np.e * 3] * 2, rtol=1e-6)
    with pytest.raises(InputError, match=r"too large|memory|broadcast|not negative"):
        session.run({"x": x, "s": np.array(shape)})
