"""Masks of an attention: which positions a query may see, as a boolean or an added float."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hasten.passes.facts import Facts
from hasten.passes.rule import Builder, Declined
from hasten.passes.scalars import scalar_value

_LOWEST = float(np.finfo(np.float32).min)
_ABSORBING = -1e30  # fills below this leave nothing of a score in float32
_LOW = -1e4  # models that compute in float16 hide scores by this number: none of theirs is near it


@dataclass(frozen=True)
class MaskPart:
    """One mask.

    Attributes:
        value: the added tensor, or the condition.
        kind: "added"; "kept" where true means visible; "hidden" where true means masked.
        fill: for a condition, the number that stands at masked places.
    """

    value: ir.Value
    kind: str
    fill: float = -math.inf


def additive_mask(value: ir.Value) -> MaskPart:
    """Read the other operand of the Add; `Where(keep, 0, -inf)` is a boolean mask."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Where" or node.inputs[0] is None:
        return MaskPart(value, "added")
    yes, no = scalar_value(node.inputs[1]), scalar_value(node.inputs[2])
    if yes == 0.0 and no == -math.inf:
        return MaskPart(node.inputs[0], "kept")
    if no == 0.0 and yes == -math.inf:
        return MaskPart(node.inputs[0], "hidden")
    return MaskPart(value, "added")


def filled_mask(node: ir.Node) -> tuple[ir.Value, MaskPart] | Declined | None:
    """Read `Where(condition, scores, fill)` in either order: the scores and their mask.

    A finite fill must be so low that softmax gives nothing to what is hidden: 104 below the largest score
    that is visible, beyond which `exp` is 0 in float32.
    """
    condition, yes, no = node.inputs
    if condition is None or yes is None or no is None:
        return None
    for scores, fill, kind in ((yes, scalar_value(no), "kept"), (no, scalar_value(yes), "hidden")):
        if fill is None:
            continue
        if fill > _LOW:
            return Declined(f"masked scores are set to {fill:g}, which may be near the others")
        return scores, MaskPart(condition, kind, fill)
    return None


def mask_problem(parts: tuple[MaskPart, ...], facts: Facts) -> str | None:
    """Why masks cannot be given to `Attention`, or None if they can."""
    for part in parts:
        dims = facts.dims(part.value)
        if dims is None or not 0 < len(dims) <= 4:
            return f"mask {part.value.name!r} has dimensions {dims}, not one to four"
        if dims[-1] == 1:
            return f"mask {part.value.name!r} is one number for all keys of a query"
        if part.kind != "added" and part.fill > _ABSORBING and len(parts) > 1:
            return f"masked scores are set to {part.fill:g}, which another mask may come near"
    return None


def merge_masks(parts: tuple[MaskPart, ...], facts: Facts, build: Builder) -> ir.Value | None:
    """Build the mask input of `Attention`, of rank 2 or 4; None where there is no mask.

    `mask_problem` has found nothing against it.
    """
    if not parts:
        return None
    merged: ir.Value | None = None
    if all(_is_boolean(part) for part in parts):
        for part in parts:
            kept = part.value if part.kind == "kept" else build.op("Not", [part.value])
            merged = kept if merged is None else build.op("And", [merged, kept])
    else:
        for part in parts:
            term = _as_added(part, build)
            merged = term if merged is None else build.op("Add", [merged, term])
    rank = max(len(facts.dims(part.value) or ()) for part in parts)
    if merged is None or rank in (2, 4):
        return merged
    return build.op("Unsqueeze", [merged, build.integers(list(range(4 - rank)), "axes")])


def _is_boolean(part: MaskPart) -> bool:
    return part.kind != "added" and part.fill == -math.inf


def _as_added(part: MaskPart, build: Builder) -> ir.Value:
    if part.kind == "added":
        return part.value
    zero = build.constant(np.array(0, dtype=np.float32), "zero")
    # The lowest number leaves nothing of a score: rows that are hidden altogether stay plain averages.
    number = part.fill if part.fill <= _ABSORBING else _LOWEST
    fill = build.constant(np.array(number, dtype=np.float32), "fill")
    choices = [zero, fill] if part.kind == "kept" else [fill, zero]
    return build.op("Where", [part.value, *choices])
