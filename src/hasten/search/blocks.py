"""Answers to many samples: in memory while they are few bytes, else in a file; read in blocks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

IN_MEMORY = 64 << 20
"""Bytes of one output's answers, above which they are in a file."""

_BLOCK = 16 << 20
_ROOM = 16  # times the bytes at which answers go to a file


class Rows:
    """The answers of one output to samples, one after the other.

    Beyond `IN_MEMORY` bytes they go to a file without a name, whose space is free again as soon as the arrays
    that map it are gone, even if this process is killed.
    """

    def __init__(self) -> None:
        """None yet."""
        self._rows: list[Array] = []
        self._shapes: list[tuple[int, ...]] = []
        self._dtype: np.dtype[Any] | None = None
        self._bytes = 0
        self._file: Any = None

    def add(self, rows: Array) -> None:
        """Takes the answers to some samples, which the first axis counts.

        Raises:
            OSError: the file cannot be written.
        """
        numbers = rows.dtype.kind in "biuf"
        if numbers and self._dtype is None:
            self._dtype = rows.dtype
        rows = rows.astype(self._dtype, copy=False) if numbers else rows
        self._shapes += [rows.shape[1:]] * len(rows)
        self._rows += [*rows]
        self._bytes += rows.nbytes
        if self._dtype is not None and self._bytes > IN_MEMORY and (self._file or self._room()):
            self._file = self._file or tempfile.TemporaryFile(prefix="hasten-")  # noqa: SIM115 - closed below
            for row in self._rows:
                self._file.write(np.ascontiguousarray(row).data)
            self._rows = []

    def _room(self) -> bool:
        """Whether the folder of temporary files takes many times what there is: a full one ends a search."""
        return shutil.disk_usage(tempfile.gettempdir()).free > _ROOM * self._bytes

    def joined(self) -> Array:
        """One array of all; an array of arrays where their shapes differ. The rows are gone then."""
        alike = len(set(self._shapes)) <= 1
        if self._file is None:
            return together(self._rows)
        assert self._dtype is not None
        with self._file as file:
            file.flush()
            flat: Array = np.memmap(file, self._dtype, "r")
        if alike:
            joined: Array = flat.reshape(len(self._shapes), *self._shapes[0])
            return joined
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])
        parts = np.split(flat, ends[:-1])
        return _of_objects([part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)])


def together(rows: Sequence[Array]) -> Array:
    """One array of all rows; an array of arrays where their shapes differ."""
    return np.stack(rows) if len({np.shape(row) for row in rows}) <= 1 else _of_objects(rows)


def _of_objects(rows: Sequence[Array]) -> Array:
    result = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        result[index] = row
    return result


def blocks(rows: Array) -> Iterator[slice]:
    """Consecutive samples whose rows are some megabytes together, or one; each alone where shapes differ."""
    size = 1 if rows.dtype == object or not len(rows) else max(1, _BLOCK // max(1, rows[0].nbytes))
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


def said_of_size(outputs: Mapping[str, Array], samples: int) -> list[str]:
    """What is to be said of answers to some samples that are in files: how large they are."""
    sizes = [
        sum(r.nbytes for r in rows) if rows.dtype == object else rows.nbytes for rows in outputs.values()
    ]
    if max(sizes, default=0) <= IN_MEMORY:
        return []
    return [
        f"the answers to {samples} samples are {sum(sizes) / 1e6:,.0f} MB, and are kept in temporary files "
        "instead of memory"
    ]
