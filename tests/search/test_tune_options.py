"""What follows from what a user says about tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.search.test_tune import SIZES, SMALL, Builder, Fake, rows_outside_is_faster

from hasten.codegen.schedule import Schedule
from hasten.errors import TuningError
from hasten.loops.dtypes import DType
from hasten.search import tune_options
from hasten.search.results import Result, Results
from hasten.search.tune import Stop
from hasten.search.tune_bench import Task
from hasten.search.tune_options import Chosen, Tuning, choose_schedules
from hasten.target import Target

OTHER, BEST, ABROAD = (Target.named(name) for name in ("x86-64-v3", "x86-64-v4", "aarch64"))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs two of the targets."""
    monkeypatch.setattr(tune_options, "runs_here", lambda target: target is not ABROAD)
    monkeypatch.setattr(tune_options, "best_here", lambda targets: BEST)


def chosen_for(tuning: Tuning, builder: object, **others: object) -> dict[Target, Chosen]:
    return choose_schedules(
        tuning,
        [SMALL],
        (OTHER, ABROAD, BEST),
        threads=1,
        precision=DType.F32,
        version="0.1.0",
        cache=None,
        progress=lambda _: None,
        build=builder,
        **others,
    )


def test_the_time_limit_is_for_all_targets_and_the_one_that_runs_comes_first(tmp_path: Path) -> None:
    """Each kernel takes a second to build, and what the first target leaves is the second's."""
    now = 0.0
    built: list[Target] = []

    def build(
        task: Task,
        schedules: Sequence[Schedule],
        target: Target,
        threads: int,
        cache: Path | None,
        stop: Stop,
    ) -> Fake:
        nonlocal now
        now += 1.0
        built.append(target)
        return Fake(schedules, rows_outside_is_faster, set())

    tuning = Tuning("quick", seconds=2.5, shapes={"x": (SIZES["n"], 20)}, database=tmp_path / "t.sqlite")
    chosen = chosen_for(tuning, build, clock=lambda: now)
    assert built == [BEST, BEST, OTHER]
    assert list(chosen) == [OTHER, ABROAD, BEST]
    found = {t: (len(c.schedules.chosen), c.noted.get("left")) for t, c in chosen.items()}
    assert found == {BEST: (2, 0), OTHER: (0, 2), ABROAD: (0, None)}


def imported(database: Path) -> Tuning:
    """Results for both targets that run here, not yet verified."""
    tuning = Tuning("stored", database=database)
    chosen_for(Tuning("quick", database=database), Builder(rows_outside_is_faster))
    rows = tuning.results.rows()
    tuning.results.clear()
    tuning.results.record(rows, verified=False)
    return tuning


def test_a_shared_file_that_cannot_be_written_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = imported(tmp_path / "t.sqlite")

    def refuse(self: Results, result: Result, *, right: bool) -> None:
        raise TuningError("readonly database")

    monkeypatch.setattr(Results, "judge", refuse)
    chosen = chosen_for(tuning, Builder(rows_outside_is_faster))
    assert [len(c.schedules.chosen) for c in chosen.values()] == [2, 0, 2]
    assert chosen[BEST].noted["notes"] == (
        "what was verified now will be verified again next time: readonly database",
    )
    wrong = chosen_for(tuning, Builder(rows_outside_is_faster, wrong={0}))
    assert [len(c.schedules.chosen) for c in wrong.values()] == [0, 0, 0]


def test_what_was_found_earlier_is_used_however_long_verifying_takes(tmp_path: Path) -> None:
    tuning = imported(tmp_path / "t.sqlite")
    ticks = iter(range(0, 10**9, 10**4))
    chosen = chosen_for(tuning, Builder(rows_outside_is_faster), clock=lambda: float(next(ticks)))
    assert [len(c.schedules.chosen) for c in chosen.values()] == [2, 0, 2]
