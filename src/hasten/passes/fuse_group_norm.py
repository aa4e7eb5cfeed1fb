"""Group normalization (Wu and He 2018, https://arxiv.org/abs/1803.08494) from instance normalization.

Exporters write it as an InstanceNormalization of a tensor that is reshaped to have an axis of groups for that
of channels, which is reshaped back, scaled and moved channel by channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import Facts
from hasten.passes.fuse_layer_norm import FLOATS
from hasten.passes.rule import Builder, Const, Declined, Either, Match, Op, Rule, Var

_GROUPED = Op("Reshape", (Var("x"), Var("grouped_shape")), name="grouped")
_NORMAL = Op(
    "Reshape",
    (Op("InstanceNormalization", (_GROUPED, Const("scale"), Const("bias")), name="norm"), Var("shape")),
    name="normal",
)
_SCALED = Op("Mul", (_NORMAL, Const("factor")))
_PATTERN = Either((Op("Add", (_SCALED, Const("shift"))), _SCALED, _NORMAL))


def _group_norm(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined | None:
    x, norm = match.values["x"], match.nodes["norm"]
    before, grouped = facts.dims(x), facts.dims(match.nodes["grouped"].outputs[0])
    if x.dtype not in FLOATS or before is None or grouped is None or len(before) < 3 or len(grouped) != 3:
        return None
    channels, groups = before[1], grouped[1]
    known = isinstance(channels, int) and isinstance(groups, int) and groups > 0
    if not known or grouped[0] != before[0] or facts.dims(match.nodes["normal"].outputs[0]) != before:
        return None
    assert isinstance(channels, int) and isinstance(groups, int)
    if channels % groups:
        return Declined(f"{channels} channels are not {groups} groups of equal size")
    scale, bias = (np.repeat(match.constant(n), channels // groups) for n in ("scale", "bias"))
    for name in ("factor", "shift"):
        if name not in match.values:
            continue
        each = _by_channel(match.constant(name), len(before), channels)
        if each is None:
            return Declined(f"'{match.values[name].name}' is not one number for each channel")
        scale, bias = (scale * each, bias * each) if name == "factor" else (scale, bias + each)
    dtype = constant_value(match.values["scale"])
    assert dtype is not None
    weights = [build.constant(a.astype(dtype.dtype), n) for a, n in ((scale, "scale"), (bias, "bias"))]
    epsilon = norm.attributes.get("epsilon")
    attributes: dict[str, int | float] = {"num_groups": groups}
    attributes["epsilon"] = 1e-5 if epsilon is None else epsilon.as_float()
    return build.op("GroupNormalization", [x, *weights], attributes)


def _by_channel(array: np.ndarray, rank: int, channels: int) -> np.ndarray | None:
    """A constant as a number for each channel (axis 1), or None if it differs along another axis."""
    if array.ndim > rank:
        return None
    shape = (1, channels, *[1] * (rank - 2))
    padded = (*[1] * (rank - array.ndim), *array.shape)
    if any(n not in (1, m) for n, m in zip(padded, shape, strict=True)):
        return None
    return np.broadcast_to(array.reshape(padded), shape).reshape(-1)


GROUP_NORM = Rule("fuse GroupNormalization", _PATTERN, _group_norm)
