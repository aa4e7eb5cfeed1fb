"""Products computed in int8, written as QuantizeLinear and DequantizeLinear.

Activations are u8, asymmetric, with one scale and zero point for a tensor; weights are int8, symmetric, with
one scale for each output channel; biases stay float32. A tensor is quantized once for all its readers that
take it so. Whatever stands between a product and the Quantize behind it (bias, activation function, residual)
is computed in float32 before rounding, in registers where the code generator fuses it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.facts import integer
from hasten.passes.insertion import Insertion
from hasten.passes.quantize_points import Reader, quantized_readers, tied
from hasten.passes.quantize_weights import Codes, WeightScale, quantize_weight
from hasten.passes.raise_quantize import raise_quantize


@dataclass(frozen=True)
class Range:
    """The values that an activation is expected to take, low <= high, both finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range from {self.low} to {self.high}")

    def union(self, other: Range) -> Range:
        """The range of both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale (float32 scalar) and zero point (uint8 scalar) that hold the range and exactly 0."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32((high - low) / 255)
        if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
            scale = np.float32(1.0)  # nothing but zeros was seen
        zero = np.clip(np.rint(-low / float(scale)), 0, 255)
        return np.array(scale, np.float32), np.array(zero, np.uint8)


@dataclass(frozen=True)
class Layer:
    """A product with constant weights that can be computed in int8.

    Attributes:
        name: of the node.
        op_type: MatMul, Gemm or Conv.
        activation: name of the value that is multiplied.
        weight: name of the constant.
        output: name of the result.
        shape: of the weight.
        axis: of the weight: the output channels.
        groups: of a convolution; 1 for others.
    """

    name: str
    op_type: str
    activation: str
    weight: str
    output: str
    shape: tuple[int, ...]
    axis: int
    groups: int

    @property
    def depth(self) -> int:
        """Products that are summed for an element of the result."""
        return math.prod(self.shape) // self.shape[self.axis]


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and how, beside the choice of layers.

    Attributes:
        weights: how the scales of weights are found.
        residuals: kinds of products whose residual sums read the other operand in 8 bits too. Within a
            network for pictures this halves the memory that is moved, or better; the residual stream of a
            transformer is small and loses from it.
        group: where weights alone are quantized, inputs that share a scale: 128, 64 or 32, and fewer for
            layers that they do not divide. None for 128 in 8 bits and 32 in 4.
    """

    weights: WeightScale = "absmax"
    residuals: tuple[str, ...] = ("Conv",)
    group: int | None = None


_KINDS = ("MatMul", "Gemm", "Conv")


def products(model: ir.Model) -> list[Layer]:
    """The layers that can be quantized, in the order of the graph.

    They are MatMul, Gemm and Conv in float32 with a constant second operand that is no vector and no stack
    of matrices. A Gemm must not transpose or scale its first operand.
    """
    found = (_layer(node) for node in model.graph)
    return [layer for layer in found if layer is not None]


def observed_values(
    model: ir.Model, layers: Collection[str], scheme: Scheme | None = None
) -> dict[str, int | None]:
    """The values whose ranges `insert_qdq` needs, in the order of the graph.

    Returns:
        For each name the axis of its channels where it is what a layer multiplies: negative, -1 of a matrix
        product; None where only sums read it.
    """
    channels: dict[str, int | None] = {}
    for layer in products(model):
        if layer.name in layers:
            channels.setdefault(layer.activation, 1 - len(layer.shape) if layer.op_type == "Conv" else -1)
    nodes = chosen_nodes(model, layers)
    values = quantized_readers(model.graph, nodes, (scheme or Scheme()).residuals)
    return {value.name or "": channels.get(value.name or "") for value in values}


def insert_qdq(
    model: ir.Model,
    ranges: Mapping[str, Range],
    layers: Collection[str],
    *,
    scheme: Scheme | None = None,
    codes: Mapping[str, Codes] | None = None,
) -> ir.Model:
    """A model with some layers quantized.

    Args:
        model: after `optimize_graph`; it is left as it is, and shares its tensors with the result.
        ranges: for each of `observed_values`, by name.
        layers: names of the layers (`products`) to quantize.
        scheme: how, where nothing else is said.
        codes: weights of some layers that were quantized with more care, by the layer's name.

    Raises:
        KeyError: there is no layer of such a name, or no range for one of its values.
    """
    scheme = scheme or Scheme()
    known = {layer.name: layer for layer in products(model)}
    for name in layers:
        if name not in known:
            raise KeyError(f"there is no layer {name!r} that can be quantized")
    result = model.clone()
    graph = result.graph
    nodes = chosen_nodes(result, layers)
    readers = quantized_readers(graph, nodes, scheme.residuals)
    groups = tied(list(readers))
    insert = Inserter(graph)
    for value, places in readers.items():
        members = [ranges[v.name or ""] for v in groups[value]]
        total = members[0]
        for member in members[1:]:
            total = total.union(member)
        insert.activation(value, places, total)
    for name, node in nodes.items():
        insert.weight(known[name], node, scheme.weights, (codes or {}).get(name))
    raise_quantize(graph)
    remove_dead_code(graph)
    return result


def chosen_nodes(model: ir.Model, layers: Collection[str]) -> dict[str, ir.Node]:
    """The nodes of layers by name, in the order of the graph."""
    wanted = set(layers)
    return {node.name or "": node for node in model.graph if node.name in wanted and _layer(node) is not None}


def _layer(node: ir.Node) -> Layer | None:
    if node.domain or node.op_type not in _KINDS or len(node.inputs) < 2 or not node.name:
        return None
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or weight.const_value is None or constant_value(weight) is None:
        return None
    if constant_value(activation) is not None or activation.dtype not in (ir.DataType.FLOAT, None):
        return None
    shape = tuple(int(n) for n in weight.const_value.shape.numpy())
    if weight.const_value.dtype != ir.DataType.FLOAT or 0 in shape:
        return None
    axis = _column_axis(node, shape)
    if axis is None:
        return None
    names = (activation.name or "", weight.name or "", node.outputs[0].name or "")
    return Layer(node.name, node.op_type, *names, shape, axis, integer(node, "group", 1))


def _column_axis(node: ir.Node, shape: tuple[int, ...]) -> int | None:
    """The axis of the output channels in a weight; None if the product is of another form."""
    if node.op_type == "Conv":
        return 0
    if len(shape) != 2:
        return None
    if node.op_type == "MatMul":
        return 1
    alpha = node.attributes.get("alpha")
    if integer(node, "transA", 0) or (alpha is not None and alpha.as_float() != 1):
        return None
    return 0 if integer(node, "transB", 0) else 1


class Inserter(Insertion):
    """Adds what quantizes values and weights."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        self.weights: dict[tuple[ir.Value, int], ir.Value] = {}

    def activation(self, value: ir.Value, readers: list[Reader], seen: Range) -> None:
        """Quantizes a value and lets some of its readers take that."""
        scale, zero = seen.parameters()
        parameters = [
            self.constant(scale, f"{value.name}/scale"),
            self.constant(zero, f"{value.name}/zero_point"),
        ]
        down = self.node("QuantizeLinear", [value, *parameters], "quantized", value, ir.DataType.UINT8)
        up = self.node("DequantizeLinear", [down.outputs[0], *parameters], "dequantized", value)
        self.behind(value, [down, up])
        for node, index in readers:
            node.replace_input_with(index, up.outputs[0])

    def weight(self, layer: Layer, node: ir.Node, scale: WeightScale, codes: Codes | None) -> None:
        """Lets a product read its weight as int8 codes; layers that share the weight share the codes."""
        weight = node.inputs[1]
        array = constant_value(weight)
        if weight is None or array is None:
            raise ValueError(f"the weight of {layer.name!r} is not constant")
        key = (weight, layer.axis)
        found = self.weights.get(key) if codes is None else None
        if found is None:
            made = codes or quantize_weight(np.asarray(array, np.float32), layer.axis, scale)
            inputs = [
                self.constant(made.values, f"{weight.name}/int8"),
                self.constant(made.scale, f"{weight.name}/scale"),
            ]
            up = self.node("DequantizeLinear", inputs, "dequantized", weight)
            up.attributes["axis"] = ir.AttrInt64("axis", layer.axis)
            up.outputs[0].shape = ir.Shape(layer.shape)
            self.graph.insert_before(self.graph[0], up)
            found = up.outputs[0]
            if codes is None:
                self.weights[key] = found
        node.replace_input_with(1, found)
