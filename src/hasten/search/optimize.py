"""The search: the fastest version of a model whose drop in accuracy is certain to be within a budget.

Phases:

1. The lossless compilation and the original answer the calibration part.
2. All layers in bf16, where the processor multiplies it. If that is within the budget and faster it is
   certified at once, so that there is something to keep from then on; but not where the time for int8 would
   be short then, or where it is expected to fail.
3. The graph is smoothed for int8, and ranges of its activations are observed; a probe (`probe.py`) gives the
   loss of each method of calibration and of each layer alone.
4. All layers in int8, with weights rounded to the nearest and by GPTQ; in int8 with scales found in the run;
   with weights alone in 8 and 4 bits, each with a probe of its own. From kernels' times and the losses
   follows the curve of time against loss, and from it mixtures.
5. If units may be removed, what there is so far is timed and certified, as in 7 and 8, so that there is
   something to keep. A first look at times leaves out what is slower than something that loses less. Then
   units go, and what is left is compiled in the fastest precision so far. From the end of int8 on half of the
   time is kept for that: what of 4 does not fit then is left out.
6. Other engines on the same graphs, those that a first look does not find slower than our code of them.
7. All that is within the budget on the calibration part is timed in turns with the original and the lossless.
8. Certificates, in an order that follows from the calibration part and times alone (`certificates.py`). One
   that fails does not end it: something was kept for those after it, and what it had set aside comes back.
"""

from __future__ import annotations

import math

from hasten.errors import EngineError
from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS, ORIGINAL, Candidate
from hasten.search.certificates import Certificates
from hasten.search.comparison import faster, in_the_running, latency, over_budget, within_budget
from hasten.search.interrupts import interrupts
from hasten.search.layer_table import LayerTable
from hasten.search.mixed import SHARES, Mixed
from hasten.search.pace import Pace
from hasten.search.pruning import Pruning
from hasten.search.record import Outcome
from hasten.search.trials import Trials, reason_of
from hasten.search.uniform import FEW_ROUNDS, Uniform
from hasten.search.variants import WHOLE

_ORIGINAL_SHARE = 0.3  # of the time limit that the original's answers to the held-out part may take
_CLEARLY = 1.1  # times as long, which a first look may be off by
_WORTH_A_NOTE = 0.1  # of the budget: what the lossless compilation loses by itself


class Search:
    """A search under way, and what it has found so far.

    Attributes:
        trials: the candidates.
        pace: what still fits into the time.
        table: what is known of the layers.
        uniform: one format for all layers.
        mixed: a format for each layer.
        pruning: what units are removed.
        certificates: what is tested on the held-out part.
        notes: for the user.
    """

    def __init__(self, trials: Trials) -> None:
        """Nothing is tried yet."""
        self.trials = trials
        self.notes = trials.notes
        self.pace = Pace(trials, self.notes)
        self.table = LayerTable(trials, self.pace, self.notes)
        self.uniform = Uniform(trials, self.pace, self.table, self.notes)
        self.mixed = Mixed(trials, self.pace, self.table, self.uniform)
        self.pruning = Pruning(trials, self.pace, self.uniform, self.notes)
        self.certificates = Certificates(trials, self.pace, self.notes)
        self._ended = False

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

        Whatever goes wrong once the lossless compilation is there ends a candidate or a phase, and is noted.
        Interrupts wait from then on, so that what was found can be written.

        Raises:
            HastenError: the lossless compilation fails.
        """
        with interrupts() as pressed:
            try:
                self._phases()
                pressed.wait()
            except KeyboardInterrupt:
                pressed.wait()
                self._ended = True
                self.notes.append("the search was interrupted: what follows was left out")
                self.certificates.conclude(interrupted=True)
            self.trials.clock.phase(None)

    def _phases(self) -> None:
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
            ("certificates", self.certificates.test_all),
        ):
            if self.certificates.ended:
                break
            self.trials.clock.phase(phase)
            if self.trials.clock.left <= 0:
                self._ended = True
                self.notes.append(f"the time was over before the phase {phase!r}: what follows was left out")
                break
            try:
                do()
            except Exception as error:  # noqa: BLE001 - what is certified outlives whatever goes wrong
                self.notes.append(f"the phase {phase!r} failed: {reason_of(error)}")
        self.certificates.conclude()

    # Phases

    def _baselines(self) -> None:
        trials, clock = self.trials, self.trials.clock
        self.notes += [*trials.problem.calibration.notes, *trials.problem.held_out.notes]
        asked = trials.problem.asked
        if asked.precision == "bf16" and "bf16" not in asked.precisions():
            self.notes.append("bf16 was not tried: this processor has no instructions for it")
        clock.phase("lossless")
        trials.register(made.lossless())
        lossless = trials.candidates[LOSSLESS]
        begin = clock.elapsed
        trials.say("lossless: compiling")
        path = trials.model(lossless)
        self.pace.build_seconds = clock.elapsed - begin
        trials.note(LOSSLESS, bytes=path.stat().st_size, outcome=Outcome.BASELINE)
        self.certificates.check_samples()
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
        """Makes the original what candidates are compared with, if it can answer; says so if it cannot."""
        trials, clock, original = self.trials, self.trials.clock, self.trials.problem.original
        if original is None:
            self._without_original(f"there is no original to ask ({trials.problem.without_original})")
            return
        trials.say(f"original: {original.engine.name} answers the calibration part")
        trials.reference = ORIGINAL
        if not trials.add(original.candidate):
            why = trials.records[ORIGINAL].reason
            self._without_original(f"{original.engine.name} cannot run the original ({why})")
            return
        trials.note(ORIGINAL, outcome=Outcome.BASELINE)
        seconds = trials.answering.get(ORIGINAL, 0.0) * len(trials.problem.held_out)
        if clock.limit is not None and seconds > _ORIGINAL_SHARE * clock.limit:
            share = f"more than {_ORIGINAL_SHARE:.0%} of the time limit"
            self._without_original(f"the original's answers would take about {seconds:.0f} s, {share}")
            trials.judge(original.candidate)
            return
        trials.judge(trials.candidates[LOSSLESS])
        lost = trials.records[LOSSLESS].drop or 0.0
        if lost > _WORTH_A_NOTE * trials.problem.asked.max_drop:
            more = ", more than the budget" if over_budget(trials, LOSSLESS) else ""
            self.notes.append(
                f"the lossless compilation itself drops {lost:.3g} against the original on the "
                f"{len(trials.problem.calibration)} calibration samples{more}"
            )

    def _without_original(self, why: str) -> None:
        self.trials.reference = LOSSLESS
        self.notes.append(f"drops are against the lossless compilation, not the original: {why}")

    def _narrow(self) -> None:
        if "bf16" not in self.trials.problem.asked.precisions() or not self.pace.has_time(1):
            return
        if not self.trials.add(made.narrow()):
            return
        if not within_budget(self.trials, BF16) or not self.uniform.wanted:
            return  # if nothing else will come, it is timed with the rest
        if not self.certificates.hopeful(BF16):
            return  # its turn comes after what is likelier to be certified
        if not self.uniform.fits_after(1, len(SHARES)):
            self.notes.append("bf16 was not certified early: the time for int8 would have been short")
            return
        self.trials.say("bf16: timing")
        self.trials.time([BF16])
        if faster(self.trials, BF16, LOSSLESS) and faster(self.trials, BF16, ORIGINAL):
            self.certificates.test([BF16])

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
                self._try_foreign(made.foreign(engine), BF16 if engine.precision == "bf16" else LOSSLESS)
            elif trials.variants[WHOLE].prepared is not None:
                ours = [
                    self.uniform.all_in("int8", made.own_engine(p)).name for p in (engine.precision, "bf16")
                ]
                rival = next((name for name in ours if trials.works(name)), LOSSLESS)
                self._try_foreign(self.uniform.all_in("int8", engine), rival)

    def _try_foreign(self, candidate: Candidate, ours: str) -> None:
        """Another engine answers only where a first look does not find it slower than our code of the same.

        Answers take time, and engines that keep something of each shape take memory: OpenVINO had 617 MB
        after 256 texts of all lengths for a model of 91 MB.
        """
        trials = self.trials
        if not trials.build(candidate):
            return
        if trials.works(ours):
            trials.time([candidate.name], rounds=FEW_ROUNDS)
            if not trials.works(candidate.name):
                return
            times = latency(trials, candidate.name) / latency(trials, ours)
            if _CLEARLY < times < math.inf:
                reason = f"takes {times:.1f} times as long as {ours}, by a first look"
                trials.note(candidate.name, outcome=Outcome.NOT_FASTER, reason=reason)
                return
        trials.attempt(candidate.name, trials.judge)

    def _before_pruning(self) -> None:
        """Pruned candidates take over the fastest precision, and take long: first there is one to keep."""
        trials, certificates = self.trials, self.certificates
        if not trials.problem.asked.prune:
            return
        good = [name for name in trials.records if in_the_running(trials, name)]
        trials.say("a first look at times")
        trials.time([n for n in good if trials.records[n].latency_ms is None], rounds=FEW_ROUNDS)
        certificates.front((LOSSLESS,))  # notes what need not be timed again
        self._time_all()
        certificates.test([name for name in certificates.front() if certificates.hopeful(name)])
        self.pace.keep_for_pruning(False)

    def _time_all(self) -> None:
        good = [name for name in self.trials.records if in_the_running(self.trials, name)]
        self.trials.say("timing all candidates in turns")
        self.trials.time(good)
