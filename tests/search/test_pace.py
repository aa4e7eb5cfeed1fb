"""What still fits into the time of a search."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from hasten.search.clock import Clock
from hasten.search.pace import Pace
from hasten.search.trials import Trials


def test_until_pruning_begins_half_of_the_time_is_kept_for_it() -> None:
    clock = Clock(200.0, now=lambda: 0.0)
    problem = SimpleNamespace(held_out=range(40), calibration=range(10))
    trials = SimpleNamespace(
        clock=clock,
        problem=problem,
        answered_held_out=True,
        reference="lossless",
        answering={"lossless": 0.5},
    )
    notes: list[str] = []
    pace = Pace(cast(Trials, trials), notes)
    pace.keep_reserve()
    assert clock.reserve == 40.0  # a certificate's answers and timing
    assert pace.has_seconds(150.0)
    pace.keep_for_pruning(True)
    assert not pace.has_seconds(150.0)
    pace.keep_reserve()
    assert not pace.has_seconds(61.0)
    assert pace.has_seconds(59.0)
    assert set(notes) == {
        "the time was short: some candidates were left out, for pruning to have its turn",
    }
    pace.keep_for_pruning(False)
    assert pace.has_seconds(150.0)


def test_a_certificate_is_expected_to_take_what_its_candidate_took_last() -> None:
    clock = Clock(200.0, now=lambda: 0.0)
    problem = SimpleNamespace(held_out=range(400), calibration=range(10))
    trials = SimpleNamespace(
        clock=clock,
        problem=problem,
        answered_held_out=False,
        reference="lossless",
        answering={"lossless": 0.3},
    )
    notes: list[str] = []
    pace = Pace(cast(Trials, trials), notes)
    assert pace.judge_seconds == 3.0
    assert not pace.held_out_fits("int8")  # 240 s: it was never asked, and the reference answers too
    trials.answering["int8"] = 0.1
    assert pace.held_out_fits("int8")
    trials.answered_held_out = True
    pace.keep_reserve()
    assert clock.reserve == 60.0
    trials.answering["int8"] = 0.6
    assert not pace.held_out_fits("int8")
