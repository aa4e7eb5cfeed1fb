"""Weights of matrix products in 8 or 4 bits with a scale for each block of depth, and nothing else quantized.

In the graph they are DequantizeLinear of int8 or int4 with an axis and a block size, as ONNX has them from
version 21 on; products stay products of floats (`codegen.codes` says how they are computed).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from ml_dtypes import int4, uint4
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.insertion import Insertion
from hasten.passes.quantize import Layer, chosen_nodes
from hasten.passes.quantize_dynamic import rowwise_layers


@dataclass(frozen=True)
class WeightBlocks:
    """How weights are rounded.

    Attributes:
        bits: of a code: 8 or 4.
        block: inputs of a layer that share a scale: 32, 64 or 128.
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

    values: NDArray[np.generic]
    scale: NDArray[np.float32]
    zero: NDArray[np.generic] | None


def block_layers(model: ir.Model, how: WeightBlocks) -> list[Layer]:
    """The matrix products whose weights divide into blocks."""
    return [layer for layer in rowwise_layers(model) if layer.depth % how.block == 0]


def round_blocks(weight: NDArray[np.float32], how: WeightBlocks) -> BlockCodes:
    """The nearest codes of a weight `[inputs, outputs]`, whose inputs divide into blocks."""
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, how.block, outputs)
    least = np.finfo(np.float32).tiny
    if not how.zero_points:
        largest = (1 << (how.bits - 1)) - 1
        scale = np.maximum(np.abs(blocks).max(axis=1) / np.float32(largest), least)
        codes = np.clip(np.rint(blocks / scale[:, None]), -largest, largest)
        signed = int4 if how.bits == 4 else np.int8
        return BlockCodes(codes.reshape(inputs, outputs).astype(signed), scale, None)
    largest = (1 << how.bits) - 1
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    scale = np.maximum((high - low) / np.float32(largest), least)
    zero = np.clip(np.rint(-low / scale), 0, largest)
    codes = np.clip(np.rint(blocks / scale[:, None]) + zero[:, None], 0, largest)
    unsigned = uint4 if how.bits == 4 else np.uint8
    return BlockCodes(codes.reshape(inputs, outputs).astype(unsigned), scale, zero.astype(unsigned))


def insert_weight_codes(model: ir.Model, layers: Collection[str], how: WeightBlocks) -> ir.Model:
    """A model whose weights of some layers are codes.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        layers: names of some of `block_layers`.
        how: bits, blocks and zero points.
    """
    known = {layer.name: layer for layer in block_layers(model, how)}
    result = model.clone()
    insert = Insertion(result.graph)
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for name, node in chosen_nodes(result, layers).items():
        weight, axis = node.inputs[1], known[name].axis
        assert weight is not None
        if (weight, axis) not in made:
            made[weight, axis] = _dequantized(insert, weight, axis, how)
        node.replace_input_with(1, made[weight, axis])
    remove_dead_code(result.graph)
    return result


def _dequantized(insert: Insertion, weight: ir.Value, axis: int, how: WeightBlocks) -> ir.Value:
    array = np.asarray(constant_value(weight), np.float32)
    codes = round_blocks(np.ascontiguousarray(array if axis == 1 else array.T), how)
    parts = [codes.values, codes.scale, *([] if codes.zero is None else [codes.zero])]
    names = (f"int{how.bits}", "scale", "zero_point")
    inputs = [
        insert.constant(np.ascontiguousarray(a if axis == 1 else a.T), f"{weight.name}/{n}")
        for a, n in zip(parts, names, strict=False)
    ]
    up = insert.node("DequantizeLinear", inputs, "dequantized", weight)
    up.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
    up.attributes["block_size"] = ir.AttrInt64("block_size", how.block)
    insert.graph.insert_before(insert.graph[0], up)
    return up.outputs[0]
