"""Batch normalization at inference folded into the weights of the convolution or Gemm before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts, integer
from hasten.passes.rule import Builder, Const, Declined, Either, Match, Op, Rule, Var

_PRODUCT = Op(("Conv", "ConvTranspose", "Gemm"), name="product")
_PATTERN = Op(
    "BatchNormalization",
    (
        Either((_PRODUCT, Op("Add", (_PRODUCT, Const("added"))))),
        Var("scale"),
        Var("bias"),
        Var("mean"),
        Var("variance"),
    ),
)


def _rewrite(match: Match, _facts: Facts, build: Builder) -> ir.Value | Declined:
    node, norm = match.nodes["product"], match.root
    if integer(norm, "training_mode", 0) or any(v.uses() for v in norm.outputs[1:]):
        return Declined("the BatchNormalization is in training mode")
    names = ("scale", "bias", "mean", "variance")
    statistics = [constant_value(match.values[name]) for name in names]
    weight = constant_value(node.inputs[1]) if node.inputs[1] is not None else None
    given_bias = node.inputs[2] if len(node.inputs) > 2 else None
    bias = None if given_bias is None else constant_value(given_bias)
    if weight is None or (given_bias is not None and bias is None):
        return Declined(f"the weights of the {node.op_type} are not constant")
    if any(s is None for s in statistics):
        return Declined("the statistics of the BatchNormalization are not constant")
    if weight.dtype != np.float32:
        return Declined(f"the weights are {weight.dtype}, not float32")
    if node.op_type == "Gemm" and not _plain_gemm(node):
        return Declined("the Gemm scales its terms (alpha or beta is not 1)")
    scale, shift, mean, variance = (np.asarray(s, dtype=np.float64) for s in statistics if s is not None)
    epsilon = norm.attributes.get("epsilon")
    spread = variance + (1e-5 if epsilon is None else epsilon.as_float())
    if not (spread > 0).all():
        return Declined("the variance plus epsilon is not positive")
    factor = scale / np.sqrt(spread)
    if bias is not None and bias.size != 1 and (bias.size, bias.shape[-1]) != (mean.size, mean.size):
        return Declined(f"the bias of the Gemm has shape {bias.shape}, one for each row")
    before = np.zeros(1) if bias is None else bias.reshape(-1)
    if "added" in match.values:
        added = match.constant("added")
        if not _one_each_channel(added.shape, mean.size, weight.ndim):
            return Declined(f"what is added in between has shape {added.shape}, not one per channel")
        before = before + added.reshape(-1).astype(np.float64)
    new_weight = weight * _along_outputs(factor, node, weight.shape)
    new_bias = (before.astype(np.float64) - mean) * factor + shift
    inputs = [
        node.inputs[0],
        build.constant(new_weight.astype(np.float32), "weight"),
        build.constant(new_bias.astype(np.float32), "bias"),
    ]
    return build.like(node, inputs)


def _one_each_channel(shape: tuple[int, ...], channels: int, rank: int) -> bool:
    """Whether a constant of this shape adds one number to each channel of `[N, C, ...]`, of that rank."""
    sizes = [size for size in shape if size != 1]
    if len(shape) > rank or sizes not in ([], [channels]):
        return False
    return not sizes or len(shape) - shape.index(channels) == rank - 1


def _plain_gemm(node: ir.Node) -> bool:
    factors = [node.attributes.get(name) for name in ("alpha", "beta")]
    return all(f is None or f.as_float() == 1.0 for f in factors)


def _along_outputs(factor: np.ndarray, node: ir.Node, weight: tuple[int, ...]) -> np.ndarray:
    """Factors of the output channels, shaped to multiply the weights of the node."""
    rank, inputs = len(weight), weight[0]
    if node.op_type == "Conv":
        return factor.reshape((-1,) + (1,) * (rank - 1))
    if node.op_type == "Gemm":
        return factor.reshape((-1, 1) if integer(node, "transB", 0) else (1, -1))
    # ConvTranspose: [inputs, outputs / groups, ...]; the inputs of a group stand together
    groups = integer(node, "group", 1)
    rows = np.repeat(factor.reshape(groups, -1), inputs // groups, axis=0)
    return rows.reshape(rows.shape + (1,) * (rank - 2))


CONV_BATCHNORM = Rule("fold BatchNormalization", _PATTERN, _rewrite)
