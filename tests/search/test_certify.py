"""The guarantee: coverage by simulation, tightness against known tables, and edges."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import scipy.stats

from hasten.errors import MetricError, OptionError
from hasten.search import bounds
from hasten.search import certify as certify_module
from hasten.search.certify import (
    KEPT,
    Bound,
    Levels,
    certify,
    least_samples,
    levels_for,
    samples_needed,
    sequence_bound,
)
from hasten.search.metrics import Metric, metric_named

ALPHA = 0.05


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5, 0.95])
def test_binomial_coverage_is_guaranteed(rate: float) -> None:
    # Every outcome with its exact probability, so that no simulation blurs the result.
    hits = np.arange(201)
    upper = np.array([bounds.binomial_upper(int(h), 200, ALPHA) for h in hits])
    missed = scipy.stats.binom.pmf(hits, 200, rate)[upper < rate].sum()
    assert missed <= ALPHA + 1e-9


def test_rule_of_three() -> None:
    for samples in (20, 300, 2190):
        wanted = 1 - ALPHA ** (1 / samples)
        assert bounds.binomial_upper(0, samples, ALPHA) == pytest.approx(wanted)
        # Gains might have hidden losses; not knowing of any costs little.
        assert wanted <= bounds.paired_upper(0, 0, samples, ALPHA) <= 1.02 * wanted


paired = functools.lru_cache(None)(bounds.paired_upper)
SHARES = [
    (0.003, 0.0),
    (0.01, 0.01),
    (0.02, 0.005),
    (0.0, 0.02),
    (0.05, 0.05),
    (0.3, 0.3),
    (0.4, 0.1),
    (0.9, 0.1),
]


@pytest.mark.parametrize(("loss", "gain"), SHARES)
def test_paired_coverage_is_guaranteed(loss: float, gain: float) -> None:
    samples = 15
    missed = 0.0
    for losses in range(samples + 1):
        for gains in range(samples + 1 - losses):
            if paired(losses, gains, samples, ALPHA) < loss - gain - 1e-12:
                share = [loss, gain, max(0.0, 1 - loss - gain)]
                counts = [losses, gains, samples - losses - gains]
                missed += float(scipy.stats.multinomial.pmf(counts, samples, share))
    assert missed <= ALPHA + 1e-9


@pytest.mark.parametrize(("loss", "gain"), SHARES[:4])
def test_paired_coverage_of_many_samples(loss: float, gain: float) -> None:
    samples, draws = 400, 5000
    drawn = np.random.default_rng(5).multinomial(samples, [loss, gain, 1 - loss - gain], draws)
    missed = sum(paired(int(a), int(b), samples, ALPHA) < loss - gain for a, b in drawn[:, :2])
    assert missed / draws <= ALPHA + 3 * math.sqrt(ALPHA / draws)


def test_paired_bound_is_nearly_as_tight_as_a_normal_one_and_tighter_than_two_bounds_combined() -> None:
    for losses, gains, samples in [(5, 5, 2190), (20, 20, 2190), (12, 3, 2190), (40, 40, 10_000)]:
        upper = bounds.paired_upper(losses, gains, samples, ALPHA)
        spread = 1.645 * math.sqrt(losses + gains) / samples
        measured = (losses - gains) / samples
        assert measured + spread < upper < measured + 1.35 * spread
        combined = bounds.binomial_upper(losses, samples, ALPHA / 2) - (
            1 - bounds.binomial_upper(samples - gains, samples, ALPHA / 2)
        )
        assert upper < combined


def test_paired_bound_is_monotone() -> None:
    base = bounds.paired_upper(6, 4, 500, ALPHA)
    assert bounds.paired_upper(7, 4, 500, ALPHA) > base > bounds.paired_upper(6, 5, 500, ALPHA)
    assert bounds.paired_upper(6, 4, 500, ALPHA / 5) > base > bounds.paired_upper(12, 8, 1000, ALPHA)


@pytest.mark.parametrize("shape", [(0.2, 2.0), (5.0, 5.0), (0.05, 10.0)])
@pytest.mark.parametrize("samples", [30, 200])
def test_betting_coverage_is_guaranteed(shape: tuple[float, float], samples: int) -> None:
    rng, draws = np.random.default_rng(6), 300
    true = 2 * shape[0] / sum(shape)
    uppers = [bounds.betting_upper(2 * rng.beta(*shape, samples), 0, 2, ALPHA) for _ in range(draws)]
    assert np.mean(np.array(uppers) < true) <= ALPHA + 3 * math.sqrt(ALPHA / draws)
    assert np.mean(uppers) < 2


def test_betting_is_tight_where_values_hardly_vary() -> None:
    rng = np.random.default_rng(7)
    values = 0.002 * rng.random(1000)  # such as 1 - cosine
    hoeffding = 2 * math.sqrt(math.log(1 / ALPHA) / 2000)
    assert values.mean() < bounds.betting_upper(values, 0, 2, ALPHA) < hoeffding / 6


@pytest.mark.parametrize("true", ["normal", "exponential"])
def test_bootstrap_coverage_is_about_right(true: str) -> None:
    rng, draws, missed = np.random.default_rng(8), 300, 0
    for seed in range(draws):
        x = rng.standard_normal(60) if true == "normal" else rng.exponential(size=60) - 1

        def mean(chosen: np.ndarray, x: np.ndarray = x) -> float:
            return float(x[chosen].mean())

        missed += bounds.bootstrap_upper(mean, 60, ALPHA, resamples=400, seed=seed) < 0
    assert 0.01 <= missed / draws <= 0.13


def answers(right: np.ndarray) -> dict[str, np.ndarray]:
    """Two scores for each sample; label 1 is right where `right` is."""
    return {"y": np.stack([1.0 - right, right], axis=1).astype(np.float32)}


def test_accuracy_agreement_and_f1_of_the_same_answers() -> None:
    rng = np.random.default_rng(9)
    before = rng.random(1000) < 0.9
    after = np.where(rng.random(1000) < 0.01, ~before, before)
    labels = np.ones(1000, np.int64)
    losses, gains = int((before & ~after).sum()), int((~before & after).sum())

    accuracy = certify(metric_named("accuracy"), answers(before), answers(after), labels)
    assert (accuracy.losses, accuracy.gains, accuracy.guaranteed) == (losses, gains, True)
    assert accuracy.measured == pytest.approx((losses - gains) / 1000)
    agreement = certify(metric_named("agreement"), answers(before), answers(after), None)
    assert agreement.upper == bounds.binomial_upper(losses + gains, 1000, 1 - 0.95)
    f1 = certify(metric_named("f1"), answers(before), answers(after), labels)
    assert f1.measured < f1.upper < 0.05
    assert not f1.guaranteed


@pytest.mark.parametrize("name", ["accuracy", "agreement"])
def test_the_only_score_of_a_sample_is_one_answer_in_any_shape(name: str) -> None:
    before, labels = np.arange(400) % 7 > 0, np.ones(400, np.int64)
    after = before ^ (np.arange(400) % 100 == 1)
    metric, lone = metric_named(name), metric_named(name, lone="probability")
    wanted = certify(metric, answers(before), answers(after), labels)
    assert wanted.method != "betting"
    for shape, kind in (((400,), np.float32), ((400, 1), np.float32), ((400,), bool), ((400, 1), np.int64)):
        right = labels if kind is np.float32 else labels.reshape(shape)
        given = ({"y": each.reshape(shape).astype(kind)} for each in (before, after))
        assert certify(lone, *given, right) == wanted
    places = ({"y": np.stack([each, before], axis=1)} for each in (before, after))
    assert certify(metric, *places, np.ones((400, 2), np.int64)).method == "betting"


def test_a_smaller_share_widens() -> None:
    before, labels = np.arange(500) % 10 > 0, np.ones(500, np.int64)
    whole, quarter = (
        certify(metric_named("accuracy"), answers(before), answers(before), labels, share=share)
        for share in (1.0, 0.25)
    )
    assert whole.upper < quarter.upper
    assert quarter.upper == bounds.paired_upper(0, 0, 500, (1 - 0.95) * 0.25)
    assert quarter.level == pytest.approx(0.9875)


@pytest.mark.parametrize("name", ["f1", "mcc"])
def test_no_changed_answer_is_no_certainty(name: str) -> None:
    before, labels = np.arange(40) % 4 > 0, np.arange(40) % 2
    bound = certify(metric_named(name), answers(before), answers(before), labels)
    assert bound.measured == 0
    assert bound.upper >= bounds.binomial_upper(0, 40, 1 - 0.95)


@pytest.mark.parametrize("name", ["mse", "kl", "function"])
def test_answers_that_never_differ_certify_no_more_than_their_number_can(name: str) -> None:
    """A change may be rarer than one in as many samples as there are, whatever the metric."""
    rng = np.random.default_rng(0)
    before = {"y": rng.random((30, 4)).astype(np.float32)}
    labels = before["y"].argmax(1) if name == "function" else before["y"]

    def right(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
        return float((outputs["y"].argmax(1) == labels).mean())

    metric = metric_named(right, larger_is_better=True) if name == "function" else metric_named(name)
    bound = certify(metric, before, before, None if name == "kl" else labels)
    assert bound.measured == 0
    assert bound.upper >= bounds.binomial_upper(0, 30, 1 - 0.95)
    needed = samples_needed(bound, 0.01)
    assert needed is not None
    assert 250 < needed < 350
    assert samples_needed(bound, 0.0) is None


@pytest.mark.parametrize("name", ["accuracy", "agreement", "cosine", "mse", "f1"])
def test_a_single_sample_certifies_nothing(name: str) -> None:
    one = {"y": np.array([[0.2, 0.8]], np.float32)}
    labels = np.array([[0.2, 0.8]]) if name == "mse" else np.array([1])
    assert certify(metric_named(name), one, one, labels).upper >= 0.95


def test_cosine_bets_and_functions_resample() -> None:
    rng = np.random.default_rng(3)
    before = rng.standard_normal((300, 16)).astype(np.float32)
    after = before + 0.02 * rng.standard_normal(before.shape).astype(np.float32)
    cosine = certify(metric_named("cosine"), {"y": before}, {"y": after}, None)
    assert 0 < cosine.measured < cosine.upper < 0.03
    assert cosine.guaranteed
    metric = metric_named(lambda outputs, labels: float(outputs["y"].mean()), larger_is_better=True)
    first, second = (certify(metric, {"y": before}, {"y": after}, None) for _ in range(2))
    assert first == second
    assert first.measured < first.upper


def test_samples_needed() -> None:
    assert least_samples(0.01, 0.95) == 299
    assert least_samples(0.01, 0.95, share=0.2) == math.ceil(math.log(0.01) / math.log(0.99))
    assert least_samples(0, 0.95) is None
    accuracy = metric_named("accuracy")
    labels = np.ones(100, np.int64)
    before = np.arange(100) > 0
    after = np.roll(before, 1)  # a loss and a gain
    bound = certify(accuracy, answers(before), answers(after), labels)
    assert bound.upper > 0.02
    needed = samples_needed(bound, 0.02)
    assert needed is not None
    alpha = (1 - KEPT) * (1 - 0.95)  # of the first test of a search that has so many
    assert bounds.paired_upper(math.ceil(needed / 100), needed // 100, needed, alpha) <= 0.02
    assert samples_needed(bound, 1.0) == 100
    assert samples_needed(certify(accuracy, answers(before), answers(np.zeros(100)), labels), 0.01) is None


def test_samples_needed_of_other_metrics_follows_the_square_law() -> None:
    bound = Bound(0.01, 0.03, 0.95, 100, "betting", True)
    assert samples_needed(bound, 0.02) == 400
    assert samples_needed(bound, 0.01) is None


def test_what_may_be_stated_of_a_sequence() -> None:
    accepted = [Bound(0.0, upper, 0.95, 10, "", True) for upper in (0.002, 0.004, 0.003)]
    assert sequence_bound(accepted, 0.01, failed=False) == 0.004
    assert sequence_bound(accepted, 0.01, failed=True) == 0.01


def test_shares_fall_with_failures_alone_and_add_up() -> None:
    levels, own = Levels(), []
    for _ in range(60):
        own.append(levels.share)
        levels = levels.after(accepted=False)
    assert own[:4] == pytest.approx([0.9, 0.05, 0.025, 0.0125])
    assert sum(own) == pytest.approx(1)
    levels = Levels().after(accepted=True)
    assert levels.share == Levels().share
    late = functools.reduce(lambda before, _: before.after(accepted=True), range(9), levels)
    assert late.after(accepted=False).share == own[1]  # however many were accepted before
    assert late.after(accepted=False).after(accepted=True).share == own[1]
    fixed = Levels(kept=0.0)
    assert fixed.share == fixed.after(accepted=True).share == 1.0
    assert fixed.after(accepted=False).share == 0.0


@pytest.mark.parametrize("kept", [KEPT, 0.0, 0.5])
def test_whatever_is_beyond_the_budget_and_whatever_passes_chances_of_error_add_up(kept: float) -> None:
    """Every set of places that must not be accepted, every outcome of the others: the union bound."""
    places = range(7)
    most = 0.0
    for beyond in itertools.product([False, True], repeat=len(places)):
        shares = dict.fromkeys([n for n in places if beyond[n]], 0.0)
        for passes in itertools.product([False, True], repeat=len(places)):
            levels = Levels(kept)
            for n in places:
                if beyond[n]:
                    shares[n] = max(shares[n], levels.share)
                levels = levels.after(accepted=passes[n] and not beyond[n])
        most = max(most, sum(shares.values()))
    assert 0.9 < most <= 1 + 1e-12


def test_something_is_kept_where_the_first_test_can_do_without() -> None:
    agreement = metric_named("agreement")
    assert levels_for(agreement, 299, 0.01, 0.95).share == 1.0
    assert levels_for(agreement, 308, 0.01, 0.95).share == 1.0
    assert levels_for(agreement, 309, 0.01, 0.95).share == 1 - KEPT
    assert levels_for(metric_named("cosine"), 30, 0.01, 0.95).share == 1 - KEPT
    for samples, share in ((299, 1.0), (309, 1 - KEPT)):
        assert bounds.binomial_upper(0, samples, (1 - 0.95) * share) <= 0.01


@functools.lru_cache(None)
def agreement_upper(flips: int, samples: int, share: float) -> float:
    return bounds.binomial_upper(flips, samples, ALPHA * share)


def run_order(flips: np.ndarray, samples: int, budget: float) -> tuple[list[int], float]:
    """Which candidates of an order are certified, and what may be stated of them."""
    levels, accepted, uppers = Levels(), [], []
    for number, count in enumerate(flips):
        upper = agreement_upper(int(count), samples, levels.share)
        passed = upper <= budget
        levels = levels.after(accepted=passed)
        if passed:
            accepted.append(number)
            uppers.append(Bound(0.0, upper, 0.95, samples, "", True))
    stated = sequence_bound(uppers, budget, failed=len(accepted) < len(flips)) if accepted else math.inf
    return accepted, stated


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "true", [(1, 1, 1, 1), (0.1, 1, 1, 1), (1, 0.1, 1, 0.1), (0.2, 0.5, 0.8, 1), (0.5, 0.9, 0.7, 0.6)]
)
def test_of_an_order_with_failures_what_is_certified_and_stated_holds(
    true: tuple[float, ...], together: bool
) -> None:
    """Drops in budgets; those of a whole budget are the worst that must not be certified."""
    samples, budget, draws = 700, 0.01, 10_000
    rng, rates = np.random.default_rng(11), budget * np.array(true)
    if together:  # the samples that a careful candidate gets wrong, others do too
        order = np.argsort(rates)
        steps = np.diff(np.concatenate([[0], rates[order]]))
        added = rng.multinomial(samples, [*steps, 1 - steps.sum()], draws)[:, :-1].cumsum(axis=1)
        flips = np.empty_like(added)
        flips[:, order] = added
    else:
        flips = rng.binomial(samples, rates, (draws, len(rates)))
    wrong = missed = 0
    for row in flips:
        accepted, stated = run_order(row, samples, budget)
        wrong += any(rates[number] >= budget for number in accepted)
        missed += any(rates[number] > stated for number in accepted)
    assert wrong / draws <= ALPHA + 3 * math.sqrt(ALPHA / draws)
    assert missed / draws <= ALPHA + 3 * math.sqrt(ALPHA / draws)


def test_a_failure_leaves_those_after_it_a_chance() -> None:
    samples, budget = 700, 0.01
    assert run_order(np.array([9, 0, 2]), samples, budget)[0] == [1]
    assert run_order(np.array([0, 1, 2]), samples, budget)[0] == [0, 1, 2]
    assert run_order(np.array([9, 9, 9, 0]), samples, budget)[0] == []  # little is left by then
    assert run_order(np.array([0, 0, 0, 0, 9, 0]), samples, budget)[0] == [
        0,
        1,
        2,
        3,
        5,
    ]  # nothing was used before


def test_a_slow_metric_gets_fewer_draws_but_never_too_few() -> None:
    now, calls = [0.0], [0]

    def slow(outputs: dict[str, np.ndarray], labels: object) -> float:
        calls[0] += 1
        now[0] += 0.05
        return float(outputs["y"].mean())

    rng = np.random.default_rng(4)
    before = {"y": rng.standard_normal((100, 2)).astype(np.float32)}
    after = {"y": before["y"] + 0.01 * rng.standard_normal((100, 2)).astype(np.float32)}
    metric = metric_named(slow, larger_is_better=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify_module.time, "monotonic", lambda: now[0])
        whole = certify(metric, before, after, None)
        assert calls[0] > 4000
        calls[0], until = 0, now[0] + 100.0  # half of what that took
        fewer = certify(metric, before, after, None, until=until)
        assert now[0] <= until
        assert 2 * 420 <= calls[0] < 2000
        assert fewer.method.startswith("bootstrap (BCa) of 6")
        assert whole.method == "bootstrap (BCa)"
        assert fewer.upper == pytest.approx(whole.upper, rel=0.2)
        calls[0] = 0
        with pytest.raises(
            MetricError, match=r"the time left is too short for the bootstrap, which needs 420"
        ):
            certify(metric, before, after, None, until=now[0] + 30.0)
        assert calls[0] == 4


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"confidence": 1.0}, OptionError),
        ({"confidence": math.nan}, OptionError),
        ({"share": 0.0}, OptionError),
        ({"share": 1.1}, OptionError),
        ({"candidate": answers(np.ones(9))}, MetricError),
        ({"original": answers(np.ones(0)), "candidate": answers(np.ones(0))}, MetricError),
        ({"candidate": {"y": np.full((10, 2), np.nan, np.float32)}}, MetricError),
        ({"labels": None}, MetricError),
    ],
)
def test_what_cannot_be_certified(changes: dict[str, object], error: type[Exception]) -> None:
    metric: Metric = metric_named("accuracy")
    given: dict[str, object] = {
        "original": answers(np.ones(10)),
        "candidate": answers(np.ones(10)),
        "labels": np.ones(10, int),
    }
    with pytest.raises(error):
        certify(metric, **(given | changes))  # type: ignore[arg-type]
