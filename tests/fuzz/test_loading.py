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


FOUND = {
    533: "node/test_flexattention_relative_positional",  # names that a pass gave in a body
    2648: "node/test_gru_seq_length",  # an input with too few axes
    8781: "node/test_attention_3d_with_past_and_present_qk_matmul_bias",  # more outputs than its definition
    9244: "node/test_nonmaxsuppression_two_batches",  # an empty number
    11448: "node/test_split_equal_parts_2d",  # a size that another opset cannot be told
}
"""Mutations that once ended in another exception, by seed."""


def test_mutations_that_were_found():
    models = {c.key: c.model for c in load_cases()}
    assert not findings([Item(case, models[case], seed) for seed, case in FOUND.items()])
