"""Weights of which many are zero, in less space: a bit for each word, and the words that are not zero.

A member `weights.sparse` stands for `weights.bin`: the number of bytes, then for each chunk of 1 MiB the size
of its words (4, 2 or 1 bytes, or 0 for bytes as they are) and how many are not zero, then chunk by chunk the
bits, lowest first, and those words. Opening puts the image together in memory of the process.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ArtifactError

SPARSE = "weights.sparse"

_HEADER = struct.Struct("<Q")
_CHUNK = 1 << 20
_TABLE = np.dtype([("word", "<u4"), ("there", "<u4")])
_ALIGNMENT = 64

Image = NDArray[np.uint8]


def pack(parts: Sequence[Image]) -> list[bytes]:
    """The contents of a member `weights.sparse`.

    Args:
        parts: what `weights.bin` would hold, in order.
    """
    image = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    packed = [_packed(image[start : start + _CHUNK]) for start in range(0, len(image), _CHUNK)]
    table = np.array([(word, there) for word, there, _ in packed], _TABLE)
    return [_HEADER.pack(len(image)), table.tobytes(), *(content for _, _, content in packed)]


def _packed(chunk: Image) -> tuple[int, int, bytes]:
    """The size of words that takes the least space, how many are not zero, and the content."""
    best = (0, 0, chunk.tobytes())
    for word in (4, 2, 1):
        if len(chunk) % word:
            continue
        words = chunk.view(f"<u{word}")
        there = words != 0
        count = int(np.count_nonzero(there))
        if -(-len(words) // 8) + count * word < len(best[2]):
            best = word, count, np.packbits(there, bitorder="little").tobytes() + words[there].tobytes()
    return best


def expand(data: memoryview) -> memoryview:
    """The contents of `weights.bin`, in memory aligned to 64 bytes.

    Raises:
        ArtifactError: these are no packed weights. The message does not name the file.
    """
    total, table, places = _layout(data)
    memory = np.empty(total + _ALIGNMENT, np.uint8)
    image = memory[-memory.ctypes.data % _ALIGNMENT :][:total]
    for number, ((word, there), place) in enumerate(zip(table.tolist(), places, strict=True)):
        out = image[number * _CHUNK : (number + 1) * _CHUNK]
        if word == 0:
            out[:] = np.frombuffer(data, np.uint8, len(out), place)
            continue
        bits = np.unpackbits(
            np.frombuffer(data, np.uint8, -(-len(out) // word // 8), place),
            count=len(out) // word,
            bitorder="little",
        )
        words = np.zeros(there + 1, f"<u{word}")  # the first is what a bit of 0 stands for
        words[1:] = np.frombuffer(data, words.dtype, there, place + -(-len(out) // word // 8))
        index = np.cumsum(bits, dtype=np.int32)
        if len(index) and index[-1] != there:
            raise _wrong()
        index *= bits
        np.take(words, index, out=out.view(words.dtype))
    return image.data.toreadonly()


def _layout(data: memoryview) -> tuple[int, NDArray[np.void], list[int]]:
    """The number of bytes, the table of chunks, and where the content of each begins."""
    if len(data) < _HEADER.size:
        raise _wrong()
    (total,) = _HEADER.unpack_from(data)
    chunks = -(-total // _CHUNK)
    place = _HEADER.size + chunks * _TABLE.itemsize
    if place > len(data):
        raise _wrong()
    table = np.frombuffer(data, _TABLE, chunks, _HEADER.size)
    places = []
    for number, (word, there) in enumerate(table.tolist()):
        size = min(_CHUNK, total - number * _CHUNK)
        places.append(place)
        if word not in (0, 1, 2, 4) or (word and size % word):
            raise _wrong()
        place += -(-size // word // 8) + there * word if word else size
    if place != len(data):
        raise _wrong()
    return total, table, places


def _wrong() -> ArtifactError:
    return ArtifactError(f"its member {SPARSE} is not what it should be: copy it or compile the model again")
