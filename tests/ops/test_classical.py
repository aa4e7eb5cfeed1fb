"""Operators of ai.onnx.ml other than trees against ONNX Runtime: interpreted, as loop nests, and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.codegen.engines import Interpreted
from tests.ops.ml_cases import Case, encoding, linear, machine, preparing

from hasten import frontends
from hasten.errors import InputError
from hasten.loops.evaluate import evaluate
from hasten.loops.verify import verify
from hasten.onnx_backend import HastenRep, prepare_all
from hasten.ops.lowering import lower_graph
from hasten.target import Target


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = np.random.default_rng(5)
    made = [linear(rng) for _ in range(24)] + [machine(rng) for _ in range(32)]
    return [*made, *preparing(rng), *encoding(rng)]


def agree(found: np.ndarray, right: np.ndarray, text: str) -> None:
    assert found.shape == right.shape, (text, found, right)
    if right.dtype.kind in "OU":
        assert found.tolist() == right.tolist(), text
        return
    if right.dtype.kind == "f":
        np.testing.assert_allclose(found, right, rtol=2e-4, atol=2e-5, err_msg=text)
    else:
        assert found.dtype == right.dtype, text
        np.testing.assert_array_equal(found, right, err_msg=text)


def test_the_interpreter_and_nests_agree(cases):
    targets = ["x86-64-v3", "x86-64-v4", "aarch64"]
    for number, case in enumerate(cases):
        if case.host:
            continue
        lowered = lower_graph(frontends.load(case.model()))
        assert not lowered.host_nodes, (case.text, lowered.reasons)
        verify(lowered.program)
        found = evaluate(lowered.program, case.feeds)
        for name, right in zip(lowered.program.outputs, case.expected, strict=True):
            agree(found[name], right, case.text)
        if number % 3 == 0:
            nests = Interpreted.of(lowered.program, Target.named(targets[number // 3 % 3]))
            for name, value in nests.run(case.feeds, threads=2).items():
                agree(value, found[name], case.text)


def test_compiled_code_agrees(cases):
    wrong = []
    for case, rep in zip(cases, prepare_all([c.model() for c in cases]), strict=True):
        try:
            assert isinstance(rep, HastenRep), rep
            assert sorted(k.split()[0].split(".")[-1] for k in rep.host) == sorted(case.host), rep.host
            for found, right in zip(rep.run(case.feeds), case.expected, strict=True):
                agree(found, right, case.text)
        except Exception as error:  # noqa: BLE001 - all cases are listed
            wrong.append(f"{case.text}: {type(error).__name__} {str(error)[:500]}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel_params": [0.5]}, "parameters of the kernel"),
        ({"vectors_per_class": [4, -1]}, "groups of vectors"),
        ({"vectors_per_class": [1, 1]}, "do not fit"),
        ({"kernel_type": "COSINE"}, "COSINE"),
        ({"rho": []}, "do not fit"),
    ],
)
def test_a_damaged_machine_is_not_compiled(change: dict[str, Any], reason: str):
    attributes = {
        "kernel_type": "RBF",
        "kernel_params": [0.5, 0.0, 3.0],
        "support_vectors": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        "coefficients": [1.0, -1.0, 0.5],
        "rho": [0.1],
        "vectors_per_class": [2, 1],
        "classlabels_ints": [0, 1],
    }
    outputs = (TensorProto.INT64, TensorProto.FLOAT)
    case = Case("SVMClassifier", (np.zeros((3, 2), np.float32),), attributes, outputs)
    assert not lower_graph(frontends.load(case.model())).host_nodes
    damaged = onnx.ModelProto.FromString(case.model().SerializeToString())
    for name, value in change.items():
        (found,) = (a for a in damaged.graph.node[0].attribute if a.name == name)
        found.CopyFrom(
            helper.make_attribute(name, value, attr_type=None if value else onnx.AttributeProto.FLOATS)
        )
    reasons = lower_graph(frontends.load(damaged)).reasons
    assert reason in "".join(reasons.values())


def test_an_unknown_category_is_an_error_if_the_model_says_so():
    known = Case("OneHotEncoder", (np.array([[1, 2]]),), {"cats_int64s": [1, 2], "zeros": 0})
    attributes = {"cats_strings": ["a", "b"], "zeros": 0}
    texts = Case("OneHotEncoder", (np.array([["a", "b"]], object),), attributes)
    unknown = (np.array([[1, 4]]), np.array([["a", "q"]], object))
    for value, rep in zip(unknown, prepare_all([known.model(), texts.model()]), strict=True):
        assert isinstance(rep, HastenRep)
        with pytest.raises(InputError, match="OneHotEncoder"):
            rep.run({"x0": value})
