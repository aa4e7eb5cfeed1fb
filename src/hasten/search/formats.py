"""What a layer can be stored and computed in instead of floats, and graphs with a choice for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.quantize import Layer, Range, Scheme, insert_qdq, products
from hasten.passes.quantize_dynamic import insert_dynamic, rowwise_layers
from hasten.passes.quantize_weights import Codes, quantize_weight
from hasten.passes.weight_blocks import (
    BlockCodes,
    WeightBlocks,
    block_layers,
    columns,
    insert_weight_codes,
    round_blocks,
)

Format = Literal["int8", "int8-dynamic", "int8-weights", "int4-weights"]
"""int8: activations in 8 bits with a scale for a tensor, found on data; int8-dynamic: with a scale for each
row, found in the run; the others: weights alone."""

FORMATS: tuple[Format, ...] = get_args(Format)

WEIGHTS: Mapping[Format, WeightBlocks] = {
    "int8-weights": WeightBlocks(8, 128),
    "int4-weights": WeightBlocks(4, 32, zero_points=True),
}
"""Formats of weights alone, with the blocks that they have unless others are asked for (`blocks_of`)."""


@dataclass(frozen=True)
class Careful:
    """Weights that were rounded by what they do to the results, by the layer's name.

    Attributes:
        channels: in 8 bits with a scale for each output channel.
        blocks: by format, in blocks of inputs.
    """

    channels: Mapping[str, Codes] = field(default_factory=dict)
    blocks: Mapping[Format, Mapping[str, BlockCodes]] = field(default_factory=dict)

    @property
    def layers(self) -> frozenset[str]:
        """Names of layers that were rounded so in any format."""
        return frozenset(self.channels).union(*self.blocks.values())

    def rounds(self, formats: Mapping[str, Format]) -> bool:
        """Whether any of some layers was rounded so in the format that it has."""
        return any(
            name in (self.blocks.get(form, {}) if form in WEIGHTS else self.channels)
            for name, form in formats.items()
        )


NEAREST = Careful()
"""All weights rounded to the nearest codes."""


def layers_for(model: ir.Model, form: Format) -> list[Layer]:
    """The layers that can have a format, in the order of the graph."""
    if form == "int8":
        return products(model)
    return block_layers(model) if form in WEIGHTS else rowwise_layers(model)


def blocks_of(form: Format, scheme: Scheme) -> WeightBlocks:
    """How weights are rounded in a format of weights alone."""
    usual = WEIGHTS[form]
    return usual if scheme.group is None else replace(usual, block=scheme.group)


def weight_of(model: ir.Model, layer: Layer) -> NDArray[np.float32]:
    """A layer's weight."""
    return np.asarray(constant_value(model.graph.initializers[layer.weight]), np.float32)


def weight_in(
    model: ir.Model, layer: Layer, form: Format, scheme: Scheme, careful: Careful = NEAREST
) -> NDArray[np.float32]:
    """What a layer's weight becomes in a format."""
    if form not in WEIGHTS:
        codes = careful.channels.get(layer.name) or quantize_weight(
            weight_of(model, layer), layer.axis, scheme.weights
        )
        return codes.weight(layer.axis)
    blocks = careful.blocks.get(form, {}).get(layer.name) or round_blocks(
        columns(model.graph.initializers[layer.weight], layer.axis), blocks_of(form, scheme)
    )
    return np.ascontiguousarray(blocks.weight() if layer.axis == 1 else blocks.weight().T)


def in_formats(
    model: ir.Model,
    formats: Mapping[str, Format],
    ranges: Mapping[str, Range],
    scheme: Scheme,
    careful: Careful = NEAREST,
) -> ir.Model:
    """A model with some layers in other formats.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        formats: by the layer's name; one that a layer cannot have leaves it in floats.
        ranges: of the activations of layers in int8, by name.
        scheme: how scales of weights are found, and what is quantized beside operands of layers.
        careful: weights that were rounded already.
    """

    def chosen(form: Format) -> list[str]:
        possible = {layer.name for layer in layers_for(model, form)}
        return [name for name, wanted in formats.items() if wanted == form and name in possible]

    names = {form: chosen(form) for form in FORMATS}
    result = model
    if names["int8"]:
        kept = {n: careful.channels[n] for n in names["int8"] if n in careful.channels}
        result = insert_qdq(result, ranges, names["int8"], scheme=scheme, codes=kept)
    if names["int8-dynamic"]:
        kept = {n: careful.channels[n] for n in names["int8-dynamic"] if n in careful.channels}
        result = insert_dynamic(result, names["int8-dynamic"], kept)
    for form in WEIGHTS:
        if names[form]:
            kept_blocks = careful.blocks.get(form)
            result = insert_weight_codes(result, names[form], blocks_of(form, scheme), kept_blocks)
    return result.clone() if result is model else result
