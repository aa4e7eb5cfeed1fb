"""Operators whose meaning changed and which ONNX's version converter leaves as they were."""

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.graph.contrib import CONTRIB


def name_contrib(model: ir.Model) -> None:
    """Give operators that ONNX Runtime writes into ONNX's own domain, where ONNX has none, theirs, in place.

    Its optimizers write LayerNormalization into models that are older than ONNX's.
    """
    version = model.opset_imports.get("", 17)
    for graph in model.graphs():
        for node in graph:
            older = node.op_type == "LayerNormalization" and version < 17
            if node.domain == "" and (older or node.op_type == "SimplifiedLayerNormalization"):
                node.domain = CONTRIB
                model.opset_imports.setdefault(CONTRIB, 1)
                model.graph.opset_imports.setdefault(CONTRIB, 1)


def write_defaults(model: ir.Model) -> None:
    """Write out defaults that ONNX's shape inference or reference evaluator goes wrong without, in place."""
    for graph in model.graphs():
        for node in list(graph):
            if node.domain == "" and node.op_type == "MeanVarianceNormalization":
                node.attributes.setdefault("axes", ir.AttrInt64s("axes", [0, 2, 3]))
            elif node.domain == "" and node.op_type == "Loop" and node.inputs[1:2] == (None,):
                # The evaluator takes a condition that is left out for one that does not hold.
                true = ir.node("Constant", [], {"value": ir.tensor(np.array(True))})
                graph.insert_before(node, true)
                node.replace_input_with(1, true.outputs[0])


def write_out(model: ir.Model, version: int) -> None:
    """Replace such operators by others that mean the same in every opset, in place.

    Args:
        model: A model of opset `version`, from 11 on. New nodes and values have no names.
        version: Its opset.
    """
    for graph in model.graphs():
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type == "Hardmax" and version < 13:
                _flatten_hardmax(graph, node)
            elif node.op_type == "GroupNormalization" and version < 21:
                _scale_channels(graph, node)


def write_in(model: ir.Model, version: int) -> None:
    """Write out what the converter leaves to defaults that were others before, in place.

    Before opset 11 pictures were resized from x / scale, nearest elements by truncation: where they shrink,
    ONNX Runtime takes the next one. Before opset 7 a PRelu had one slope, or one for each channel, instead of
    one that broadcasts.

    Args:
        model: a model that was converted. New nodes and values have no names.
        version: the opset that it was converted from.
    """
    for graph in model.graphs() if version < 11 else ():
        for node in list(graph):
            if node.domain == "" and node.op_type == "Resize":
                given = None if len(node.inputs) < 3 else constant_value(node.inputs[2])
                scales = np.ones(1) if given is None else np.asarray(given, np.float32)
                shrinks = bool((scales <= 1).all() and (scales < 1).any())
                nearest = "ceil" if shrinks else "floor"
                for name, mode in ((_WHERE, "asymmetric"), (_NEAREST, nearest)):
                    node.attributes.setdefault(name, ir.AttrString(name, mode))
            elif node.domain == "" and node.op_type == "PRelu" and version < 7:
                _slope_of_channels(graph, node)


_WHERE, _NEAREST = "coordinate_transformation_mode", "nearest_mode"


def _slope_of_channels(graph: ir.Graph, node: ir.Node) -> None:
    slope = constant_value(node.inputs[1])
    if slope is not None and slope.size == 1:
        return

    def add(operator: str, *inputs: ir.Value | None, **attributes: ir.TensorProtocol | int) -> ir.Value:
        new = ir.node(operator, list(inputs), attributes)
        graph.insert_before(node, new)
        return new.outputs[0]

    def number(value: int) -> ir.TensorProtocol:
        return ir.tensor(np.array([value], np.int64))

    rank = add("Shape", add("Shape", node.inputs[0]))
    behind = add("Sub", rank, add("Constant", value=number(2)))
    ones = add("ConstantOfShape", behind, value=number(1))
    shape = add("Concat", add("Constant", value=number(-1)), ones, axis=0)
    node.replace_input_with(1, add("Reshape", node.inputs[1], shape))


def _flatten_hardmax(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 13 Hardmax worked on the input flattened to two dimensions at `axis`."""
    (x,) = node.inputs
    shape = ir.node("Shape", [x])
    flat = ir.node("Flatten", [x], {"axis": node.attributes.get_int("axis", 1)})
    hard = ir.node("Hardmax", [flat.outputs[0]], {"axis": 1})
    graph.insert_before(node, [shape, flat, hard])
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, hard.outputs[0])
    node.replace_input_with(1, shape.outputs[0])


def _scale_channels(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 21 GroupNormalization had one scale and bias for each group, not channel."""

    def add(operator: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        new = ir.node(operator, list(inputs), attributes)
        graph.insert_before(node, new)
        return new.outputs[0]

    def constant(*numbers: int) -> ir.Value:
        new = ir.node("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
        graph.insert_before(node, new)
        return new.outputs[0]

    groups = constant(node.attributes.get_int("num_groups", 1))
    channels = add("Gather", add("Shape", node.inputs[0]), constant(1), axis=0)
    sizes = add("Concat", groups, add("Div", channels, groups), axis=0)
    for index in (1, 2):
        column = add("Reshape", node.inputs[index], constant(-1, 1))
        each = add("Reshape", add("Expand", column, sizes), constant(-1))
        node.replace_input_with(index, each)
