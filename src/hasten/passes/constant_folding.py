"""Constant folding: evaluate at compile time what depends on constants or on known sizes alone."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir

from hasten.errors import UnsupportedModelError
from hasten.graph.constants import constant_value
from hasten.graph.evaluate import evaluate_node
from hasten.passes.facts import QUANTIZATION, Facts
from hasten.passes.rule import Builder, commit

_KEPT = frozenset(
    {
        # ONNX's reference evaluator gets it wrong where data and indices have different lengths
        "GatherElements",
        # a different answer each time
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        # not tensors
        "SequenceConstruct",
        "SequenceEmpty",
        "SplitToSequence",
        "Optional",
    }
)
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_GROWTH_LIMIT = 64 * 1024  # bytes that a folded result may have beyond the size of its inputs


def fold_constants(graph: ir.Graph, facts: Facts) -> int:
    """Replace nodes whose results are known by constants.

    A node is folded when all its inputs are constants and its results are no larger than those
    inputs plus 64 KiB, so that an `Expand` or `Range` does not blow up the file; or when it computes
    a shape whose elements are all known integers. DequantizeLinear of weights is not folded.

    Returns:
        The number of nodes folded.
    """
    folded = 0
    for node in list(graph):
        if node.domain or _is_kept(node) or len(node.outputs) != 1:
            continue
        if any(v.type in _GRAPH_ATTRIBUTES for v in node.attributes.values()):
            continue
        array = _known_shape(node, facts)
        if array is None:
            array = _evaluated(node, facts)
        if array is None:
            continue
        build = Builder()
        value = build.constant(array, "folded")
        commit(graph, node, value, build, facts)
        folded += 1
    return folded


def _is_kept(node: ir.Node) -> bool:
    """Whether a node stays even if its inputs are constants.

    Weights stay bytes and what they stand for, which passes and backends look for. Codes of a constant are
    constants, and sums of 32 bits, which biases are stored as, are not looked for.
    """
    if node.op_type not in QUANTIZATION:
        return node.op_type in _KEPT
    first = node.inputs[0]
    if node.op_type == "DequantizeLinear":
        return first is None or first.dtype is not ir.DataType.INT32
    return node.op_type != "QuantizeLinear" or node.outputs[0].dtype not in _BYTES


_GRAPH_ATTRIBUTES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _known_shape(node: ir.Node, facts: Facts) -> np.ndarray | None:
    """The result of a node that computes with sizes, if all of them are numbers."""
    output = node.outputs[0]
    contents, dims = facts.contents(output), facts.dims(output)
    if contents is None or dims is None or output.dtype not in _INTEGER_TYPES:
        return None
    if any(isinstance(item, str) for item in contents) or len(contents) != math.prod(
        d for d in dims if isinstance(d, int)
    ):
        return None
    return np.array(contents, dtype=_INTEGER_TYPES[output.dtype]).reshape(
        [d for d in dims if isinstance(d, int)]
    )


_INTEGER_TYPES = {ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}


def _evaluated(node: ir.Node, facts: Facts) -> np.ndarray | None:
    if not onnx.defs.has(node.op_type):
        return None
    if any(v is not None and v.const_value is None for v in node.inputs):
        return None
    dims = facts.dims(node.outputs[0])
    if dims is None:
        return None
    size = math.prod(d for d in dims if isinstance(d, int))
    if any(isinstance(d, str) for d in dims):
        return None
    item = node.outputs[0].dtype
    width = 8.0 if item is None else item.itemsize
    given = sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value)
    if size * width > given + _GROWTH_LIMIT:
        return None
    arrays = [None if v is None else constant_value(v) for v in node.inputs]
    if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
        return None
    try:
        return np.asarray(evaluate_node(node, arrays)[0])
    except UnsupportedModelError:
        return None  # it stays for whoever can run it
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # ONNX's evaluator refuses the node, as a run that gets there will be told
