"""Operators of ONNX Runtime's domain com.microsoft in terms of ONNX's own, one node after the other.

Exporters and ONNX Runtime's optimizers write them. As ONNX's operators they are recognized by the fusions and
compiled like any model. What they compute is specified in ONNX Runtime's document of contributed operators.
Its quantized operators that hold scales of their results are rewritten by `passes.qlinear`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from hasten.graph.definition import Definition, Rewrite, rank

CONTRIB = "com.microsoft"


def _gelu(r: Rewrite) -> Sequence[ir.Value | None] | None:
    return [r.op("Gelu", r.input(0))]


def _bias_gelu(r: Rewrite) -> Sequence[ir.Value | None] | None:
    a, b = r.node.inputs
    assert a is not None
    return [r.op("Gelu", r.added(a, b))]


def _fast_gelu(r: Rewrite) -> Sequence[ir.Value | None] | None:
    x = r.node.inputs[0]
    assert x is not None
    return [r.op("Gelu", r.added(x, r.input(1)), approximate="tanh")]


def _quick_gelu(r: Rewrite) -> Sequence[ir.Value | None] | None:
    x = r.node.inputs[0]
    assert x is not None
    alpha = r.number(r.attribute("alpha", 1.702), x)
    return [r.op("Mul", x, r.op("Sigmoid", r.op("Mul", x, alpha)))]


def _fused_matmul(r: Rewrite) -> Sequence[ir.Value | None] | None:
    operands: list[ir.Value] = []
    for position, side in enumerate("AB"):
        value = r.node.inputs[position]
        assert value is not None
        dims = rank(value)
        inner, batch = r.attribute(f"trans{side}", 0), r.attribute(f"transBatch{side}", 0)
        if dims is None and (inner or batch):
            return None
        if dims is not None and dims > 1 and (inner or batch):
            order = list(range(dims))
            if batch:  # the first axis goes in front of the last one
                order = [*order[1:-1], order[0], order[-1]]
            if inner:
                order[-2:] = order[:-3:-1]
            value = r.op("Transpose", value, perm=order)
        operands.append(value)
    product = r.op("MatMul", *operands)
    alpha = r.attribute("alpha", 1.0)
    return [product if alpha == 1 else r.op("Mul", product, r.number(alpha, operands[0]))]


def _skip_layer_norm(r: Rewrite) -> Sequence[ir.Value | None] | None:
    x, skip, gamma = r.node.inputs[:3]
    assert x is not None
    total = r.added(x, skip, r.input(4))
    epsilon = r.attribute("epsilon", 1e-12)
    if r.wants(1) or r.wants(2):
        return None
    y = r.op("LayerNormalization", total, gamma, r.input(3), axis=-1, epsilon=epsilon)
    return [y, None, None, total]


def _skip_rms_norm(r: Rewrite) -> Sequence[ir.Value | None] | None:
    x, skip, gamma = r.node.inputs[:3]
    assert x is not None
    total = r.added(x, skip, r.input(3))
    if r.wants(1) or r.wants(2):
        return None
    y = r.op("RMSNormalization", total, gamma, axis=-1, epsilon=r.attribute("epsilon", 1e-12))
    return [y, None, None, total]


def _embed_layer_norm(r: Rewrite) -> Sequence[ir.Value | None] | None:
    ids, segments, words, positions, types, gamma, beta = r.node.inputs[:7]
    mask, given = r.input(7), r.input(8)
    if given is None:
        length = r.op("Shape", ids, start=1, end=2)
        zero = r.constant([0])
        place = r.op("Slice", positions, zero, length, zero)
    else:
        place = r.op("Gather", positions, given)
    total = r.added(r.op("Gather", words, ids), place)
    if segments is not None:
        total = r.added(total, r.op("Gather", types, segments))
    epsilon = r.attribute("epsilon", 1e-12)
    y = r.op("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    if mask is None:
        batch = r.op("Shape", ids, start=0, end=1)
        lengths = r.op("ConstantOfShape", batch, value=ir.tensor(np.zeros(1, np.int32)))
    else:
        lengths = r.op("ReduceSum", mask, r.constant([1]), keepdims=0)
    lengths.shape = ir.Shape([None])
    return [y, lengths, total]


def _rotary(r: Rewrite) -> Sequence[ir.Value | None] | None:
    x, places, cosines, sines = r.node.inputs
    if r.attribute("is_packed_batching", 0) or r.attribute("scale", 1.0) != 1 or rank(places) is None:
        return None
    if rank(x) == 3 and not r.attribute("num_heads", 0):
        return None
    if rank(places) == 1:  # where the first one is
        axis = r.constant([1 if rank(x) == 3 else 2])
        shape = r.op("Shape", x)
        length, batch = r.op("Gather", shape, axis), r.op("Gather", shape, r.constant([0]))
        count = r.op("Range", r.constant(0), r.op("Squeeze", length), r.constant(1))
        places = r.op("Expand", r.op("Add", count, places), r.op("Concat", batch, length, axis=0))
    attributes = {name: r.attribute(name, 0) for name in ("interleaved", "num_heads", "rotary_embedding_dim")}
    return [r.op("RotaryEmbedding", x, cosines, sines, places, **attributes)]


def float_product(
    r: Rewrite,
    a: ir.Value,
    b: ir.Value | None,
    scales: tuple[ir.Value | None, ir.Value | None],
    zeros: tuple[ir.Value | None, ir.Value | None],
    bias: ir.Value | None,
) -> ir.Value:
    """The product of codes in floats, as ONNX Runtime's dynamic quantization would write it."""
    product = r.op("MatMulInteger", a, b, *zeros)
    scaled = r.op("Mul", r.op("Cast", product, to=ir.DataType.FLOAT.value), r.op("Mul", *scales))
    return r.added(scaled, bias)


def _dynamic_quantize_matmul(r: Rewrite) -> Sequence[ir.Value | None] | None:
    a, b, scale = r.node.inputs[:3]
    codes, own, zero = r.ops("DynamicQuantizeLinear", 3, a)
    return [float_product(r, codes, b, (own, scale), (zero, r.input(3)), r.input(4))]


def _matmul_integer_to_float(r: Rewrite) -> Sequence[ir.Value | None] | None:
    a, b, first, second = r.node.inputs[:4]
    assert a is not None
    return [float_product(r, a, b, (first, second), (r.input(4), r.input(5)), r.input(6))]


def _distances(r: Rewrite) -> Sequence[ir.Value | None] | None:
    """Distances of the rows of two matrices, by differences: little is lost where rows are close."""
    metric = r.attribute("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        return None
    rows = r.op("Unsqueeze", r.input(0), r.constant([1]))
    others = r.op("Unsqueeze", r.input(1), r.constant([0]))
    square = r.op("ReduceSumSquare", r.op("Sub", rows, others), r.constant([2]), keepdims=0)
    return [square if metric == "sqeuclidean" else r.op("Sqrt", square)]


FUSED_MATMUL: Definition = _fused_matmul

SIMPLE: Mapping[str, Definition] = MappingProxyType(
    {
        "Gelu": _gelu,
        "BiasGelu": _bias_gelu,
        "FastGelu": _fast_gelu,
        "QuickGelu": _quick_gelu,
        "FusedMatMul": _fused_matmul,
        "SkipLayerNormalization": _skip_layer_norm,
        "SkipSimplifiedLayerNormalization": _skip_rms_norm,
        "EmbedLayerNormalization": _embed_layer_norm,
        "RotaryEmbedding": _rotary,
        "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
        "MatMulIntegerToFloat": _matmul_integer_to_float,
        "CDist": _distances,
    }
)
"""Definitions of operators other than attention."""
