"""The order of certificates: who is tested, with what, and that hardly ever a wrong one is accepted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hasten.search import bounds
from hasten.search.candidates import LOSSLESS
from hasten.search.certificates import Certificates
from hasten.search.certify import Bound
from hasten.search.comparison import in_the_running
from hasten.search.measure import Spread
from hasten.search.metrics import metric_named
from hasten.search.pace import Pace
from hasten.search.record import CandidateRecord, Outcome
from hasten.search.trials import Trials

BUDGET, CONFIDENCE = 0.01, 0.95
upper_of = functools.lru_cache(None)(bounds.binomial_upper)


@dataclass
class One:
    """A candidate: loss, speed by the lossless one, drop on the calibration part, flips held out.

    `looked` is its speed by a first look with the lossless one alone, if it had no other.
    """

    loss: float
    speed: float
    drop: float = 0.0
    flips: int | Exception = 0
    looked: float | None = None


class Tried:
    """What `Certificates` asks of a search, with answers that are made up."""

    def __init__(self, candidates: Mapping[str, One], samples: int, by_original: float = 1.25) -> None:
        self.given, self.samples, self.by_original = candidates, samples, by_original
        self.best, self.notes, self.tested, self.retimed = LOSSLESS, list[str](), list[str](), list[str]()
        asked = SimpleNamespace(metric=metric_named("agreement"), max_drop=BUDGET, confidence=CONFIDENCE)
        self.problem = SimpleNamespace(asked=asked, held_out=range(samples))
        everyone = {LOSSLESS: One(0.0, 1.0), "original": One(0.0, 1 / by_original), **candidates}
        self.records = {
            name: CandidateRecord(
                name, "", "hasten", "f32", loss=one.loss, drop=one.drop,
                latency_ms=Spread.of([10 / one.speed]), to_lossless=Spread.of([one.looked or one.speed]),
                to_original=None if one.looked else Spread.of([one.speed * by_original]),
                outcome=Outcome.NOT_TRIED if name in candidates else Outcome.BASELINE,
            )
            for name, one in everyone.items()
        }  # fmt: skip

    def works(self, name: str) -> bool:
        return name in self.records and self.records[name].outcome is not Outcome.FAILED

    def note(self, name: str, **found: Any) -> None:
        self.records[name] = replace(self.records[name], **found)

    def say(self, _: str) -> None:
        pass

    def time(self, names: Sequence[str]) -> None:
        for name in [n for n in names if self.records[n].to_original is None]:
            self.retimed.append(name)
            speed = self.given[name].speed
            ratios = {"to_lossless": speed, "to_original": speed * self.by_original}
            self.note(name, **{field: Spread.of([ratio]) for field, ratio in ratios.items()})

    def certify(self, name: str, share: float) -> bool:
        self.tested.append(name)
        flips = self.given[name].flips
        if isinstance(flips, Exception):
            raise flips
        upper = upper_of(flips, self.samples, (1 - CONFIDENCE) * share)
        counts = (
            flips / self.samples,
            upper,
            CONFIDENCE,
            self.samples,
            "Clopper-Pearson",
            True,
            flips,
            0,
            share,
        )
        self.note(name, bound=Bound(*counts))
        return upper <= BUDGET


def certificates(tried: Tried, fits: Callable[[str], bool] = lambda _: True) -> Certificates:
    pace = SimpleNamespace(held_out_fits=fits, keep_reserve=lambda: None)
    return Certificates(cast(Trials, tried), cast(Pace, pace), tried.notes)


def test_what_a_first_look_finds_slower_and_worse_is_not_looked_at_again() -> None:
    tried = Tried({"a": One(0.1, 2.0), "b": One(0.2, 1.5), "c": One(0.3, 3.0), "d": One(0.0, 0.9)}, 700)
    for name in "abcd":
        tried.note(name, to_original=None)
    order = certificates(tried)
    assert order.front((LOSSLESS,)) == ["a", "c"]
    assert tried.records["b"].reason == "a changes less and is as fast"
    assert tried.records["d"].reason == "0.90 x [0.90, 0.90] the speed of the lossless"
    assert not in_the_running(cast(Trials, tried), "b")
    for name in "ac":
        tried.note(name, to_original=Spread.of([6.0 if name == "c" else 0.9]))
    assert order.front() == ["c"]


def test_the_last_times_decide_among_what_is_certified() -> None:
    tried = Tried({"early": One(0.1, 1.5), "late": One(0.2, 2.0)}, 700)
    order = certificates(tried)
    order.test_all()
    assert tried.best == "late"
    slowed = {"to_lossless": Spread.of([1.2]), "to_original": Spread.of([1.5])}
    tried.note("late", **slowed)
    order.conclude()
    assert tried.best == "early"  # both may be relied on
    tried.note("early", to_lossless=Spread.of([0.97]), to_original=Spread.of([1.2]))
    order.conclude()
    assert tried.best == "late"
    assert tried.records["early"].outcome is Outcome.NOT_FASTER
    assert "0.97 x [0.97, 0.97] the speed of the lossless" in tried.records["early"].reason
    tried.note("late", to_lossless=Spread(0.99, 1.01, 1.02))
    order.conclude()
    assert tried.best == LOSSLESS
    assert order.stated() is None


def test_what_passed_and_became_slow_is_not_said_to_lack_samples() -> None:
    tried = Tried({"a": One(0.1, 1.5), "b": One(0.2, 2.0, flips=5)}, 700)
    order = certificates(tried)
    order.test_all()
    assert [tried.records[name].outcome for name in "ab"] == [Outcome.CERTIFIED, Outcome.NOT_CERTIFIED]
    tried.note("a", to_lossless=Spread.of([0.9]))
    order.conclude()
    assert tried.best == LOSSLESS
    assert order.samples_needed is None


def test_an_interrupt_leaves_out_how_many_samples_would_do() -> None:
    tried = Tried({"b": One(0.2, 2.0, flips=5)}, 700)
    order = certificates(tried)
    order.test_all()
    order.conclude(interrupted=True)
    assert order.samples_needed is None
    order.conclude()
    assert order.samples_needed is not None


def test_a_failure_does_not_end_the_search() -> None:
    tried = Tried({"bf16": One(1e-5, 1.5, 0.0, 5), "mixed": One(0.01, 2.0), "int8": One(0.1, 3.0)}, 700)
    order = certificates(tried)
    order.test(["bf16"])  # early
    assert not order.ended
    order.test_all()
    assert tried.tested == ["bf16", "mixed", "int8"]
    assert tried.best == "int8"
    assert [tried.records[n].bound.share for n in tried.tested] == pytest.approx([0.9, 0.05, 0.05])
    assert order.stated() == BUDGET  # its own bound was looked at after a failure
    order.conclude()
    assert order.samples_needed is None


def test_without_a_failure_the_order_costs_next_to_nothing() -> None:
    tried = Tried({"bf16": One(1e-5, 1.5), "mixed": One(0.01, 2.0), "int8": One(0.1, 3.0)}, 310)
    order = certificates(tried)
    order.test_all()
    assert tried.best == "int8"
    stated = order.stated()
    assert stated is not None
    assert stated == max(r.bound.upper for r in tried.records.values() if r.bound is not None)


def test_where_all_is_needed_for_the_first_its_failure_ends_the_search_and_says_what_is_needed() -> None:
    tried = Tried({"bf16": One(1e-5, 1.5, 0.0, 1), "int8": One(0.1, 3.0)}, 300)
    order = certificates(tried)
    order.test(["bf16"])
    assert order.ended
    order.conclude()
    needed = order.samples_needed
    assert needed is not None
    assert upper_of(math.ceil(needed / 300), needed, 0.9 * (1 - CONFIDENCE)) <= BUDGET
    order.test_all()
    assert tried.tested == ["bf16"]
    assert tried.records["bf16"].outcome is Outcome.NOT_CERTIFIED


def test_what_is_expected_to_fail_waits_for_what_is_not() -> None:
    tried = Tried(
        {"bf16": One(1e-5, 1.5, 0.009, 6), "mixed": One(0.01, 2.0), "int8": One(0.1, 3.0, 0.008)}, 700
    )
    order = certificates(tried)
    assert [n for n in tried.given if order.hopeful(n)] == ["mixed"]
    assert order.front() == ["mixed", "int8"]
    assert tried.records["bf16"].reason == "mixed promises more and is as fast"
    order.test_all()
    assert tried.tested == ["mixed", "int8"]
    assert tried.best == "int8"


def test_what_a_failed_one_was_preferred_to_has_its_turn() -> None:
    given = {
        "bf16": One(1e-5, 3.0, 0.0, 9),
        "mixed": One(0.01, 1.5, looked=1.6),
        "int8": One(0.1, 2.0),
        "worse": One(0.2, 1.9, looked=1.9),
    }
    tried = Tried(given, 700)
    order = certificates(tried)
    order.test_all()
    assert tried.tested == ["bf16", "mixed", "int8"]
    assert tried.retimed == ["mixed"]  # of those with a first look alone, the one that is tested
    assert tried.best == "int8"
    assert tried.records["worse"].outcome is Outcome.NOT_FASTER
    assert tried.records["worse"].reason == "int8 changes less and is as fast"


def test_between_the_last_that_passed_and_one_that_failed_what_was_set_aside_comes_back() -> None:
    """Losses, drops and speeds of a search of a model of sentences: 36% failed, 67% had passed."""
    given = {
        "bf16": One(1e-5, 1.95, 0.0, 2),
        "dynamic 5/25": One(4e-5, 2.19, 0.0, 1),
        "weights": One(4e-5, 1.78, looked=1.78),
        "dynamic": One(37e-5, 3.22, 0.0, 4),
        "int8": One(62e-5, 3.45, 0.0039, 4),
        "plain": One(86e-5, 3.24, looked=3.24),
        "67%": One(0.018, 5.15, 0.0039, 9),
        "50%": One(0.031, 6.87, 0.0078, 7),
        "36%": One(0.037, 8.92, 0.0039, 31),
        "72%": One(0.004, 4.59, 0.0, 8),
        "56%": One(0.026, 5.74, 0.0078, 7),
    }
    chain = ["bf16", "dynamic 5/25", "dynamic", "int8", "72%", "67%", "36%"]
    tried = Tried(given, 2189)
    certificates(tried).test_all()
    assert tried.tested == [*chain, "56%", "50%"]
    assert tried.best == "50%"
    assert tried.retimed == []
    assert [tried.records[n].bound.share for n in tried.tested[-3:]] == pytest.approx([0.9, 0.05, 0.05])

    tried = Tried({**given, "50%": replace(given["50%"], flips=20)}, 2189)
    certificates(tried).test_all()
    assert (tried.tested, tried.best) == ([*chain, "56%", "50%"], "56%")

    tried = Tried({**given, "36%": replace(given["36%"], flips=9)}, 2189)
    certificates(tried).test_all()
    assert (tried.tested, tried.best) == (chain, "36%")
    for name in ("56%", "50%"):
        assert tried.records[name].outcome is Outcome.NOT_FASTER
        assert tried.records[name].reason == "36% promises more and is as fast"


def test_a_first_look_that_was_wrong_brings_nothing_back_where_nothing_failed() -> None:
    tried = Tried({"a": One(0.1, 2.0), "b": One(0.2, 2.1, looked=1.9)}, 700)
    order = certificates(tried)
    assert order.front((LOSSLESS,)) == ["a"]
    tried.note("b", to_lossless=Spread.of([2.2]))  # as if the others' times had fallen since
    order.test_all()
    assert (tried.tested, tried.retimed, tried.best) == (["a"], [], "a")


def test_what_a_second_look_finds_slower_is_passed_over_and_said() -> None:
    given = {
        "safe": One(0.01, 1.5),
        "fast": One(0.1, 4.0, 0.0, 9),
        "slow": One(0.2, 1.4, looked=3.0),
        "middle": One(0.3, 3.5),
    }
    tried = Tried(given, 1000)
    certificates(tried).test_all()
    assert (tried.tested, tried.retimed, tried.best) == (["safe", "fast", "middle"], ["slow"], "middle")
    assert tried.records["slow"].reason == "safe is as fast"
    bound = tried.records["middle"].bound
    assert bound is not None
    assert bound.share == pytest.approx(0.025)  # a place that is passed over is not given back


def test_what_comes_back_too_late_is_said_not_to_have_had_its_turn() -> None:
    given = {"fast": One(0.1, 4.0, 0.0, 9), "middle": One(0.3, 3.5), "slow": One(0.4, 2.0)}
    tried = Tried(given, 700)
    order = certificates(tried, fits=lambda name: name == "fast")
    order.test_all()
    assert (tried.tested, tried.best) == (["fast"], LOSSLESS)
    for name in ("middle", "slow"):
        assert tried.records[name].outcome is Outcome.NOT_TRIED
        assert tried.records[name].reason.startswith("fast was preferred to it, and failed")


def family(rng: np.random.Generator, samples: int) -> dict[str, One]:
    """Candidates in random order of loss, speed and drop, some of them with a first look alone."""
    found = {}
    for number in range(rng.integers(1, 9)):
        speed = 1.05 + 4 * rng.random()
        looked = speed * rng.uniform(0.9, 1.1) if rng.random() < 0.3 else None
        flips = int(rng.choice([0, 1, 12])) if samples < 2000 else int(rng.choice([2, 40]))
        found[f"c{number}"] = One(float(rng.random()), speed, float(rng.choice([0.0, 0.008])), flips, looked)
    return found


def test_the_order_does_not_depend_on_outcomes() -> None:
    """Of two searches that differ in nothing but what was held out, one tests the first ones of the other."""
    rng = np.random.default_rng(5)
    differ = 0
    for _ in range(300):
        given, placed = family(rng, 2500), []
        for _ in range(2):
            flips = rng.choice([2, 60], len(given))
            one = Tried(
                {n: replace(c, flips=int(f)) for (n, c), f in zip(given.items(), flips, strict=True)}, 2500
            )
            order = certificates(one)
            order.test_all()
            placed.append(order.placed)
        shorter, longer = sorted(placed, key=len)
        assert longer[: len(shorter)] == shorter
        differ += len(shorter) < len(longer)
    assert differ > 30


def test_whatever_is_faster_than_what_is_returned_was_tested() -> None:
    """As long as something is left to test with."""
    rng = np.random.default_rng(6)
    returned = 0
    for _ in range(300):
        tried = Tried({n: replace(c, looked=None) for n, c in family(rng, 2500).items()}, 2500)
        order = certificates(tried)
        order.test_all()
        if order.ended:
            continue
        best = tried.given[tried.best].speed if tried.best != LOSSLESS else 1.0
        left = [n for n in tried.given if n not in tried.tested]
        assert all(tried.given[n].speed <= best for n in left)
        returned += tried.best != LOSSLESS and any(
            tried.records[n].outcome is Outcome.NOT_CERTIFIED for n in tried.given
        )
    assert returned > 30


def test_a_candidate_that_breaks_is_lost_alone() -> None:
    tried = Tried(
        {"a": One(0.1, 2.0), "b": One(0.2, 2.5, 0.0, ValueError("no such axis")), "c": One(0.3, 3.0)}, 700
    )
    order = certificates(tried)
    order.test_all()
    assert tried.best == "c"
    assert tried.records["b"].outcome is Outcome.FAILED
    assert tried.records["b"].reason == "ValueError: no such axis"


@pytest.mark.parametrize("samples", [320, 700])
def test_hardly_ever_is_a_candidate_beyond_the_budget_certified(samples: int) -> None:
    """The whole order, with the worst drops that must not pass: random losses, speeds and flips."""
    rng, draws, wrong, some = np.random.default_rng(2), 3000, 0, 0
    for _ in range(draws):
        true = BUDGET * rng.choice([0.1, 1.0], 5, p=[0.3, 0.7])
        rank, flips = rng.permutation(5), rng.binomial(samples, true)
        seen = rng.binomial(200, true) / 200
        tried = Tried(
            {
                f"c{i}": One(float(i + 1), 1.1 + rank[i], float(seen[i]), int(flips[i]))
                for i in range(5)
                if seen[i] <= BUDGET
            },
            samples,
        )
        order = certificates(tried)
        order.test_all()
        certified = [n for n, r in tried.records.items() if r.outcome is Outcome.CERTIFIED]
        wrong += any(true[int(name[1:])] >= BUDGET for name in certified)
        some += bool(certified)
    assert wrong / draws <= 1 - CONFIDENCE + 3 * math.sqrt((1 - CONFIDENCE) / draws)
    assert some > 0.2 * draws
