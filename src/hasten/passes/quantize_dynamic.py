"""Matrix products in int8 without calibration: a scale for each row, found where the row is.

A row (a token) of what a product multiplies has the scale that takes its largest element to 127. In the
graph these are operators of ONNX: the largest magnitude of the last axis, and QuantizeLinear and
DequantizeLinear whose one block is the whole axis. Weights are int8 with a scale for each output channel.
Convolutions stay as they are: their windows reach over many places, which one scale would have to serve.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from hasten.passes.dead_code import remove_dead_code
from hasten.passes.insertion import Insertion
from hasten.passes.quantize import Inserter, Layer, chosen_nodes, products
from hasten.passes.quantize_weights import LARGEST, Codes

TINY = float(np.finfo(np.float32).tiny)
"""The least scale: that of a row of zeros."""


def rowwise_layers(model: ir.Model) -> list[Layer]:
    """The layers whose activations can have a scale for each row: matrix products."""
    return [layer for layer in products(model) if layer.op_type != "Conv"]


def insert_dynamic(
    model: ir.Model, layers: Collection[str], codes: Mapping[str, Codes] | None = None
) -> ir.Model:
    """A model with some matrix products in int8, scales of activations computed for each row.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        layers: names of some of `rowwise_layers`.
        codes: weights of some layers that were quantized with more care, by the layer's name.
    """
    known = {layer.name: layer for layer in rowwise_layers(model)}
    result = model.clone()
    insert = Inserter(result.graph)
    rows: dict[ir.Value, ir.Value] = {}
    for name, node in chosen_nodes(result, layers).items():
        value = node.inputs[0]
        assert value is not None
        if value not in rows:
            layer = known[name]
            rows[value] = _by_rows(insert, value, layer.depth)
        node.replace_input_with(0, rows[value])
        insert.weight(known[name], node, "absmax", (codes or {}).get(name))
    remove_dead_code(result.graph)
    return result


def _by_rows(insert: Insertion, value: ir.Value, length: int) -> ir.Value:
    """A value quantized with a scale for each row, and de-quantized again."""
    size = insert.node("Abs", [value], "magnitude", value)
    axes = insert.constant(np.array([-1]), f"{value.name}/last_axis")
    largest = insert.node("ReduceMax", [size.outputs[0], axes], "largest", value)
    largest.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    share = insert.constant(np.array(1 / LARGEST, np.float32), f"{value.name}/share")
    scaled = insert.node("Mul", [largest.outputs[0], share], "row_share", value)
    least = insert.constant(np.array(TINY, np.float32), f"{value.name}/least")
    scale = insert.node("Max", [scaled.outputs[0], least], "row_scale", value)
    down = insert.node("QuantizeLinear", [value, scale.outputs[0]], "quantized", value, ir.DataType.INT8)
    down.attributes["output_dtype"] = ir.AttrInt64("output_dtype", ir.DataType.INT8.value)
    up = insert.node("DequantizeLinear", [down.outputs[0], scale.outputs[0]], "dequantized", value)
    for node in (down, up):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        node.attributes["block_size"] = ir.AttrInt64("block_size", length)
    if value.shape is not None:
        one = ir.Shape([*value.shape[:-1], 1])
        for node in (largest, scaled, scale):
            node.outputs[0].shape = one.copy()
    insert.behind(value, [size, largest, scaled, scale, down, up])
    return up.outputs[0]
