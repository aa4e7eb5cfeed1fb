"""Operators that take codes with scales and zero points as inputs, in terms of operators of floats.

QLinearMatMul and QLinearConv are ONNX's; the others are those of the domain com.microsoft, as ONNX Runtime's
documentation of contributed operators specifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.quantized_operand import Operand, attributes_of, input_at, is_single, quantized
from hasten.passes.rule import Builder

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

Form = Callable[[ir.Node, Builder], ir.Value | None]
"""What computes the output of a node; None where the node stays."""


def _result(
    node: ir.Node, build: Builder, value: ir.Value | None, first: int, like: ir.Value
) -> ir.Value | None:
    """QuantizeLinear by the one scale and zero point at two inputs of a node in a row; None for several."""
    scale, zero = input_at(node, first), input_at(node, first + 1)
    if value is None or scale is None or not is_single(scale) or not (zero is None or is_single(zero)):
        return None
    return quantized(build, value, scale, zero, like)


def _matmul(node: ir.Node, build: Builder) -> ir.Value | None:
    left, right = Operand.at(node, 0), Operand.at(node, 3)
    if left is None or right is None:
        return None
    a, b = left.dequantized(build, -2), right.dequantized(build, -1)
    if a is None or b is None:
        return None
    return _result(node, build, build.op("MatMul", [a, b]), 6, left.codes)


def _conv(node: ir.Node, build: Builder) -> ir.Value | None:
    data, weight = Operand.at(node, 0), Operand.at(node, 3)
    if data is None or weight is None:
        return None
    x, w = data.dequantized(build, 1), weight.dequantized(build, 0)
    x = None if x is None else _with_channels(node, build, x, 1)
    if x is None or w is None:
        return None
    inputs = [x, w]
    bias = input_at(node, 8)
    if bias is not None:
        inputs.append(_bias(build, bias, data.scale, weight.scale, 1.0))
    y = build.op("Conv", inputs, attributes_of(node, ("channels_last",)))
    return _result(node, build, _with_channels(node, build, y, -1), 6, data.codes)


def _gemm(node: ir.Node, build: Builder) -> ir.Value | None:
    left, right = Operand.at(node, 0), Operand.at(node, 3)
    if left is None or right is None:
        return None
    attributes = attributes_of(node)
    a, b = left.dequantized(build, 1), right.dequantized(build, 0 if attributes.get("transB", 0) else 1)
    if a is None or b is None:
        return None
    inputs = [a, b]
    bias = input_at(node, 6)
    if bias is not None:
        alpha = attributes.get("alpha", 1.0)
        inputs.append(_bias(build, bias, left.scale, right.scale, alpha if isinstance(alpha, float) else 1.0))
    y = build.op("Gemm", inputs, attributes)
    return y if input_at(node, 7) is None else _result(node, build, y, 7, left.codes)


def _bias(build: Builder, bias: ir.Value, x: ir.Value, w: ir.Value, factor: float) -> ir.Value:
    """A bias of 32 bits in floats: its scale is the product of those of both operands."""
    codes, a, b = (constant_value(v) for v in (bias, x, w))
    if codes is not None and a is not None and b is not None:
        single = (v.reshape(-1).astype(np.float32) for v in (a, b))
        scale = np.multiply(*single) * np.float32(factor)
        return build.constant(np.multiply(codes.astype(np.float32), scale).reshape(codes.shape), "bias")
    scales = build.op("Mul", [x, w])
    if factor != 1:
        scales = build.op("Mul", [scales, build.constant(np.array(factor, np.float32), "alpha")])
    return build.op("Mul", [build.op("Cast", [bias], {"to": ir.DataType.FLOAT.value}), scales])


def _with_channels(node: ir.Node, build: Builder, value: ir.Value | None, place: int) -> ir.Value | None:
    """A value with its channels in another place, second (1) or last (-1), for a node that has them last.

    Returns:
        The value itself for other nodes; None where the number of dims is not known.
    """
    if value is None or not attributes_of(node).get("channels_last", 0):
        return value
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    dims = x.shape.rank()
    order = [0, dims - 1, *range(1, dims - 1)] if place == 1 else [0, *range(2, dims), 1]
    return build.op("Transpose", [value], {"perm": order})


def _elementwise(kind: str, operands: int) -> Form:
    """An operator of so many operands, followed by the scale and zero point of the result."""

    def form(node: ir.Node, build: Builder) -> ir.Value | None:
        given = [Operand.at(node, 3 * k) for k in range(operands)]
        inputs = [None if o is None else o.dequantized(build, 1) for o in given]
        inputs = [_with_channels(node, build, v, 1) for v in inputs]
        first = given[0]
        if first is None or any(v is None for v in inputs):
            return None
        y = build.op(kind, inputs, attributes_of(node, ("channels_last",)))
        return _result(node, build, _with_channels(node, build, y, -1), 3 * operands, first.codes)

    return form


def _softmax(node: ir.Node, build: Builder) -> ir.Value | None:
    data = Operand.at(node, 0)
    x = None if data is None else data.dequantized(build, 1)
    attributes = attributes_of(node, ("opset",))
    version, axis = attributes_of(node).get("opset", 13), attributes.get("axis", -1)
    # Before version 13 a Softmax was over all axes from one on.
    if data is None or x is None or (version in range(13) and axis != -1):
        return None
    return _result(node, build, build.op("Softmax", [x], attributes), 3, data.codes)


def _concat(node: ir.Node, build: Builder) -> ir.Value | None:
    given = [Operand.at(node, k) for k in range(2, len(node.inputs), 3)]
    inputs = [None if o is None else o.dequantized(build, 1) for o in given]
    if not given or given[0] is None or any(v is None for v in inputs):
        return None
    return _result(node, build, build.op("Concat", inputs, attributes_of(node)), 0, given[0].codes)


def _where(node: ir.Node, build: Builder) -> ir.Value | None:
    left, right = Operand.at(node, 1), Operand.at(node, 4)
    if left is None or right is None:
        return None
    a, b = left.dequantized(build, 1), right.dequantized(build, 1)
    if a is None or b is None:
        return None
    return _result(node, build, build.op("Where", [node.inputs[0], a, b]), 7, left.codes)


QLINEAR: Mapping[tuple[str, str], Form] = MappingProxyType(
    {
        ("", "QLinearMatMul"): _matmul,
        ("", "QLinearConv"): _conv,
        (CONTRIB, "QLinearConv"): _conv,
        (CONTRIB, "QGemm"): _gemm,
        (CONTRIB, "QLinearAdd"): _elementwise("Add", 2),
        (CONTRIB, "QLinearMul"): _elementwise("Mul", 2),
        (CONTRIB, "QLinearSigmoid"): _elementwise("Sigmoid", 1),
        (CONTRIB, "QLinearLeakyRelu"): _elementwise("LeakyRelu", 1),
        (CONTRIB, "QLinearAveragePool"): _elementwise("AveragePool", 1),
        (CONTRIB, "QLinearGlobalAveragePool"): _elementwise("GlobalAveragePool", 1),
        (CONTRIB, "QLinearSoftmax"): _softmax,
        (CONTRIB, "QLinearConcat"): _concat,
        (CONTRIB, "QLinearWhere"): _where,
    }
)
"""Forms by domain and operator."""
