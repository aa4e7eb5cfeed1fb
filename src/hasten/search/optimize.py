"""The search: the fastest version of a model whose drop in accuracy is certain to be within a budget.

Phases:

1. The lossless compilation and the original answer the calibration part.
2. All layers in bf16, where the processor multiplies it. If that is within the budget and faster it is
   certified at once, so that there is something to keep from then on; but not where the time for int8 would
   be short then.
3. The graph is smoothed for int8, and ranges of its activations are observed; a probe (`probe.py`) gives the
   loss of each method of calibration and of each layer alone.
4. All layers in int8; from its kernels' times and the losses the curve of time against loss, and from it
   mixtures.
5. Other engines on the same graphs.
6. All that is within the budget on the calibration part is timed in turns with the original and the lossless.
7. Certificates: in the order of rising loss, each faster than all before it. The order follows from the
   calibration part alone, and the first that is not certified ends it. Such a fixed sequence needs no
   correction for the number of tests (Maurer, Hothorn and Lehmacher 1995): an error is made only if the first
   of them that truly exceeds the budget passes its own test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hasten.errors import HastenError
from hasten.passes.quantize import Layer, products
from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS, ORIGINAL
from hasten.search.certify import least_samples, samples_needed, sequence_bound
from hasten.search.choice import Choice, LayerCost, curve
from hasten.search.engines import ONNXRUNTIME, OPENVINO, Engine, Precision
from hasten.search.histogram import Method
from hasten.search.layer_times import gains, layer_times
from hasten.search.measure import Spread
from hasten.search.quantization import Quantization, prepare
from hasten.search.record import CandidateRecord, CurvePoint, LayerRecord, Outcome
from hasten.search.sensitivity import Sensitivity, probe_layers
from hasten.search.trials import Trials

_OBSERVED = 128  # samples that ranges are observed on
_SHARES = (0.5, 0.2, 0.05)  # of the loss of all layers in int8: mixtures that are tried
_WORTH = 0.03  # of the time that a mixture must save against the next slower one that was tried
_FEW_ROUNDS = 5  # of a first look at times, from which nothing but the choice of mixtures follows
_ORIGINAL_SHARE = 0.15  # of the time limit that the original's answers to the held-out part may take
_TIMING_SECONDS = 20.0  # that timing all candidates in turns takes, about
_MOST_RESERVE = 0.5  # of the time limit that is kept for timing and certificates
_PREPARING = 6.0  # times the lossless compilation's time: smoothing, ranges and the probe
_BUILDS = 1.5  # a quantized model takes this many times the lossless compilation's time to build, and more


@dataclass(eq=False)
class Search:
    """A search under way, and what it has found so far.

    Attributes:
        trials: the candidates.
        layers: that can be quantized.
        sensitivity: as far as it is known.
        times: microseconds of each layer, by precision.
        curve: predicted, as far as it is known.
        notes: for the user.
        interrupted: whether the user ended it, or the time did.
        samples_needed: how many would do, where there are too few.
    """

    trials: Trials

    def __post_init__(self) -> None:
        self.layers: tuple[Layer, ...] = tuple(products(self.trials.problem.graph))
        self.sensitivity = Sensitivity({}, {})
        self.times: dict[str, dict[str, float]] = {}
        self.curve: list[Choice] = []
        self.notes: list[str] = []
        self.interrupted = False
        self.samples_needed: int | None = None
        self._sequence_ended = False
        self._curve_us = 0.0
        self._build_seconds = 0.0
        self._judge_seconds = 0.0

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
                ("calibration", self._calibrate),
                ("sensitivity", self._probe),
                ("int8", self._everywhere),
                ("mixed precision", self._mixtures),
                ("other engines", self._foreign),
                ("timing", self._time_all),
                ("certificates", self._certify_all),
            ):
                if self._sequence_ended:
                    break
                self.trials.clock.phase(phase)
                if self.trials.clock.left <= 0:
                    self.interrupted = True
                    self.notes.append(
                        f"the time was over before the phase {phase!r}: what follows was left out"
                    )
                    break
                try:
                    do()
                except HastenError as error:
                    self.notes.append(f"the phase {phase!r} failed: {error}")
        except KeyboardInterrupt:
            self.interrupted = True
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
        self._build_seconds = clock.elapsed - begin
        trials.note(LOSSLESS, bytes=path.stat().st_size, outcome=Outcome.BASELINE)
        self._too_few_samples()
        if clock.left <= 0:
            return
        clock.phase("original")
        begin = clock.elapsed
        trials.judge(lossless)
        self._judge_seconds = clock.elapsed - begin
        self._original()
        self._keep_reserve()

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
        seconds = (clock.elapsed - begin) * self._share
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
        if not problem.metric.zero_one:
            return  # what one sample can cost is not known before
        needed = least_samples(problem.max_drop, problem.confidence)
        if needed is None:
            self._sequence_ended = True
            self.notes.append("no number of samples can certify a drop of 0: give a budget above it")
        elif needed > len(problem.held_out):
            self.samples_needed = needed
            self._sequence_ended = True
            self.notes.append(
                f"{len(problem.held_out)} held-out samples cannot certify a drop of at most "
                f"{problem.max_drop:g} with {problem.confidence:.0%} confidence, even if "
                f"no answer changes: that takes {needed} samples"
            )

    def _narrow(self) -> None:
        if "bf16" not in self.trials.problem.precisions or not self._has_time(1):
            return
        if not self.trials.add(made.narrow()):
            return
        if not self._within_budget(BF16) or not self._quantizable:
            return  # if nothing else will come, it is timed with the rest
        if not self._int8_fits_after(1):
            self.notes.append("bf16 was not certified early: the time for int8 would have been short")
            return
        self.trials.say("bf16: timing")
        self.trials.time([BF16])
        if self._faster(BF16, LOSSLESS):
            self._certify(BF16)

    def _calibrate(self) -> None:
        if not self._quantizable or not self._has_time(2):
            return
        trials = self.trials
        problem = trials.problem
        trials.say("smoothing, and observing the ranges of activations")
        prepared = prepare(
            problem.graph,
            problem.calibration.feeds[:_OBSERVED],
            Quantization(tuple(layer.name for layer in self.layers)),
            threads=problem.threads,
            cache=Path(problem.build.cache),
        )
        trials.ranges = {method: prepared.seen.ranges(method) for method in get_args(Method)}
        trials.prepared = prepared

    def _probe(self) -> None:
        prepared = self.trials.prepared
        if prepared is None or not self._has_time(3):
            return
        self.trials.say("probing how much each layer matters")
        self.sensitivity = probe_layers(self.trials, prepared)

    def _everywhere(self) -> None:
        trials = self.trials
        if trials.prepared is None:
            return
        how = trials.prepared.how
        methods = self.sensitivity.methods
        ordered = sorted(trials.ranges, key=lambda m: methods.get(m, 0.0))
        for precision in self._rests():
            candidate = made.everywhere(how, ordered[0], made.own_engine(precision))
            if self._has_time(_BUILDS):
                trials.add(candidate)
        for method in ordered[1:]:
            candidate = made.everywhere(how, method, made.own_engine("f32"))
            if methods:
                trials.register(candidate)
                reason = f"{ordered[0]} changes the outputs less, by the probe"
                trials.note(candidate.name, loss=methods[method], reason=reason)
            elif self._has_time(_BUILDS):
                trials.add(candidate)

    def _mixtures(self) -> None:
        trials = self.trials
        every = [n for n, c in trials.candidates.items() if c.ours and c.quantized and trials.works(n)]
        built = [n for n in every if trials.records[n].drop is not None]
        if not built or not self.sensitivity.layers or not self._has_time(_BUILDS):
            return
        trials.say("timing layers")
        trials.time(built, rounds=_FEW_ROUNDS)
        first = min((n for n in built if trials.works(n)), key=self._latency, default=None)
        if first is None:
            return
        fastest = trials.candidates[first]
        rest: Precision = fastest.precision
        plain = BF16 if rest == "bf16" and trials.works(BF16) else LOSSLESS
        self._time_layers(plain, rest)
        self._time_layers(first, "int8")
        saved = (self._latency(plain) - self._latency(first)) * 1e3
        gained = gains(self.layers, self.times.get(rest, {}), self.times.get("int8", {}), saved)
        losses = self.sensitivity.layers
        costs = [LayerCost(n, losses[n], gained[n]) for n in losses]
        self.curve, self._curve_us = curve(costs), self._latency(plain) * 1e3
        whole = sum(cost.loss for cost in costs)
        before = self._latency(first) * 1e3
        base = self._latency(plain) * 1e3
        assert trials.prepared is not None and fastest.how is not None
        how, method = trials.prepared.how, fastest.how.ranges
        for share in _SHARES:
            choice = next((c for c in self.curve if c.loss <= share * whole), None)
            if choice is None or not choice.layers or not self._has_time(_BUILDS):
                continue
            candidate = made.mixed(choice.layers, how, method, fastest.engine)
            predicted = base - choice.gain
            if candidate.name in trials.candidates or choice.gain < _WORTH * base:
                continue
            if predicted < before * (1 + _WORTH) and self._within_budget(first):
                continue  # nearly the time and the layers of what there is
            trials.add(candidate)
            before, first = predicted, candidate.name

    def _foreign(self) -> None:
        trials = self.trials
        if not trials.problem.foreign:
            return
        engines: list[tuple[Engine, bool]] = [(OPENVINO, False)]
        if trials.problem.original is None or trials.problem.original.engine.package != ONNXRUNTIME.package:
            engines.append((ONNXRUNTIME, False))
        if trials.prepared is not None:
            engines += [(ONNXRUNTIME, True), (OPENVINO, True)]
        methods = self.sensitivity.methods
        best = min(trials.ranges, key=lambda m: methods.get(m, 0.0), default=None)
        for engine, quantized in engines:
            if engine.version is None or not self._has_time(0.5):
                continue
            if quantized and best is not None and trials.prepared is not None:
                trials.add(made.everywhere(trials.prepared.how, best, engine))
            elif not quantized:
                trials.add(made.foreign(engine))

    def _time_all(self) -> None:
        good = [name for name in self.trials.records if self._within_budget(name)]
        self.trials.say("timing all candidates in turns")
        self.trials.time(good)

    def _certify_all(self) -> None:
        """Tests what is worth it, by rising loss, until one fails."""
        trials = self.trials
        for name in self.sequence():
            if self._sequence_ended or not self._held_out_fits():
                break
            self._certify(name)
        if self._sequence_ended and self.best == LOSSLESS:
            failed = [r for r in trials.records.values() if r.outcome is Outcome.NOT_CERTIFIED]
            self._say_needed(failed[0])

    # Parts of phases

    def sequence(self) -> list[str]:
        """Names of the candidates to certify, in order: by rising loss, each faster than those before it."""
        trials = self.trials
        good = [n for n in trials.records if self._within_budget(n) and trials.records[n].bound is None]
        good = [n for n in good if trials.records[n].latency_ms is not None]
        chosen: list[str] = []
        last = self.best
        for name in sorted(good, key=lambda n: trials.records[n].loss or 0.0):
            if not (self._faster(name, LOSSLESS) and self._faster(name, ORIGINAL)):
                trials.note(name, outcome=Outcome.NOT_FASTER, reason=self._why_not_faster(name))
            elif self._latency(name) >= self._latency(last):
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
        self._keep_reserve()
        bound = trials.records[name].bound
        assert bound is not None
        if passed:
            trials.note(name, outcome=Outcome.CERTIFIED)
            if self._faster(name, ORIGINAL) and self._latency(name) < self._latency(self.best):
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
        self.samples_needed = samples_needed(bound, problem.max_drop)

    def stated(self) -> float | None:
        """The drop that is certain not to be exceeded by the best; None for the lossless compilation."""
        records = self.trials.records.values()
        budget = self.trials.problem.max_drop
        bounds = [r.bound for r in records if r.bound is not None]
        accepted = [bound for bound in bounds if bound.upper <= budget]
        if self.best == LOSSLESS or not accepted:
            return None
        return sequence_bound(accepted, budget, failed=len(accepted) < len(bounds))

    def _time_layers(self, name: str, precision: str) -> None:
        trials = self.trials
        if precision in self.times:
            return
        try:
            self.times[precision] = layer_times(
                trials.model(trials.candidates[name]),
                self.layers,
                trials.typical_sample(),
                trials.problem.threads,
                Path(trials.problem.build.cache),
            )
        except HastenError as error:
            self.notes.append(f"the layers of {name} were not timed: {error}")

    @property
    def _quantizable(self) -> bool:
        return "int8" in self.trials.problem.precisions and bool(self.layers)

    def _rests(self) -> list[Precision]:
        allowed = self.trials.problem.precisions
        found: list[Precision] = ["bf16"] if "bf16" in allowed and self.trials.works(BF16) else []
        return [*found, "f32"]

    def _within_budget(self, name: str) -> bool:
        found = self.trials.records[name]
        if found.outcome is Outcome.BASELINE or found.drop is None or not self.trials.works(name):
            return False
        if found.drop > self.trials.problem.max_drop:
            reason = f"the drop is {found.drop:.3g} on the calibration part"
            self.trials.note(name, outcome=Outcome.OVER_BUDGET, reason=reason)
            return False
        return True

    def _latency(self, name: str) -> float:
        """Its median milliseconds, in the lossless compilation's of the same rounds."""
        found = self.trials.records[name]
        base = self.trials.records[LOSSLESS].latency_ms
        if name == LOSSLESS and base is not None:
            return base.median
        if found.to_lossless is None or base is None:
            return float("inf")
        return base.median / found.to_lossless.median

    def _faster(self, name: str, other: str) -> bool:
        """Whether three quarters of the rounds say so, or there is no other."""
        found = self.trials.records[name]
        if not self.trials.works(other):
            return True
        ratio = found.to_lossless if other == LOSSLESS else found.to_original
        return ratio is not None and ratio.low > 1.0

    def _why_not_faster(self, name: str) -> str:
        found = self.trials.records[name]
        parts = []
        for other, ratio in ((LOSSLESS, found.to_lossless), (ORIGINAL, found.to_original)):
            if not self._faster(name, other):
                parts.append(f"{_times(ratio)} the speed of the {other}")
        return ", ".join(parts)

    def _has_time(self, builds: float) -> bool:
        """Whether so many builds, with answers to the calibration part, fit before the end."""
        needed = builds * self._build_seconds + self._judge_seconds
        if self.trials.clock.has(needed):
            return True
        if not self.interrupted:
            self.notes.append("the time was short: some candidates were left out")
        self.interrupted = True
        return False

    def _int8_fits_after(self, certificates: int) -> bool:
        """Whether int8 everywhere and mixtures still get their turn after so many certificates.

        The reference's answers to the held-out part and those of two more candidates are in the reserve.
        """
        builds = _PREPARING + _BUILDS * (len(self._rests()) + len(_SHARES))
        judged = 1 + len(self._rests()) + len(_SHARES) + certificates * self._share
        seconds = builds * self._build_seconds + judged * self._judge_seconds
        return self.trials.clock.has(seconds + _TIMING_SECONDS)

    @property
    def _share(self) -> float:
        """Held-out samples by calibration samples."""
        return len(self.trials.problem.held_out) / max(1, len(self.trials.problem.calibration))

    def _keep_reserve(self) -> None:
        """Keeps time for what must come at the end: timing, and the certificates of two fast candidates."""
        trials = self.trials
        unanswered = 0 if trials.answered_held_out else 1
        seconds = (unanswered + 1) * self._share * self._judge_seconds + _TIMING_SECONDS
        trials.clock.reserve = min(seconds, _MOST_RESERVE * (trials.clock.limit or 0.0))

    def _held_out_fits(self) -> bool:
        if self.trials.clock.left > self._share * self._judge_seconds:
            return True
        self.interrupted = True
        self.notes.append("the time was over before all certificates")
        return False

    # What was found

    def layer_records(self) -> tuple[LayerRecord, ...]:
        """The table of layers, with the precision that the best candidate gives each."""
        best = self.trials.candidates[self.best]
        return tuple(
            LayerRecord(
                name=layer.name,
                operator=layer.op_type,
                precision="int8" if layer.name in best.quantized else best.precision,
                macs=layer.macs,
                sensitivity={"int8": self.sensitivity.layers[layer.name]}
                if layer.name in self.sensitivity.layers
                else {},
                us={p: found[layer.name] for p, found in self.times.items() if layer.name in found},
            )
            for layer in self.layers
        )

    def curve_points(self) -> tuple[CurvePoint, ...]:
        """The curve, for the record."""
        return tuple(CurvePoint(c.loss, max(0.0, self._curve_us - c.gain), len(c.layers)) for c in self.curve)


def _times(ratio: Spread | None) -> str:
    return "unknown" if ratio is None else f"{ratio.median:.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]"
