"""Values that are maps, which `onnx_ir` has no type for: they stay objects that only the host handles."""

from __future__ import annotations

import numpy as np
import onnx

from hasten.graph.classical import ML

OWN = "hasten"
_READERS = ("DictVectorizer", "CastMap")


def hide_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose operators that make or read maps are ours, and whose maps are sequences by type.

    A sequence is handed through as the object that it is. The operators keep their names and attributes.

    Args:
        model: left as it is; it is the result where it has no maps.
    """
    if not any(node.domain == ML and node.op_type in ("ZipMap", *_READERS) for node in model.graph.node):
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    graph = proto.graph
    values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
    elements = {name: _element(v.type) for name, v in values.items()}
    for node in graph.node:
        if node.domain != ML or node.op_type not in ("ZipMap", *_READERS):
            continue
        node.domain = OWN
        if node.op_type == "DictVectorizer":
            kind = elements.get(node.input[0]) or onnx.TensorProto.FLOAT
            dtype = "str" if kind == onnx.TensorProto.STRING else _dtype(kind).name
            node.attribute.append(onnx.helper.make_attribute("dtype", dtype))
            _declare(graph, node.output[0], kind)
        elif node.op_type == "CastMap":
            to = next((a.s.decode() for a in node.attribute if a.name == "cast_to"), "TO_FLOAT")
            kinds = {"TO_STRING": onnx.TensorProto.STRING, "TO_INT64": onnx.TensorProto.INT64}
            _declare(graph, node.output[0], kinds.get(to, onnx.TensorProto.FLOAT))
    for name, value in values.items():
        if elements[name] is not None:
            value.type.Clear()
            value.type.sequence_type.elem_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if OWN not in {o.domain for o in proto.opset_import}:
        proto.opset_import.append(onnx.helper.make_opsetid(OWN, 1))
    return proto


def _element(kind: onnx.TypeProto) -> int | None:
    """The element type of the values of a map, or of a sequence of maps; None for other types."""
    if kind.HasField("sequence_type"):
        kind = kind.sequence_type.elem_type
    if not kind.HasField("map_type"):
        return None
    return int(kind.map_type.value_type.tensor_type.elem_type)


def _dtype(kind: int) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _declare(graph: onnx.GraphProto, name: str, kind: int) -> None:
    """States that a value is a matrix of some element type, where nothing is stated yet."""
    found = next((v for v in (*graph.output, *graph.value_info) if v.name == name), None)
    if found is None:
        graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, [None, None]))
    elif not found.type.WhichOneof("value"):
        found.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, [None, None]))
