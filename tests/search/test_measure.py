"""Turns, rounds and ratios."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from hasten.errors import EngineError
from hasten.search import measure as module
from hasten.search.engines import HASTEN, ONNXRUNTIME, OPENVINO, Engine, Opened
from hasten.search.measure import Contestant, Plan, Spread, measure

QUICK = Plan(1, rounds=2, turn=0.005, openings=1, pause=0)


class FakeWorker:
    """An engine whose runs take a set time; notes what happens to it."""

    events: list[tuple[str, str]]
    speed: dict[str, Sequence[float | EngineError]]  # by round

    def __init__(self, engine: Engine, model: Path, feeds: Path, threads: int, limits: object) -> None:
        if model.name == "broken":
            raise EngineError(f"{engine.name} cannot run this model: broken")
        self.name = engine.name
        self.opened = Opened(load={"hasten": 0.01}.get(self.name, 0.5), first=1.0, base=10**6, peak=2 * 10**6)
        self.turns = -1

    def times(self, runs: int) -> list[float]:
        self.events.append(("run", self.name))
        speed = self.speed[self.name]
        typical = speed[max(self.turns, 0) % len(speed)]
        if isinstance(typical, EngineError):
            raise typical
        return [9.0, *[typical] * (runs - 1)][-runs:]  # caches are cold at first

    def stop(self) -> None:
        self.events.append(("stop", self.name))

    def go_on(self) -> None:
        self.turns += 1
        self.events.append(("go on", self.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.events.append(("close", self.name))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.events = []
    FakeWorker.speed = {"hasten": (0.1, 0.2, 0.4), "onnxruntime": (0.2, 0.2, 1.6), "openvino": (0.3,)}
    monkeypatch.setattr(module, "Worker", FakeWorker)
    return FakeWorker


def contestants(tmp_path: Path, *engines: Engine, broken: str = "") -> list[Contestant]:
    file = tmp_path / "model"
    file.write_bytes(bytes(2_000_000))
    return [
        Contestant(engine, tmp_path / ("broken" if engine.name == broken else "model"), [file])
        for engine in engines
    ]


def test_the_figure_is_the_median_of_the_ratios_of_each_round(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan = Plan(2, rounds=3, turn=1, openings=2, pause=0)
    x = {"x": np.zeros(1)}
    found = measure(contestants(tmp_path, HASTEN, ONNXRUNTIME), x, plan, beside=lambda: {"f32": 7.0})
    ours, other = found.results
    assert ours.ratio is None
    assert other.ratio is not None
    # 0.2 / 0.1, 0.2 / 0.2, 1.6 / 0.4: not the ratio of the medians, which is 1
    assert other.ratio == Spread(1.5, 2.0, 3.0)
    assert ours.run_ms.median == pytest.approx(200)
    assert (ours.load_ms, other.load_ms, other.load_ratio) == (10, 500, 50)
    assert (ours.peak_mb, ours.base_mb, ours.file_mb) == (2, 1, 2)
    assert found.beside == ({"f32": 7.0},) * 3
    assert found.beside_named("f32") == Spread(7.0, 7.0, 7.0)
    assert found.beside_named("bf16") is None


def test_contestants_of_one_engine_have_a_worker_each(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan = Plan(2, rounds=3, turn=1, openings=0, pause=0)
    (one,) = contestants(tmp_path, ONNXRUNTIME)
    pair = [replace(one, label="plain"), replace(one, label="quantized")]
    found = measure(pair, {"x": np.zeros(1)}, plan)
    assert [result.engine for result in found.results] == ["plain", "quantized"]
    # Each worker goes through all rounds of its own: as one they would share the slow third.
    assert [dict(result.rounds_ms) for result in found.results] == [{0: 200, 1: 200, 2: 1600}] * 2
    assert fake.events.count(("close", "onnxruntime")) == 2
    with pytest.raises(ValueError, match="same name among onnxruntime, onnxruntime: give them labels"):
        measure([one, one], {"x": np.zeros(1)}, plan)


def test_one_engine_works_at_a_time_and_the_first_changes(fake: type[FakeWorker], tmp_path: Path) -> None:
    plan = Plan(2, rounds=3, turn=0.1, openings=0, pause=0)
    measure(contestants(tmp_path, HASTEN, ONNXRUNTIME, OPENVINO), {"x": np.zeros(1)}, plan)
    running: set[str] = set()
    order = []
    for event, name in fake.events:
        if event == "go on":
            assert not running
            running.add(name)
            order.append(name)
        elif event == "stop":
            running.discard(name)
    names = ["hasten", "onnxruntime", "openvino"]
    assert order == names + names[1:] + names[:1] + names[2:] + names[:2]
    assert [name for event, name in fake.events if event == "close"] == names[::-1]


def test_an_engine_that_fails_is_left_out_with_the_reason(fake: type[FakeWorker], tmp_path: Path) -> None:
    entrants = contestants(tmp_path, HASTEN, OPENVINO, ONNXRUNTIME, broken="openvino")
    found = measure(entrants, {"x": np.zeros(1)}, QUICK)
    assert [result.engine for result in found.results] == ["hasten", "onnxruntime"]
    assert found.failures == {"openvino": "openvino cannot run this model: broken"}
    entrants = contestants(tmp_path, HASTEN, ONNXRUNTIME, broken="hasten")
    found = measure(entrants, {"x": np.zeros(1)}, QUICK)
    assert [(result.engine, result.ratio) for result in found.results] == [("onnxruntime", None)]
    assert "hasten cannot" in found.failures["hasten"]


def test_an_engine_that_fails_while_it_is_timed_is_left_out(fake: type[FakeWorker], tmp_path: Path) -> None:
    fake.speed["onnxruntime"] = (0.2, EngineError("onnxruntime cannot run this model: it crashed"))
    plan = Plan(1, rounds=3, turn=0.1, openings=1, pause=0)
    found = measure(contestants(tmp_path, HASTEN, ONNXRUNTIME, OPENVINO), {"x": np.zeros(1)}, plan)
    assert [(result.engine, len(result.rounds_ms)) for result in found.results] == [
        ("hasten", 3),
        ("openvino", 3),
    ]
    assert "crashed" in found.failures["onnxruntime"]


def test_a_limit_on_time_takes_rounds_away_and_slow_peers_first(
    fake: type[FakeWorker], tmp_path: Path
) -> None:
    bf16 = replace(OPENVINO, name="openvino-bf16", precision="bf16")
    fake.speed = {"hasten": (0.1,), "onnxruntime": (0.4,), "openvino": (1.0,), "openvino-bf16": (0.9,)}
    entrants = contestants(tmp_path, HASTEN, ONNXRUNTIME, OPENVINO, bf16)
    plan = Plan(1, rounds=9, turn=0.1, openings=1, pause=0)
    counts = []
    for limit in (None, 1e-9, 1e9):
        found = measure(entrants, {"x": np.zeros(1)}, replace(plan, limit=limit))
        counts.append([len(result.rounds_ms) for result in found.results])
    # openvino is more than twice as slow as the other peer in f32; the only one in bf16 has none to lose to
    assert counts == [[9, 9, 9, 9], [3, 3, 3, 3], [9, 9, 3, 9]]
    assert found.results[2].ratio_to(found.results[1]).median == pytest.approx(2.5)
    over = measure(entrants, {"x": np.zeros(1)}, replace(plan, ends=time.monotonic()))
    assert [len(result.rounds_ms) for result in over.results] == [3] * 4 and over.rounds == 3


def test_real_engines(mlp: Path, mlp_artifact: Path, feeds: dict[str, np.ndarray]) -> None:
    entrants = [Contestant(HASTEN, mlp_artifact, [mlp_artifact]), Contestant(ONNXRUNTIME, mlp, [mlp])]
    found = measure(entrants, feeds, QUICK)
    assert found.failures == {}
    for result in found.results:
        assert result.runs >= 2
        assert 0 < result.run_ms.low <= result.run_ms.median <= result.run_ms.high
        assert result.load_ms > 0
        assert result.version[0].isdigit()
