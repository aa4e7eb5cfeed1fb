"""Candidates in int8: what the layers cost and save, all of them quantized, and mixtures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from hasten.errors import HastenError
from hasten.passes.quantize import Layer, products
from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS
from hasten.search.choice import Choice, LayerCost, curve
from hasten.search.comparison import latency, within_budget
from hasten.search.engines import Precision
from hasten.search.histogram import Method
from hasten.search.layer_times import gains, layer_times
from hasten.search.pace import Pace
from hasten.search.quantization import Quantization, prepare
from hasten.search.record import CurvePoint, LayerRecord
from hasten.search.sensitivity import Sensitivity, probe_layers
from hasten.search.trials import Trials, mapped
from hasten.search.variants import WHOLE, Variant

BUILDS = 1.5
"""A quantized model takes this many times the lossless compilation's time to build, and more."""

_PREPARING = 6.0  # times the lossless compilation's time: smoothing, ranges and the probe
_OBSERVED = 128  # samples that ranges are observed on
_SHARES = (0.5, 0.2, 0.05)  # of the loss of all layers in int8: mixtures that are tried
_WORTH = 0.03  # of the time that a mixture must save against the next slower one that was tried
_FEW_ROUNDS = 5  # of a first look at times, from which nothing but the choice of mixtures follows


class Int8:
    """The phases that make candidates in int8, and what they found.

    Attributes:
        layers: that can be quantized.
        sensitivity: as far as it is known.
        times: microseconds of each layer, by precision.
        curve: predicted, as far as it is known.
    """

    def __init__(self, trials: Trials, pace: Pace, notes: list[str]) -> None:
        """Nothing is known yet; what goes wrong will be said in the notes."""
        self.layers: tuple[Layer, ...] = tuple(products(trials.problem.graph))
        self.sensitivity = Sensitivity({}, {})
        self.times: dict[str, dict[str, float]] = {}
        self.curve: list[Choice] = []
        self._curve_us = 0.0
        self._trials, self._pace, self._notes = trials, pace, notes

    @property
    def wanted(self) -> bool:
        """Whether there is something to quantize, and it may be."""
        return "int8" in self._trials.problem.precisions and bool(self.layers)

    @property
    def methods(self) -> list[Method]:
        """How ranges can be found, the one of the least loss first."""
        losses = self.sensitivity.methods
        return sorted(self._trials.variants[WHOLE].ranges, key=lambda m: losses.get(m, 0.0))

    def fits_after(self, certificates: int) -> bool:
        """Whether int8 everywhere and mixtures still get their turn after so many certificates."""
        count = len(self._rests()) + len(_SHARES)
        return self._pace.fits(_PREPARING + BUILDS * count, count, certificates)

    def calibrate(self) -> None:
        """Smooths the graph and observes it."""
        if not self.wanted or not self._pace.has_time(2):
            return
        self._trials.say("smoothing, and observing the ranges of activations")
        names = tuple(layer.name for layer in self.layers)
        self._trials.variants[WHOLE] = self.prepared(self._trials.problem.graph, names)

    def prepared(self, graph: ir.Model, layers: tuple[str, ...]) -> Variant:
        """A graph with all that its int8 candidates need.

        Raises:
            HastenError: the data gives what is no number, or the graph cannot be run.
        """
        problem = self._trials.problem
        prepared = prepare(
            graph,
            problem.calibration.feeds[:_OBSERVED],
            Quantization(layers),
            threads=problem.threads,
            cache=Path(problem.build.cache),
        )
        place = problem.folder / f"smoothed{len(self._trials.variants)}.onnx"
        prepared = replace(prepared, model=mapped(prepared.model, place))
        return Variant(graph, prepared, {m: prepared.seen.ranges(m) for m in get_args(Method)})

    def probe(self) -> None:
        """Measures how much each layer and each method of calibration matters."""
        prepared = self._trials.variants[WHOLE].prepared
        if prepared is None or not self._pace.has_time(3):
            return
        self._trials.say("probing how much each layer matters")
        self.sensitivity = probe_layers(self._trials, self._trials.variants[WHOLE])

    def everywhere(self) -> None:
        """Tries all layers in int8."""
        trials = self._trials
        prepared = trials.variants[WHOLE].prepared
        if prepared is None:
            return
        methods = self.sensitivity.methods
        first, *others = self.methods
        for precision in self._rests():
            candidate = made.everywhere(prepared.how, first, made.own_engine(precision))
            if self._pace.has_time(BUILDS):
                trials.add(candidate)
        for method in others:
            candidate = made.everywhere(prepared.how, method, made.own_engine("f32"))
            if methods:
                trials.register(candidate)
                reason = f"{first} changes the outputs less, by the probe"
                trials.note(candidate.name, loss=methods[method], reason=reason)
            elif self._pace.has_time(BUILDS):
                trials.add(candidate)

    def mixtures(self) -> None:
        """Tries some layers in int8, chosen from what each costs and saves."""
        trials = self._trials
        every = [n for n, c in trials.candidates.items() if c.ours and c.quantized and trials.works(n)]
        built = [n for n in every if trials.records[n].drop is not None]
        if not built or not self.sensitivity.layers or not self._pace.has_time(BUILDS):
            return
        trials.say("timing layers")
        trials.time(built, rounds=_FEW_ROUNDS)
        first = min((n for n in built if trials.works(n)), key=lambda n: latency(trials, n), default=None)
        if first is None:
            return
        rest = trials.candidates[first].precision
        plain = BF16 if rest == "bf16" and trials.works(BF16) else LOSSLESS
        self._predict(first, plain, rest)
        self._try_mixtures(first, latency(trials, plain) * 1e3)

    def _predict(self, first: str, plain: str, rest: Precision) -> None:
        """The curve of time against loss."""
        trials = self._trials
        self._time_layers(plain, rest)
        self._time_layers(first, "int8")
        saved = (latency(trials, plain) - latency(trials, first)) * 1e3
        gained = gains(self.layers, self.times.get(rest, {}), self.times.get("int8", {}), saved)
        losses = self.sensitivity.layers
        self.curve = curve([LayerCost(name, losses[name], gained[name]) for name in losses])
        self._curve_us = latency(trials, plain) * 1e3

    def _try_mixtures(self, first: str, base: float) -> None:
        trials = self._trials
        how = trials.candidates[first].how
        prepared = trials.variants[WHOLE].prepared
        assert prepared is not None and how is not None
        engine = trials.candidates[first].engine
        before = latency(trials, first) * 1e3
        whole = sum(self.sensitivity.layers.values())
        for share in _SHARES:
            choice = next((c for c in self.curve if c.loss <= share * whole), None)
            if choice is None or not choice.layers or not self._pace.has_time(BUILDS):
                continue
            candidate = made.mixed(choice.layers, prepared.how, how.ranges, engine)
            predicted = base - choice.gain
            if candidate.name in trials.candidates or choice.gain < _WORTH * base:
                continue
            if predicted < before * (1 + _WORTH) and within_budget(trials, first):
                continue  # nearly the time and the layers of what there is
            trials.add(candidate)
            before, first = predicted, candidate.name

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
        losses = self.sensitivity.layers
        return tuple(
            LayerRecord(
                name=layer.name,
                operator=layer.op_type,
                precision="int8" if layer.name in candidate.quantized else candidate.precision,
                macs=layer.macs,
                sensitivity={"int8": losses[layer.name]} if layer.name in losses else {},
                us={p: found[layer.name] for p, found in self.times.items() if layer.name in found},
            )
            for layer in self.layers
        )

    def curve_points(self) -> tuple[CurvePoint, ...]:
        """The curve, for the record."""
        return tuple(CurvePoint(c.loss, max(0.0, self._curve_us - c.gain), len(c.layers)) for c in self.curve)
