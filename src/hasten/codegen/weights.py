"""The constants of an artifact: one image, each array aligned to 64 bytes, equal arrays once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 64


@dataclass
class Weights:
    """Collects arrays and gives each its offset in the image."""

    arrays: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    _offsets: dict[tuple[str, int, bytes], int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> int:
        """The offset of an array's bytes, which are appended unless an equal array is there."""
        data = np.ascontiguousarray(array)
        raw = data.reshape(-1).view(np.uint8)
        key = (data.dtype.str, raw.size, hashlib.sha256(raw.data).digest())
        known = self._offsets.get(key)
        if known is not None:
            return known
        offset = self.size
        self.arrays.append(raw)
        padding = -raw.size % ALIGNMENT
        if padding:
            self.arrays.append(np.zeros(padding, np.uint8))
        self.size += raw.size + padding
        self._offsets[key] = offset
        return offset
