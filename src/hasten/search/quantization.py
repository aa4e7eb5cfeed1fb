"""A whole model to int8: calibrated, quantized, and what is to be said about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import OptionError
from hasten.passes.correct_bias import add_biases, mean_error
from hasten.passes.facts import is_quantized
from hasten.passes.quantize import Layer, Range, Scheme, observed_values, products
from hasten.passes.quantize_tables import quantize_tables
from hasten.passes.smooth import smooth
from hasten.passes.weight_blocks import GROUPS
from hasten.search.calibration import Feeds, Observations, observe
from hasten.search.formats import NEAREST, Careful, Format, in_formats, weight_in, weight_of
from hasten.search.histogram import METHODS, Method
from hasten.search.range_choice import choose_ranges
from hasten.search.rounding import Bounds, round_carefully

Ranges = Literal[Method, "layer"]
RANGES: tuple[Ranges, ...] = (*METHODS, "layer")
Rounding = Literal["nearest", "gptq"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
RESTS = ("f32", "bf16")
_INT8: tuple[Format, ...] = ("int8",)


@dataclass(frozen=True)
class Quantization:
    """How a model is quantized.

    With weights alone in 8 or 4 bits, `ranges` says nothing; without data, `smoothing`, `rounding` and
    `correct_bias` say nothing either.

    Attributes:
        layers: names of the layers to quantize; None for all MatMul, Gemm and Conv with constant weights.
        ranges: how the range of an activation follows from what it is on the data: "minmax", "percentile",
            "entropy" or "mse"; "layer" takes for each the one that changes the layer's results least.
        scheme: how the scales of weights are found and which weights share one, and what is quantized beside
            the operands of layers.
        smoothing: how much of the outliers of matrix products' activations moves into weights before anything
            is quantized (`passes.smooth`), from 0 to 1; None for not at all. 0.8 suits MiniLM best of the
            values tried; 0.5, that of the paper, made it worse than none.
        rounding: "nearest", or "gptq" for weights rounded by what they do to the layer's results. None for
            the usual: "gptq" where weights alone are quantized and there is data, else "nearest".
        correct_bias: whether the mean error of each output channel is taken back in the bias.
        tables: whether large tables that are only looked up (embeddings) are in int8 too, with a scale for
            each row.
        rest: "f32" or "bf16": what the layers that are not quantized compute in.
    """

    layers: Collection[str] | None = None
    ranges: Ranges = "minmax"
    scheme: Scheme = field(default_factory=Scheme)
    smoothing: float | None = 0.8
    rounding: Rounding | None = None
    correct_bias: bool = True
    tables: bool = True
    rest: str = "f32"

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise OptionError(f"ranges={self.ranges!r}: give one of {', '.join(RANGES)}")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise OptionError(f"smoothing={self.smoothing!r}: give a number from 0 to 1, or None")
        if self.rounding is not None and self.rounding not in ROUNDINGS:
            raise OptionError(f"rounding={self.rounding!r}: give one of {', '.join(ROUNDINGS)}")
        if self.rest not in RESTS:
            raise OptionError(f"rest={self.rest!r}: give one of {', '.join(RESTS)}")
        if self.scheme.group is not None and self.scheme.group not in GROUPS:
            raise OptionError(f"group={self.scheme.group}: give one of {', '.join(map(str, GROUPS))}")


@dataclass(frozen=True)
class Quantized:
    """A quantized model, what was done for people to read, and what they may not have expected."""

    model: ir.Model
    report: dict[str, Any]
    warnings: tuple[str, ...] = ()


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
    result = ready.quantized(dict.fromkeys(ready.layers, "int8"), ready.ranges(how.ranges))
    report = {
        "layers": list(ready.layers),
        "ranges": how.ranges,
        "weights": how.scheme.weights,
        "smoothing": how.smoothing,
        "rounding": how.rounding or "nearest",
        "correct_bias": how.correct_bias,
        "tables": how.tables,
        "samples": ready.seen.samples,
        "rest": how.rest,
    }
    return Quantized(result, report)


@dataclass(frozen=True)
class Prepared:
    """A model whose layers can be had in any format without the data.

    Attributes:
        model: smoothed; computes the same as the model that it was made from.
        layers: names of the layers that may be quantized, in order.
        seen: of the smoothed model's values.
        methods: of calibration, for activations that have one of their own where ranges are those of "layer".
        careful: weights that were rounded by what they do; taken if `how` says so.
        how: the choices.
    """

    model: ir.Model
    layers: tuple[str, ...]
    seen: Observations
    methods: Mapping[str, Method]
    careful: Careful
    how: Quantization

    def ranges(self, method: Ranges) -> dict[str, Range]:
        """A range for each value; values that only sums read have the whole of what was seen for "layer"."""
        if method != "layer":
            return self.seen.ranges(method)
        return {n: h.range(self.methods.get(n, "minmax")) for n, h in self.seen.histograms.items()}

    def corrections(self, formats: Mapping[str, Format]) -> dict[str, NDArray[np.float32]]:
        """What to add to the results of layers so that their mean is as before; nothing if not asked."""
        if not self.how.correct_bias:
            return {}
        return {
            i.name: mean_error(
                i,
                weight_of(self.model, i),
                self.weight(i, formats[i.name]),
                self.seen.channels[i.activation].mean,
            )
            for i in products(self.model)
            if i.name in formats
        }

    @property
    def _rounded(self) -> Careful:
        return self.careful if self.how.rounding == "gptq" else NEAREST

    def weight(self, layer: Layer, form: Format) -> NDArray[np.float32]:
        """What a layer's weight becomes in a format."""
        return weight_in(self.model, layer, form, self.how.scheme, self._rounded)

    def quantized(self, formats: Mapping[str, Format], ranges: Mapping[str, Range]) -> ir.Model:
        """The model with some layers in other formats.

        Args:
            formats: by the name of some of `layers`.
            ranges: of what `seen` has seen, by any method.
        """
        model = self.model
        if self.how.correct_bias:
            model = add_biases(model, self.corrections(formats))
        result = in_formats(model, formats, ranges, self.how.scheme, self._rounded)
        if self.how.tables:
            quantize_tables(result.graph)
        return result


def prepare(
    model: ir.Model,
    feeds: Sequence[Feeds],
    how: Quantization,
    formats: Collection[Format] = _INT8,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    until: float = math.inf,
) -> Prepared:
    """Everything about quantization that needs the data: smoothing, observing, rounding with care.

    Arguments and errors are those of `quantize`; weights are rounded with care for `formats`. After `until`,
    a time by `time.monotonic`, no more of the data is read than a first sample by each step. How many samples
    ranges were observed on is in `seen`.
    """
    layers = _chosen_layers(model, how.layers)
    steps = iter(_shared(until, 3))
    if how.smoothing is not None:
        model = _smoothed(model, feeds, layers, how.smoothing, threads, cache, next(steps))
    values = observed_values(model, layers, how.scheme)
    seen = observe(model, feeds, values, threads=threads, cache=cache, until=next(steps))
    methods: Mapping[str, Method] = {}
    if how.ranges == "layer":
        every = {method: seen.ranges(method) for method in METHODS}
        methods = choose_ranges(
            model, feeds, layers, every, how.scheme, threads=threads, cache=cache, until=until
        )
    careful = NEAREST
    if how.rounding == "gptq":
        bounds = Bounds(until=until)
        careful = round_carefully(
            model, feeds, layers, formats, how.scheme, bounds=bounds, threads=threads, cache=cache
        )
    return Prepared(model, tuple(layers), seen, methods, careful, how)


def _shared(until: float, steps: int) -> list[float]:
    """Times at which steps must have ended, one after the other, that share what is left until a time."""
    now = time.monotonic()
    return [until if math.isinf(until) else now + (until - now) * (n + 1) / steps for n in range(steps)]


def _smoothed(
    model: ir.Model,
    feeds: Sequence[Feeds],
    layers: Collection[str],
    alpha: float,
    threads: int | None,
    cache: Path | None,
    until: float,
) -> ir.Model:
    """The model with outliers of what matrix products read moved into their weights."""
    matrices = [i.name for i in products(model) if i.name in layers and i.op_type != "Conv"]
    if not matrices:
        return model
    values = observed_values(model, matrices, Scheme(residuals=()))
    channels = observe(model, feeds, values, threads=threads, cache=cache, until=until).channels
    return smooth(model, {name: seen.largest for name, seen in channels.items()}, matrices, alpha)


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
