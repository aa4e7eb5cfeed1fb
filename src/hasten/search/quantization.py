"""A whole model to int8: calibrated, quantized, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import OptionError
from hasten.graph.constants import constant_value
from hasten.passes.correct_bias import add_biases, mean_error
from hasten.passes.facts import is_quantized
from hasten.passes.gptq import gptq
from hasten.passes.quantize import Layer, Range, Scheme, insert_qdq, observed_values, products
from hasten.passes.quantize_tables import quantize_tables
from hasten.passes.quantize_weights import Codes, quantize_weight
from hasten.passes.smooth import smooth
from hasten.search.calibration import Feeds, Observations, observe
from hasten.search.hessians import hessians
from hasten.search.histogram import METHODS, Method

Rounding = Literal["nearest", "gptq"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
RESTS = ("f32", "bf16")


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized to int8.

    Attributes:
        layers: names of the layers to quantize; None for all MatMul, Gemm and Conv with constant weights.
        ranges: how the range of an activation follows from what it is on the data: "minmax", "percentile",
            "entropy" or "mse".
        scheme: how the scales of weights are found, and what is quantized beside the operands of layers.
        smoothing: how much of the outliers of matrix products' activations moves into weights before anything
            is quantized (`passes.smooth`), from 0 to 1; None for not at all. 0.8 suits MiniLM best of the
            values tried; 0.5, that of the paper, made it worse than none.
        rounding: "nearest", or "gptq" for weights rounded by what they do to the layer's results.
        correct_bias: whether the mean error of each output channel is taken back in the bias.
        tables: whether large tables that are only looked up (embeddings) are in int8 too, with a scale for
            each row.
        rest: "f32" or "bf16": what the layers that are not quantized compute in.
    """

    layers: Collection[str] | None = None
    ranges: Method = "minmax"
    scheme: Scheme = field(default_factory=Scheme)
    smoothing: float | None = 0.8
    rounding: Rounding = "nearest"
    correct_bias: bool = True
    tables: bool = True
    rest: str = "f32"

    def __post_init__(self) -> None:
        if self.ranges not in METHODS:
            raise OptionError(f"ranges={self.ranges!r}: give one of {', '.join(METHODS)}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise OptionError(f"smoothing={self.smoothing!r}: give a number from 0 to 1, or None")
        if self.rounding not in ROUNDINGS:
            raise OptionError(f"rounding={self.rounding!r}: give one of {', '.join(ROUNDINGS)}")
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
        DataError: the data is empty.
        CalibrationError: it gives NaN or infinity.
        InputError: the data does not fit the model.
    """
    progress(f"calibrating on {len(feeds)} samples")
    ready = prepare(model, feeds, how, threads=threads, cache=cache)
    progress(f"quantizing {len(ready.layers)} layers")
    result = ready.quantized(ready.layers, ready.seen.ranges(how.ranges))
    report = {
        "layers": list(ready.layers),
        "ranges": how.ranges,
        "weights": how.scheme.weights,
        "smoothing": how.smoothing,
        "rounding": how.rounding,
        "correct_bias": how.correct_bias,
        "tables": how.tables,
        "samples": ready.seen.samples,
        "rest": how.rest,
    }
    return Quantized(result, report)


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for int8: any of its layers can be quantized without the data.

    Attributes:
        model: smoothed; computes the same as the model that it was made from.
        layers: names of the layers that may be quantized, in order.
        seen: of the smoothed model's values.
        careful: weights that were rounded by what they do, by layer.
        how: the choices.
    """

    model: ir.Model
    layers: tuple[str, ...]
    seen: Observations
    careful: Mapping[str, Codes]
    how: Quantization

    def corrections(self, layers: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """What to add to the results of some layers so that their mean is as before; nothing if not asked."""
        return self._corrections(self._codes(layers)) if self.how.correct_bias else {}

    def quantized(self, layers: Collection[str], ranges: Mapping[str, Range]) -> ir.Model:
        """The model with some layers in int8.

        Args:
            layers: some of `layers`.
            ranges: of what `seen` has seen, by any method.
        """
        model, codes = self.model, {n: c for n, c in self.careful.items() if n in layers}
        if self.how.correct_bias:
            codes = self._codes(layers)
            model = add_biases(model, self._corrections(codes))
        result = insert_qdq(model, ranges, layers, scheme=self.how.scheme, codes=codes)
        if self.how.tables:
            quantize_tables(result.graph)
        return result

    def _codes(self, layers: Collection[str]) -> dict[str, Codes]:
        scale = self.how.scheme.weights
        return {
            i.name: self.careful.get(i.name) or quantize_weight(_weight(self.model, i), i.axis, scale)
            for i in products(self.model)
            if i.name in layers
        }

    def _corrections(self, codes: Mapping[str, Codes]) -> dict[str, NDArray[np.float32]]:
        channels = self.seen.channels
        return {
            i.name: mean_error(i, _weight(self.model, i), codes[i.name], channels[i.activation].mean)
            for i in products(self.model)
            if i.name in codes
        }


def prepare(
    model: ir.Model,
    feeds: Sequence[Feeds],
    how: Quantization,
    *,
    threads: int | None = None,
    cache: Path | None = None,
) -> Prepared:
    """Everything about int8 that needs the data: smoothing, observing, rounding with care.

    Arguments and errors are those of `quantize`.
    """
    layers = _chosen_layers(model, how.layers)
    run = _Run(feeds, threads, cache)
    if how.smoothing is not None:
        model = run.smoothed(model, layers, how.smoothing)
    seen = run.observe(model, observed_values(model, layers, how.scheme))
    careful = run.rounded(model, layers, how.scheme) if how.rounding == "gptq" else {}
    return Prepared(model, tuple(layers), seen, careful, how)


@dataclass(frozen=True)
class _Run:
    """The data, and how to run a graph on it."""

    feeds: Sequence[Feeds]
    threads: int | None
    cache: Path | None

    def observe(self, model: ir.Model, values: Mapping[str, int | None]) -> Observations:
        return observe(model, self.feeds, values, threads=self.threads, cache=self.cache)

    def smoothed(self, model: ir.Model, layers: Collection[str], alpha: float) -> ir.Model:
        """The model with outliers of what matrix products read moved into their weights."""
        matrices = [i.name for i in products(model) if i.name in layers and i.op_type != "Conv"]
        if not matrices:
            return model
        channels = self.observe(model, observed_values(model, matrices, Scheme(residuals=()))).channels
        return smooth(model, {name: seen.largest for name, seen in channels.items()}, matrices, alpha)

    def rounded(self, model: ir.Model, layers: Collection[str], scheme: Scheme) -> dict[str, Codes]:
        """The weights of layers, rounded by what they do to the results."""
        chosen = [layer for layer in products(model) if layer.name in layers]
        found = hessians(model, self.feeds, chosen, threads=self.threads, cache=self.cache)
        return {i.name: gptq(_weight(model, i), i.axis, matrix, scheme.weights) for i, matrix in found}


def _weight(model: ir.Model, layer: Layer) -> NDArray[np.float32]:
    return np.asarray(constant_value(model.graph.initializers[layer.weight]), np.float32)


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
