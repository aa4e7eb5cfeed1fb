"""What tells measurements of one candidate from those of another."""

from __future__ import annotations

import dataclasses

import pytest

from hasten.passes.quantize import Scheme
from hasten.search.identity import described
from hasten.search.quantization import Quantization

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
