"""The mean error that quantized weights make in each output channel, taken back in the bias.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.2, with
the mean inputs measured on data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.insertion import Insertion
from hasten.passes.quantize import Layer
from hasten.passes.rule import replace_value


def mean_error(
    layer: Layer, weight: NDArray[np.float32], changed: NDArray[np.float32], mean: NDArray[np.floating]
) -> NDArray[np.float32]:
    """How far the results of a layer are too small on average, for each output channel.

    Places of a convolution where the window reaches into the padding are taken to be as all others.

    Args:
        layer: which.
        weight: in float32.
        changed: what is multiplied instead.
        mean: of each channel of what is multiplied.
    """
    lost = np.moveaxis(weight - changed, layer.axis, 0).astype(np.float64)
    columns = lost.reshape(len(lost), lost.shape[1], -1).sum(axis=2)  # [outputs, inputs of a group]
    inputs = np.asarray(mean, np.float64).reshape(layer.groups, -1)
    groups = columns.reshape(layer.groups, -1, columns.shape[1])
    error: NDArray[np.float64] = np.einsum("goi,gi->go", groups, inputs)
    return error.reshape(-1).astype(np.float32)


def add_biases(model: ir.Model, biases: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    """A model with something added to the results of some layers.

    Args:
        model: it is left as it is.
        biases: by the name of a MatMul, Gemm or Conv, one number for each output channel.
    """
    result = model.clone()
    insert = Insertion(result.graph)
    for node in list(result.graph):
        added = biases.get(node.name or "")
        if added is not None:
            _add_bias(insert, node, added)
    return result


def _add_bias(insert: Insertion, node: ir.Node, added: NDArray[np.float32]) -> None:
    place = _bias_input(node)
    if place is not None:
        reader, index = place
        value = reader.inputs[index]
        array = constant_value(value)
        assert value is not None and array is not None
        reader.replace_input_with(
            index, insert.constant(np.asarray(array, np.float32) + added, f"{value.name}/corrected")
        )
        return
    output = node.outputs[0]
    constant = insert.constant(added, f"{output.name}/correction")
    if node.op_type == "Conv" and (len(node.inputs) < 3 or node.inputs[2] is None):
        node.resize_inputs(3)
        node.replace_input_with(2, constant)
        return
    if node.op_type == "Conv":
        weight = constant_value(node.inputs[1])
        assert weight is not None
        shape = (-1, *(1 for _ in weight.shape[2:]))
        constant = insert.constant(added.reshape(shape), f"{output.name}/correction")
    name = output.name
    extra = insert.node("Add", [output, constant], "corrected", output)
    insert.graph.insert_after(node, extra)
    replace_value(insert.graph, output, extra.outputs[0])
    extra.replace_input_with(0, output)
    if output.name is None:  # the name is the model's, and the sum's now
        output.name = insert.name(f"{name}/uncorrected")


def _bias_input(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where the bias of a product stands, if it is a constant with one number for each channel."""
    if node.op_type in ("Gemm", "Conv"):
        value = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get("beta")
        plain = beta is None or beta.as_float() == 1
        array = constant_value(value)
        return (node, 2) if array is not None and array.ndim == 1 and plain else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    other = 1 - uses[0].idx
    array = constant_value(uses[0].node.inputs[other])
    return (uses[0].node, other) if array is not None and array.ndim == 1 and array.size > 1 else None
