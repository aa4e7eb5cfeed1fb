"""Values that go from one process to another in a file.

Graphs go as files of their own, and a graph that was read from such a file goes by its place alone: graphs in
files are never changed. Arrays that come out of a file are mapped, read-only, and take no memory until they
are read.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.graph.mapped import share_maps
from hasten.graph.pages import give_back

_PLACE = "hasten.file"
_LEAST = 4096  # bytes of an array that is mapped
_ALIGNMENT = 64
_TAIL = struct.Struct("<QQ")  # place and size of what is not mapped


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes a graph with its weights beside it; the model stays as it is."""
    ir.save(model.clone(), path, external_data=f"{path.name}.data")
    give_back(model)


def load_graph(path: Path) -> ir.Model:
    """A graph from its file, with its weights mapped where they are used."""
    model = ir.load(path)
    share_maps(model)
    model.meta[_PLACE] = (id(model), path)  # a copy, which may be changed, has another id
    return model


def mapped(model: ir.Model, path: Path) -> ir.Model:
    """The same graph with its weights in a file, mapped where they are used, instead of in memory."""
    save_graph(model, path)
    return load_graph(path)


def file_of(model: ir.Model) -> Path | None:
    """The file that a graph was read from by `load_graph`."""
    known, path = model.meta.get(_PLACE, (None, None))
    return path if known == id(model) else None


def write_value(value: Any, path: Path, graphs: Path) -> None:
    """Writes what can be pickled.

    Args:
        value: anything; functions go by their names.
        path: the file.
        graphs: a folder, for graphs that are in memory only.
    """
    buffers: list[memoryview] = []
    stream = io.BytesIO()
    _Writer(stream, graphs, buffers).dump(value)
    with path.open("wb") as file:
        places = []
        for buffer in buffers:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            places.append((file.tell(), buffer.nbytes))
            file.write(buffer)
        tail = pickle.dumps((stream.getvalue(), places))
        start = file.tell()
        file.write(tail)
        file.write(_TAIL.pack(start, len(tail)))
    _let_go(buffers)


def read_value(path: Path) -> Any:
    """What `write_value` has written; the file may be deleted while its arrays are in use."""
    with path.open("rb") as file:
        file.seek(-_TAIL.size, os.SEEK_END)
        start, size = _TAIL.unpack(file.read())
        file.seek(start)
        pickled, places = pickle.loads(file.read(size))
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _Reader(io.BytesIO(pickled), buffers=[whole[at : at + size] for at, size in places]).load()


class _Writer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, graphs: Path, buffers: list[memoryview]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=self._take)
        self._graphs, self._buffers = graphs, buffers

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, ir.Model):
            return None
        place = file_of(obj)
        if place is None:
            place = Path(tempfile.mkdtemp(dir=self._graphs)) / "graph.onnx"
            save_graph(obj, place)
        return str(place)

    def _take(self, buffer: pickle.PickleBuffer) -> bool:
        """Keeps an array's bytes aside; true for few, which stay where they are."""
        raw = buffer.raw()
        if raw.nbytes < _LEAST:
            return True
        self._buffers.append(raw)
        return False


class _Reader(pickle.Unpickler):
    def persistent_load(self, pid: str) -> ir.Model:
        return load_graph(Path(pid))


def _let_go(buffers: Sequence[memoryview]) -> None:
    """Gives back the pages of arrays that are mapped: reading them to write them has filled memory."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    maps: dict[int, mmap.mmap] = {}
    for buffer in buffers:
        base: Any = buffer.obj
        while isinstance(base, np.ndarray | memoryview):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        if isinstance(base, mmap.mmap):
            maps[id(base)] = base
    for found in maps.values():
        found.madvise(mmap.MADV_DONTNEED)
