"""Operators of com.microsoft that ONNX Runtime's optimizers fuse, or that differ from ONNX's in layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from hasten.graph.contrib import FUSED_MATMUL
from hasten.graph.definition import Definition, Rewrite, rank

Outputs = Sequence[ir.Value | None] | None

_PLAIN = ("Relu", "Tanh", "Sigmoid")
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def _kept(r: Rewrite, names: Sequence[str]) -> dict[str, Any]:
    return {name: a for name, a in r.node.attributes.items() if name in names}


def _activated(r: Rewrite, y: ir.Value, kind: str, parameters: Sequence[float]) -> ir.Value | None:
    """An activation with its parameters in ONNX's order; None for one that is not known."""
    if kind in ("", "NONE"):
        return y
    if kind in _PLAIN:
        return r.op(kind, y)
    if kind == "LeakyRelu":
        return r.op(kind, y, alpha=float((*parameters, 0.01)[0]))
    if kind == "HardSigmoid":
        alpha, beta = (*parameters, *(0.2, 0.5)[len(parameters) :])[:2]
        return r.op(kind, y, alpha=float(alpha), beta=float(beta))
    if kind == "Clip" and len(parameters) == 2:
        return r.op(kind, y, *(r.number(float(v), y) for v in parameters))
    return None


def _fused_conv(r: Rewrite) -> Outputs:
    """Activation of a convolution and a sum with another tensor."""
    y = r.op("Conv", *r.node.inputs[:3], **_kept(r, _CONV))
    result = _activated(
        r, r.added(y, r.input(3)), r.attribute("activation", ""), r.attribute("activation_params", ())
    )
    return None if result is None else [result]


def _fused_gemm(r: Rewrite) -> Outputs:
    y = r.op("Gemm", *r.node.inputs[:3], **_kept(r, ("alpha", "beta", "transA", "transB")))
    result = _activated(r, y, r.attribute("activation", ""), _parameters(r))
    return None if result is None else [result]


def _parameters(r: Rewrite) -> list[float]:
    given = (r.attribute(f"activation_{name}", None) for name in ("alpha", "beta"))
    return [v for v in given if v is not None]


def _fused_matmul_activation(r: Rewrite) -> Outputs:
    made = FUSED_MATMUL(r)
    if made is None or made[0] is None:
        return None
    kind = r.attribute("activation", "")
    if kind == "Softmax":
        return [r.op(kind, made[0], axis=r.attribute("activation_axis", -1))]
    result = _activated(r, made[0], kind, _parameters(r))
    return None if result is None else [result]


def _order(dims: int, last: bool) -> list[int]:
    """The order of axes that puts channels last, or second."""
    return [0, *range(2, dims), 1] if last else [0, dims - 1, *range(1, dims - 1)]


def _channels_last(kind: str, names: Sequence[str]) -> Definition:
    """An operator over pictures with channels last. Weights of convolutions have theirs where ONNX's have."""

    def define(r: Rewrite) -> Outputs:
        x = r.input(0)
        window = r.attribute("kernel_shape", None)
        dims = rank(x) or rank(r.input(1)) or (len(window) + 2 if window else None)
        if x is None or dims is None:
            return None
        inputs = [r.op("Transpose", x, perm=_order(dims, last=False)), *r.node.inputs[1:3]]
        y = r.op(kind, *inputs, **_kept(r, names))
        if r.input(3) is not None:
            y = r.op("Add", y, r.op("Transpose", r.input(3), perm=_order(dims, last=False)))
        kind_of = r.attribute("activation", "")
        result = _activated(r, y, kind_of, r.attribute("activation_params", ()))
        return None if result is None else [r.op("Transpose", result, perm=_order(dims, last=True))]

    return define


def _bias_split_gelu(r: Rewrite) -> Outputs:
    x = r.node.inputs[0]
    assert x is not None
    left, right = r.ops("Split", 2, r.added(x, r.input(1)), axis=-1, num_outputs=2)
    return [r.op("Mul", left, r.op("Gelu", right))]


def _bias_add(r: Rewrite) -> Outputs:
    x = r.node.inputs[0]
    assert x is not None
    return [r.added(x, r.input(1), r.input(2))]


def _group_norm(r: Rewrite) -> Outputs:
    """Normalization of groups of channels, with Swish; before it a sum with what is skipped."""
    x, gamma, beta = r.node.inputs[:3]
    dims = rank(x)
    if x is None or dims is None:
        return None
    last = bool(r.attribute("channels_last", 1))
    total = x
    if r.node.op_type == "SkipGroupNorm":
        skip, bias = r.input(3), r.input(4)
        if rank(skip) != dims or not last:
            return None  # a skip of two dims stands for all places of a picture
        total = r.added(x, skip, bias)
    y = r.op("Transpose", total, perm=_order(dims, last=False)) if last else total
    attributes = {"num_groups": r.attribute("groups", 1), "epsilon": r.attribute("epsilon", 1e-5)}
    y = r.op("GroupNormalization", y, gamma, beta, **attributes)
    if r.attribute("activation", 0):
        y = r.op("Mul", y, r.op("Sigmoid", y))
    return [r.op("Transpose", y, perm=_order(dims, last=True)) if last else y, total]


def _trilu(r: Rewrite) -> Outputs:
    return [r.op("Trilu", r.input(0), r.input(1), upper=r.attribute("upper", 1))]


def _expand_dims(r: Rewrite) -> Outputs:
    axis = r.op("Cast", r.input(1), to=ir.DataType.INT64.value)
    return [r.op("Unsqueeze", r.input(0), r.op("Reshape", axis, r.constant([1])))]


def _pad(r: Rewrite) -> Outputs:
    pads = r.op("Reshape", r.input(1), r.constant([-1]))
    return [r.op("Pad", r.input(0), pads, r.input(2), mode=r.attribute("mode", "constant"))]


def _grid_sample(r: Rewrite) -> Outputs:
    modes = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}
    mode = modes.get(r.attribute("mode", "bilinear"))
    if mode is None:
        return None
    attributes = {
        "mode": mode,
        "padding_mode": r.attribute("padding_mode", "zeros"),
        "align_corners": r.attribute("align_corners", 0),
    }
    return [r.op("GridSample", r.input(0), r.input(1), **attributes)]


def _inverse(r: Rewrite) -> Outputs:
    x = r.node.inputs[0]
    assert x is not None
    y = r.tape.op("Inverse", [x], domain="hasten")
    y.type, y.shape = x.type, x.shape
    return [y]


def _rms_norm(r: Rewrite) -> Outputs:
    if r.wants(1):
        return None
    names = ("axis", "epsilon", "stash_type")
    return [r.op("RMSNormalization", r.input(0), r.input(1), **_kept(r, names))]


def _layer_norm(r: Rewrite) -> Outputs:
    if r.wants(1) or r.wants(2):
        return None
    names = ("axis", "epsilon", "stash_type")
    return [r.op("LayerNormalization", *r.node.inputs[:3], **_kept(r, names))]


def _quantized_lstm(r: Rewrite) -> Outputs:
    """An LSTM with weights in bytes. ONNX Runtime rounds what they multiply too; here it is not."""
    inputs = list(r.node.inputs) + [None] * (12 - len(r.node.inputs))
    weights = []
    for codes, scale, zero in ((1, 8, 9), (2, 10, 11)):
        if inputs[codes] is None or inputs[scale] is None or rank(inputs[scale]) is None:
            return None
        axes = r.constant([1, 2] if rank(inputs[scale]) == 1 else [1])
        value = r.op("Cast", inputs[codes], to=ir.DataType.FLOAT.value)
        if inputs[zero] is not None:
            offset = r.op("Cast", inputs[zero], to=ir.DataType.FLOAT.value)
            value = r.op("Sub", value, r.op("Unsqueeze", offset, axes))
        value = r.op("Mul", value, r.op("Unsqueeze", inputs[scale], axes))
        weights.append(r.op("Transpose", value, perm=[0, 2, 1]))
    return r.ops("LSTM", 3, inputs[0], *weights, *inputs[3:8], **r.node.attributes)


FUSED: Mapping[str, Definition] = MappingProxyType(
    {
        "FusedConv": _fused_conv,
        "FusedGemm": _fused_gemm,
        "TransposeMatMul": FUSED_MATMUL,
        "FusedMatMulActivation": _fused_matmul_activation,
        "NhwcFusedConv": _channels_last("Conv", _CONV),
        "NhwcMaxPool": _channels_last("MaxPool", _POOL),
        "BiasSplitGelu": _bias_split_gelu,
        "BiasAdd": _bias_add,
        "GroupNorm": _group_norm,
        "SkipGroupNorm": _group_norm,
        "Trilu": _trilu,
        "ExpandDims": _expand_dims,
        "Pad": _pad,
        "GridSample": _grid_sample,
        "Inverse": _inverse,
        "SimplifiedLayerNormalization": _rms_norm,
        "LayerNormalization": _layer_norm,
        "DynamicQuantizeLSTM": _quantized_lstm,
    }
)
"""Definitions of fused operators."""
