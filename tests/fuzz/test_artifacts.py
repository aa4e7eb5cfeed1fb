"""Some hundred damaged artifacts and wrong inputs; `make fuzz` tries thousands."""

import pytest
from tests.fuzz.artifacts import Item, findings


@pytest.mark.parametrize("kind", ["bytes", "manifest", "inputs"])
def test_damage_ends_in_a_result_or_an_error_of_ours(kind):
    assert not findings([Item(kind, seed) for seed in range(150)])
