"""The graph in an artifact: without its weights for people, with them for other engines (decision 16)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from hasten.errors import ArtifactError
from hasten.runtime.artifact import GRAPH_WEIGHTS, Artifact, check_member

Members = dict[str, bytes | memoryview | list[memoryview]]

GRAPH = "graph.onnx"

_INLINE = 1024  # bytes; smaller weights stand in the graph itself
_ALIGNMENT = 64
_LARGEST = 2**31 - 1  # bytes of a protobuf message


def graph_members(model: ir.Model, *, weights: bool) -> Members:
    """The members of an artifact that hold its graph.

    Args:
        model: the optimized graph.
        weights: whether to keep them too, beside the graph; without, nodes and shapes are all there is.
    """
    proto = ir.to_proto(model.clone())
    if not weights:
        del proto.graph.initializer[:]
        return {GRAPH: bytes(proto.SerializeToString())}
    size = 0
    data: list[memoryview] = []
    del proto.graph.initializer[:]
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        made = proto.graph.initializer.add(
            name=name, dims=list(tensor.shape.numpy()), data_type=int(tensor.dtype)
        )
        content = tensor.tobytes()
        if len(content) < _INLINE:
            made.raw_data = content
            continue
        made.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in (("location", GRAPH_WEIGHTS), ("offset", size), ("length", len(content))):
            made.external_data.add(key=key, value=str(entry))
        padding = -len(content) % _ALIGNMENT
        data += [memoryview(content), memoryview(bytes(padding))]
        size += len(content) + padding
    return {GRAPH: bytes(proto.SerializeToString()), GRAPH_WEIGHTS: data}


def whole_graph(artifact: Artifact) -> onnx.ModelProto:
    """The graph of an artifact with its weights.

    Raises:
        ArtifactError: the weights were not kept, or are damaged, or are too large for one ONNX file.
    """
    proto = onnx.load_from_string(bytes(artifact.members[GRAPH]))
    if GRAPH_WEIGHTS not in artifact.members:
        raise ArtifactError(
            f"{artifact.path} has no graph with weights: compile again with --keep-graph (`hasten optimize` "
            "keeps it without being asked)"
        )
    data = check_member(artifact, GRAPH_WEIGHTS)
    if len(data) > _LARGEST - (64 << 20):
        raise ArtifactError(f"the weights of {artifact.path} have {len(data)} bytes: an ONNX file holds 2 GB")
    for tensor in proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            continue
        start = int(place["offset"])
        tensor.raw_data = bytes(data[start : start + int(place["length"])])
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return proto


def whole_model(model: ir.Model) -> bytes:
    """A graph with its weights as one ONNX file.

    Raises:
        ArtifactError: it is too large for that.
    """
    total = sum(np.prod(v.const_value.shape.numpy(), dtype=np.int64) * v.const_value.dtype.itemsize
                for v in model.graph.initializers.values() if v.const_value is not None)  # fmt: skip
    if total > _LARGEST - (64 << 20):
        raise ArtifactError(f"the weights have {total} bytes: an ONNX file for another engine holds 2 GB")
    return bytes(ir.to_proto(model.clone()).SerializeToString())
