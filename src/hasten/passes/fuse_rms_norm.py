"""RMS normalization (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

y = x / sqrt(mean(x * x) + epsilon) * scale
"""

from __future__ import annotations

import onnx_ir as ir

from hasten.passes.facts import Facts
from hasten.passes.fuse_layer_norm import (
    FLOATS,
    mean,
    normalized_axis,
    over_root,
    square,
    trailing,
)
from hasten.passes.rule import Builder, Declined, Match, Op, Rule, Var

_PATTERN = Op("Mul", (over_root(Var("x"), mean(square(Var("x")), "mean")), Var("scale")))


def _rewrite(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined:
    source, scale = match.values["x"], match.values["scale"]
    dims = facts.dims(source)
    if dims is None:
        return Declined("the rank of the normalized value is unknown")
    axis = normalized_axis(match.nodes["mean"], dims)
    if axis is None:
        return Declined("the mean is not taken over the last axes")
    if source.dtype not in FLOATS:
        return Declined(f"RMSNormalization computes in float32, the value is {source.dtype}")
    fitted = trailing(scale, dims[axis:], facts, build)
    if fitted is None:
        return Declined(f"scale {facts.dims(scale)} is not of shape {dims[axis:]}")
    epsilon = float(match.constant("epsilon").reshape(-1)[0])
    attributes = {"axis": axis - len(dims), "epsilon": epsilon}
    return build.op("RMSNormalization", [source, fitted], attributes)


RMS_NORM = Rule("fuse RMSNormalization", _PATTERN, _rewrite)
