"""One method of calibration for each activation: the one that changes the results of its layers least."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.passes.quantize import Range, Scheme, products
from hasten.passes.quantize_weights import quantize_weight
from hasten.search.calibration import Feeds, run_values
from hasten.search.formats import weight_of
from hasten.search.hessians import inputs_of, values_of
from hasten.search.histogram import Method

_FEEDS = 8  # calibration samples that errors are measured on
_ROWS = 256  # of what a layer multiplies that count in each of them, evenly spread


def choose_ranges(
    model: ir.Model,
    feeds: Sequence[Feeds],
    layers: Collection[str],
    ranges: Mapping[Method, Mapping[str, Range]],
    scheme: Scheme,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    until: float = math.inf,
) -> dict[str, Method]:
    """For each activation that layers multiply, the method for which their results change least.

    The change is the mean squared error of a layer's results with activation and weight in int8, by their
    variance; of an activation that several layers multiply, their sum. Only samples and rows that are spread
    evenly over the data count.

    Args:
        model: after `optimize_graph`.
        feeds: calibration data.
        layers: names.
        ranges: of activations, by method.
        scheme: how scales of weights are found.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.
        until: a time by `time.monotonic` after which no more samples count; one does at least.

    Raises:
        CalibrationError: the data gives NaN or infinity.
    """
    chosen = [layer for layer in products(model) if layer.name in layers]
    nodes = {node.name: node for node in model.graph}
    codes = {i.name: quantize_weight(weight_of(model, i), i.axis, scheme.weights) for i in chosen}
    few = [feeds[i] for i in np.unique(np.linspace(0, len(feeds) - 1, _FEEDS).astype(int))]
    errors: dict[str, NDArray[np.float64]] = {i.activation: np.zeros(len(ranges)) for i in chosen}
    for found in run_values(model, few, values_of(chosen), threads=threads, cache=cache, until=until):
        for layer in chosen:
            rows = inputs_of(found[layer.activation], nodes[layer.name], layer, _ROWS)
            if rows is None or not rows.size:
                continue
            rows = rows[:: -(-len(rows) // _ROWS)]
            plain = _outputs_first(weight_of(model, layer), layer.axis)
            narrow = _outputs_first(codes[layer.name].weight(layer.axis), layer.axis)
            wanted = _results(rows, plain, layer.groups)
            spread = float(wanted.var()) or 1.0
            for number, of in enumerate(ranges.values()):
                taken = _rounded(rows, of[layer.activation])
                error = np.square(_results(taken, narrow, layer.groups) - wanted).mean()
                errors[layer.activation][number] += float(error) / spread
    methods = list(ranges)
    return {name: methods[int(np.argmin(total))] for name, total in errors.items()}


def _outputs_first(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """[outputs, inputs of a group]."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _results(rows: NDArray[np.float32], weight: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """[positions, outputs] of rows [positions, inputs of all groups]."""
    if groups == 1:
        result: NDArray[np.float32] = rows @ weight.T
        return result
    parts = rows.reshape(len(rows), groups, -1)
    each = weight.reshape(groups, -1, weight.shape[1])
    summed: NDArray[np.float32] = np.einsum("pgi,goi->pgo", parts, each)
    return summed.reshape(len(rows), -1)


def _rounded(rows: NDArray[np.float32], of: Range) -> NDArray[np.float32]:
    """In 8 bits and back."""
    scale, zero = (np.float32(p) for p in of.parameters())
    codes: NDArray[np.float32] = np.clip(np.rint(rows / scale) + zero, 0, 255)
    return (codes - zero) * scale
