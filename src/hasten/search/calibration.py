"""What the values of a graph look like on data: ranges, and statistics of channels.

The graph runs as hasten compiles it, with the values as further outputs. Only statistics are kept, 32 KB for
each value and a few numbers for each of its channels; the values themselves are those of one feed at a
time. Positions that a mask hides do not count.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.backends.native import Options, compile_graph
from hasten.errors import CalibrationError, DataError
from hasten.graph.pages import give_back
from hasten.loops.dtypes import DType
from hasten.passes.quantize import Range, Scheme, observed_values
from hasten.runtime.artifact import write_artifact
from hasten.runtime.session import open_session
from hasten.search.hidden import Hidden, hidden_in
from hasten.search.histogram import Histogram, Method
from hasten.target import native

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Channels:
    """Statistics of a value along the axis of its channels, each an array with one number for a channel.

    Attributes:
        low: the least element.
        high: the greatest element.
        mean: float64.
    """

    low: Array
    high: Array
    mean: Array

    @property
    def largest(self) -> Array:
        """The greatest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class Observations:
    """What was seen of some values, by name.

    Attributes:
        histograms: of all values.
        channels: of those that are multiplied by the weights of a layer.
        samples: arrays that each value was seen as: the number of feeds that were read.
    """

    histograms: Mapping[str, Histogram]
    channels: Mapping[str, Channels]
    samples: int

    def ranges(self, method: Method) -> dict[str, Range]:
        """A range for each value."""
        return {name: histogram.range(method) for name, histogram in self.histograms.items()}


def calibrate(
    model: ir.Model,
    feeds: Iterable[Feeds],
    layers: Collection[str],
    method: Method,
    *,
    scheme: Scheme | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> dict[str, Range]:
    """The ranges that `passes.quantize.insert_qdq` needs to quantize some layers.

    Args:
        model: after `optimize_graph`; it is left as it is.
        feeds: arrays for the model's inputs, as often as there are samples or batches.
        layers: names of the layers.
        method: how a range follows from what was seen (`Histogram.range`).
        scheme: as for `insert_qdq`.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.

    Raises:
        DataError: there is no data.
        CalibrationError: it gives NaN or infinity; the message names the value.
        InputError: an array does not fit the model.
    """
    return observe(model, feeds, observed_values(model, layers, scheme), threads=threads, cache=cache).ranges(
        method
    )


def observe(
    model: ir.Model,
    feeds: Iterable[Feeds],
    values: Mapping[str, int | None],
    *,
    threads: int | None = None,
    cache: Path | None = None,
    until: float = math.inf,
) -> Observations:
    """Statistics of values of a graph on data.

    Args:
        model: after `optimize_graph`; it is left as it is.
        feeds: arrays for the model's inputs, as often as there are samples or batches.
        values: names of float values, each with the axis of its channels if statistics of those are wanted
            (`observed_values`), counted from the end.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.
        until: a time by `time.monotonic` after which no more feeds are read; one is read at least.

    Raises:
        DataError: there is no data.
        CalibrationError: it gives NaN or infinity; the message names the value.
        InputError: an array does not fit the model.
    """
    histograms = {name: Histogram() for name in values}
    sums = {name: _Sums() for name, axis in values.items() if axis is not None}
    samples = 0
    for found in run_values(model, feeds, values, threads=threads, cache=cache, until=until):
        for name, array in found.items():
            histograms[name].add(array)
            if name in sums and array.size:
                sums[name].add(array)
        samples += 1
    if not samples:
        raise DataError("there is no calibration data: give at least one sample")
    channels = {name: total.channels() for name, total in sums.items() if total.count}
    return Observations(histograms, channels, samples)


def run_values(
    model: ir.Model,
    feeds: Iterable[Feeds],
    values: Mapping[str, int | None],
    *,
    threads: int | None = None,
    cache: Path | None = None,
    until: float = math.inf,
) -> Iterator[dict[str, Array]]:
    """The values of a graph for each of some feeds, in turn until a time; the first one at least.

    Everything that is measured inside of a graph comes from here, and so its deadline does.

    Yields:
        For each value an array whose last axis is that of its channels. Positions that a mask hides are left
        out of it, so that its other axes mean nothing.

    Raises:
        CalibrationError: an input or a value has NaN or infinity.
    """
    extended = with_outputs(model, [name for name in values if not _is_input(model, name)])
    # Hidden positions are not computed, and are left out below.
    payload = compile_graph(extended, Options((native(),), threads, DType.F32, cache), {}, "")
    padding = payload.manifest["report"]["padding"]
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        path = Path(folder) / "observed.hasten"
        write_artifact(path, payload.manifest, payload.members)
        del payload, extended
        give_back(model)  # what runs is mapped from the artifact
        session = open_session(path, threads=threads, verify="never")
    with session:
        for number, given in enumerate(feeds):
            if number and time.monotonic() >= until:
                return
            _check_finite(given, "the calibration data's input", number)
            found = {**given, **session.run(given)}
            kept = {name: found[name] for name in values}
            _check_finite(kept, "the value", number)
            hidden = hidden_in(padding, given)
            yield {
                name: _shown(array, hidden.get(name), -1 if values[name] is None else values[name])
                for name, array in kept.items()
            }


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of a model with some of its values as outputs too; it shares the tensors."""
    result = model.clone()
    graph = result.graph
    made = {value.name: value for node in graph for value in node.outputs}
    for name in names:
        value = made[name]
        if not value.is_graph_output():
            graph.outputs.append(value)
    return result


def _is_input(model: ir.Model, name: str) -> bool:
    return any(value.name == name for value in model.graph.inputs)


def _check_finite(arrays: Mapping[str, Array], kind: str, number: int) -> None:
    for name, array in arrays.items():
        values = np.asarray(array)
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        what = "NaN" if np.isnan(values).any() else "infinity"
        raise CalibrationError(
            f"{kind} {name!r} has {what} in sample {number}: ranges can only be found for finite numbers; "
            "repair the data, or leave that sample out"
        )


def _shown(array: Array, hidden: Hidden | None, axis: int | None) -> Array:
    """The elements at positions that are not hidden, with the axis of channels as the last one."""
    place = -1 if axis is None else axis
    if not array.ndim:
        return array.reshape(1)
    if hidden is not None:
        mask, axes = hidden.positions, hidden.axes
        first = np.moveaxis(array, axes, (0, 1))
        places = [a for a in range(array.ndim) if a not in axes]
        if first.shape[:2] == mask.shape and place % array.ndim in places:
            return np.moveaxis(first[~mask], 1 + places.index(place % array.ndim), -1)
    return np.moveaxis(array, place, -1)


class _Sums:
    """Limits and sums of channels."""

    def __init__(self) -> None:
        self.count = 0
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)
        self.total: Array = np.zeros(0)

    def add(self, array: Array) -> None:
        rows = array.reshape(-1, array.shape[-1])
        low, high, total = rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0, dtype=np.float64)
        if not self.count:
            self.low, self.high, self.total = low, high, total
        else:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            self.total = self.total + total
        self.count += len(rows)

    def channels(self) -> Channels:
        return Channels(self.low, self.high, self.total / self.count)
