"""Which candidates keep the budget on the calibration part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.search.comparison import over_budget, within_budget
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
