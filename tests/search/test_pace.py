"""What still fits into the time of a search."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hasten.search.clock import Clock
from hasten.search.measure import Spread
from hasten.search.pace import Pace
from hasten.search.trials import Trials


def trials(held_out: int, *, answered: bool, lossless: float) -> Any:
    """A search of 200 seconds with ten samples to calibrate by."""
    return SimpleNamespace(
        clock=Clock(200.0, now=lambda: 0.0),
        problem=SimpleNamespace(held_out=range(held_out), calibration=range(10)),
        answered_held_out=answered,
        reference="lossless",
        answering={"lossless": lossless},
        records={},
    )


def test_until_pruning_begins_half_of_the_time_is_kept_for_it() -> None:
    known, notes = trials(40, answered=True, lossless=0.5), list[str]()
    pace = Pace(cast(Trials, known), notes)
    pace.keep_reserve()
    assert known.clock.reserve == 40.0  # a certificate's answers and timing
    assert pace.has_seconds(150.0)
    pace.keep_for_pruning(True)
    assert not pace.has_seconds(150.0)
    pace.keep_reserve()
    assert not pace.has_seconds(61.0)
    assert pace.has_seconds(59.0)
    assert set(notes) == {"the time was short: some candidates were left out, for pruning to have its turn"}
    pace.keep_for_pruning(False)
    assert pace.has_seconds(150.0)


def test_a_certificate_is_expected_to_take_what_its_candidate_took_last() -> None:
    known, notes = trials(400, answered=False, lossless=0.3), list[str]()
    pace = Pace(cast(Trials, known), notes)
    assert pace.judge_seconds == 3.0
    assert not pace.held_out_fits("int8")  # 240 s: it was never asked, and the reference answers too
    known.answering["int8"] = 0.1
    assert pace.held_out_fits("int8")
    known.answered_held_out = True
    pace.keep_reserve()
    assert known.clock.reserve == 60.0
    known.answering["int8"] = 0.6
    assert not pace.held_out_fits("int8")
    known.records["int8"] = SimpleNamespace(latency_ms=Spread.of([100.0]))
    assert pace.held_out_fits("int8")  # by its times in turns: one answer may have waited for other programs
