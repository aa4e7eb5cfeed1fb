"""A few hundred mutated models; `make fuzz` loads many more."""

import pytest
from tests.fuzz.loading import Item, findings
from tests.onnx_suite.suite import load_cases, sample

PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_models_end_in_a_result_or_an_error_of_ours(part):
    cases = sample(load_cases(), 10)
    items = [Item(c.key, c.model, seed) for seed, c in enumerate(cases)][part::PARTS]
    assert len(items) > 50
    assert not findings(items)
