"""Which candidates keep the budget on the calibration part, and which are faster than others."""

from __future__ import annotations

from collections.abc import Collection

from hasten.search.candidates import LOSSLESS, ORIGINAL
from hasten.search.measure import Spread
from hasten.search.record import Outcome
from hasten.search.trials import Trials

_ROUNDING = 1e-9
"""Two metrics that differ by just the budget differ by a little more in floats."""


def over_budget(trials: Trials, name: str) -> bool:
    """Whether a candidate's drop on the calibration part is known and above the budget."""
    drop = trials.records[name].drop
    return drop is not None and drop > trials.problem.asked.max_drop + _ROUNDING


def within_budget(trials: Trials, name: str) -> bool:
    """Whether a candidate keeps the budget on the calibration part; notes it if not. None set aside does."""
    found = trials.records[name]
    if found.outcome in (Outcome.BASELINE, Outcome.SET_ASIDE) or found.drop is None or not trials.works(name):
        return False
    if over_budget(trials, name):
        reason = f"the drop is {found.drop:.3g} on the calibration part"
        trials.note(name, outcome=Outcome.OVER_BUDGET, reason=reason)
        return False
    return True


def in_the_running(trials: Trials, name: str) -> bool:
    """Whether a candidate keeps the budget on the calibration part, and none was found to be better."""
    return within_budget(trials, name) and trials.records[name].outcome is not Outcome.NOT_FASTER


def latency(trials: Trials, name: str) -> float:
    """A candidate's median milliseconds, in the lossless compilation's.

    They follow from ratios to each baseline within the same rounds. Where both are known the larger counts:
    rounds in which a baseline was held up make whoever ran beside it look fast.
    """
    found, base = trials.records[name], trials.records[LOSSLESS]
    if base.latency_ms is None:
        return float("inf")
    own = base.latency_ms.median
    if name == LOSSLESS:
        return own
    estimates = [own / found.to_lossless.median] if found.to_lossless is not None else []
    if found.to_original is not None and base.to_original is not None:
        estimates.append(own * base.to_original.median / found.to_original.median)
    return max(estimates, default=float("inf"))


def faster(trials: Trials, name: str, other: str) -> bool:
    """Whether three quarters of the rounds say that a candidate beats a baseline, or there is no such one."""
    found = trials.records[name]
    if not trials.works(other):
        return True
    ratio = found.to_lossless if other == LOSSLESS else found.to_original
    return ratio is not None and ratio.low > 1.0


def why_not_faster(trials: Trials, name: str, baselines: Collection[str] = (LOSSLESS, ORIGINAL)) -> str:
    """Which of the baselines a candidate does not beat, and by how much."""
    found = trials.records[name]
    return ", ".join(
        f"{_times(ratio)} the speed of the {other}"
        for other, ratio in ((LOSSLESS, found.to_lossless), (ORIGINAL, found.to_original))
        if other in baselines and not faster(trials, name, other)
    )


def _times(ratio: Spread | None) -> str:
    return "unknown" if ratio is None else f"{ratio.median:.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]"
