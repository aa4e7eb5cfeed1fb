"""Sums over data of the outer products of layers' inputs, which rounding by GPTQ needs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hasten.passes.facts import integers
from hasten.passes.quantize import Layer
from hasten.search.calibration import Feeds, run_values

Array = NDArray[Any]

LIMIT = 256 << 20
"""Bytes of matrices that are summed at once; one alone may be larger. More take more passes over the data."""

_PLACES = 4096  # windows of a convolution that count, evenly spread over those of one feed


@dataclass(frozen=True)
class Hessian:
    """What a layer multiplies, summed over data.

    Attributes:
        layer: which.
        sums: `[inputs, inputs]`, of the outer products of its inputs with themselves.
        rows: how many inputs that were.
    """

    layer: Layer
    sums: NDArray[np.float64]
    rows: int

    def trusted(self) -> NDArray[np.float64]:
        """The sums, those between different inputs taken for less as far as so few rows do not bear them out.

        With fewer rows than inputs each input seems to follow from the others, and errors of rounding seem to
        cancel that do not on other data. The share is that of Chen, Wiesel, Eldar and Hero 2010, "Shrinkage
        Algorithms for MMSE Covariance Estimation" (OAS), of the correlations: an input of a thousand times
        the size counts as one.
        """
        size = np.sqrt(np.diagonal(self.sums))
        active = int((size > 0).sum())
        if not active:
            return self.sums
        scale = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        squares = float(((self.sums * scale[:, None] * scale) ** 2).sum())
        excess = squares - active
        share = 1.0
        if excess > 0:
            share = ((1 - 2 / active) * squares + active**2) / ((self.rows + 1 - 2 / active) * excess)
        result = self.sums * (1 - min(1.0, share))
        np.fill_diagonal(result, np.diagonal(self.sums))
        return result


def hessians(
    model: ir.Model,
    feeds: Sequence[Feeds],
    layers: Sequence[Layer],
    *,
    limit: int = LIMIT,
    threads: int | None = None,
    cache: Path | None = None,
    until: float = math.inf,
) -> Iterator[Hessian]:
    """For each layer the matrix of its inputs, of as many rows and columns as products are summed.

    Convolutions in groups have none, and neither have those that leave their padding to `auto_pad`.

    Args:
        model: after `optimize_graph`.
        feeds: calibration data, read once for each `limit` bytes of matrices.
        layers: some of `passes.quantize.products`.
        limit: bytes of matrices in memory at once.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.
        until: a time by `time.monotonic` after which no more feeds are read, and no more matrices
            are given.

    Raises:
        CalibrationError: the data gives NaN or infinity.
    """
    nodes = {node.name: node for node in model.graph}
    wanted = [layer for layer in layers if _has_inputs(nodes[layer.name], layer)]
    while wanted and time.monotonic() < until:
        part, total = [wanted.pop(0)], 0
        total = 8 * part[0].depth ** 2
        while wanted and total + 8 * wanted[0].depth ** 2 <= limit:
            part.append(wanted.pop(0))
            total += 8 * part[-1].depth ** 2
        sums = {layer.name: np.zeros((layer.depth, layer.depth)) for layer in part}
        counts = dict.fromkeys(sums, 0)
        for found in run_values(model, feeds, values_of(part), threads=threads, cache=cache, until=until):
            for layer in part:
                rows = inputs_of(found[layer.activation], nodes[layer.name], layer, _PLACES)
                assert rows is not None
                sums[layer.name] += (rows.T @ rows).astype(np.float64)
                counts[layer.name] += len(rows)
        for layer in part:
            if time.monotonic() >= until:
                return
            yield Hessian(layer, sums.pop(layer.name), counts[layer.name])


def values_of(layers: Sequence[Layer]) -> dict[str, int]:
    """What `run_values` must give for `inputs_of`: the values that layers multiply, and axes of channels."""
    return {i.activation: 1 - len(i.shape) if i.op_type == "Conv" else -1 for i in layers}


def _has_inputs(node: ir.Node, layer: Layer) -> bool:
    return layer.groups == 1 and not _pads_itself(node)


def _pads_itself(node: ir.Node) -> bool:
    pad = node.attributes.get("auto_pad")
    return pad is not None and pad.as_string() != "NOTSET"


def inputs_of(array: Array, node: ir.Node, layer: Layer, most: int) -> NDArray[np.float32] | None:
    """[positions, inputs]: what the weights of an output are multiplied by; of groups, one after the other.

    Args:
        array: what the layer multiplies, its channels last.
        node: the layer's.
        layer: which.
        most: positions of a convolution, evenly spread over all of them.

    Returns:
        None for a convolution that leaves its padding to `auto_pad`.
    """
    if layer.op_type != "Conv":
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]))
    if _pads_itself(node):
        return None
    window = layer.shape[2:]
    rank = len(window)
    strides = integers(node, "strides") or (1,) * rank
    dilations = integers(node, "dilations") or (1,) * rank
    pads = integers(node, "pads") or (0,) * 2 * rank
    padded = np.pad(array, [(0, 0), *zip(pads[:rank], pads[rank:], strict=True), (0, 0)])
    reach = tuple((n - 1) * d + 1 for n, d in zip(window, dilations, strict=True))
    axes = tuple(range(1, rank + 1))
    view = sliding_window_view(padded, reach, axis=axes)  # [n, places..., channels, reach...]
    for axis, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        view = np.moveaxis(np.moveaxis(view, 1 + axis, 0)[::stride], 0, 1 + axis)
        view = np.moveaxis(np.moveaxis(view, axis - rank, 0)[::dilation], 0, axis - rank)
    places = view.shape[: rank + 1]
    chosen = np.linspace(0, np.prod(places) - 1, min(most, int(np.prod(places)))).astype(int)
    rows = view[np.unravel_index(chosen, places)]
    return np.ascontiguousarray(rows.reshape(len(chosen), -1))
