"""One in ten of ONNX's own test cases; `make conformance` runs all."""

import functools

import pytest
from tests.onnx_suite.suite import Case, Outcome, load_cases, run_cases, sample, skipped

from hasten.onnx_backend import HastenBackend

PARTS = 4


@functools.cache
def _cases() -> list[Case]:
    return load_cases()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_sample_passes(part):
    cases = sample(_cases(), 10)[part::PARTS]
    assert len(cases) > 30
    reasons = skipped()
    outcomes: list[Outcome] = list(run_cases(cases, workers=1))
    assert [o.case for o in outcomes] == [c.key for c in cases]
    unexpected = [o for o in outcomes if o.passed == (o.case in reasons)]
    assert not unexpected


def test_skipped_cases_exist_and_have_reasons():
    reasons = skipped()
    assert reasons.keys() <= {c.key for c in _cases()}
    assert all(reasons.values())


def test_the_backend_runs_a_case_by_itself():
    (case,) = (c for c in _cases() if c.key == "node/test_gemm_all_attributes")
    import onnx
    from onnx.backend.test.runner import Runner

    rep = HastenBackend.prepare(onnx.load_from_string(case.model))
    assert not rep.host
    for inputs, expected in case.data:
        Runner.assert_similar_outputs(expected, rep.run(list(inputs)), case.rtol, case.atol)


def test_the_backend_runs_a_node():
    import numpy as np
    import onnx

    node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
    (found,) = HastenBackend.run_node(node, [np.ones((2, 3), np.float32), np.ones(3, np.float32)])
    assert found.tolist() == [[2.0] * 3] * 2
