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
    ones,
    over_root,
    square,
    trailing,
)
from hasten.passes.rule import Builder, Declined, Either, Match, Op, Rule, Var
from hasten.passes.scalars import wider

_NORMAL = over_root(Var("x"), mean(square(Var("x")), "mean"))
_PATTERN = Either((Op("Mul", (_NORMAL, Var("scale"))), _NORMAL))


def _rewrite(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined:
    source, scale = match.values["x"], match.values.get("scale")
    dims = facts.dims(source)
    if dims is None:
        return Declined("the rank of the normalized value is unknown")
    axis = normalized_axis(match.nodes["mean"], dims)
    if axis is None:
        return Declined("the mean is not taken over the last axes")
    reason = wider(facts, match.output, source)
    if reason is not None:
        return Declined(reason)
    if source.dtype not in FLOATS:
        return Declined(f"RMSNormalization computes in float32, the value is {source.dtype}")
    sizes = dims[axis:]
    fitted = ones(source, sizes, build) if scale is None else trailing(scale, sizes, facts, build)
    if fitted is None:
        return Declined(f"the scale is {facts.dims(scale)}, not of shape {sizes}")
    epsilon = float(match.constant("epsilon").reshape(-1)[0])
    attributes = {"axis": axis - len(dims), "epsilon": epsilon}
    return build.op("RMSNormalization", [source, fitted], attributes)


RMS_NORM = Rule("fuse RMSNormalization", _PATTERN, _rewrite)
