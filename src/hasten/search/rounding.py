"""Weights of layers rounded on data by what they do to the results, in one or several formats at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hasten.graph.pages import give_back
from hasten.passes.gptq import gptq, gptq_blocks
from hasten.passes.quantize import Scheme
from hasten.passes.quantize_weights import Codes
from hasten.passes.weight_blocks import BlockCodes, columns
from hasten.search.calibration import Feeds
from hasten.search.formats import WEIGHTS, Careful, Format, blocks_of, layers_for, weight_of
from hasten.search.hessians import LIMIT, hessians


@dataclass(frozen=True)
class Bounds:
    """How much rounding may take.

    Attributes:
        bytes: of matrices in memory at once (`hessians`).
        deepest: the most products that may be summed in a layer; time and memory grow with the third and the
            second power. None for any number.
        until: a time by `time.monotonic` after which the layers that are left are left out.
    """

    bytes: int = LIMIT
    deepest: int | None = None
    until: float = math.inf


_ANY = Bounds()


def round_carefully(
    model: ir.Model,
    feeds: Sequence[Feeds],
    layers: Collection[str],
    formats: Collection[Format],
    scheme: Scheme,
    *,
    bounds: Bounds = _ANY,
    threads: int | None = None,
    cache: Path | None = None,
) -> Careful:
    """Rounds weights by GPTQ.

    Args:
        model: after `optimize_graph`; smoothed, if that is done at all.
        feeds: calibration data.
        layers: names.
        formats: that each of them is rounded to, where it can have it.
        scheme: how scales of output channels are found, and how many inputs share one.
        bounds: how much it may take.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.

    Raises:
        CalibrationError: the data gives NaN or infinity.
    """
    able = {form: {layer.name for layer in layers_for(model, form)} for form in formats}
    wanted = [
        layer
        for layer in layers_for(model, "int8")
        if layer.name in layers
        and (bounds.deepest is None or layer.depth <= bounds.deepest)
        and any(layer.name in names for names in able.values())
    ]
    channels: dict[str, Codes] = {}
    blocks: dict[Format, dict[str, BlockCodes]] = {form: {} for form in formats if form in WEIGHTS}
    each = hessians(
        model, feeds, wanted, limit=bounds.bytes, threads=threads, cache=cache, until=bounds.until
    )
    for found in each:
        layer, matrix = found.layer, found.trusted()
        if any(layer.name in able[form] for form in formats if form not in WEIGHTS):
            channels[layer.name] = gptq(weight_of(model, layer), layer.axis, matrix, scheme.weights)
        for form, codes in blocks.items():
            if layer.name in able[form]:
                weight = columns(model.graph.initializers[layer.weight], layer.axis)
                codes[layer.name] = gptq_blocks(weight, blocks_of(form, scheme), matrix)
        give_back(model)
    return Careful(channels, blocks)
