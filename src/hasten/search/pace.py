"""What still fits into the time of a search, judged by what the lossless compilation and others took.

A candidate is expected to answer as fast as it did last: where other programs come and go, what something
took once says little of later.
"""

from __future__ import annotations

from hasten.search.candidates import LOSSLESS
from hasten.search.trials import Trials

_TIMING_SECONDS = 20.0  # that timing all candidates in turns takes, about
_MOST_RESERVE = 0.5  # of the time limit that is kept for timing and certificates
_PRUNING = 0.5  # of the time limit that is kept for pruning, if units may be removed, until it begins
_LARGER = 2.0  # times the typical sample that others take, at most, on the average


class Pace:
    """How long things take.

    Attributes:
        build_seconds: that compiling the lossless candidate took.
        short: whether something was left out because the time was short.
    """

    def __init__(self, trials: Trials, notes: list[str]) -> None:
        """Knows nothing yet; what is left out will be said in the notes."""
        self.build_seconds = 0.0
        self.short = False
        self._pruning_comes = False
        self._trials, self._notes = trials, notes

    @property
    def share(self) -> float:
        """Held-out samples by calibration samples."""
        problem = self._trials.problem
        return len(problem.held_out) / max(1, len(problem.calibration))

    @property
    def judge_seconds(self) -> float:
        """That the lossless candidate's answers to the calibration part take."""
        return self._answering(LOSSLESS) * len(self._trials.problem.calibration)

    def has_time(self, builds: float) -> bool:
        """Whether so many builds, with answers to the calibration part, fit before the end."""
        return self.has_seconds(builds * self.build_seconds + self.judge_seconds)

    def has_seconds(self, seconds: float) -> bool:
        """Whether something that takes so long fits before the end."""
        if self._trials.clock.has(seconds):
            return True
        self._say_short()
        return False

    def fits(self, builds: float, candidates: int, certificates: int) -> bool:
        """Whether work and what must come at the end fit.

        Args:
            builds: in units of the lossless compilation's.
            candidates: that answer the calibration part.
            certificates: candidates that answer the held-out part, beside those of the reserve.
        """
        judged = 1 + candidates + certificates * self.share
        seconds = builds * self.build_seconds + judged * self.judge_seconds
        return self._trials.clock.has(seconds + _TIMING_SECONDS)

    def keep_reserve(self) -> None:
        """Keeps time for what must come at the end: timing, and the certificate of the fastest candidate."""
        trials = self._trials
        fastest = min(trials.answering, key=self._answering, default=LOSSLESS)
        seconds = self._certifying(fastest) + _TIMING_SECONDS
        limit = trials.clock.limit or 0.0
        later = _PRUNING * limit if self._pruning_comes else 0.0
        trials.clock.reserve = min(seconds, _MOST_RESERVE * limit) + later

    def keep_for_pruning(self, comes: bool) -> None:
        """Whether time is kept for pruning as well, beside the reserve."""
        self._pruning_comes = comes
        self.keep_reserve()

    def held_out_fits(self, name: str) -> bool:
        """Whether a candidate can answer the held-out part."""
        if self._trials.clock.left > self._certifying(name):
            return True
        self.short = True
        self._notes.append("the time was over before all certificates")
        return False

    def _certifying(self, name: str) -> float:
        """Seconds that a candidate's answers to the held-out part take, and those it is compared with."""
        trials = self._trials
        reference = 0.0 if trials.answered_held_out else self._answering(trials.reference)
        return len(trials.problem.held_out) * (reference + self._answering(name))

    def _answering(self, name: str) -> float:
        """Seconds a sample; the lossless compilation's for a candidate that was never asked.

        No more than its times in turns say: those are medians, and one answer may have waited long.
        """
        known, record = self._trials.answering.get(name), self._trials.records.get(name)
        if known is None:
            return 0.0 if name == LOSSLESS else self._answering(LOSSLESS)
        timed = None if record is None else record.latency_ms
        return known if timed is None else min(known, _LARGER * timed.median / 1e3)

    def _say_short(self) -> None:
        why = ", for pruning to have its turn" if self._pruning_comes else ""
        self._notes.append(f"the time was short: some candidates were left out{why}")
        self.short = True
