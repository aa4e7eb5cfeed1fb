"""The oldest version of ONNX's operators that says the same, so that older engines read what is written."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.defs
import onnx_ir as ir

from hasten.graph.opset import IR_VERSION, opset_of

OLDEST_WRITTEN = 21  # what the oldest ONNX Runtime knows that this package works with, 1.20

# 22 says which windows of a rounded-up count there are; 21 leaves it open.
_POOLS = ("AveragePool", "LpPool", "MaxPool")


def oldest_opset(model: ir.Model) -> int | None:
    """The oldest opset, from 21 on, in which every operator of a model means what it does in the model's own.

    An operator does where its schema is the same, or where both differ in types and attributes that the node
    does not use. Types must be known for that; where one is not, the operator keeps the model at its opset.

    Returns:
        The opset, which is the model's own if none is older; None if it imports none.
    """
    own = opset_of(model)
    if own is None or own <= OLDEST_WRITTEN or own > onnx.defs.onnx_opset_version() or model.functions:
        return own
    nodes = [node for graph in model.graphs() for node in graph if node.domain in ("", "ai.onnx")]
    return next(
        version
        for version in range(OLDEST_WRITTEN, own + 1)
        if all(_means_the_same(node, version, own) for node in nodes)
    )


def with_oldest_opset(model: ir.Model) -> ir.Model:
    """The same model in the oldest opset that can say it; the given one stays, and shares its weights."""
    oldest = oldest_opset(model)
    if oldest is None or oldest == opset_of(model):
        return model
    model = model.clone()
    for imports in (model.opset_imports, *(graph.opset_imports for graph in model.graphs())):
        imports.pop("ai.onnx", None)
        imports[""] = oldest
    model.ir_version = min(model.ir_version or IR_VERSION, IR_VERSION)
    return model


def stamp_oldest(proto: onnx.ModelProto) -> None:
    """Changes a model, in place, to the oldest opset that can say it."""
    oldest = oldest_opset(ir.from_proto(proto))
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and oldest is not None and oldest < entry.version:
            entry.version = oldest
            proto.ir_version = min(proto.ir_version, IR_VERSION)


def _means_the_same(node: ir.Node, version: int, own: int) -> bool:
    if not (onnx.defs.has(node.op_type, own, "") and onnx.defs.has(node.op_type, version, "")):
        return version == own
    newer = onnx.defs.get_schema(node.op_type, own, "")
    older = onnx.defs.get_schema(node.op_type, version, "")
    if newer.since_version == older.since_version:
        return True
    if _was_reworded(node, version):
        return False
    defaults = all(
        str(attribute.default_value) == str(newer.attributes[name].default_value)
        for name, attribute in older.attributes.items()
        if name in newer.attributes
    )
    return defaults and set(node.attributes) <= set(older.attributes) and _types_fit(node, older)


def _was_reworded(node: ir.Node, version: int) -> bool:
    """Whether the text of an older schema, and nothing else of it, says less of what a node does."""
    if node.op_type in _POOLS:  # which windows there are of a count that is rounded up
        return version < 22 and "ceil_mode" in node.attributes
    masked = len(node.inputs) > 3 and node.inputs[3] is not None
    return node.op_type == "Attention" and masked and version < 24  # a mask may be shorter than the keys


def _types_fit(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    """Whether a schema admits a node's types, and as many inputs and outputs."""
    if not (
        len(node.inputs) <= schema.max_input and schema.min_output <= len(node.outputs) <= schema.max_output
    ):
        return False
    bound: dict[str, str] = {}
    for value, parameter in _parameters(node, schema):
        dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
        # What casts to eight bits make of what is too large was said anew.
        if dtype is None or dtype.name.startswith("FLOAT8"):
            return False
        name = f"tensor({dtype.name.lower()})"
        if name not in parameter.types:
            return False
        if parameter.is_homogeneous and bound.setdefault(parameter.type_str, name) != name:
            return False
    return True


def _parameters(
    node: ir.Node, schema: onnx.defs.OpSchema
) -> Iterator[tuple[ir.Value, onnx.defs.OpSchema.FormalParameter]]:
    for values, parameters in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is not None and value.name:
                yield value, parameters[min(index, len(parameters) - 1)]
