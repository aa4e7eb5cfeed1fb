"""Certificates: the order in which candidates are tested on the held-out part, and what may be said then.

The order follows from the calibration part and from times, never from what was held out:

1. by rising loss, each faster than all before it, those that the held-out part would certify if it showed
   what the calibration part did (`Certificates.hopeful`);
2. the others in the same way, each faster than all of those too.

Everything else is set aside, by the first of these that is as fast, and comes after them:

3. what the last one set aside, in the same order among itself, then what the one before it did, and so on.

All of 3 ends at the first that was accepted: what it set aside is no faster, nor is anything that follows. So
what was set aside has its turn where what was preferred to it failed, and nowhere else. Each failure leaves
less of what may go wrong to those after it (`certify.Levels`; docs/decisions/0015-guarantee.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from hasten.search.bounds import binomial_upper
from hasten.search.candidates import LOSSLESS, ORIGINAL
from hasten.search.certify import least_samples, levels_for, samples_needed, sequence_bound
from hasten.search.comparison import faster, in_the_running, latency, why_not_faster, within_budget
from hasten.search.pace import Pace
from hasten.search.record import Outcome
from hasten.search.trials import Trials, reason_of

_SMALLEST_SHARE = 0.01  # below which a test is not worth its time


class Certificates:
    """Tests candidates on the held-out part.

    Attributes:
        levels: which share of what may go wrong the next candidate has.
        placed: names of all that had a turn, in order, behind the lossless compilation's.
        ended: no further candidate could be certified.
        samples_needed: how many held-out samples would do, where there are too few.
    """

    def __init__(self, trials: Trials, pace: Pace, notes: list[str]) -> None:
        """Nothing is tested yet; what cannot be certified will be said in the notes."""
        asked, samples = trials.problem.asked, len(trials.problem.held_out)
        self.levels = levels_for(asked.metric, samples, asked.max_drop, asked.confidence)
        self.ended = False
        self.samples_needed: int | None = None
        self._failed = False
        self.placed = [LOSSLESS]
        self._trials, self._pace, self._notes = trials, pace, notes

    def check_samples(self) -> None:
        """Ends all before it begins where the held-out part can certify nothing, and says why."""
        problem = self._trials.problem
        if not problem.asked.metric.zero_one:
            return  # what one sample can cost is not known before
        needed = least_samples(problem.asked.max_drop, problem.asked.confidence)
        if needed is None:
            self.ended = True
            self._notes.append("no number of samples can certify a drop of 0: give a budget above it")
        elif needed > len(problem.held_out):
            self.samples_needed = needed
            self.ended = True
            self._notes.append(
                f"{len(problem.held_out)} held-out samples cannot certify a drop of at most "
                f"{problem.asked.max_drop:g} with {problem.asked.confidence:.0%} confidence, even if "
                f"no answer changes: that takes {needed} samples"
            )

    def hopeful(self, name: str) -> bool:
        """Whether a candidate would pass if the held-out part showed what the calibration part did, at best.

        At best: nothing but losses, which makes the narrowest bound. A first test that fails takes most of
        what may go wrong with it, so it is not spent on a candidate that is expected to fail.
        """
        problem, drop = self._trials.problem, self._trials.records[name].drop
        if not problem.asked.metric.zero_one or drop is None:
            return True
        samples = len(problem.held_out)
        losses = math.ceil(max(0.0, drop) * samples - 1e-9)
        alpha = (1 - problem.asked.confidence) * (1 - self.levels.kept)
        return binomial_upper(losses, samples, alpha) <= problem.asked.max_drop

    def front(self, baselines: Sequence[str] = (LOSSLESS, ORIGINAL)) -> list[str]:
        """Names of the candidates to certify next, in order, each faster than all before it.

        Those that a baseline beats, or that are set aside, are noted so.

        Args:
            baselines: that each must beat.
        """
        trials, able = self._trials, list[str]()
        for name in [n for n in self._open() if in_the_running(trials, n)]:
            if all(faster(trials, name, other) for other in baselines):
                able.append(name)
            else:
                reason = why_not_faster(trials, name, baselines)
                trials.note(name, outcome=Outcome.NOT_FASTER, reason=reason)
        times = self._times()
        chosen = self._each_faster(able, times, times[self.placed[-1]])
        self._set_aside([*self.placed, *chosen], able, times)
        return chosen

    def test(self, names: Iterable[str]) -> bool:
        """Tests candidates in this order, as long as one can pass and there is time; whether that goes on."""
        for name in names:
            if self.ended or not self._pace.held_out_fits(name):
                return False
            self.placed.append(name)
            self.levels = self.levels.after(accepted=self._beats_best(name) and self._accepts(name))
            self.ended = not self._can_pass()
        return not self.ended

    def test_all(self) -> None:
        """Tests what is worth it; where some fail, what they had set aside as well."""
        trials, front = self._trials, self.front()
        left = [n for n in self._open() if n not in front and within_budget(trials, n) and self._may_win(n)]
        times = self._times()  # as they are before any test: the order must not depend on outcomes
        if self.test(front):
            self._take_up([*self.placed], left, times)

    def conclude(self, *, interrupted: bool = False) -> None:
        """Settles which certified candidate is the best, by the last times: all may be relied on together.

        If none was certified, it finds how many samples would certify the one that came nearest.

        Args:
            interrupted: then that is left out, which may take a while.
        """
        self._settle()
        budget, records = self._trials.problem.asked.max_drop, self._trials.records.values()
        bounds = [r.bound for r in records if r.bound is not None]
        failed = [r.bound for r in records if r.bound is not None and r.outcome is Outcome.NOT_CERTIFIED]
        if interrupted or self.samples_needed is not None or any(b.upper <= budget for b in bounds):
            return
        if failed:
            self.samples_needed = samples_needed(min(failed, key=lambda b: b.measured), budget)

    def stated(self) -> float | None:
        """The drop that is certain not to be exceeded by the best; None for the lossless compilation."""
        budget = self._trials.problem.asked.max_drop
        bounds = [r.bound for r in self._trials.records.values() if r.bound is not None]
        accepted = [bound for bound in bounds if bound.upper <= budget]
        if self._trials.best == LOSSLESS or not accepted:
            return None
        return sequence_bound(accepted, budget, failed=self._failed)

    # Parts

    def _settle(self) -> None:
        """What was certified early may have been timed again since, with others."""
        trials, good = self._trials, list[str]()
        for name in [n for n, found in trials.records.items() if found.outcome is Outcome.CERTIFIED]:
            reason = why_not_faster(trials, name)
            if reason:
                trials.note(name, outcome=Outcome.NOT_FASTER, reason=f"{reason}, when it was timed again")
            else:
                good.append(name)
        trials.best = min(good, key=lambda n: latency(trials, n), default=LOSSLESS)

    def _open(self) -> list[str]:
        """Names of the candidates that have no place in the order yet, and times."""
        records = self._trials.records
        return [n for n in records if n not in self.placed and records[n].latency_ms is not None]

    def _loss(self, name: str) -> float:
        return self._trials.records[name].loss or 0.0

    def _times(self) -> dict[str, float]:
        """Milliseconds of all candidates, by name; infinite where they are not known."""
        return {name: latency(self._trials, name) for name in self._trials.records}

    def _may_win(self, name: str) -> bool:
        """Whether a candidate beats the baselines, as far as it was timed with them."""
        trials = self._trials
        by_original = trials.records[name].to_original is None or faster(trials, name, ORIGINAL)
        return by_original and faster(trials, name, LOSSLESS) and math.isfinite(latency(trials, name))

    def _each_faster(
        self, names: Iterable[str], times: Mapping[str, float], last: float = math.inf
    ) -> list[str]:
        """Those names that are each faster than all before, by rising loss; the unlikely come last."""
        chosen = list[str]()
        for name in sorted(names, key=lambda n: (not self.hopeful(n), self._loss(n))):
            if times[name] < last:
                chosen.append(name)
                last = times[name]
        return chosen

    def _set_aside(
        self, chosen: Sequence[str], names: Iterable[str], times: Mapping[str, float]
    ) -> dict[str, list[str]]:
        """What is not chosen, by the first chosen that is as fast, which is noted; else by the last one."""
        aside: dict[str, list[str]] = {name: [] for name in chosen}
        for name in names:
            if name in aside:
                continue
            rival = next((c for c in chosen if times[c] <= times[name]), chosen[-1])
            aside[rival].append(name)
            less = "changes less" if self._loss(rival) <= self._loss(name) else "promises more"
            reason = f"{rival} {less} and is as fast"
            self._trials.note(name, outcome=Outcome.NOT_FASTER, reason=reason)
        return aside

    def _take_up(self, tested: Sequence[str], left: Collection[str], times: Mapping[str, float]) -> bool:
        """Tests what is left and was set aside by candidates that failed; whether that goes on.

        It ends with the first that was accepted: what it set aside is no faster, nor are those after it.

        Args:
            tested: candidates, in order.
            left: of the others.
            times: of all, in milliseconds.
        """
        trials, aside = self._trials, self._set_aside(tested, left, times)
        for rival in reversed(tested):
            if trials.records[rival].outcome in (Outcome.CERTIFIED, Outcome.BASELINE):
                return False
            for name in aside[rival]:
                reason = f"{rival} was preferred to it, and failed; the search ended before its turn"
                trials.note(name, outcome=Outcome.NOT_TRIED, reason=reason)
            names = self._each_faster(aside[rival], times)
            if not self.test(names) or not self._take_up(names, aside[rival], times):
                return False
        return True

    def _beats_best(self, name: str) -> bool:
        """Whether a candidate is faster than the best and the baselines, if need be by a second look."""
        trials = self._trials
        if latency(trials, name) < latency(trials, trials.best):
            trials.time([name])
        if not trials.works(name):
            return False
        slower = latency(trials, name) >= latency(trials, trials.best)
        reason = f"{trials.best} is as fast" if slower else why_not_faster(trials, name)
        if reason:
            trials.note(name, outcome=Outcome.NOT_FASTER, reason=reason)
        return not reason

    def _accepts(self, name: str) -> bool:
        """Whether a candidate is certain to keep the budget; notes what was found."""
        trials = self._trials
        try:
            passed = trials.certify(name, self.levels.share)
        except Exception as error:  # noqa: BLE001 - whatever went wrong loses this candidate, not the search
            self._failed = True
            trials.note(name, outcome=Outcome.FAILED, reason=reason_of(error))
            return False
        self._pace.keep_reserve()
        bound = trials.records[name].bound
        assert bound is not None
        if passed:
            trials.note(name, outcome=Outcome.CERTIFIED, reason="")
            trials.best = name
            return True
        self._failed = True
        alone = "" if bound.share > 0.5 else f" (at {bound.level:.2%} confidence, as others failed before)"
        measured = f"measured {bound.measured:.3g} on {bound.samples} samples"
        reason = f"the drop may be {bound.upper:.3g}{alone}, {measured}"
        trials.note(name, outcome=Outcome.NOT_CERTIFIED, reason=reason)
        return False

    def _can_pass(self) -> bool:
        """Whether an answer that never differs from the original's would pass the next test."""
        problem, share = self._trials.problem, self.levels.share
        if share < _SMALLEST_SHARE or not problem.asked.metric.zero_one:
            return share >= _SMALLEST_SHARE
        least = least_samples(problem.asked.max_drop, problem.asked.confidence, share=share)
        return least is not None and least <= len(problem.held_out)
