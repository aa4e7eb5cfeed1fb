"""A whole model to int8: calibrated, quantized, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten.errors import OptionError
from hasten.passes.facts import is_quantized
from hasten.passes.quantize import Scheme, insert_qdq, observed_values, products
from hasten.search.calibration import Feeds, observe
from hasten.search.histogram import METHODS, Method

RESTS = ("f32", "bf16")


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized to int8.

    Attributes:
        layers: names of the layers to quantize; None for all MatMul, Gemm and Conv with constant weights.
        ranges: how the range of an activation follows from what it is on the data: "minmax", "percentile",
            "entropy" or "mse".
        scheme: how weights are quantized, and what is beside the operands of layers.
        rest: "f32" or "bf16": what the layers that are not quantized compute in.
    """

    layers: Collection[str] | None = None
    ranges: Method = "minmax"
    scheme: Scheme = field(default_factory=Scheme)
    rest: str = "f32"

    def __post_init__(self) -> None:
        if self.ranges not in METHODS:
            raise OptionError(f"ranges={self.ranges!r}: give one of {', '.join(METHODS)}")
        if self.rest not in RESTS:
            raise OptionError(f"rest={self.rest!r}: give one of {', '.join(RESTS)}")


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what was done for people to read."""

    model: ir.Model
    report: dict[str, Any]


def quantize(
    model: ir.Model,
    feeds: Sequence[Feeds],
    how: Quantization,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Quantized:
    """Quantizes a model.

    Args:
        model: after `optimize_graph`; it is left as it is.
        feeds: calibration data: arrays for the model's inputs, by name.
        how: the choices.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.
        progress: is told what begins.

    Raises:
        OptionError: there is nothing to quantize, or no layer of a name that was given, or the model is
            quantized already.
        CalibrationError: the data is empty, or gives NaN or infinity.
        InputError: the data does not fit the model.
    """
    layers = _chosen_layers(model, how.layers)
    progress(f"calibrating on {len(feeds)} samples")
    values = observed_values(model, layers, how.scheme)
    seen = observe(model, feeds, values, threads=threads, cache=cache)
    ranges = seen.ranges(how.ranges)
    progress(f"quantizing {len(layers)} layers")
    result = insert_qdq(model, ranges, layers, scheme=how.scheme)
    report = {
        "layers": layers,
        "ranges": how.ranges,
        "weights": how.scheme.weights,
        "samples": seen.samples,
        "rest": how.rest,
    }
    return Quantized(result, report)


def _chosen_layers(model: ir.Model, wanted: Collection[str] | None) -> list[str]:
    known = [layer.name for layer in products(model)]
    if is_quantized(model):
        raise OptionError("the model is quantized already: compile it as it is, without precision='int8'")
    if not known:
        raise OptionError(
            "the model has no MatMul, Gemm or Conv in float32 with constant weights: there is nothing to "
            "quantize; compile it without precision='int8'"
        )
    if wanted is None:
        return known
    missing = sorted(set(wanted) - set(known))
    if missing:
        raise OptionError(
            f"there is no layer {missing[0]!r} that can be quantized; there are {', '.join(known)}"
        )
    return [name for name in known if name in set(wanted)]
