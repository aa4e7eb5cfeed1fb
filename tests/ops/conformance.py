"""The conformance suite's harness: one node, lowered once with symbolic sizes, run at many shapes.

Every engine must agree with ONNX's reference evaluator. The interpreter is one; compiled code joins
by adding itself to `ENGINES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from hasten.graph.opset import IR_VERSION, OPSET
from hasten.loops.evaluate import evaluate
from hasten.loops.program import Program
from hasten.loops.verify import verify
from hasten.ops.lowering import lower_graph

Arrays = Mapping[str, np.ndarray]
Engine = Callable[[Program, Arrays], Mapping[str, np.ndarray]]

ENGINES: list[Engine] = [evaluate]


@dataclass
class Case:
    """A node with declared input shapes, and what it was lowered to.

    Attributes:
        proto: the model of one node.
        program: the node as a tensor program.
        reference: what to compare with, from feeds to outputs in order.
    """

    proto: onnx.ModelProto
    program: Program
    reference: Callable[[Arrays], Sequence[np.ndarray]] = field(repr=False)

    def check(self, *arrays: np.ndarray, rtol: float = 1e-5, atol: float = 1e-6) -> list[np.ndarray]:
        """Runs all engines on one set of inputs and compares; the expected results."""
        names = [i.name for i in self.proto.graph.input]
        feeds = dict(zip(names, arrays, strict=True))
        expected = [np.asarray(e) for e in self.reference(feeds)]
        outputs = [o.name for o in self.proto.graph.output]
        for engine in ENGINES:
            found = engine(self.program, feeds)
            for name, right in zip(outputs, expected, strict=True):
                assert_same(found[name], right, rtol, atol)
        return expected


def case(
    op_type: str,
    inputs: Sequence[tuple[Any, Sequence[int | str]] | np.ndarray | None],
    *,
    outputs: int = 1,
    reference: Callable[..., Any] | None = None,
    **attributes: Any,
) -> Case:
    """Lowers one node.

    Args:
        op_type: the operator.
        inputs: for each input its NumPy type and declared shape, in which a name is a symbolic size;
            or an array, which becomes a constant; or None where it is left out.
        outputs: number of outputs.
        reference: the results from the arrays of the inputs that are not constant, where ONNX's
            reference evaluator is wrong, imprecise or missing.
        attributes: the node's attributes.
    """
    names = ["" if i is None else f"x{k}" for k, i in enumerate(inputs)]
    results = [f"y{k}" for k in range(outputs)]
    node = onnx.helper.make_node(op_type, names, results, name="it", **attributes)
    values, weights = [], []
    for name, given in zip(names, inputs, strict=True):
        if isinstance(given, np.ndarray):
            weights.append(onnx.numpy_helper.from_array(given, name))
        elif given is not None:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given[0]))
            values.append(onnx.helper.make_tensor_value_info(name, dtype, given[1]))
    made = [onnx.helper.make_empty_tensor_value_info(name) for name in results]
    graph = onnx.helper.make_graph([node], "g", values, made, weights)
    opset = onnx.helper.make_opsetid("", OPSET)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    proto = onnx.shape_inference.infer_shapes(proto)
    lowered = lower_graph(ir.from_proto(proto))
    assert not lowered.host_nodes, lowered.reasons
    verify(lowered.program)
    assert lowered.program.outputs == results
    evaluator = ReferenceEvaluator(proto)

    def by_onnx(feeds: Arrays) -> Sequence[np.ndarray]:
        with np.errstate(all="ignore"):
            return evaluator.run(None, dict(feeds))

    def by_function(feeds: Arrays) -> Sequence[np.ndarray]:
        assert reference is not None
        with np.errstate(all="ignore"):
            found = reference(*feeds.values())
        return found if isinstance(found, list | tuple) else [found]

    return Case(proto, lowered.program, by_onnx if reference is None else by_function)


@functools.cache
def elementwise_case(
    op_type: str,
    dtypes: tuple[str, ...],
    shapes: tuple[tuple[int | str, ...], ...],
    attributes: tuple[tuple[str, Any], ...] = (),
) -> Case:
    """`case` for hashable arguments, lowered once for all examples of a test."""
    return case(op_type, list(zip(dtypes, shapes, strict=True)), **dict(attributes))


def assert_same(found: np.ndarray, right: np.ndarray, rtol: float, atol: float) -> None:
    """Equal type and shape; integers equal, floats equal to rounding, NaN and infinities in place."""
    assert found.dtype == right.dtype
    assert found.shape == right.shape
    if right.dtype.kind != "f":
        np.testing.assert_array_equal(found, right)
        return
    np.testing.assert_allclose(found, right, rtol=rtol, atol=atol)
