"""One compiled model in which each layer can be quantized by an input, instead of a model for each layer.

A layer `y = f(x, W) + b` becomes

    y = f(x + s (q(x) - x), W) + b + s (f(x + s (q(x) - x), Q(W) - W) + c)

for a switch `s` of 0 or 1: with 0 it is what it was, with 1 it is the quantized layer, computed in float32.
`q` quantizes and de-quantizes with a scale and a zero point that are inputs too. The second product is linear
in its weight and has no bias. `c` is what corrects the bias, if that is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.quantize import Layer, Range
from hasten.passes.quantize_weights import quantize_weight

SETTINGS = "hasten.quantization"
"""Name of the input: float32 `[layers, 3]`, for each layer its switch, scale and zero point."""

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Probe:
    """A model with switches.

    Attributes:
        model: takes `SETTINGS` beside the inputs of the model that it was made from.
        layers: in the order of the rows of `SETTINGS`.
    """

    model: ir.Model
    layers: tuple[Layer, ...]

    def settings(self, ranges: Mapping[str, Range], quantized: Sequence[str]) -> NDArray[np.float32]:
        """The input that quantizes some layers, by their names."""
        rows = np.zeros((len(self.layers), 3), np.float32)
        rows[:, 1] = 1
        for row, layer in zip(rows, self.layers, strict=True):
            if layer.name in quantized:
                scale, zero = ranges[layer.activation].parameters()
                row[:] = 1, scale, zero
        return rows


def with_switches(
    model: ir.Model, layers: Sequence[Layer], corrections: Mapping[str, NDArray[np.float32]] | None = None
) -> Probe:
    """A model whose layers can be quantized one by one.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        layers: some of `passes.quantize.products(model)`.
        corrections: what is added to the results of layers when they are quantized, by their names, one
            number for each output channel.
    """
    result = model.clone()
    graph = result.graph
    settings = ir.Value(name=SETTINGS, type=ir.TensorType(_FLOAT), shape=ir.Shape((len(layers), 3)))
    graph.inputs.append(settings)
    nodes = {node.name: node for node in graph}
    for number, layer in enumerate(layers):
        correction = (corrections or {}).get(layer.name)
        _switch(graph, nodes[layer.name], layer, settings, number, correction)
    return Probe(result, tuple(layers))


def _switch(
    graph: ir.Graph,
    node: ir.Node,
    layer: Layer,
    settings: ir.Value,
    number: int,
    correction: NDArray[np.float32] | None,
) -> None:
    source, weight = node.inputs[0], node.inputs[1]
    array = constant_value(weight)
    if source is None or array is None:
        raise ValueError(f"{layer.name!r} is no layer of this model")
    made: list[ir.Node] = []
    prefix = f"hasten.probe.{number}"

    def constant(value: NDArray[np.generic], name: str) -> ir.Value:
        tensor = ir.tensor(value, name=f"{prefix}.{name}")
        constant = ir.Value(
            name=tensor.name,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(constant)
        return constant

    def op(
        kind: str, *inputs: ir.Value | None, attributes: Sequence[ir.Attr] = (), like: ir.Value | None = None
    ) -> ir.Value:
        name = f"{prefix}.{len(made)}"
        added = ir.Node("", kind, inputs, attributes, name=name)
        output = added.outputs[0]
        output.name = f"{name}.out"
        output.type = ir.TensorType(_FLOAT)
        output.shape = ir.Shape(()) if like is None else like.shape
        made.append(added)
        return output

    switch, scale, zero = (
        op("Gather", op("Gather", settings, constant(np.array(number), f"row{column}")),
           constant(np.array(column), f"column{column}"))
        for column in range(3)
    )  # fmt: skip
    steps = op("Add", op("Round", op("Div", source, scale, like=source), like=source), zero, like=source)
    low, high = constant(np.zeros((), np.float32), "low"), constant(np.full((), 255, np.float32), "high")
    kept = op("Clip", steps, low, high, like=source)
    quantized = op("Mul", op("Sub", kept, zero, like=source), scale, like=source)
    change = op("Mul", switch, op("Sub", quantized, source, like=source), like=source)
    taken = op("Add", source, change, like=source)
    values = np.asarray(array, np.float32)
    difference = quantize_weight(values, layer.axis).weight(layer.axis).astype(np.float32) - values
    output = node.outputs[0]
    attributes = list(node.attributes.values())
    extra = op(layer.op_type, taken, constant(difference, "difference"), attributes=attributes, like=output)
    first = [n for n in made if n.outputs[0] is not extra]
    if correction is not None:
        places = (-1, *(1 for _ in layer.shape[2:])) if layer.op_type == "Conv" else (-1,)
        extra = op("Add", extra, constant(correction.reshape(places), "correction"), like=output)
    for added in first:
        graph.insert_before(node, added)
    node.replace_input_with(0, taken)
    users = [(user, index) for user, index in output.uses()]
    total = op("Add", op("Mul", switch, extra, like=output), output, like=output)
    graph.insert_after(node, [n for n in made if n not in first])
    for user, index in users:
        user.replace_input_with(index, total)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = total
            total.name, output.name = output.name, total.name
