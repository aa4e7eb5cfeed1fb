"""Uniform precision: one format for all layers that can have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from hasten.search import candidates as made
from hasten.search.candidates import BF16, LOSSLESS, Candidate
from hasten.search.comparison import latency, over_budget
from hasten.search.engines import Engine, Limits, Precision
from hasten.search.formats import FORMATS, Careful, Format
from hasten.search.layer_table import LayerTable
from hasten.search.pace import Pace
from hasten.search.quantization import RANGES, Prepared, Quantization, Ranges, prepare
from hasten.search.record import Outcome
from hasten.search.rounding import Bounds, round_carefully
from hasten.search.trials import Trials
from hasten.search.variants import WHOLE, Variant

BUILDS = 1.5
"""A quantized model takes this many times the lossless compilation's time to build, and more."""

FEW_ROUNDS = 5
"""Of a first look at times, from which nothing but the choice of mixtures follows."""

_PREPARING = 6.0  # times the lossless compilation's time: smoothing, ranges and the probe
_OBSERVED = 128  # samples that ranges are observed on
_OBSERVING_SHARE = 0.2  # of the time limit that smoothing, observing and choosing ranges may take
_ROUNDED = 64  # samples that weights are rounded on
_ROUNDING_SHARE = 0.15  # of the time limit that rounding may take
_FORCED = 2.0  # times these shares: then the process is ended, and what it found is lost
_ROUNDING_BYTES = 48 << 20  # of matrices in memory at once
_DEEPEST = 2048  # products of a layer that is rounded with care: its matrices take 32 MB each
_LEAST_SHARE = 0.2  # of a run that the layers which can have a format must take for it to be tried


class Uniform:
    """The phases that prepare the graph and give all layers the same format."""

    def __init__(self, trials: Trials, pace: Pace, table: LayerTable, notes: list[str]) -> None:
        """Nothing is tried yet; what is cut short will be said in the notes."""
        self._trials, self._pace, self._table, self._notes = trials, pace, table, notes

    @property
    def wanted(self) -> bool:
        """Whether there is something to quantize, and it may be."""
        return "int8" in self._trials.problem.asked.precisions() and bool(self._table.layers)

    def fits_after(self, certificates: int, mixtures: int) -> bool:
        """Whether int8 everywhere and so many mixtures still get their turn after some certificates."""
        count = len(self._rests()) + mixtures
        return self._pace.fits(_PREPARING + BUILDS * count, count, certificates)

    # Phases

    def calibrate(self) -> None:
        """Smooths the graph and observes it."""
        if not self.wanted or not self._pace.has_time(2):
            return
        self._trials.say("smoothing, and observing the ranges of activations")
        names = tuple(layer.name for layer in self._table.layers)
        self._trials.variants[WHOLE] = self.prepared(self._trials.problem.graph, names)

    def prepared(self, graph: ir.Model, layers: tuple[str, ...]) -> Variant:
        """A graph with all that its quantized candidates need.

        Raises:
            HastenError: the data gives what is no number, or the graph cannot be run, or not in time.
        """
        problem = self._trials.problem
        feeds = problem.calibration.feeds[:_OBSERVED]
        found: Prepared = self._trials.apart(
            prepare,
            *(graph, feeds, Quantization(layers, ranges="layer")),
            doing="smoothing and observing",
            limits=self._within(_OBSERVING_SHARE),
            threads=problem.asked.threads,
            cache=Path(problem.build.cache),
            until=self._trials.clock.until(_OBSERVING_SHARE),
        )
        if found.seen.samples < len(feeds):
            self._notes.append(
                f"the time was short: ranges are those of {found.seen.samples} of {len(feeds)} samples"
            )
        return Variant(graph, found, {m: found.ranges(m) for m in RANGES})

    def probe(self) -> None:
        """Measures how much each layer and each method of calibration matters in int8."""
        self._table.probe("int8")

    def everywhere(self) -> None:
        """Tries all layers in int8."""
        trials = self._trials
        if trials.variants[WHOLE].prepared is None:
            return
        losses = self._table.losses_of_methods
        first, *others = self._table.methods
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
        trials, problem = self._trials, self._trials.problem
        variant = trials.variants[WHOLE]
        if variant.prepared is None or not self._pace.has_time(2 * BUILDS):
            return
        trials.say("rounding weights by what they do to the results")
        until = trials.clock.until(_ROUNDING_SHARE)
        careful: Careful = trials.apart(
            round_carefully,
            variant.prepared.model,
            problem.calibration.feeds[:_ROUNDED],
            *(variant.prepared.layers, self._formats(), variant.prepared.how.scheme),
            doing="rounding",
            limits=self._within(_ROUNDING_SHARE),
            bounds=Bounds(_ROUNDING_BYTES, _DEEPEST, until),
            threads=problem.asked.threads,
            cache=Path(problem.build.cache),
        )
        if not careful.layers:
            return
        how = replace(variant.prepared.how, rounding="gptq")
        trials.variants[WHOLE] = replace(
            variant, prepared=replace(variant.prepared, careful=careful, how=how)
        )
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
        trials.time([plain], rounds=FEW_ROUNDS)
        self._table.time(plain, rest)
        for form in self._formats():
            if form == "int8" or not self._worth_trying(form, plain, rest):
                continue
            if not self._pace.has_time(2 * BUILDS):
                return
            self._try(form, plain, rest)

    # What other phases ask

    def all_in(self, form: Format, engine: Engine, *, ranges: Ranges | None = None) -> Candidate:
        """All layers that can have a format in it; ranges by the best method unless another is given."""
        formats = dict.fromkeys(self._table.able(form), form)
        return self.candidate(formats, engine, ranges or self._table.methods[0])

    def candidate(self, formats: Mapping[str, Format], engine: Engine, ranges: Ranges) -> Candidate:
        """Layers in formats; their weights are rounded with care where that was done."""
        prepared = self._trials.variants[WHOLE].prepared
        assert prepared is not None
        careful = prepared.careful.rounds(formats)
        how = replace(prepared.how, ranges=ranges, rounding="gptq" if careful else "nearest")
        return made.quantized(formats, how, engine, len(self._table.layers))

    def built(self) -> list[Candidate]:
        """The quantized candidates of ours that were built and judged, and are not set aside."""
        return [
            c for c in self._trials.candidates.values() if c.ours and c.quantized and self._goes_on(c.name)
        ]

    # Parts of phases

    def _within(self, share: float) -> Limits:
        return self._trials.limits(None, _FORCED * share)

    def _try(self, form: Format, plain: str, rest: Precision) -> None:
        """Tries all layers in a format; where their answers fail, those that do not break by themselves."""
        trials, candidate = self._trials, self.all_in(form, made.own_engine(rest))
        if not trials.build(candidate):
            return
        works = trials.attempt(candidate.name, trials.judge)
        self._table.probe(form)
        fewer = self.all_in(form, candidate.engine)
        if works or fewer.formats == candidate.formats or not self._worth_trying(form, plain, rest):
            return
        if self._pace.has_time(BUILDS):
            trials.add(fewer)

    def _try_rounded(self, careful: Careful) -> None:
        """All layers in int8 with careful weights. Times are equal: the worse rounding is set aside."""
        trials, nearest = self._trials, self.built()
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

    def _worth_trying(self, form: Format, plain: str, rest: Precision) -> bool:
        """Whether the layers that can have a format take a good part of a run, as far as that is known."""
        names, known = self._table.able(form), self._table.times.get(rest, {})
        if not names or not known:
            return bool(names)
        return sum(known.get(name, 0.0) for name in names) > _LEAST_SHARE * latency(self._trials, plain) * 1e3

    def _goes_on(self, name: str) -> bool:
        found = self._trials.records[name]
        return self._trials.works(name) and found.drop is not None and found.outcome is not Outcome.SET_ASIDE

    def _formats(self) -> list[Format]:
        """What layers may be in."""
        allowed = self._trials.problem.asked.precisions()
        return [form for form in FORMATS if form.partition("-")[0] in allowed]

    def _rests(self) -> list[Precision]:
        """Precisions of what is not quantized, the fastest first; not what costs the budget by itself."""
        narrow = self._trials.works(BF16) and not over_budget(self._trials, BF16)
        return ["bf16", "f32"] if narrow else ["f32"]
