"""Small graphs as tensor programs, and what it means that compiled code agrees with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import onnx_opset_version
from tests.codegen.engines import Compiled, Interpreted

from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.evaluate import evaluate
from hasten.loops.program import Program
from hasten.loops.verify import verify
from hasten.ops.lowering import lower_graph

assert onnx_opset_version() >= OPSET


def program(text: str, constants: Mapping[str, np.ndarray] | None = None) -> Program:
    """A graph in ONNX's text form, `(inputs) => (outputs) { nodes }`, as a tensor program.

    Args:
        text: the graph without its name.
        constants: arrays that nodes may name.
    """
    head = f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]> g '
    proto = onnx.parser.parse_model(head + text)
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto)
    lowered = lower_graph(ir.from_proto(proto))
    assert not lowered.host_nodes, lowered.reasons
    verify(lowered.program)
    return lowered.program


def agree(
    engine: Compiled | Interpreted,
    feeds: Mapping[str, np.ndarray],
    threads: Sequence[int] = (1,),
    tolerance: float = 4e-6,
) -> None:
    """Compares with the interpreter of tensor programs, and the numbers of threads with each other.

    Integers and what is not finite must be equal. Floats may differ by rounding, as sums of float32 in
    another order do: by 2e-5 of the element and `tolerance` of the largest.
    """
    expected = evaluate(engine.program, feeds)
    first = engine.run(feeds, threads[0])
    for name, right in expected.items():
        assert_close(first[name], right, name, tolerance)
    for count in threads[1:]:
        for name, other in engine.run(feeds, count).items():
            np.testing.assert_array_equal(other, first[name], f"{name} on {count} threads")


def assert_close(left: np.ndarray, right: np.ndarray, name: str, tolerance: float = 4e-6) -> None:
    """Equal types and shapes, and elements up to rounding."""
    assert (left.dtype, left.shape) == (right.dtype, right.shape), name
    if right.dtype.kind != "f":
        np.testing.assert_array_equal(left, right, name)
        return
    finite = np.abs(right[np.isfinite(right)])
    scale = float(finite.max(initial=0.0)) or 1.0
    np.testing.assert_allclose(left, right, rtol=2e-5, atol=tolerance * scale, err_msg=name)
