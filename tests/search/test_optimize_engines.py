"""Searches in which other engines are candidates, or the original is one, in made-up times."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.hostile import network, samples
from tests.search.searches import LAYERS, Search, record

import hasten
from hasten.errors import EngineError, MissingDependencyError
from hasten.runtime.artifact import read_artifact
from hasten.runtime.manifest import ForeignStep
from hasten.search import optimize, trials
from hasten.search.candidates import ORIGINAL, Candidate
from hasten.search.measure import Measurement, Spread
from hasten.search.record import Outcome
from hasten.target import TARGETS, runs_here

NARROW = any("bf16" in t.factors and runs_here(t) for t in TARGETS)


def make_up_time(monkeypatch: pytest.MonkeyPatch, pattern: str, ms: float) -> None:
    """Makes up the milliseconds that candidates take whose whole name fits a pattern."""
    measure = trials.measure

    def measured(*given: Any, **named: Any) -> Measurement:
        found = measure(*given, **named)
        times = {"run_ms": Spread.of([ms]), "rounds_ms": dict.fromkeys(range(3), ms)}
        results = [replace(r, **times) if re.fullmatch(pattern, r.engine) else r for r in found.results]
        return replace(found, results=tuple(results))

    monkeypatch.setattr(trials, "measure", measured)


@pytest.mark.parametrize(
    ("asked", "winner", "engine", "precision"),
    [
        ("bf16", "openvino-bf16" if NARROW else "openvino", "openvino", "bf16" if NARROW else "f32"),
        ("int8", r"int8 \(.*, onnxruntime\)", "onnxruntime", "f32"),
    ],
)
def test_another_engine_wins_and_the_session_runs_it(
    search: Search,
    clockwork: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    asked: str,
    winner: str,
    engine: str,
    precision: str,
) -> None:
    make_up_time(monkeypatch, winner, 1.0)
    found = search(precision=asked, engines=True)
    told = record(found)
    assert re.fullmatch(winner, told.chosen)
    assert told.stated <= 0.05
    assert told.candidate(told.chosen).engine == engine
    found.save(tmp_path / "found.hasten")
    with hasten.open(tmp_path / "found.hasten") as again:
        (step,) = read_artifact(tmp_path / "found.hasten").manifest.steps
        assert isinstance(step, ForeignStep)
        version = told.versions[engine]
        assert (step.engine, step.version, step.precision) == (engine, version, precision)
        x = {"x": np.concatenate([s["x"] for s in samples(200, seed=9)])}
        plain, narrow = hasten.compile(network()).run(x)["scores"], again.run(x)["scores"]
        np.testing.assert_array_equal(narrow, found.run(x)["scores"])
        least = 0 if winner == "openvino" else 1e-4
        assert least <= np.abs(narrow - plain).max() / np.abs(plain).max() < 0.2
        assert (narrow.argmax(axis=1) == plain.argmax(axis=1)).mean() > 0.93
    if asked == "int8":
        tried = {c.engine for c in told.candidates if c.quantized and c.drop is not None}
        assert tried == {"hasten", "onnxruntime", "openvino"}
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingDependencyError, match=f"pip install '{engine}=={version}'"):
        hasten.open(tmp_path / "found.hasten")


def test_an_engine_that_a_first_look_finds_slower_answers_nothing(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = trials.Trials.answers
    answered: list[str] = []

    def noted(self: trials.Trials, candidate: Candidate, kind: str) -> Any:
        answered.append(candidate.name)
        return answers(self, candidate, kind)

    make_up_time(monkeypatch, "openvino", 20.0)
    monkeypatch.setattr(trials.Trials, "answers", noted)
    told = record(search(precision="f32", engines=True)).candidate("openvino")
    assert told.outcome is Outcome.NOT_FASTER
    assert told.reason == "takes 2.0 times as long as lossless, by a first look"
    assert told.drop is None
    assert "lossless" in answered
    assert "openvino" not in answered


def test_an_original_that_fails_later_loses_nothing_but_itself(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = trials.Trials.answers

    def failing(self: trials.Trials, candidate: Candidate, kind: str) -> Any:
        if candidate.name == ORIGINAL and kind == "held_out":
            raise EngineError("onnxruntime cannot run this model: it needs more memory")
        return answers(self, candidate, kind)

    monkeypatch.setattr(trials.Trials, "answers", failing)
    told = record(search())
    assert told.candidate(ORIGINAL).outcome is Outcome.FAILED
    assert told.chosen.startswith("int8")
    assert told.reference == told.candidate(told.chosen).against == "lossless"
    assert "the drop in agreement against the lossless compilation on data like yours" in told.headline
    assert any("from here on: the original failed (onnxruntime cannot" in note for note in told.notes)


def test_the_original_stays_the_reference_where_the_lossless_differs_from_it(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = trials.Trials.answers

    def worse(self: trials.Trials, candidate: Candidate, kind: str) -> Any:
        found = answers(self, candidate, kind)
        if candidate.name != ORIGINAL:
            return found
        scores = found["scores"].copy()
        scores[::25] *= -1  # what the original answers otherwise than all that are compiled
        return {"scores": scores}

    monkeypatch.setattr(trials.Trials, "answers", worse)
    told = record(search(max_drop=0.1))
    chosen = told.candidate(told.chosen)
    assert chosen.quantized == LAYERS
    assert told.reference == chosen.against == ORIGINAL
    assert chosen.bound.measured >= 0.04
    assert told.candidate("lossless").drop == pytest.approx(0.04)
    assert any("the lossless compilation itself drops 0.04 against the original" in n for n in told.notes)
    assert "against the lossless" not in told.headline
    over = record(search(max_drop=0.03))
    assert over.chosen == "lossless"
    assert "it drops 4 points itself against the original on the 150 calibration samples" in over.headline
    assert over.original_value == 1.0


def test_an_original_that_takes_too_long_is_no_reference_and_that_is_said(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "_ORIGINAL_SHARE", 0.0)
    told = record(search(time_limit=1000.0, metric="cosine"))
    assert told.chosen.startswith("int8")
    assert told.reference == "lossless"
    assert "the drop in cosine against the lossless compilation on data like yours" in told.headline
    assert any("not the original: the original's answers would take about" in note for note in told.notes)
