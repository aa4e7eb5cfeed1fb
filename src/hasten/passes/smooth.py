"""Outliers of activations moved into weights, so that both are easy to quantize.

x W = (x / s) (s W) for any positive factor s of each input channel. Where one channel of x is far larger than
the others, dividing it by a large s leaves more codes for those, and the weights, which have a scale for
each column, take the factor. Xiao et al., SmoothQuant (2022), equation 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.insertion import Insertion
from hasten.passes.quantize import Layer, products

_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,)}
"""Normalizations, and their inputs that scale the result."""

OUTLIER = 4.0
"""How far above the median the largest channel must be for anything to move."""

_MATRICES = ("MatMul", "Gemm")


def smooth(
    model: ir.Model,
    largest: Mapping[str, NDArray[np.floating]],
    layers: Collection[str],
    alpha: float = 0.5,
) -> ir.Model:
    """A model that computes the same, with the channels of activations evened out.

    The division goes into the scale of a normalization that makes the activation for these layers alone; else
    it is a Mul, which the code generator fuses into whatever makes the activation.

    Args:
        model: after `optimize_graph`; it is left as it is.
        largest: the greatest magnitude in each channel of activations, by name.
        layers: names of the matrix products that will be quantized; convolutions are left alone.
        alpha: how much of the outliers moves, from 0 (none) to 1 (all).
    """
    result = model.clone()
    groups: dict[str, list[Layer]] = {}
    for layer in products(result):
        if layer.name in layers and layer.op_type in _MATRICES and layer.activation in largest:
            groups.setdefault(layer.activation, []).append(layer)
    nodes = {node.name: node for node in result.graph}
    insert = Insertion(result.graph)
    for name, group in groups.items():
        readers = [nodes[layer.name] for layer in group]
        rows = [_rows(node, layer) for node, layer in zip(readers, group, strict=True)]
        weights = np.max([np.abs(r).max(axis=1, initial=0.0) for r in rows], axis=0)
        factors = smoothing_factors(np.asarray(largest[name], np.float32), weights, alpha)
        if factors is None:
            continue
        _divide(insert, readers, np.reciprocal(factors))
        for node, layer in zip(readers, group, strict=True):
            _multiply_weight(insert, node, layer, factors)
    remove_dead_code(result.graph)
    return result


def smoothing_factors(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float32] | None:
    """The factor of each channel; None if all channels are alike.

    Evened out channels have no reserve: each is cut off as soon as it is larger than on the calibration data.
    Where no channel is far above the median that costs more than it gains. So do channels below the median if
    they grow, which is why they count as the median: one behind a ReLU that seldom opens is small by chance.

    Args:
        activations: the greatest magnitude in each channel.
        weights: that of the weights by which a channel is multiplied.
        alpha: how much of the outliers moves.
    """
    used = weights > 0
    if not used.any() or not (activations > 0).any():
        return None
    floor = max(float(np.median(activations)), float(activations.max()) * 1e-5)
    if activations.max() < OUTLIER * floor:
        return None
    x = np.maximum(activations.astype(np.float64), floor)
    w = np.where(used, weights, 1.0).astype(np.float64)
    factors = np.where(used, x**alpha / w ** (1 - alpha), 1.0)
    # A common factor changes nothing; around 1 nothing overflows.
    factors = np.where(used, factors / np.exp(np.log(factors[used]).mean()), 1.0)
    return np.clip(factors, 1e-5, 1e5).astype(np.float32)


def _rows(node: ir.Node, layer: Layer) -> NDArray[np.float32]:
    """The weight as [inputs, outputs]."""
    array = np.asarray(constant_value(node.inputs[1]), np.float32)
    return array if layer.axis == 1 else array.T


def _multiply_weight(insert: Insertion, node: ir.Node, layer: Layer, factors: NDArray[np.float32]) -> None:
    rows = _rows(node, layer) * factors[:, None]
    weight = insert.constant(rows if layer.axis == 1 else rows.T, f"{layer.weight}/smoothed")
    node.replace_input_with(1, weight)


def _divide(insert: Insertion, readers: list[ir.Node], reciprocals: NDArray[np.float32]) -> None:
    """Lets products read their activation times a number for each channel."""
    value = readers[0].inputs[0]
    assert value is not None
    producer = value.producer()
    if producer is not None and _only_for(value, readers) and _is_scaled_norm(producer):
        for index in _NORMS[producer.op_type]:
            given = producer.inputs[index] if index < len(producer.inputs) else None
            if given is not None:
                scaled = np.asarray(constant_value(given), np.float32) * reciprocals
                producer.replace_input_with(index, insert.constant(scaled, f"{given.name}/smoothed"))
        return
    factor = insert.constant(reciprocals, f"{value.name}/factors")
    node = insert.node("Mul", [value, factor], "smoothed", value)
    insert.behind(value, [node])
    for reader in readers:
        reader.replace_input_with(0, node.outputs[0])


def _only_for(value: ir.Value, readers: list[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in readers and use.idx == 0 for use in value.uses())


def _is_scaled_norm(node: ir.Node) -> bool:
    """Whether a node normalizes its last axis, and scales it by constants of one number for each channel."""
    if node.domain or node.op_type not in _NORMS:
        return False
    arrays = [constant_value(node.inputs[i]) for i in _NORMS[node.op_type] if i < len(node.inputs)]
    given = [i for i in _NORMS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None]
    found = [a for a in arrays if a is not None]
    return len(found) == len(given) and bool(found) and all(a.ndim == 1 for a in found)
