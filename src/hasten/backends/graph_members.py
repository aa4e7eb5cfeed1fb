"""The graph in an artifact: without its weights for people, with them for other engines (decision 16).

A weight that the kernels read as it is, or as a product's panels, lies in the artifact's weights already: the
graph then says where, and how it is to be put back (decision 25). What else the graph has is a member of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from hasten.codegen.panels import pack_constant, unpack_constant
from hasten.codegen.tiles import PANEL
from hasten.codegen.weights import ALIGNMENT
from hasten.errors import ArtifactError
from hasten.graph.constants import raw_bytes
from hasten.runtime.artifact import GRAPH_WEIGHTS, WEIGHTS, Artifact, check_member
from hasten.runtime.manifest import ForeignStep

Members = dict[str, bytes | memoryview | list[memoryview]]

GRAPH = "graph.onnx"

_INLINE = 1024  # bytes; smaller weights stand in the graph itself
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_TRIES = 64  # places that begin like a weight and are looked at whole


@dataclass(frozen=True)
class _Place:
    """Where a weight lies.

    Attributes:
        member: of the artifact.
        offset: in bytes.
        length: in bytes.
        panels: whether it lies in panels of columns.
    """

    member: str
    offset: int
    length: int
    panels: bool = False


def graph_members(model: ir.Model, *, weights: bool, image: np.ndarray | None = None) -> Members:
    """The members of an artifact that hold its graph.

    Args:
        model: the optimized graph.
        weights: whether to keep them too, beside the graph; without, nodes and shapes are all there is.
        image: what the artifact's kernels read, uint8; weights that are in it are not kept again.
    """
    proto = ir.to_proto(model.clone())
    del proto.graph.initializer[:]
    if not weights:
        return {GRAPH: bytes(proto.SerializeToString())}
    there = None if image is None else _Image(image)
    size = 0
    data: list[memoryview] = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        made = proto.graph.initializer.add(
            name=name, dims=list(tensor.shape.numpy()), data_type=int(tensor.dtype)
        )
        if tensor.nbytes < _INLINE:
            made.raw_data = tensor.tobytes()
            continue
        place = None if there is None else there.place_of(tensor)
        if place is None:
            content = _content(tensor)
            place = _Place(GRAPH_WEIGHTS, size, len(content))
            padding = -len(content) % ALIGNMENT
            data += [content, memoryview(bytes(padding))]
            size += len(content) + padding
        made.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": place.member, "offset": place.offset, "length": place.length}
        for key, entry in (entries | ({"panels": 1} if place.panels else {})).items():
            made.external_data.add(key=key, value=str(entry))
    return {GRAPH: bytes(proto.SerializeToString()), GRAPH_WEIGHTS: data}


class _Image:
    """The weights of an artifact, to find others in."""

    def __init__(self, image: np.ndarray) -> None:
        self._bytes = image
        whole = len(image) // ALIGNMENT * ALIGNMENT
        self._first = image[:whole].reshape(-1, ALIGNMENT)[:, :8].view(np.uint64)[:, 0]

    def place_of(self, tensor: ir.TensorProtocol) -> _Place | None:
        array = tensor.numpy()
        if array.nbytes != tensor.nbytes or array.dtype.kind == "O":
            return None  # the graph packs what is narrower than a byte
        for form in _forms(array):
            blocks = np.flatnonzero(self._first == raw_bytes(form.begin)[:8].view(np.uint64)[0])[:_TRIES]
            if not blocks.size:
                continue
            raw = raw_bytes(form.whole())
            for block in blocks:
                offset = int(block) * ALIGNMENT
                if np.array_equal(self._bytes[offset : offset + len(raw)], raw):
                    return _Place(WEIGHTS, offset, len(raw), form.panels)
        return None


@dataclass(frozen=True)
class _Form:
    """What an array may look like to kernels.

    Attributes:
        panels: whether that is panels.
        begin: how it begins: what costs little to make.
        whole: makes all of it.
    """

    panels: bool
    begin: np.ndarray
    whole: Callable[[], np.ndarray]


def _forms(array: np.ndarray) -> Iterator[_Form]:
    yield _Form(False, array.reshape(-1)[:8], lambda: array)
    if array.ndim in (2, 4) and array.dtype.itemsize in (1, 4):
        operand = _operand(array)
        yield _Form(True, pack_constant(operand[:, :PANEL]), lambda: pack_constant(operand))


def _content(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a weight: those of its file, if they are mapped, instead of a copy."""
    array = tensor.numpy()
    whole = array.nbytes == tensor.nbytes and array.dtype.kind != "O" and array.flags.c_contiguous
    return raw_bytes(array).data if whole else memoryview(tensor.tobytes())


def _operand(array: np.ndarray) -> np.ndarray:
    """A matrix [depth, column] or filters [column, depth, height, width] as [batch, column, tap, depth]."""
    if array.ndim == 2:
        return array.T[None, :, None, :]
    return array.reshape(*array.shape[:2], -1).transpose(0, 2, 1)[None]


def _array_of(operand: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_operand`."""
    array: np.ndarray = operand[0, :, 0].T if len(shape) == 2 else operand[0].transpose(0, 2, 1)
    return array.reshape(shape)


def whole_graph(artifact: Artifact) -> onnx.ModelProto:
    """The graph of an artifact with its weights: what was compiled, or what another engine runs.

    Raises:
        ArtifactError: the weights were not kept, or are damaged, or are too large for one ONNX file.
    """
    for step in artifact.manifest.steps:
        if isinstance(step, ForeignStep):
            return onnx.load_from_string(bytes(check_member(artifact, step.member)))
    proto = onnx.load_from_string(bytes(artifact.members[GRAPH]))
    if GRAPH_WEIGHTS not in artifact.members:
        raise ArtifactError(
            f"{artifact.path} has no graph with weights: compile again with --keep-graph (`hasten optimize` "
            "keeps it without being asked)"
        )
    places = [
        {entry.key: entry.value for entry in tensor.external_data} for tensor in proto.graph.initializer
    ]
    total = sum(int(place["length"]) for place in places if place)
    if total > _LARGEST - (64 << 20):
        raise ArtifactError(f"the weights of {artifact.path} have {total} bytes: an ONNX file holds 2 GB")
    members = {name: check_member(artifact, name) for name in {p["location"] for p in places if p}}
    for tensor, place in zip(proto.graph.initializer, places, strict=True):
        if not place:
            continue
        start = int(place["offset"])
        raw = members[place["location"]][start : start + int(place["length"])]
        tensor.raw_data = _unpacked(raw, tensor) if "panels" in place else bytes(raw)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return proto


def _unpacked(raw: memoryview, tensor: onnx.TensorProto) -> bytes:
    shape = tuple(tensor.dims)
    dtype = ir.DataType(tensor.data_type).numpy()
    operand = unpack_constant(np.frombuffer(raw, dtype), _operand(np.empty(shape, dtype)).shape)
    return np.ascontiguousarray(_array_of(operand, shape)).tobytes()


def whole_model(model: ir.Model) -> bytes:
    """A graph with its weights, wherever they lie, as one ONNX file.

    Raises:
        ArtifactError: it is too large for that.
    """
    total = sum(np.prod(v.const_value.shape.numpy(), dtype=np.int64) * v.const_value.dtype.itemsize
                for v in model.graph.initializers.values() if v.const_value is not None)  # fmt: skip
    if total > _LARGEST - (64 << 20):
        raise ArtifactError(f"the weights have {total} bytes: an ONNX file for another engine holds 2 GB")
    return bytes(ir.to_proto(ir.external_data.load_to_model(model.clone())).SerializeToString())
