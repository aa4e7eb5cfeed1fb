"""Which candidates keep the budget on the calibration part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.search.comparison import latency, over_budget, within_budget
from hasten.search.measure import Spread
from hasten.search.record import Outcome
from hasten.search.trials import Trials


@pytest.mark.parametrize(
    ("right", "kept"),
    [(398, True), (397, False)],  # of 400 texts: drops of 0.005 and a little more in floats, and of 0.0075
)
def test_a_drop_of_just_the_budget_keeps_it(right: int, kept: bool) -> None:
    drop = 1.995 - (0.995 + right / 400)
    notes: dict[str, Any] = {}
    trials = SimpleNamespace(
        records={"x": SimpleNamespace(outcome=Outcome.CERTIFIED, drop=drop)},
        problem=SimpleNamespace(asked=SimpleNamespace(max_drop=0.005)),
        works=lambda name: True,
        note=lambda name, **found: notes.update(found),
    )
    assert drop > 0.005
    assert over_budget(cast(Trials, trials), "x") is not kept
    assert within_budget(cast(Trials, trials), "x") is kept
    assert (notes.get("outcome") is Outcome.OVER_BUDGET) is not kept


def test_rounds_in_which_a_baseline_was_held_up_make_nobody_fast() -> None:
    """Figures of a search on R8: `b` was timed beside a lossless compilation that took 1.3 times as long."""

    def timed(ms: float, to_lossless: float, to_original: float | None) -> SimpleNamespace:
        original = None if to_original is None else Spread.of([to_original])
        return SimpleNamespace(
            latency_ms=Spread.of([ms]), to_lossless=Spread.of([to_lossless]), to_original=original
        )

    records = {
        "lossless": timed(3.864, 1.0, 1.747),
        "a": timed(1.143, 3.52, 5.98),
        "b": timed(1.267, 3.90, 5.02),
        "first look": timed(1.3, 3.0, None),
        "unknown": SimpleNamespace(latency_ms=None, to_lossless=None, to_original=None),
    }
    trials = cast(Trials, SimpleNamespace(records=records))
    assert latency(trials, "lossless") == 3.864
    assert latency(trials, "a") < latency(trials, "b")
    assert latency(trials, "b") == pytest.approx(3.864 * 1.747 / 5.02)
    assert latency(trials, "first look") == pytest.approx(3.864 / 3.0)
    assert latency(trials, "unknown") == float("inf")
