"""Weights without their zeros: what was packed comes back, aligned; what is damaged is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import ArtifactError
from hasten.runtime.sparse import expand, pack

CHUNK = 1 << 20


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0, 0.5, 0.9, 1]), st.integers(0, 5000)),
        max_size=4,
    ),
    st.integers(0, 2**32 - 1),
)
def test_what_was_packed_comes_back(arrays: list[tuple[int, float, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for word, zeros, count in arrays:
        words = rng.integers(0, 256, (count, word), np.uint8)
        words[rng.random(count) < zeros] = 0
        parts.append(words.reshape(-1))
    image = np.concatenate([*parts, np.zeros(0, np.uint8)])
    found = np.frombuffer(expand(memoryview(b"".join(pack(parts)))), np.uint8)
    np.testing.assert_array_equal(found, image)
    assert found.ctypes.data % 64 == 0


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 0.54), (np.int16, 0.57), (np.int8, 0.63)])
def test_half_zeros_take_little_more_than_half(dtype: type, most: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, 3 * CHUNK // 2).astype(dtype)
    weights[rng.random(len(weights)) < 0.5] = 0
    packed = b"".join(pack([weights.view(np.uint8)]))
    assert len(packed) < most * weights.nbytes
    np.testing.assert_array_equal(np.frombuffer(expand(memoryview(packed)), dtype), weights)


def test_damage_is_refused() -> None:
    """Nothing but the error, whatever the bytes: no other exception, and no endless memory."""
    rng = np.random.default_rng(1)
    weights = np.where(rng.random(9000) < 0.5, rng.random(9000), 0).astype(np.float32)
    packed = b"".join(pack([weights.view(np.uint8)]))
    for length in (0, 7, 12, 15, len(packed) - 1):
        with pytest.raises(ArtifactError, match="copy it or compile"):
            expand(memoryview(packed[:length]))
    refused = 0
    for place in [*range(24), *rng.integers(24, len(packed), 40).tolist()]:
        damaged = bytearray(packed)
        damaged[place] ^= 0x55
        try:
            expand(memoryview(bytes(damaged)))
        except ArtifactError:
            refused += 1
    assert refused > 16
