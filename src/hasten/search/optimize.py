"""The search: the fastest version of a model whose drop in accuracy is certain to be within a budget.

Phases:

1. The lossless compilation and the original answer the calibration part.
2. All layers in bf16, where the processor multiplies it. If that is within the budget and faster it is
   certified at once, so that there is something to keep from then on; but not where the time for int8 would
   be short then.
3. The graph is smoothed for int8, and ranges of its activations are observed; a probe (`probe.py`) gives the
   loss of each method of calibration and of each layer alone.
4. All layers in int8, with weights rounded to the nearest and by GPTQ; in int8 with scales found in the run;
   with weights alone in 8 and 4 bits, each with a probe of its own. From kernels' times and the losses
   follows the curve of time against loss, and from it mixtures.
5. If units may be removed, what there is so far is timed and certified, as in 7 and 8, so that there is
   something to keep. A first look at times leaves out what is slower than something that loses less. Then
   units go, and what is left is compiled in the fastest precision so far. From the end of int8 on half of the
   time is kept for that: what of 4 does not fit then is left out.
6. Other engines on the same graphs.
7. All that is within the budget on the calibration part is timed in turns with the original and the lossless.
8. Certificates: in the order of rising loss, each faster than all before it. The order follows from the
   calibration part alone, and the first that is not certified ends it. Such a fixed sequence needs no
   correction for the number of tests (Maurer, Hothorn and Lehmacher 1995): an error is made only if the first
   of them that truly exceeds the budget passes its own test.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.errors import EngineError, HastenError
from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS, ORIGINAL
from hasten.search.certify import least_samples, samples_needed, sequence_bound
from hasten.search.comparison import faster, in_the_running, latency, why_not_faster, within_budget
from hasten.search.layer_table import LayerTable
from hasten.search.mixed import SHARES, Mixed
from hasten.search.pace import Pace
from hasten.search.pruning import Pruning
from hasten.search.record import CandidateRecord, Outcome
from hasten.search.trials import Trials
from hasten.search.uniform import FEW_ROUNDS, Uniform
from hasten.search.variants import WHOLE

_ORIGINAL_SHARE = 0.15  # of the time limit that the original's answers to the held-out part may take


class Search:
    """A search under way, and what it has found so far.

    Attributes:
        trials: the candidates.
        pace: what still fits into the time.
        table: what is known of the layers.
        uniform: one format for all layers.
        mixed: a format for each layer.
        pruning: what units are removed.
        notes: for the user.
        samples_needed: how many would do, where there are too few.
    """

    def __init__(self, trials: Trials) -> None:
        """Nothing is tried yet."""
        self.trials = trials
        self.notes: list[str] = []
        self.pace = Pace(trials, self.notes)
        self.table = LayerTable(trials, self.pace, self.notes)
        self.uniform = Uniform(trials, self.pace, self.table, self.notes)
        self.mixed = Mixed(trials, self.pace, self.table, self.uniform)
        self.pruning = Pruning(trials, self.pace, self.uniform, self.notes)
        self.samples_needed: int | None = None
        self._ended = False
        self._sequence_ended = False

    @property
    def interrupted(self) -> bool:
        """Whether the user ended it, or the time did."""
        return self._ended or self.pace.short

    @property
    def best(self) -> str:
        """Name of the fastest candidate that is certified; the lossless compilation at first."""
        return self.trials.best

    def run(self) -> None:
        """Searches until all is done, the time is over, or the user ends it.

        Raises:
            HastenError: the lossless compilation fails.
        """
        try:
            self._baselines()
            for phase, do in (
                ("bf16", self._narrow),
                ("calibration", self.uniform.calibrate),
                ("sensitivity", self.uniform.probe),
                ("int8", self._everywhere),
                ("rounding", self.uniform.round),
                ("other formats", self.uniform.others),
                ("mixed precision", self.mixed.try_mixtures),
                ("certificates of the whole graph", self._before_pruning),
                ("pruning", self.pruning.try_amounts),
                ("other engines", self._foreign),
                ("timing", self._time_all),
                ("certificates", self._certify_all),
            ):
                if self._sequence_ended:
                    break
                self.trials.clock.phase(phase)
                if self.trials.clock.left <= 0:
                    self._ended = True
                    self.notes.append(
                        f"the time was over before the phase {phase!r}: what follows was left out"
                    )
                    break
                try:
                    do()
                except HastenError as error:
                    self.notes.append(f"the phase {phase!r} failed: {error}")
        except KeyboardInterrupt:
            self._ended = True
            self.notes.append("the search was interrupted: what follows was left out")
        self.trials.clock.phase(None)

    # Phases

    def _baselines(self) -> None:
        trials, clock = self.trials, self.trials.clock
        self.notes += [*trials.problem.calibration.notes, *trials.problem.held_out.notes]
        clock.phase("lossless")
        trials.register(made.lossless())
        lossless = trials.candidates[LOSSLESS]
        begin = clock.elapsed
        trials.say("lossless: compiling")
        path = trials.model(lossless)
        self.pace.build_seconds = clock.elapsed - begin
        trials.note(LOSSLESS, bytes=path.stat().st_size, outcome=Outcome.BASELINE)
        self._too_few_samples()
        if clock.left <= 0:
            return
        clock.phase("original")
        try:
            trials.judge(lossless)
        except EngineError:
            if clock.left > 0:
                raise
            return  # it compiles, and there was no time for more
        self._original()
        self.pace.keep_reserve()

    def _original(self) -> None:
        trials, clock, original = self.trials, self.trials.clock, self.trials.problem.original
        if original is None:
            self.notes.append(f"there is no original to compare with: {trials.problem.without_original}")
            return
        trials.say(f"original: {original.engine.name} answers the calibration part")
        begin = clock.elapsed
        if not trials.add(original.candidate):
            self.notes.append(
                f"{original.engine.name} cannot run the original ({trials.records[ORIGINAL].reason}): "
                "only the lossless compilation is compared with"
            )
            return
        trials.note(ORIGINAL, outcome=Outcome.BASELINE)
        lost = trials.records[ORIGINAL].drop
        seconds = (clock.elapsed - begin) * self.pace.share
        slow = clock.limit is not None and seconds > _ORIGINAL_SHARE * clock.limit
        if lost == 0 and not slow:
            trials.reference = ORIGINAL
        else:
            self.notes.append(
                f"drops are against the lossless compilation; between it and the original is "
                f"one of {lost:.3g} on the {len(trials.problem.calibration)} calibration samples"
            )

    def _too_few_samples(self) -> None:
        problem = self.trials.problem
        if not problem.asked.metric.zero_one:
            return  # what one sample can cost is not known before
        needed = least_samples(problem.asked.max_drop, problem.asked.confidence)
        if needed is None:
            self._sequence_ended = True
            self.notes.append("no number of samples can certify a drop of 0: give a budget above it")
        elif needed > len(problem.held_out):
            self.samples_needed = needed
            self._sequence_ended = True
            self.notes.append(
                f"{len(problem.held_out)} held-out samples cannot certify a drop of at most "
                f"{problem.asked.max_drop:g} with {problem.asked.confidence:.0%} confidence, even if "
                f"no answer changes: that takes {needed} samples"
            )

    def _narrow(self) -> None:
        if "bf16" not in self.trials.problem.asked.precisions() or not self.pace.has_time(1):
            return
        if not self.trials.add(made.narrow()):
            return
        if not within_budget(self.trials, BF16) or not self.uniform.wanted:
            return  # if nothing else will come, it is timed with the rest
        if not self.uniform.fits_after(1, len(SHARES)):
            self.notes.append("bf16 was not certified early: the time for int8 would have been short")
            return
        self.trials.say("bf16: timing")
        self.trials.time([BF16])
        if faster(self.trials, BF16, LOSSLESS):
            self._certify(BF16)

    def _everywhere(self) -> None:
        """What follows of the whole graph gains less than pruning does: that keeps its turn."""
        self.uniform.everywhere()
        if self.trials.problem.asked.prune:
            self.pace.keep_for_pruning(True)

    def _foreign(self) -> None:
        trials, problem = self.trials, self.trials.problem
        if not problem.asked.engines:
            return
        original = None if problem.original is None else problem.original.engine
        for engine, quantized in made.foreign_engines(problem.asked.precisions(), original=original):
            if not self.pace.has_time(0.5):
                continue
            if not quantized:
                trials.add(made.foreign(engine))
            elif trials.variants[WHOLE].prepared is not None:
                trials.add(self.uniform.all_in("int8", engine))

    def _before_pruning(self) -> None:
        """Pruned candidates take over the fastest precision, and take long: first there is one to keep."""
        trials = self.trials
        if not trials.problem.asked.prune:
            return
        good = [name for name in trials.records if in_the_running(trials, name)]
        trials.say("a first look at times")
        trials.time([n for n in good if trials.records[n].latency_ms is None], rounds=FEW_ROUNDS)
        self.sequence((LOSSLESS,))  # notes what need not be timed again
        self._time_all()
        self._certify_all()
        self.pace.keep_for_pruning(False)

    def _time_all(self) -> None:
        good = [name for name in self.trials.records if in_the_running(self.trials, name)]
        self.trials.say("timing all candidates in turns")
        self.trials.time(good)

    def _certify_all(self) -> None:
        """Tests what is worth it, by rising loss, until one fails."""
        trials = self.trials
        for name in self.sequence():
            if self._sequence_ended or not self.pace.held_out_fits(name):
                break
            self._certify(name)
        if self._sequence_ended and self.best == LOSSLESS:
            failed = [r for r in trials.records.values() if r.outcome is Outcome.NOT_CERTIFIED]
            self._say_needed(failed[0])

    # Parts of phases

    def sequence(self, baselines: Sequence[str] = (LOSSLESS, ORIGINAL)) -> list[str]:
        """Names of the candidates to certify, in order: by rising loss, each faster than those before it.

        Args:
            baselines: that each must beat.
        """
        trials = self.trials
        good = [n for n in trials.records if in_the_running(trials, n) and trials.records[n].bound is None]
        good = [n for n in good if trials.records[n].latency_ms is not None]
        chosen: list[str] = []
        last = self.best
        for name in sorted(good, key=lambda n: trials.records[n].loss or 0.0):
            if not all(faster(trials, name, other) for other in baselines):
                reason = why_not_faster(trials, name, baselines)
                trials.note(name, outcome=Outcome.NOT_FASTER, reason=reason)
            elif latency(trials, name) >= latency(trials, last):
                reason = f"{last} changes less and is as fast"
                trials.note(name, outcome=Outcome.NOT_FASTER, reason=reason)
            else:
                chosen.append(name)
                last = name
        return chosen

    def _certify(self, name: str) -> None:
        trials = self.trials
        try:
            passed = trials.certify(name)
        except HastenError as error:
            trials.note(name, outcome=Outcome.FAILED, reason=str(error))
            return
        self.pace.keep_reserve()
        bound = trials.records[name].bound
        assert bound is not None
        if passed:
            trials.note(name, outcome=Outcome.CERTIFIED)
            if faster(trials, name, ORIGINAL) and latency(trials, name) < latency(self.trials, self.best):
                self.trials.best = name
        else:
            self._sequence_ended = True
            reason = (
                f"the drop may be {bound.upper:.3g}, measured {bound.measured:.3g} on {bound.samples} samples"
            )
            trials.note(name, outcome=Outcome.NOT_CERTIFIED, reason=reason)

    def _say_needed(self, failed: CandidateRecord) -> None:
        problem, bound = self.trials.problem, failed.bound
        if bound is None:
            return
        self.samples_needed = samples_needed(bound, problem.asked.max_drop)

    def stated(self) -> float | None:
        """The drop that is certain not to be exceeded by the best; None for the lossless compilation."""
        records = self.trials.records.values()
        budget = self.trials.problem.asked.max_drop
        bounds = [r.bound for r in records if r.bound is not None]
        accepted = [bound for bound in bounds if bound.upper <= budget]
        if self.best == LOSSLESS or not accepted:
            return None
        return sequence_bound(accepted, budget, failed=len(accepted) < len(bounds))
