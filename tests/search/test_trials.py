"""What goes wrong beside the candidates of a search ends neither them nor the search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from hasten.errors import TuningError
from hasten.search import trials as trials_module
from hasten.search.asked import Problem
from hasten.search.candidates import LOSSLESS, ORIGINAL, Candidate, lossless
from hasten.search.clock import Clock
from hasten.search.engines import HASTEN
from hasten.search.hidden import Shown
from hasten.search.measure import Contestant, Measurement, Plan, Result, Spread
from hasten.search.memory import Memory
from hasten.search.metrics import metric_named
from hasten.search.record import CandidateRecord
from hasten.search.results import Results
from hasten.search.samples import Samples
from hasten.search.status import Status, Watch, nobody
from hasten.search.trials import Trials, reason_of
from hasten.search.variants import Variant


class Full:
    """A memory that keeps nothing."""

    def put(self, kind: str, value: object, **of: Any) -> None:
        raise TuningError("cannot write results.sqlite: no space left")


def trials(watch: Watch = nobody) -> Trials:
    problem = cast(Problem, SimpleNamespace(graph=None))
    return Trials(problem, Clock(None), cast(Memory, Full()), watch)


def test_a_watcher_that_breaks_is_told_nothing_more() -> None:
    heard: list[str] = []

    def watch(status: Status) -> None:
        heard.append(status.doing)
        if len(heard) == 2:
            raise ConnectionError("the server has gone")

    known = trials(watch)
    for doing in ("compiling", "timing", "certifying"):
        known.say(doing)
    assert heard == ["compiling", "timing"]
    assert known.notes == [
        "what watches the search failed, and was told nothing more: ConnectionError: the server has gone"
    ]


def test_measurements_that_cannot_be_kept_are_said_and_lose_nothing() -> None:
    known = trials()
    known.remember("judged", {"loss": 0.0}, candidate="int8")
    assert known.notes == [
        "measurements are not kept for later searches: cannot write results.sqlite: no space left"
    ]


def test_a_reason_names_the_kind_of_what_nobody_expected() -> None:
    assert reason_of(TuningError("no space")) == "no space"
    assert reason_of(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"


def timed_in_phases(memory: Memory, folder: Path) -> list[list[CandidateRecord]]:
    """What is known after each timing of a search: one early, first looks, and all again, each in a phase."""
    asked = SimpleNamespace(threads=1, memory=None)
    typical = SimpleNamespace(typical=lambda: {"x": np.zeros(1)})
    original = SimpleNamespace(model=folder)
    problem = SimpleNamespace(asked=asked, calibration=typical, graph=None, folder=folder, original=original)
    known = Trials(cast(Problem, problem), Clock(None), memory)
    for name in (LOSSLESS, ORIGINAL, "early", "a", "b"):
        known.variants[name] = Variant(cast(ir.Model, None))
        known.register(Candidate(name, "", HASTEN, variant=name))
        known._models[name] = folder
    found = []
    for phase, rounds, names in (
        ("bf16", 11, ["early"]),
        ("mixed precision", 5, ["a"]),
        ("certificates", 5, ["a", "b"]),
        ("certificates", 11, ["a", "early"]),
        ("certificates", 11, ["b"]),
        ("timing", 11, ["a", "b", "early"]),
    ):
        if known.clock.current != phase:
            known.clock.phase(phase)
        known.time(names, rounds)
        found.append(list(known.records.values()))
    return found


def test_a_repeated_search_knows_the_same_times_after_each_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measurement differs; a first look is taken for no more than that, and followed by a full one."""
    rng, rounds_of = np.random.default_rng(0), dict[str, list[int]]()

    def measure(contestants: Sequence[Contestant], feeds: object, plan: Plan, **_: Any) -> Measurement:
        results = []
        for name in [c.name for c in contestants]:
            rounds_of.setdefault(name, []).append(plan.rounds)
            run = {number: rng.uniform(9.0, 11.0) for number in range(3)}
            results.append(
                Result(
                    engine=name, version="1", precision="f32", run_ms=Spread.of(list(run.values())),
                    ratio=None, rounds_ms=run, runs=3, load_ms=1.0, first_ms=1.0, load_ratio=None,
                    loads_ms=(1.0,), peak_mb=1.0, base_mb=None, file_mb=1.0,
                )
            )  # fmt: skip
        return Measurement(plan.threads, 3, tuple(results), {})

    monkeypatch.setattr(trials_module, "measure", measure)
    memory = Memory(Results(tmp_path / "results.sqlite"), {}, "1")
    first = timed_in_phases(memory, tmp_path)
    assert rounds_of["a"][-2:] == rounds_of["b"][-2:] == [11, 11]
    rounds_of.clear()
    again = timed_in_phases(memory, tmp_path)
    assert rounds_of == {}
    assert again == first


class Echo:
    """A worker that answers what it is asked, and counts the files that are there meanwhile."""

    def __init__(self) -> None:
        self.files: list[int] = []

    def outputs(self, path: Path) -> dict[str, np.ndarray]:
        self.files.append(len(list(path.parent.iterdir())))
        with np.load(path) as loaded:
            return {"y": loaded["x"]}

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_large_parts_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of a certificate may be a mapped file that is larger than the disk that is left."""
    rows = np.arange(100, dtype=np.float32)[:, None, None] * np.ones((1, 1, 5), np.float32)
    samples = Samples(tuple({"x": row} for row in rows))
    graph = SimpleNamespace(graph=SimpleNamespace(inputs=[ir.val("x", shape=["n", 5])], outputs=[]))
    problem = SimpleNamespace(graph=graph, held_out=samples, folder=tmp_path, outputs=("y",))
    known = Trials(cast(Problem, problem), Clock(None), cast(Memory, Full()))
    monkeypatch.setattr(known, "shown", lambda: Shown(metric_named("agreement")))
    for most, there in ((rows.nbytes, [4, 4, 4, 4]), (rows.nbytes - 1, [1, 1, 1, 1])):
        echo = Echo()
        monkeypatch.setattr(known, "worker", lambda _, echo=echo: echo)
        monkeypatch.setattr(trials_module, "_KEPT", most)
        problem.folder = tmp_path / str(most)
        problem.folder.mkdir()
        known._answers.clear()
        found = known.answers(lossless(), "held_out")
        np.testing.assert_array_equal(found["y"], rows[:, 0])
        assert echo.files == there
    assert not list((problem.folder / "held_out").iterdir())
