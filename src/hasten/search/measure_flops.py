"""Counting the arithmetic of a model: multiplications and additions in products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def count_flops(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int | None:
    """Floating-point operations of one run: two for each multiply-add of the operators that matter.

    Those are MatMul, Gemm, Einsum, Conv and ConvTranspose, in integers too, and Attention, GRU, LSTM and RNN;
    what an algorithm such as Winograd's saves is not subtracted, so that figures can be compared. What each
    kernel does is counted from the loop IR (`codegen/counts.py`), with the same meaning.

    Args:
        graph: an artifact's optimized graph, with the shapes of all values.
        sizes: values of the symbolic sizes.

    Returns:
        The number, or None if it is not known: the shape of an operand depends on more than the sizes, or a
        node has a body or multiplies in a way that is not counted.
    """
    values = [v for v in (*graph.input, *graph.output, *graph.value_info) if _has_shape(v)]
    shapes = {v.name: s for v in values if (s := _shape(v.type.tensor_type.shape.dim, sizes)) is not None}
    total = 0
    for node in graph.node:
        try:
            total += node_flops(node, shapes)
        except KeyError:
            return None
    return total


def node_flops(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Floating-point operations of one node, with the meaning of `count_flops`; 0 for what is not counted.

    Raises:
        KeyError: the shape of an operand is missing, or it is not known how often the node multiplies.
    """
    strange = node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op_type in _UNCOUNTED
    if strange or any(a.HasField("g") or a.graphs for a in node.attribute):
        raise KeyError(node.op_type)
    count = _COUNTS.get(node.op_type)
    return 0 if count is None else 2 * count(node, shapes)


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether anything is known of it: without that it would look like a scalar."""
    return bool(value.type.tensor_type.HasField("shape"))


def _shape(
    dims: Sequence[onnx.TensorShapeProto.Dimension], sizes: Mapping[str, int]
) -> tuple[int, ...] | None:
    shape = []
    for dim in dims:
        value = dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param)
        if value is None and dim.dim_param:
            found = ir.SymbolicDim(dim.dim_param).evaluate(sizes)
            value = found if isinstance(found, int) else None
        if value is None:
            return None
        shape.append(value)
    return tuple(shape)


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    inner = shapes[node.input[0]][0 if _attribute(node, "transA", 0) else 1]
    return math.prod(shapes[node.output[0]]) * inner


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2 or "." in equation:
        raise KeyError(equation)  # how often depends on the order, or on axes without a letter
    extents: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        for letter, extent in zip(term, shapes[name], strict=True):
            extents[letter] = max(extent, extents.get(letter, 0))
    return math.prod(extents.values())


def _conv(node: onnx.NodeProto, shapes: Shapes, factor: int = 1) -> int:
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[factor]][1:])


def _quantized_conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    return _conv(node, shapes, factor=3)  # behind the scale and the zero point of the first one


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    query, key, value = (shapes[name] for name in node.input[:3])
    past = shapes[node.input[4]][2] if len(node.input) > 4 and node.input[4] else 0
    if len(query) == 4:  # [batch, heads, sequence, size]
        return math.prod(query[:3]) * (past + key[2]) * (query[3] + value[3])
    heads, shared = _attribute(node, "q_num_heads", 1), _attribute(node, "kv_num_heads", 1)
    return query[0] * query[1] * (past + key[1]) * (query[2] + value[2] * heads // shared)


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    length, batch = shapes[node.input[0]][:2]
    return length * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


_COUNTS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _quantized_conv,
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}

_UNCOUNTED = frozenset(
    ["DeformConv", "DFT", "STFT", "LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"]
)
"""Operators that multiply and add, and are not counted."""
