"""`check_node`: one ONNX node, lowered and interpreted, against ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.descriptions import Attention
from hasten.loops.evaluate import evaluate
from hasten.loops.verify import verify
from hasten.ops.lowered import Lowered
from hasten.ops.lowering import lower_graph

CheckNode = Callable[..., Lowered]


def node_model(
    op_type: str,
    arrays: Sequence[np.ndarray | None],
    attributes: Mapping[str, Any],
    constant: Sequence[int],
    symbolic: Mapping[int, Sequence[str | int]],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    names = ["" if a is None else f"x{k}" for k, a in enumerate(arrays)]
    node = onnx.helper.make_node(op_type, names, list(outputs), name="it", **attributes)
    inputs, weights = [], []
    for k, a in enumerate(arrays):
        if a is None:
            continue
        if k in constant:
            weights.append(onnx.numpy_helper.from_array(a, names[k]))
        else:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(a.dtype)
            inputs.append(onnx.helper.make_tensor_value_info(names[k], dtype, symbolic.get(k, a.shape)))
    results = [onnx.helper.make_empty_tensor_value_info(n) for n in outputs if n]
    graph = onnx.helper.make_graph([node], "g", inputs, results, weights)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return onnx.shape_inference.infer_shapes(model)


def run_node(
    op_type: str,
    arrays: Sequence[np.ndarray | None],
    *,
    constant: Sequence[int] = (),
    symbolic: Mapping[int, Sequence[str | int]] | None = None,
    outputs: Sequence[str] = ("y",),
    expected: Sequence[np.ndarray] | None = None,
    onnxruntime: bool = False,
    tolerance: float = 2e-5,
    **attributes: Any,
) -> Lowered:
    """Check that a node is compiled and gives the reference's results, shapes and types.

    Args:
        op_type: the operator.
        arrays: its inputs; None where one is left out.
        constant: positions of the inputs that are initializers.
        symbolic: declared shapes, by position, where they are not those of the arrays.
        outputs: names of the outputs, "" for one that is not asked for.
        expected: the results where the reference evaluator is wrong.
        onnxruntime: compare with ONNX Runtime, for the same reason.
        tolerance: relative to the largest magnitude.
        attributes: the node's attributes.
    """
    proto = node_model(op_type, arrays, attributes, constant, symbolic or {}, outputs)
    lowered = lower_graph(ir.from_proto(proto))
    assert not lowered.host_nodes, lowered.reasons
    # The verifier wants (batch, head, row, column); attention is lowered with rows before heads.
    if not any(isinstance(d.body, Attention) for d in lowered.program.definitions.values()):
        verify(lowered.program)
    feeds = {f"x{k}": a for k, a in enumerate(arrays) if a is not None and k not in constant}
    found = evaluate(lowered.program, feeds)
    if expected is not None:
        wanted = list(expected)
    elif onnxruntime:
        wanted = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)
    else:
        with np.errstate(all="ignore"):
            wanted = ReferenceEvaluator(proto).run(None, feeds)
    for name, right in zip([n for n in outputs if n], wanted, strict=True):
        left = found[name]
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        finite = right[np.isfinite(right)] if right.dtype.kind == "f" else np.zeros(0)
        scale = max(float(np.abs(finite).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * scale)
    return lowered


@pytest.fixture(scope="session")
def check_node() -> CheckNode:
    return run_node
