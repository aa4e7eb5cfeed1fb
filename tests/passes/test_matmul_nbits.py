"""MatMulNBits against ONNX Runtime, whose operator it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import hasten


def model(depth, columns, bits, block, *, zeros, bias=False):
    rng = np.random.default_rng(bits + depth)
    blocks = -(-depth // block)
    arrays = {
        "w": rng.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.001, 0.01, columns * blocks).astype(np.float32),
    }
    if zeros == "packed":
        arrays["z"] = rng.integers(0, 256, columns * -(-blocks * bits // 8)).astype(np.uint8)
    elif zeros == "floats":
        arrays["z"] = rng.integers(0, 1 << bits, (columns, blocks)).astype(np.float32)
    names = ["x", "w", "s", "z" if "z" in arrays else ""]
    if bias:
        arrays["b"] = rng.standard_normal(columns).astype(np.float32)
        names += ["", "b"]
    sizes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "m", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "m", columns])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


CASES = (  # depth, columns, bits, block, zero points, bias
    (128, 48, 4, 32, None, False),
    (192, 40, 4, 64, "packed", True),
    (256, 33, 4, 128, "floats", False),
    (96, 48, 8, 32, None, True),
    (128, 16, 8, 64, "packed", False),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_are_those_of_onnxruntime(case, tmp_path):
    depth, columns, bits, block, zeros, bias = case
    made = model(depth, columns, bits, block, zeros=zeros, bias=bias)
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    ours = hasten.compile(path, cache=tmp_path)
    assert not ours.report["host"]
    theirs = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 7, depth)).astype(np.float32)
    (expected,) = theirs.run(None, {"x": x})
    np.testing.assert_allclose(
        ours.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def test_weights_in_another_order_run_elsewhere_or_not_at_all(tmp_path):
    """An index of groups permutes the depth: that is refused in words rather than ignored."""
    made = model(64, 16, 4, 32, zeros=None)
    made.graph.node[0].input.extend(["g"])
    made.graph.initializer.append(numpy_helper.from_array(np.arange(64, dtype=np.int32) // 32, "g"))
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    with pytest.raises(hasten.HastenError, match="MatMulNBits"):
        hasten.compile(path, cache=tmp_path)
