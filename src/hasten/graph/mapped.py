"""Weights in files, each mapped once for all that it holds: a map takes one of few file descriptors."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir


class MappedFile:
    """A file that is mapped when something of it is first read.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens nothing yet."""
        self.path = path
        self._map: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        """The whole file, read-only.

        Raises:
            OSError: it cannot be opened.
        """
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map


class MappedTensor(ir.ExternalTensor):
    """An external tensor that shares the map of its file with others."""

    def __init__(self, tensor: ir.ExternalTensor, file: MappedFile) -> None:
        """What a tensor is, in a file that may have got another name: nothing is read."""
        super().__init__(
            file.path.name,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=file.path.parent,
        )
        self._file = file
        self._read: np.ndarray | None = None

    def numpy(self) -> np.ndarray:
        """The elements, as they lie in the file; a copy of those of less than a byte."""
        if self._read is None:
            self._read = self._array_of_file()
        return self._read

    def __array__(self, dtype: Any = None) -> np.ndarray:
        """As `numpy`, perhaps of another type."""
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        """A copy of the bytes in the file."""
        begin = self.offset or 0
        return self._file.map()[begin : begin + self.nbytes] if self.nbytes else b""

    def release(self) -> None:
        """Lets go of the map, which ends when no other tensor uses it."""
        self._read = self.raw = None

    def _array_of_file(self) -> np.ndarray:
        if self.dtype.bitwidth < 8:
            unpacked = super().numpy()
            super().release()  # a map of its own
            return unpacked
        shape = self.shape.numpy()
        if not self.size:
            return np.empty(shape, self.dtype.numpy())
        self.raw = self._file.map()
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        return np.frombuffer(self.raw, dtype, self.size, self.offset or 0).reshape(shape)


def share_maps(model: ir.Model) -> None:
    """Lets the weights of a model that are in files be read by one map for each file."""
    files: dict[str, MappedFile] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                file = files.setdefault(tensor.path, MappedFile(Path(tensor.path)))
                value.const_value = MappedTensor(tensor, file)
