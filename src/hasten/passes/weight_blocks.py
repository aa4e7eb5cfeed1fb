"""Weights of matrix products in 8 or 4 bits with a scale for each block of depth, and nothing else quantized.

In the graph they are DequantizeLinear of int8 or int4 with an axis and a block size, as ONNX has them from
version 21 on; products stay products of floats (`codegen.codes` says how they are computed).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from ml_dtypes import int4, uint4
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.insertion import Insertion
from hasten.passes.quantize import Layer, chosen_nodes
from hasten.passes.quantize_dynamic import rowwise_layers

GROUPS = (128, 64, 32)
"""Inputs of a layer that may share a scale."""


@dataclass(frozen=True)
class WeightBlocks:
    """How weights are rounded.

    Attributes:
        bits: of a code: 8 or 4.
        block: inputs of a layer that share a scale: one of `GROUPS`. Layers whose inputs it does not divide
            have the largest smaller one that does (`fitted`).
        zero_points: whether codes are unsigned and each block has a zero point too, so that its least and its
            greatest weight are both at the end of the range.
    """

    bits: int
    block: int
    zero_points: bool = False


@dataclass(frozen=True)
class BlockCodes:
    """A weight `[inputs, outputs]` in codes.

    Attributes:
        values: whole numbers, in the shape of the weight.
        scale: float32 `[blocks, outputs]`.
        zero: likewise, of the type of the values; None without zero points.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[Any] | None

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return len(self.values) // len(self.scale)

    def weight(self) -> NDArray[np.float32]:
        """What the codes stand for: `[inputs, outputs]`."""
        blocks = self.values.astype(np.float32).reshape(len(self.scale), -1, self.scale.shape[1])
        zero = np.float32(0) if self.zero is None else self.zero.astype(np.float32)[:, None]
        return ((blocks - zero) * self.scale[:, None]).reshape(self.values.shape)


def block_layers(model: ir.Model) -> list[Layer]:
    """The matrix products whose weights divide into blocks."""
    return [layer for layer in rowwise_layers(model) if layer.depth % min(GROUPS) == 0]


def fitted(how: WeightBlocks, depth: int) -> WeightBlocks:
    """The same with the largest blocks, at most its own, that divide a layer's inputs.

    Raises:
        ValueError: none do.
    """
    for block in GROUPS:
        if block <= how.block and depth % block == 0:
            return replace(how, block=block)
    raise ValueError(f"{depth} inputs do not divide into blocks of {min(GROUPS)}")


def codes_type(how: WeightBlocks) -> np.dtype[Any]:
    """The type of codes in arrays."""
    narrow, wide = (uint4, np.uint8) if how.zero_points else (int4, np.int8)
    return np.dtype(narrow if how.bits == 4 else wide)


def block_scales(
    block: NDArray[np.float32], how: WeightBlocks
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points (0 without) of `[..., block, outputs]`, each `[..., outputs]`."""
    least = np.finfo(np.float32).tiny
    if not how.zero_points:
        scale = np.maximum(np.abs(block).max(axis=-2) / np.float32((1 << (how.bits - 1)) - 1), least)
        return scale, np.zeros_like(scale)
    largest = (1 << how.bits) - 1
    low, high = np.minimum(block.min(axis=-2), 0), np.maximum(block.max(axis=-2), 0)
    scale = np.maximum((high - low) / np.float32(largest), least)
    return scale, np.clip(np.rint(-low / scale), 0, largest)


def block_codes(
    weights: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32], how: WeightBlocks
) -> NDArray[np.float32]:
    """The nearest codes of weights, as whole numbers."""
    largest = (1 << (how.bits if how.zero_points else how.bits - 1)) - 1
    codes: NDArray[np.float32] = np.rint(weights / scale) + zero
    return np.clip(codes, 0 if how.zero_points else -largest, largest)


def round_blocks(weight: NDArray[np.float32], how: WeightBlocks) -> BlockCodes:
    """The nearest codes of a weight `[inputs, outputs]`, whose inputs divide into blocks (`fitted`)."""
    how = fitted(how, len(weight))
    blocks = weight.reshape(-1, how.block, weight.shape[1])
    scale, zero = block_scales(blocks, how)
    codes = block_codes(blocks, scale[:, None], zero[:, None], how).reshape(weight.shape)
    made = codes_type(how)
    return BlockCodes(codes.astype(made), scale, zero.astype(made) if how.zero_points else None)


def insert_weight_codes(
    model: ir.Model,
    layers: Collection[str],
    how: WeightBlocks,
    codes: Mapping[str, BlockCodes] | None = None,
) -> ir.Model:
    """A model whose weights of some layers are codes.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        layers: names of some of `block_layers`.
        how: bits, blocks and zero points.
        codes: weights of some layers that were rounded with more care, by the layer's name.
    """
    known = {layer.name: layer for layer in block_layers(model)}
    result = model.clone()
    insert = Insertion(result.graph)
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for name, node in chosen_nodes(result, layers).items():
        weight, axis = node.inputs[1], known[name].axis
        assert weight is not None
        if (weight, axis) not in made:
            found = (codes or {}).get(name) or round_blocks(columns(weight, axis), how)
            made[weight, axis] = _dequantized(insert, weight, axis, how, found)
        node.replace_input_with(1, made[weight, axis])
    remove_dead_code(result.graph)
    return result


def columns(weight: ir.Value, axis: int) -> NDArray[np.float32]:
    """A constant weight as `[inputs, outputs]`; `axis` is that of the outputs."""
    array = np.asarray(constant_value(weight), np.float32)
    return np.ascontiguousarray(array if axis == 1 else array.T)


def _dequantized(
    insert: Insertion, weight: ir.Value, axis: int, how: WeightBlocks, codes: BlockCodes
) -> ir.Value:
    parts = [codes.values, codes.scale, *([] if codes.zero is None else [codes.zero])]
    names = (f"int{how.bits}", "scale", "zero_point")
    inputs = [
        insert.constant(np.ascontiguousarray(a if axis == 1 else a.T), f"{weight.name}/{n}")
        for a, n in zip(parts, names, strict=False)
    ]
    up = insert.node("DequantizeLinear", inputs, "dequantized", weight)
    up.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
    up.attributes["block_size"] = ir.AttrInt64("block_size", codes.block)
    insert.graph.insert_before(insert.graph[0], up)
    return up.outputs[0]
