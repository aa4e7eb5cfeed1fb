"""Operators that ONNX defines by other operators: their definition for one node, as a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from hasten.errors import ModelError
from hasten.graph.constants import constant_value, lift_constants
from hasten.graph.inference import infer_shapes
from hasten.graph.opset import IR_VERSION, OPSET, to_internal_opset

_LARGEST_CONSTANT = 1024


def function_body(node: ir.Node, opsets: Mapping[str, int], prefix: str) -> ir.Graph | None:
    """What ONNX says a node computes, in terms of simpler operators.

    Args:
        node: a node whose inputs have types.
        opsets: the operator sets that its model imports.
        prefix: what the names in the result begin with.

    Returns:
        A graph at the internal opset, with an input for each input of the node that is there and is no small
        constant (those are initializers), and an output for each output of the node that has a name; None
        where ONNX has no such definition, or one that cannot be used.
    """
    version = opsets.get(node.domain, OPSET if node.domain == "" else 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
    types = [] if schema is None else [_type(v) for v in node.inputs]
    if any(t is None for t in types):
        return None
    proto = ir.to_proto(node)
    del proto.input[:]
    proto.input.extend("" if v is None else f"{prefix}in{k}" for k, v in enumerate(node.inputs))
    for attribute in schema.attributes.values():
        given = {a.name for a in proto.attribute}
        if attribute.name not in given and attribute.default_value.type:
            proto.attribute.append(attribute.default_value)
    if schema.has_function:
        function = schema.function_body
    elif schema.has_context_dependent_function:
        given_types = [t.SerializeToString() for t in types if t is not None]
        try:
            made = schema.get_context_dependent_function(proto.SerializeToString(), given_types)
        except RuntimeError:
            return None  # ONNX writes constants of a body as text, which takes few names
        function = onnx.FunctionProto.FromString(made)
    else:
        return None
    try:
        return _prepared(_model(node, proto, function, prefix))
    except (ModelError, ValueError):
        return None  # a definition that ONNX's own tools refuse: the host runs the operator


def _type(value: ir.Value | None) -> onnx.TypeProto | None:
    """The type of an input as ONNX takes it; an empty one for an input that is left out."""
    if value is None:
        return onnx.TypeProto()
    if value.type is None:
        return None
    return ir.to_proto(value).type


def _model(node: ir.Node, call: onnx.NodeProto, function: onnx.FunctionProto, prefix: str) -> onnx.ModelProto:
    """A function called by a node, as a model."""
    names = {"": ""}
    inputs, constants = [], []
    for formal, actual, value in zip(function.input, call.input, node.inputs, strict=False):
        names[formal] = actual
        if value is None:
            continue
        known = constant_value(value)
        if known is not None and known.nbytes <= _LARGEST_CONSTANT and known.dtype.kind in "iufb":
            constants.append(onnx.numpy_helper.from_array(known, actual))
            continue
        info = ir.to_proto(value)
        info.name = actual
        inputs.append(info)
    for formal in function.input[len(call.input) :]:
        names[formal] = ""
    attributes = {a.name: a for a in call.attribute}
    nodes = [_renamed(n, names, attributes, prefix) for n in function.node]
    outputs = []
    for formal, value in zip(function.output, node.outputs, strict=False):
        if value.name:
            info = ir.to_proto(value)
            info.name = names.get(formal, f"{prefix}{formal}")
            outputs.append(info)
    graph = onnx.helper.make_graph(nodes, "function", inputs, outputs, constants)
    imports = {o.domain: o.version for o in function.opset_import}
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in imports.items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _renamed(
    node: onnx.NodeProto, names: dict[str, str], attributes: Mapping[str, onnx.AttributeProto], prefix: str
) -> onnx.NodeProto:
    """A node of a function with the names of the call, and the call's attributes for references."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.name = prefix
    result.input[:] = [names.get(n, f"{prefix}{n}") for n in node.input]
    result.output[:] = [n and f"{prefix}{n}" for n in node.output]
    del result.attribute[:]
    for a in node.attribute:
        if not a.ref_attr_name:
            copy = result.attribute.add()
            copy.CopyFrom(a)
            for body in _bodies(copy):
                inner = [_renamed(n, names, attributes, prefix) for n in body.node]
                del body.node[:]
                body.node.extend(inner)
                for value in (*body.input, *body.output):
                    value.name = names.get(value.name, f"{prefix}{value.name}")
        elif a.ref_attr_name in attributes:
            copy = result.attribute.add()
            copy.CopyFrom(attributes[a.ref_attr_name])
            copy.name = a.name
    return result


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        yield attribute.g
    yield from attribute.graphs


def _prepared(proto: onnx.ModelProto) -> ir.Graph:
    model = to_internal_opset(ir.from_proto(proto))
    NameFixPass()(model)
    lift_constants(model)
    infer_shapes(model)
    return model.graph
