"""The order of certificates: who is tested, with what, and that hardly ever a wrong one is accepted."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
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
    """A candidate: loss, speed by the lossless one, drop on the calibration part, flips held out."""

    loss: float
    speed: float
    drop: float = 0.0
    flips: int | Exception = 0


class Tried:
    """What `Certificates` asks of a search, with answers that are made up."""

    def __init__(self, candidates: Mapping[str, One], samples: int, by_original: float = 1.25) -> None:
        self.given, self.samples = candidates, samples
        self.best, self.notes, self.tested, self.retimed = LOSSLESS, list[str](), list[str](), list[str]()
        asked = SimpleNamespace(metric=metric_named("agreement"), max_drop=BUDGET, confidence=CONFIDENCE)
        self.problem = SimpleNamespace(asked=asked, held_out=range(samples))
        everyone = {LOSSLESS: One(0.0, 1.0), "original": One(0.0, 1 / by_original), **candidates}
        self.records = {
            name: CandidateRecord(
                name, "", "hasten", "f32", loss=one.loss, drop=one.drop,
                latency_ms=Spread.of([10 / one.speed]), to_lossless=Spread.of([one.speed]),
                to_original=Spread.of([one.speed * by_original]),
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
        self.retimed += names

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


def certificates(tried: Tried) -> Certificates:
    pace = SimpleNamespace(held_out_fits=lambda _: True, keep_reserve=lambda: None)
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


def test_a_failure_does_not_end_the_search() -> None:
    tried = Tried({"bf16": One(1e-5, 1.5, 0.0, 5), "mixed": One(0.01, 2.0), "int8": One(0.1, 3.0)}, 700)
    order = certificates(tried)
    order.test(["bf16"])  # early
    assert not order.ended
    order.test_all()
    assert tried.tested == ["bf16", "mixed", "int8"]
    assert tried.best == "int8"
    assert [tried.records[n].bound.share for n in tried.tested] == pytest.approx([0.9, 0.05, 0.075])
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
        "mixed": One(0.01, 1.5),
        "int8": One(0.1, 2.0),
        "worse": One(0.2, 1.9),
    }
    tried = Tried(given, 700)
    order = certificates(tried)
    order.test_all()
    assert tried.tested == ["bf16", "mixed", "int8"]
    assert tried.retimed == ["mixed", "int8"]
    assert tried.best == "int8"
    assert tried.records["worse"].outcome is Outcome.NOT_FASTER


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
