"""What tells measurements of one candidate from those of another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hasten.passes.quantize import Scheme
from hasten.search.identity import described
from hasten.search.quantization import Quantization
from hasten.search.samples import Samples
from hasten.search.start import data_hash

CHANGES = {
    "scheme": Scheme(weights="mse"),
    "smoothing": 0.5,
    "rounding": "gptq",
    "correct_bias": False,
    "tables": False,
}
ELSEWHERE = {"layers", "ranges", "rest"}
"""What the key of a measurement has under names of its own."""


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Quantization)])
def test_each_choice_of_quantization_is_in_the_key_of_what_is_remembered(name: str) -> None:
    changed = dataclasses.replace(Quantization(), **({name: CHANGES[name]} if name in CHANGES else {}))
    assert (described(changed) != described(Quantization())) == (name not in ELSEWHERE)


def test_labels_of_different_lengths_are_part_of_the_data() -> None:
    """A label for each token, as sentences have them."""
    feeds = tuple({"ids": np.ones((1, n), np.int64)} for n in (3, 2))

    def hashed(*labels: list[int]) -> str:
        each = np.empty(len(labels), object)
        each[:] = [np.array(one) for one in labels]
        return data_hash(Samples(feeds, each))

    assert hashed([0, 1, 0], [0, 1]) == hashed([0, 1, 0], [0, 1])
    assert len({hashed([0, 1, 0], [0, 1]), hashed([0, 1, 1], [0, 1]), hashed([0, 1], [0, 0, 1])}) == 3
