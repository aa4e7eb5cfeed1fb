"""Reading data from files, an item at a time: what `data` makes samples of."""

from __future__ import annotations

import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import DataError, MissingDependencyError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_LINES = frozenset({".jsonl", ".ndjson", ".jsonlines"})
DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
    NotImplementedError, RuntimeError,  # methods of compression that Python does not have, and passwords
    ValueError, OverflowError,
)  # fmt: skip
"""What reading a member of a damaged zip file raises."""

_LEAST_MAPPED = 1 << 20  # bytes of an array; smaller ones are read
_FORMS = "an .npz file, a folder of .npz files or pictures, a .parquet file or a .jsonl file"


def items_of(data: object, names: Container[str] = ()) -> Iterator[object]:
    """The items of data in any form: samples, or batches of them.

    Args:
        data: in any form.
        names: of classes, by which folders of pictures may be called.

    Raises:
        DataError: the form is unknown, or a file cannot be read.
        MissingDependencyError: a package is needed to read it and not installed.
    """
    if isinstance(data, str | os.PathLike):
        yield from _of_path(Path(data), names)
    elif isinstance(data, Mapping):
        yield data  # one batch of all samples
    elif isinstance(data, Iterable) and not isinstance(data, bytes):
        yield from data
    else:
        raise DataError(
            f"data is {type(data).__name__}: give an iterable of samples, or the path of {_FORMS}"
        )


def _of_path(path: Path, names: Container[str]) -> Iterator[object]:
    kind = path.suffix.lower()
    try:
        if path.is_dir():
            yield from _of_folder(path, names)
        elif not path.exists():
            raise DataError(f"there is no {path}: give the path of {_FORMS}")
        elif kind == ".npz":
            yield load_npz(path)
        elif kind in (".parquet", ".pq"):
            yield from _of_parquet(path)
        elif kind in _LINES:
            yield from _of_lines(path)
        else:
            raise DataError(f"data in {path.name!r} have an unknown form: give {_FORMS}")
    except OSError as error:
        raise DataError(f"data in {path} cannot be read: {error.strerror or error}") from None


def _of_folder(folder: Path, names: Container[str]) -> Iterator[object]:
    files = sorted(folder.glob("*.npz"))
    if files:
        for file in files:
            yield load_npz(file)
        return
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not pictures:
        raise DataError(f"the folder {folder} has no .npz files and no pictures")
    # Folders named by numbers or by classes are classes.
    inside = all(file.parent != folder for file in pictures)
    numbered = inside and all(file.parent.name.isdecimal() for file in pictures)
    named = inside and all(file.parent.name in names for file in pictures)
    for file in pictures:
        name = file.parent.name
        yield (file, name) if named else (file, int(name)) if numbered else file


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; large ones stored without compression are mapped at once, not read.

    Raises:
        DataError: it is no such file, is damaged, or has arrays of Python objects.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            stored = [m for m in archive.infolist() if m.compress_type == zipfile.ZIP_STORED]
            large = any(member.file_size >= _LEAST_MAPPED for member in stored)
            whole = np.memmap(file, np.uint8, "r") if large else None  # one: each takes a file descriptor
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if whole is not None and member in stored and member.file_size >= _LEAST_MAPPED:
                    arrays[name] = _mapped(whole, file, member)
                else:
                    with archive.open(member) as stream:
                        arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or no .npz file of plain arrays: {error}") from None
    return arrays


def _mapped(whole: NDArray[np.uint8], file: Any, member: zipfile.ZipInfo) -> NDArray[Any]:
    # The lengths of name and extra field in the local header may differ from the directory's.
    file.seek(member.header_offset + 26)
    lengths = file.read(4)
    name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
    file.seek(member.header_offset + 30 + name + extra)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} has Python objects")
    begin, size = file.tell(), math.prod(shape) * dtype.itemsize
    return whole[begin : begin + size].view(dtype).reshape(shape, order="F" if fortran else "C")


def _of_parquet(path: Path) -> Iterator[object]:
    try:
        from pyarrow import lib, parquet
    except ImportError:
        raise MissingDependencyError(
            "a Parquet file is read by pyarrow, which is not installed: pip install 'hasten[data]'"
        ) from None
    reader: Any = parquet.ParquetFile
    try:
        with reader(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (lib.ArrowException, ValueError) as error:  # a text that is not UTF-8, for one
        raise DataError(f"{path} is damaged or no Parquet file: {error}") from None


def _of_lines(path: Path) -> Iterator[object]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with a mark
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error}): write it as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: no JSON ({error})") from None
            if not isinstance(item, dict):
                raise DataError(
                    f"{path}, line {number}: {type(item).__name__}, not an object with a key for each input"
                )
            yield item
