"""The guarantee: a one-sided confidence bound on a candidate's drop on data like the user's.

The bound comes from paired answers, original and candidate on the same held-out samples. Which method gives
it depends on the metric and the shapes of the answers, never on their values:

| metric | method | coverage |
|---|---|---|
| agreement, one answer for each sample | Clopper-Pearson | guaranteed |
| accuracy, top5, one answer for each sample | paired exact test (`bounds.paired_upper`) | guaranteed |
| accuracy, agreement over positions; cosine | betting (`bounds.betting_upper`) | guaranteed |
| f1, mcc, spearman, mse, kl, functions | bootstrap (`bounds.bootstrap_upper`) | approximate |

Where no draw of the bootstrap is worse than what was measured, changes may be too rare to be seen: the share
of such samples has a bound ("the rule of three"), and each is taken to cost a whole unit of the metric.

How several candidates may be tested on the same samples: docs/decisions/0015-guarantee.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from hasten.errors import MetricError, OptionError
from hasten.search import metrics
from hasten.search.bounds import betting_upper, binomial_upper, bootstrap_upper, paired_upper
from hasten.search.metrics import Array, Metric, Outputs

KEPT = 0.1
"""Of what may go wrong: the share that is kept from the first candidate for those after a failure."""

_BOOTSTRAP = "bootstrap (BCa)"
_UNCHANGED = "rule of three, since no draw of the bootstrap is worse"
_RESAMPLES = 2000
_GROUPS = 200  # of samples that are left out in turn
_FEWEST = 20  # samples, below which the bootstrap says nothing; groups too
_PART = 0.7  # of the time left that resamples are planned for: calls are not all equally fast
_MOST_SAMPLES = 10**9
_MOST_PAIRS = 10_000  # answers that differ, up to which samples that would be needed are found exactly


@dataclass(frozen=True)
class Bound:
    """What can be said of a candidate's drop.

    Attributes:
        measured: the drop on the held-out samples, in the metric's units; positive is worse.
        upper: the drop on data like these is at most this, with the probability `level`; infinite where
            nothing can be said.
        confidence: as asked for, for all candidates together.
        samples: held-out samples.
        method: how the bound was got, in words.
        guaranteed: the coverage holds for every distribution; otherwise it is approximate.
        losses: samples that only the original answered rightly; None where answers are not simply right or
            wrong.
        gains: samples that only the candidate answered rightly; None as `losses`.
        share: of what may go wrong, `1 - confidence`, that this candidate's test may.
    """

    measured: float
    upper: float
    confidence: float
    samples: int
    method: str
    guaranteed: bool
    losses: int | None = None
    gains: int | None = None
    share: float = 1.0

    @property
    def level(self) -> float:
        """The confidence of this bound by itself."""
        return 1 - self.share * (1 - self.confidence)


@dataclass(frozen=True)
class Levels:
    """Which share of what may go wrong the next candidate of a fixed order is tested with.

    A fixed sequence that failures do not end (Qiu, Guo and Lynch 2015): the share follows from how many
    candidates before were not accepted. Those after none have `1 - kept`, those after one half of `kept`,
    after two a quarter: 0.9, 0.05, 0.025, ... for a tenth. Of the candidates beyond the budget, before the
    first is accepted all that come before it failed: the n-th of them has at most the n-th of these shares,
    which add up to 1. With nothing kept it is the sequence that the first failure ends.

    Attributes:
        kept: of the first, for those after a failure.
        failed: how many candidates were not accepted, for whatever reason.
    """

    kept: float = KEPT
    failed: int = 0

    @property
    def share(self) -> float:
        """Of `1 - confidence`, for the next candidate."""
        return self.kept / 2.0**self.failed if self.failed else 1 - self.kept

    def after(self, *, accepted: bool) -> Levels:
        """What is left once the next candidate was accepted; or failed, or was passed over."""
        return self if accepted else replace(self, failed=self.failed + 1)


def levels_for(metric: Metric, samples: int, budget: float, confidence: float) -> Levels:
    """The levels of a search: something is kept from the first test, unless that alone made it fail.

    Args:
        metric: what is measured.
        samples: held out.
        budget: the drop allowed.
        confidence: of all certificates together.
    """
    if not metric.zero_one:
        return Levels()
    least = least_samples(budget, confidence, share=1 - KEPT)
    return Levels() if least is not None and least <= samples else Levels(kept=0.0)


def certify(
    metric: Metric,
    original: Outputs,
    candidate: Outputs,
    labels: Array | None,
    confidence: float = 0.95,
    *,
    share: float = 1.0,
    seed: int = 0,
    until: float = math.inf,
) -> Bound:
    """A one-sided upper confidence bound on a candidate's drop.

    Args:
        metric: what is measured.
        original: the original model's answers to the held-out samples, which no choice has
            looked at.
        candidate: the candidate's answers to the same.
        labels: one for each sample; None only where the metric needs none.
        confidence: of all certificates on these samples together, such as 0.95.
        share: of `1 - confidence` that this one may take (`Levels`); 1 where it is the only one.
        seed: of the bootstrap and of the order in which the bets are placed.
        until: a time by `time.monotonic`, by which the bootstrap must have ended. It draws fewer samples
            where the metric is slow, but never fewer than the confidence needs.

    Raises:
        OptionError: a confidence that is not between 0.5 and 1, or a share that is not between 0 and 1.
        MetricError: as `metrics.evaluate`; no samples; answers of different numbers of samples; a metric that
            is too slow for the time left.
    """
    if not 0.5 <= confidence < 1:
        raise OptionError(f"confidence is {confidence}: give a number from 0.5 to below 1, such as 0.95")
    if not 0 < share <= 1:
        raise OptionError(f"share is {share}: give a number above 0, up to 1")
    alpha = (1 - confidence) * share
    samples = metrics.count(original, candidate)

    def bound(measured: float, upper: float, method: str, guaranteed: bool, *counts: int) -> Bound:
        losses, gains = counts or (None, None)
        return Bound(measured, upper, confidence, samples, method, guaranteed, losses, gains, share)

    if metric.per_sample is None:
        statistic = _drop_of(metric, original, candidate, labels)
        return bound(*_resampled(metric, statistic, samples, alpha, seed, until), False)
    drops = metrics.sample_drops(metric, original, candidate, labels)
    measured = float(drops.mean())
    if metric.zero_one and metrics.single_answers(metric, original):
        losses, gains = int((drops > 0).sum()), int((drops < 0).sum())
        if metric.drops is not None and metric.drops[0] == 0:
            upper, method = binomial_upper(losses, samples, alpha), "Clopper-Pearson"
        else:
            upper, method = paired_upper(losses, gains, samples, alpha), "exact test of paired answers"
        return bound(measured, upper, method, True, losses, gains)
    if metric.drops is not None:
        shuffled = np.random.default_rng(seed).permutation(drops)  # data may come sorted by class or length
        upper = max(measured, betting_upper(shuffled, *metric.drops, alpha))
        return bound(measured, upper, "betting", True)

    def mean(chosen: Array) -> float:
        return float(drops[chosen].mean())

    return bound(*_resampled(metric, mean, samples, alpha, seed, until), False)


def sequence_bound(accepted: Sequence[Bound], budget: float, *, failed: bool) -> float:
    """The drop that may be stated for each accepted candidate of a fixed order.

    Candidates are tested in an order fixed without the held-out samples, each with its share (`Levels`). Then
    the *budget* holds for all accepted ones. Their own bounds are chosen after looking, and may not be stated
    as such: what may be is the budget, or, if no candidate failed, the greatest of the bounds (Hsu and
    Berger 1999).

    Args:
        accepted: the bounds of the accepted candidates, at least one.
        budget: the drop allowed.
        failed: some candidate failed.
    """
    return budget if failed else max(bound.upper for bound in accepted)


def samples_needed(bound: Bound, budget: float, *, largest: int = _MOST_SAMPLES) -> int | None:
    """How many held-out samples would certify a candidate that drops as much as this one was measured to.

    With a measured drop of zero and answers that never differ it is the least that can certify anything.
    Exact for answers that are right or wrong: the share of samples that differ stays as measured. Otherwise
    from the law that the width of a bound falls with the square root of the number, which is an estimate;
    and where more than 10,000 answers would differ, of which exact bounds take minutes.
    The share of the test stays, but for what is kept from the first one as soon as there are enough samples.

    Args:
        bound: of the candidate.
        budget: the drop allowed, in the metric's units.
        largest: more than these is no answer.

    Returns:
        The number; None where no number helps, since the measured drop is the budget or more.
    """
    if bound.measured >= budget or math.isinf(bound.upper):
        return None
    if bound.upper <= budget:
        return bound.samples
    width = (bound.upper - bound.measured) / (budget - bound.measured)
    estimate = math.ceil(bound.samples * (width if bound.method == _UNCHANGED else width**2))
    changed = None if bound.losses is None or bound.gains is None else bound.losses + bound.gains
    if changed is None or changed * estimate > _MOST_PAIRS * bound.samples:
        return estimate if estimate <= largest else None
    assert bound.losses is not None
    assert bound.gains is not None
    loss, gain = Fraction(bound.losses, bound.samples), Fraction(bound.gains, bound.samples)
    alpha = (1 - bound.confidence) * min(bound.share, 1 - KEPT)

    def enough(samples: int) -> bool:
        losses, gains = math.ceil(loss * samples), math.floor(gain * samples)
        if bound.method == "Clopper-Pearson":
            return binomial_upper(losses, samples, alpha) <= budget
        return paired_upper(losses, gains, samples, alpha) <= budget

    low, high = bound.samples, bound.samples * 2
    while not enough(high):
        low, high = high, high * 2
        if high > largest:
            return None
    # Counts are whole, so a little more than enough may be too few again: what is returned is enough.
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def least_samples(budget: float, confidence: float, *, share: float = 1.0) -> int | None:
    """How many samples certify an answer that never differs from the original's: no fewer certify anything.

    Returns:
        About `-log(share * (1 - confidence)) / budget` ("the rule of three"); None for a budget of zero or
        less.
    """
    if budget <= 0:
        return None
    if budget >= 1:
        return 1
    return math.ceil(math.log((1 - confidence) * share) / math.log1p(-budget))


def _drop_of(
    metric: Metric, original: Outputs, candidate: Outputs, labels: Array | None
) -> Callable[[Array], float]:
    """The drop on a selection of samples, for a metric that is no mean of samples."""
    before, after = metrics.relevant(metric, original), metrics.relevant(metric, candidate)

    def drop(chosen: Array) -> float:
        some = None if labels is None else labels[chosen]
        return metrics.drop(metric, metrics.take(before, chosen), metrics.take(after, chosen), some)

    return drop


def _resampled(
    metric: Metric,
    statistic: Callable[[Array], float],
    samples: int,
    alpha: float,
    seed: int,
    until: float,
) -> tuple[float, float, str]:
    """The drop, its bound by the bootstrap and the method, with an allowance for what was not seen.

    Raises:
        MetricError: the statistic is too slow for the time.
    """
    measured = statistic(np.arange(samples))
    upper, method = _bootstrap(statistic, samples, alpha, seed, until)
    rare = measured + binomial_upper(0, samples, alpha)
    if metric.classes_alone:
        # Samples whose class changed may be so rare that none was seen; then no resample shows them.
        upper = max(upper, rare)
    elif upper <= measured:
        upper, method = rare, _UNCHANGED
    return measured, upper, method


def _bootstrap(
    statistic: Callable[[Array], float], samples: int, alpha: float, seed: int, until: float
) -> tuple[float, str]:
    """The bound and its method, within a time.

    Raises:
        MetricError: the statistic is too slow for that.
    """
    if samples < _FEWEST:
        return math.inf, _BOOTSTRAP
    least = math.ceil(20 / alpha)
    wanted, groups, method = max(_RESAMPLES, least), min(samples, _GROUPS), _BOOTSTRAP
    began = time.monotonic()
    statistic(np.arange(samples))
    seconds = time.monotonic() - began
    calls = _PART * max(0.0, until - time.monotonic()) / max(seconds, 1e-9)
    if calls < wanted + groups:
        groups = min(groups, max(_FEWEST, int(calls / 10)))
        wanted = int(calls) - groups
        method = f"{_BOOTSTRAP} of {wanted:,} draws"
    too_slow = MetricError(
        f"the time left is too short for the bootstrap, which needs {least + min(groups, _FEWEST):,} "
        f"drops in the metric at {seconds:.2g} s each: give more time, or a faster metric"
    )
    if wanted < least:
        raise too_slow

    def timed(chosen: Array) -> float:
        if time.monotonic() > until:
            raise too_slow
        return statistic(chosen)

    return bootstrap_upper(timed, samples, alpha, resamples=wanted, seed=seed, groups=groups), method
