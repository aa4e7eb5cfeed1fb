"""Quantized candidates: what formats of layers cost and save, one format for all layers, and mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from hasten.errors import HastenError
from hasten.passes.quantize import Layer, products
from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS, Candidate
from hasten.search.choice import Choice, LayerCost, curve
from hasten.search.comparison import latency, over_budget, within_budget
from hasten.search.engines import Engine, Precision
from hasten.search.formats import FORMATS, Careful, Format, layers_for
from hasten.search.layer_times import gains, layer_times
from hasten.search.pace import Pace
from hasten.search.quantization import RANGES, Quantization, Ranges, prepare
from hasten.search.record import CurvePoint, LayerRecord, Outcome
from hasten.search.rounding import Bounds, round_carefully
from hasten.search.sensitivity import Sensitivity, probe_layers
from hasten.search.trials import Trials, mapped
from hasten.search.variants import WHOLE, Variant

BUILDS = 1.5
"""A quantized model takes this many times the lossless compilation's time to build, and more."""

_PREPARING = 6.0  # times the lossless compilation's time: smoothing, ranges and the probe
_OBSERVED = 128  # samples that ranges are observed on
_ROUNDED = 64  # samples that weights are rounded on
_ROUNDING_SHARE = 0.15  # of the time limit that rounding may take
_ROUNDING_BYTES = 48 << 20  # of matrices in memory at once
_DEEPEST = 2048  # products of a layer that is rounded with care: its matrices take 32 MB each
_SHARES = (0.5, 0.2, 0.05)  # of the loss of all layers in int8: mixtures that are tried
_WORTH = 0.03  # of the time that a mixture must save against the next slower one that was tried
_FEW_ROUNDS = 5  # of a first look at times, from which nothing but the choice of mixtures follows
_LEAST_SHARE = 0.2  # of a run that the layers which can have a format must take for it to be tried


class Int8:
    """The phases that make quantized candidates, and what they found.

    Attributes:
        layers: that can be quantized.
        sensitivity: to each format, as far as it is known.
        times: microseconds of each layer, by precision and format.
        curve: predicted, as far as it is known.
    """

    def __init__(self, trials: Trials, pace: Pace, notes: list[str]) -> None:
        """Nothing is known yet; what goes wrong will be said in the notes."""
        self.layers: tuple[Layer, ...] = tuple(products(trials.problem.graph))
        self.sensitivity: dict[Format, Sensitivity] = {}
        self.times: dict[str, dict[str, float]] = {}
        self.curve: list[Choice] = []
        self._curve_us = 0.0
        self._trials, self._pace, self._notes = trials, pace, notes

    @property
    def wanted(self) -> bool:
        """Whether there is something to quantize, and it may be."""
        return "int8" in self._trials.problem.precisions and bool(self.layers)

    @property
    def methods(self) -> list[Ranges]:
        """How ranges can be found, the one of the least loss first."""
        losses = self._losses_of_methods
        return sorted(self._trials.variants[WHOLE].ranges, key=lambda m: losses.get(m, 0.0))

    @property
    def _losses_of_methods(self) -> Mapping[Ranges, float]:
        found = self.sensitivity.get("int8")
        return {} if found is None else found.methods

    def fits_after(self, certificates: int) -> bool:
        """Whether int8 everywhere and mixtures still get their turn after so many certificates."""
        count = len(self._rests()) + len(_SHARES)
        return self._pace.fits(_PREPARING + BUILDS * count, count, certificates)

    # Phases

    def calibrate(self) -> None:
        """Smooths the graph and observes it."""
        if not self.wanted or not self._pace.has_time(2):
            return
        self._trials.say("smoothing, and observing the ranges of activations")
        names = tuple(layer.name for layer in self.layers)
        self._trials.variants[WHOLE] = self.prepared(self._trials.problem.graph, names)

    def prepared(self, graph: ir.Model, layers: tuple[str, ...]) -> Variant:
        """A graph with all that its quantized candidates need.

        Raises:
            HastenError: the data gives what is no number, or the graph cannot be run.
        """
        problem = self._trials.problem
        prepared = prepare(
            graph,
            problem.calibration.feeds[:_OBSERVED],
            Quantization(layers, ranges="layer"),
            threads=problem.threads,
            cache=Path(problem.build.cache),
        )
        place = problem.folder / f"smoothed{len(self._trials.variants)}.onnx"
        prepared = replace(prepared, model=mapped(prepared.model, place))
        return Variant(graph, prepared, {m: prepared.ranges(m) for m in RANGES})

    def probe(self) -> None:
        """Measures how much each layer and each method of calibration matters."""
        self._probe("int8")

    def everywhere(self) -> None:
        """Tries all layers in int8."""
        trials = self._trials
        prepared = trials.variants[WHOLE].prepared
        if prepared is None:
            return
        losses = self._losses_of_methods
        first, *others = self.methods
        for precision in self._rests():
            if self._pace.has_time(BUILDS):
                trials.add(self.all_in("int8", made.own_engine(precision), ranges=first))
        for method in others:
            candidate = self.all_in("int8", made.own_engine("f32"), ranges=method)
            if losses:
                trials.register(candidate)
                reason = f"ranges by {first} change the outputs less, by the probe"
                trials.note(candidate.name, loss=losses[method], reason=reason)
            elif self._pace.has_time(BUILDS):
                trials.add(candidate)

    def round(self) -> None:
        """Rounds weights with care, and tries that for all layers in int8."""
        trials, clock = self._trials, self._trials.clock
        variant = trials.variants[WHOLE]
        if variant.prepared is None or not self._pace.has_time(2 * BUILDS):
            return
        trials.say("rounding weights by what they do to the results")
        end = clock.elapsed + (clock.left if clock.limit is None else _ROUNDING_SHARE * clock.limit)
        careful = round_carefully(
            variant.prepared.model,
            trials.problem.calibration.feeds[:_ROUNDED],
            variant.prepared.layers,
            self._formats(),
            variant.prepared.how.scheme,
            bounds=Bounds(_ROUNDING_BYTES, _DEEPEST, lambda: clock.elapsed < end),
            threads=trials.problem.threads,
            cache=Path(trials.problem.build.cache),
        )
        if not careful.layers:
            return
        prepared = replace(
            variant.prepared, careful=careful, how=replace(variant.prepared.how, rounding="gptq")
        )
        trials.variants[WHOLE] = replace(variant, prepared=prepared)
        if careful.channels and self._pace.has_time(BUILDS):
            self._try_rounded(careful)

    def others(self) -> None:
        """Tries the other formats for all layers that can have them, and probes the layers in them."""
        trials = self._trials
        if trials.variants[WHOLE].prepared is None:
            return
        rest = self._rests()[0]
        plain = BF16 if rest == "bf16" else LOSSLESS
        trials.say("timing layers")
        trials.time([plain], rounds=_FEW_ROUNDS)
        self._time_layers(plain, rest)
        for form in self._formats():
            if form == "int8" or not self._worth_trying(form, plain, rest):
                continue
            if not self._pace.has_time(2 * BUILDS):
                return
            if trials.add(self.all_in(form, made.own_engine(rest))):
                self._probe(form)

    def mixtures(self) -> None:
        """Tries some layers in some formats, chosen from what each costs and saves."""
        trials = self._trials
        built = [c for c in trials.candidates.values() if c.ours and c.quantized and self._goes_on(c.name)]
        known = [form for form, found in self.sensitivity.items() if found.layers]
        if not built or not known or not self._pace.has_time(BUILDS):
            return
        trials.say("timing layers")
        trials.time([c.name for c in built], rounds=_FEW_ROUNDS)
        working = [c for c in built if trials.works(c.name)]
        first = min(working, key=lambda c: latency(trials, c.name), default=None)
        if first is None:
            return
        rest = first.precision
        plain = BF16 if rest == "bf16" and trials.works(BF16) else LOSSLESS
        self._predict(working, plain, rest)
        self._try_mixtures(first, latency(trials, plain) * 1e3)

    # Parts of phases

    def all_in(self, form: Format, engine: Engine, *, ranges: Ranges | None = None) -> Candidate:
        """All layers that can have a format in it; ranges by the best method unless another is given."""
        prepared = self._trials.variants[WHOLE].prepared
        assert prepared is not None
        names = [i.name for i in layers_for(prepared.model, form) if i.name in prepared.layers]
        return self._candidate(dict.fromkeys(names, form), engine, ranges or self.methods[0])

    def _candidate(self, formats: Mapping[str, Format], engine: Engine, ranges: Ranges) -> Candidate:
        prepared = self._trials.variants[WHOLE].prepared
        assert prepared is not None
        careful = prepared.careful.rounds(formats)
        how = replace(prepared.how, ranges=ranges, rounding="gptq" if careful else "nearest")
        return made.quantized(formats, how, engine, len(self.layers))

    def _try_rounded(self, careful: Careful) -> None:
        """All layers in int8 with careful weights. Times are equal: the worse rounding is set aside."""
        trials = self._trials
        nearest = [c for c in trials.candidates.values() if c.ours and self._goes_on(c.name) and c.quantized]
        if not nearest:
            return
        before = nearest[0]
        candidate = self.all_in("int8", before.engine)
        if not trials.add(candidate):
            return
        both = (before.name, candidate.name)
        better, worse = sorted(both, key=lambda n: (over_budget(trials, n), trials.records[n].loss or 0.0))
        reason = f"takes the time of {better}, which changes the outputs less, or keeps the budget"
        trials.note(worse, outcome=Outcome.SET_ASIDE, reason=reason)
        if better == before.name:
            self._keep_nearest(careful)

    def _keep_nearest(self, careful: Careful) -> None:
        """Forgets the careful weights in 8 bits, so that no other candidate takes them."""
        variant = self._trials.variants[WHOLE]
        assert variant.prepared is not None
        prepared = replace(variant.prepared, careful=replace(careful, channels={}))
        self._trials.variants[WHOLE] = replace(variant, prepared=prepared)

    def _probe(self, form: Format) -> None:
        trials = self._trials
        variant = trials.variants[WHOLE]
        if variant.prepared is None or not self._pace.has_time(3):
            return
        trials.say(f"probing how much each layer matters in {form}")
        try:
            self.sensitivity[form] = probe_layers(trials, variant, form)
        except HastenError as error:
            self._notes.append(f"how much layers matter in {form} was not measured: {error}")

    def _worth_trying(self, form: Format, plain: str, rest: Precision) -> bool:
        """Whether the layers that can have a format take a good part of a run, as far as that is known."""
        prepared = self._trials.variants[WHOLE].prepared
        assert prepared is not None
        names = [i.name for i in layers_for(prepared.model, form) if i.name in prepared.layers]
        known = self.times.get(rest, {})
        if not names or not known:
            return bool(names)
        return sum(known.get(name, 0.0) for name in names) > _LEAST_SHARE * latency(self._trials, plain) * 1e3

    def _goes_on(self, name: str) -> bool:
        """Whether a candidate was built and judged, and is not set aside."""
        found = self._trials.records[name]
        return self._trials.works(name) and found.drop is not None and found.outcome is not Outcome.SET_ASIDE

    def _formats(self) -> list[Format]:
        """What layers may be in."""
        allowed = self._trials.problem.precisions
        return [form for form in FORMATS if form.partition("-")[0] in allowed]

    def _predict(self, built: list[Candidate], plain: str, rest: Precision) -> None:
        """The curve of time against loss."""
        trials = self._trials
        self._time_layers(plain, rest)
        costs: list[LayerCost] = []
        for candidate in built:
            forms = set(candidate.formats.values())
            if len(forms) > 1 or candidate.precision != rest:
                continue
            (form,) = forms
            self._time_layers(candidate.name, form)
            saved = (latency(trials, plain) - latency(trials, candidate.name)) * 1e3
            layers = [layer for layer in self.layers if layer.name in candidate.formats]
            gained = gains(layers, self.times.get(rest, {}), self.times.get(form, {}), saved)
            found = self.sensitivity.get(form)
            losses = {} if found is None else found.layers
            costs += [LayerCost(n, form, losses[n], gained[n]) for n in losses if n in gained]
        order = {layer.name: number for number, layer in enumerate(self.layers)}
        self.curve = curve(sorted(costs, key=lambda c: order[c.name]))
        self._curve_us = latency(trials, plain) * 1e3

    def _try_mixtures(self, first: Candidate, base: float) -> None:
        trials = self._trials
        before, last = latency(trials, first.name) * 1e3, first.name
        whole = self.curve[0].loss
        for share in _SHARES:
            choice = next((c for c in self.curve if c.loss <= share * whole), None)
            if choice is None or not choice.formats or not self._pace.has_time(BUILDS):
                continue
            candidate = self._candidate(choice.formats, first.engine, self.methods[0])
            predicted = base - choice.gain
            if candidate.name in trials.candidates or choice.gain < _WORTH * base:
                continue
            if predicted < before * (1 + _WORTH) and within_budget(trials, last):
                continue  # nearly the time and the layers of what there is
            trials.add(candidate)
            before, last = predicted, candidate.name

    def _time_layers(self, name: str, precision: str) -> None:
        trials = self._trials
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
            self._notes.append(f"the layers of {name} were not timed: {error}")

    def _rests(self) -> list[Precision]:
        allowed = self._trials.problem.precisions
        found: list[Precision] = ["bf16"] if "bf16" in allowed and self._trials.works(BF16) else []
        return [*found, "f32"]

    # What was found

    def layer_records(self, best: str) -> tuple[LayerRecord, ...]:
        """The table of layers, with the precision that a candidate gives each."""
        candidate = self._trials.candidates[best]
        losses = {form: found.layers for form, found in self.sensitivity.items()}
        return tuple(
            LayerRecord(
                name=layer.name,
                operator=layer.op_type,
                precision=candidate.formats.get(layer.name, candidate.precision),
                macs=layer.macs,
                sensitivity={f: found[layer.name] for f, found in losses.items() if layer.name in found},
                us={p: found[layer.name] for p, found in self.times.items() if layer.name in found},
            )
            for layer in self.layers
        )

    def curve_points(self) -> tuple[CurvePoint, ...]:
        """The curve, for the record."""
        return tuple(
            CurvePoint(c.loss, max(0.0, self._curve_us - c.gain), len(c.formats)) for c in self.curve
        )
