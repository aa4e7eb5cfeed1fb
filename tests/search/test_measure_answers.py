"""Differences between answers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from hasten.errors import EngineError
from hasten.search import measure_answers
from hasten.search.engines import ONNXRUNTIME, REFERENCE, Engine, answers
from hasten.search.measure_answers import difference, source_answers, without_padding

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("wanted", "got", "absolute", "relative"),
    [
        ([0.0, 4.0], [0.0, 3.0], 1, 0.25),
        ([NAN, 0.0, 2.0], [NAN, 0.0, 2.0], 0, 0),
        ([INF, -INF, 1.0], [INF, -INF, 1.0], 0, 0),
        ([NAN, 1.0], [0.0, 1.0], INF, INF),
        ([0.0, 1.0], [NAN, 1.0], INF, INF),
        ([INF, 1.0], [-INF, 1.0], INF, INF),
        ([1.0, 1.0], [INF, 1.0], INF, INF),
        ([5.0, 5.0], [5.0, 6.0], 1, 0.2),
        ([0.0], [0.5], 0.5, 0.5),
        ([[1.0]], [1.0], INF, INF),
        ([], [], 0, 0),
    ],
)
def test_differences(wanted: list[float], got: list[float], absolute: float, relative: float) -> None:
    found = difference("y", np.array(wanted, np.float32), np.array(got, np.float32))
    assert (found.absolute, found.relative) == (absolute, relative)


def test_kinds_and_integers() -> None:
    ints = np.array([1, 2, 5])
    assert difference("y", ints, ints).absolute == 0
    assert difference("y", ints, ints + 1).relative == 0.25
    assert difference("y", ints, ints.astype(np.float32)).absolute == INF
    narrow = np.array([1, 2, 5]).astype(ml_dtypes.bfloat16)
    assert difference("y", narrow, narrow + narrow[:1]).relative == 0.25
    words = np.array(["a", "b"])
    assert difference("y", words, words).absolute == 0
    assert difference("y", words, words[::-1]).absolute == INF


def test_the_reference_evaluator_stands_in(
    mlp: Path, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, why, usual = source_answers(mlp, feeds, 1)
    assert (engine, why) == (ONNXRUNTIME, None)

    def refusing(engine: Engine, *rest: object) -> dict[str, np.ndarray]:
        if engine is ONNXRUNTIME:
            raise EngineError("onnxruntime cannot run this model: too new")
        return answers(engine, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measure_answers, "answers", refusing)
    engine, why, other = source_answers(mlp, feeds, 1)
    assert engine is REFERENCE
    assert why is not None
    assert "too new" in why
    assert difference("y", usual["y"], other["y"]).relative < 1e-5


def test_hidden_positions_are_not_compared() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    shown = {"states": np.ones((4, 2, 3), np.float32), "pooled": np.ones((2, 4), np.float32)}
    report = [{"masks": ["mask"], "hidden": 0, "tensors": 9, "outputs": {"states": (1, 2)}}]
    found = without_padding(report, {"mask": mask}, shown)
    np.testing.assert_array_equal(found["states"], np.broadcast_to(mask, (4, 2, 3)))
    np.testing.assert_array_equal(found["pooled"], shown["pooled"])
    unknown = [{**report[0], "hidden": None}]
    np.testing.assert_array_equal(without_padding(unknown, {"mask": mask}, shown)["states"], shown["states"])
    assert (shown["states"] == 1).all()
