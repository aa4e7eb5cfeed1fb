"""The guarantee: a one-sided confidence bound on a candidate's drop on data like the user's.

The bound comes from paired answers, original and candidate on the same held-out samples. Which method gives
it depends on the metric and the shapes of the answers, never on their values:

| metric | method | coverage |
|---|---|---|
| agreement, one answer for each sample | Clopper-Pearson | guaranteed |
| accuracy, top5, one answer for each sample | paired exact test (`bounds.paired_upper`) | guaranteed |
| accuracy, agreement over positions; cosine | betting (`bounds.betting_upper`) | guaranteed |
| f1, mcc, spearman, mse, kl, functions | bootstrap (`bounds.bootstrap_upper`) | approximate |

How several candidates may be tested on the same samples: docs/decisions/0015-guarantee.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from hasten.errors import OptionError
from hasten.search import metrics
from hasten.search.bounds import betting_upper, binomial_upper, bootstrap_upper, paired_upper
from hasten.search.metrics import Array, Metric, Outputs

_BOOTSTRAP = "bootstrap (BCa)"
_RESAMPLES = 2000
_FEWEST = 20  # samples, below which the bootstrap says nothing
_MOST_SAMPLES = 10**9


@dataclass(frozen=True)
class Bound:
    """What can be said of a candidate's drop.

    Attributes:
        measured: the drop on the held-out samples, in the metric's units; positive is worse.
        upper: with `confidence`, the drop on data like these is at most this; infinite where nothing can be
            said.
        confidence: as asked for, before any correction for the number of tests.
        samples: held-out samples.
        method: how the bound was got, in words.
        guaranteed: the coverage holds for every distribution; otherwise it is approximate.
        losses: samples that only the original answered rightly; None where answers are not simply right or
            wrong.
        gains: samples that only the candidate answered rightly; None as `losses`.
    """

    measured: float
    upper: float
    confidence: float
    samples: int
    method: str
    guaranteed: bool
    losses: int | None = None
    gains: int | None = None


def certify(
    metric: Metric,
    original: Outputs,
    candidate: Outputs,
    labels: Array | None,
    confidence: float = 0.95,
    *,
    tests: int = 1,
    seed: int = 0,
) -> Bound:
    """A one-sided upper confidence bound on a candidate's drop.

    Args:
        metric: what is measured.
        original: the original model's answers to the held-out samples, which no choice has
            looked at.
        candidate: the candidate's answers to the same.
        labels: one for each sample; None only where the metric needs none.
        confidence: of the bound, such as 0.95.
        tests: candidates that may be tested on these samples in any order and whatever the outcomes
            (Bonferroni's correction). Candidates tested in a fixed order that ends at the first failure need
            none: leave it 1.
        seed: of the bootstrap and of the order in which the bets are placed.

    Raises:
        OptionError: a confidence that is not between 0.5 and 1, or less than one test.
        MetricError: as `metrics.evaluate`; no samples; answers of different numbers of samples.
    """
    if not 0.5 <= confidence < 1:
        raise OptionError(f"confidence is {confidence}: give a number from 0.5 to below 1, such as 0.95")
    if tests < 1:
        raise OptionError(f"tests is {tests}: at least one candidate is tested")
    alpha = (1 - confidence) / tests
    samples = metrics.count(original, candidate)
    if metric.per_sample is None:
        return _of_whole_sets(metric, original, candidate, labels, confidence, alpha, seed)
    drops = metrics.sample_drops(metric, original, candidate, labels)
    measured = float(drops.mean())
    if metric.zero_one and metrics.single_answers(metric, original):
        losses, gains = int((drops > 0).sum()), int((drops < 0).sum())
        if metric.drops is not None and metric.drops[0] == 0:
            upper, method = binomial_upper(losses, samples, alpha), "Clopper-Pearson"
        else:
            upper, method = paired_upper(losses, gains, samples, alpha), "exact test of paired answers"
        return Bound(measured, upper, confidence, samples, method, True, losses, gains)
    if metric.drops is not None:
        shuffled = np.random.default_rng(seed).permutation(drops)  # data may come sorted by class or length
        upper = max(measured, betting_upper(shuffled, *metric.drops, alpha))
        return Bound(measured, upper, confidence, samples, "betting", True)

    def mean(chosen: Array) -> float:
        return float(drops[chosen].mean())

    return Bound(measured, _bootstrap(mean, samples, alpha, seed), confidence, samples, _BOOTSTRAP, False)


def sequence_bound(accepted: Sequence[Bound], budget: float, *, failed: bool) -> float:
    """The drop that may be stated for each accepted candidate of a fixed order.

    Candidates are tested in an order fixed without the held-out samples, from the most careful to the
    fastest, until one's bound exceeds the budget. That none of the accepted ones exceeds the *budget* needs
    no correction. Their own bounds are chosen after looking, and may not be stated as such: what may be is
    the budget, or, if no candidate failed, the greatest of the bounds (Hsu and Berger 1999).

    Args:
        accepted: the bounds of the accepted candidates, at least one.
        budget: the drop allowed.
        failed: the sequence ended with a candidate that failed.
    """
    return budget if failed else max(bound.upper for bound in accepted)


def samples_needed(
    bound: Bound, budget: float, *, tests: int = 1, largest: int = _MOST_SAMPLES
) -> int | None:
    """How many held-out samples would certify a candidate that drops as much as this one was measured to.

    With a measured drop of zero and answers that never differ it is the least that can certify anything.
    Exact for answers that are right or wrong: the share of samples that differ stays as measured. Otherwise
    from the law that the width of a bound falls with the square root of the number, which is an estimate.

    Args:
        bound: of the candidate.
        budget: the drop allowed, in the metric's units.
        tests: as for `certify`.
        largest: more than these is no answer.

    Returns:
        The number; None where no number helps, since the measured drop is the budget or more.
    """
    if bound.measured >= budget or math.isinf(bound.upper):
        return None
    if bound.upper <= budget:
        return bound.samples
    if bound.losses is None or bound.gains is None:
        width = (bound.upper - bound.measured) / (budget - bound.measured)
        needed = math.ceil(bound.samples * width**2)
        return needed if needed <= largest else None
    loss, gain = Fraction(bound.losses, bound.samples), Fraction(bound.gains, bound.samples)
    alpha = (1 - bound.confidence) / tests

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


def least_samples(budget: float, confidence: float, *, tests: int = 1) -> int | None:
    """How many samples certify an answer that never differs from the original's: no fewer certify anything.

    Returns:
        About `-log(1 - confidence) / budget` ("the rule of three"); None for a budget of zero or less.
    """
    if budget <= 0:
        return None
    if budget >= 1:
        return 1
    return math.ceil(math.log((1 - confidence) / tests) / math.log1p(-budget))


def _of_whole_sets(
    metric: Metric,
    original: Outputs,
    candidate: Outputs,
    labels: Array | None,
    confidence: float,
    alpha: float,
    seed: int,
) -> Bound:
    """The bound for a metric that is no mean of samples."""
    samples = metrics.count(original, candidate)
    before, after = metrics.relevant(metric, original), metrics.relevant(metric, candidate)

    def drop(chosen: Array) -> float:
        some = None if labels is None else labels[chosen]
        return metrics.drop(metric, metrics.take(before, chosen), metrics.take(after, chosen), some)

    measured = drop(np.arange(samples))
    upper = _bootstrap(drop, samples, alpha, seed)
    if metric.classes_alone:
        # Samples whose class changed may be so rare that none was seen; then no resample shows them either.
        upper = max(upper, measured + binomial_upper(0, samples, alpha))
    return Bound(measured, upper, confidence, samples, _BOOTSTRAP, False)


def _bootstrap(statistic: Callable[[Array], float], samples: int, alpha: float, seed: int) -> float:
    if samples < _FEWEST:
        return math.inf
    resamples = max(_RESAMPLES, math.ceil(20 / alpha))
    return bootstrap_upper(statistic, samples, alpha, resamples=resamples, seed=seed)
