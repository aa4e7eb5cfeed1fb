"""One compiled model in which each layer can be quantized by an input, instead of a model for each layer.

A layer `y = f(x, W) + b` becomes

    y = f(x + s (q(x) - x), W) + b + s (f(x + s (q(x) - x), Q(W) - W) + c)

for a switch `s` of 0 or 1: with 0 it is what it was, with 1 it is the quantized layer, computed in float32.
`q` quantizes and de-quantizes: with a scale and a zero point that are inputs too, with a scale for each row
that follows from the row, or not at all, as the format of the probe has it. The second product is linear in
its weight and has no bias. `c` is what corrects the bias, if that is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value
from hasten.passes.quantize import Layer, Range
from hasten.passes.quantize_dynamic import TINY
from hasten.passes.quantize_weights import LARGEST
from hasten.search.formats import WEIGHTS, Format

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
        """The input that quantizes some layers (`settings_of`)."""
        return settings_of(self.layers, ranges, quantized)


def settings_of(
    layers: Sequence[Layer], ranges: Mapping[str, Range], quantized: Sequence[str]
) -> NDArray[np.float32]:
    """The input `SETTINGS` that quantizes some layers.

    Args:
        layers: that have a switch, in order.
        ranges: of activations, for the format int8 alone.
        quantized: names of layers.
    """
    rows = np.zeros((len(layers), 3), np.float32)
    rows[:, 1] = 1
    for row, layer in zip(rows, layers, strict=True):
        if layer.name in quantized:
            row[0] = 1
            if layer.activation in ranges:
                row[1:] = ranges[layer.activation].parameters()
    return rows


@dataclass(frozen=True)
class Switched:
    """A layer with a switch.

    Attributes:
        layer: one of `passes.quantize.products`.
        weight: what its weight becomes.
        correction: what is added to its results then, one number for each output channel; None for nothing.
    """

    layer: Layer
    weight: NDArray[np.float32]
    correction: NDArray[np.float32] | None = None


def with_switches(model: ir.Model, layers: Sequence[Switched], form: Format = "int8") -> Probe:
    """A model whose layers can be quantized one by one.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        layers: those that get a switch.
        form: what a switch turns a layer to.
    """
    result = model.clone()
    graph = result.graph
    settings = ir.Value(name=SETTINGS, type=ir.TensorType(_FLOAT), shape=ir.Shape((len(layers), 3)))
    graph.inputs.append(settings)
    nodes = {node.name: node for node in graph}
    for number, switched in enumerate(layers):
        _switch(graph, nodes[switched.layer.name], switched, settings, number, form)
    return Probe(result, tuple(switched.layer for switched in layers))


class _Maker:
    """Makes nodes and constants of a layer's switch.

    Attributes:
        made: the nodes, in order.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.made: list[ir.Node] = []
        self._graph, self._prefix = graph, prefix

    def constant(self, value: NDArray[np.generic], name: str) -> ir.Value:
        tensor = ir.tensor(value, name=f"{self._prefix}.{name}")
        constant = ir.Value(
            name=tensor.name,
            shape=ir.Shape(value.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(constant)
        return constant

    def number(self, value: float, name: str) -> ir.Value:
        return self.constant(np.array(value, np.float32), name)

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        attributes: Sequence[ir.Attr] = (),
        like: ir.Value | None = None,
    ) -> ir.Value:
        name = f"{self._prefix}.{len(self.made)}"
        added = ir.Node("", kind, inputs, attributes, name=name)
        output = added.outputs[0]
        output.name = f"{name}.out"
        output.type = ir.TensorType(_FLOAT)
        output.shape = ir.Shape(()) if like is None else like.shape
        self.made.append(added)
        return output


def _taken(make: _Maker, source: ir.Value, settings: list[ir.Value], form: Format) -> ir.Value:
    """What a layer multiplies with its switch on."""
    if form == "int8":
        scale, zero = settings[1:]
        steps = make.op(
            "Add",
            make.op("Round", make.op("Div", source, scale, like=source), like=source),
            zero,
            like=source,
        )
        kept = make.op("Clip", steps, make.number(0, "low"), make.number(255, "high"), like=source)
        return make.op("Mul", make.op("Sub", kept, zero, like=source), scale, like=source)
    axes = make.constant(np.array([-1]), "last_axis")
    largest = make.op("ReduceMax", make.op("Abs", source, like=source), axes, like=source)
    if source.shape is not None:
        largest.shape = ir.Shape([*source.shape[:-1], 1])
    share = make.op("Mul", largest, make.number(1 / LARGEST, "share"), like=largest)
    scale = make.op("Max", share, make.number(TINY, "least"), like=largest)
    steps = make.op("Round", make.op("Div", source, scale, like=source), like=source)
    return make.op("Mul", steps, scale, like=source)


def _switch(
    graph: ir.Graph, node: ir.Node, switched: Switched, settings: ir.Value, number: int, form: Format
) -> None:
    layer = switched.layer
    source, weight = node.inputs[0], node.inputs[1]
    array = constant_value(weight)
    if source is None or array is None:
        raise ValueError(f"{layer.name!r} is no layer of this model")
    make = _Maker(graph, f"hasten.probe.{number}")
    row = make.constant(np.array(number), "row")
    columns = range(3 if form == "int8" else 1)
    own = [
        make.op("Gather", make.op("Gather", settings, row), make.constant(np.array(c), f"column{c}"))
        for c in columns
    ]
    switch, taken = own[0], source
    if form not in WEIGHTS:
        change = make.op("Sub", _taken(make, source, own, form), source, like=source)
        taken = make.op("Add", source, make.op("Mul", switch, change, like=source), like=source)
    output = node.outputs[0]
    first = list(make.made)
    difference = make.constant(switched.weight - np.asarray(array, np.float32), "difference")
    attributes = list(node.attributes.values())
    extra = make.op(layer.op_type, taken, difference, attributes=attributes, like=output)
    if switched.correction is not None:
        places = (-1, *(1 for _ in layer.shape[2:])) if layer.op_type == "Conv" else (-1,)
        extra = make.op(
            "Add", extra, make.constant(switched.correction.reshape(places), "correction"), like=output
        )
    for added in first:
        graph.insert_before(node, added)
    node.replace_input_with(0, taken)
    users = [(user, index) for user, index in output.uses()]
    total = make.op("Add", make.op("Mul", switch, extra, like=output), output, like=output)
    graph.insert_after(node, make.made[len(first) :])
    for user, index in users:
        user.replace_input_with(index, total)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = total
            total.name, output.name = output.name, total.name
