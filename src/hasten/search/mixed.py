"""Mixed precision: some layers in some formats, chosen from what each costs and saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hasten.search.candidates import BF16, LOSSLESS, Candidate
from hasten.search.choice import Choice, LayerCost, curve
from hasten.search.comparison import latency, within_budget
from hasten.search.layer_table import LayerTable
from hasten.search.layer_times import gains
from hasten.search.pace import Pace
from hasten.search.record import CurvePoint
from hasten.search.trials import Trials
from hasten.search.uniform import BUILDS, FEW_ROUNDS, Uniform

SHARES = (0.5, 0.2, 0.05)
"""Of the loss of all layers in int8: mixtures that are tried."""

_WORTH = 0.03  # of the time that a mixture must save against the next slower one that was tried


class Mixed:
    """The phase that tries mixtures of formats, and the curve that it chose from.

    Attributes:
        curve: predicted: the fastest choice for each loss.
    """

    def __init__(self, trials: Trials, pace: Pace, table: LayerTable, uniform: Uniform) -> None:
        """Nothing is known yet."""
        self.curve: list[Choice] = []
        self._curve_us = 0.0
        self._trials, self._pace, self._table, self._uniform = trials, pace, table, uniform

    def try_mixtures(self) -> None:
        """Predicts the curve of time against loss, and tries some choices on it."""
        trials = self._trials
        built = self._uniform.built()
        known = [form for form, found in self._table.sensitivity.items() if found.layers]
        if not built or not known or not self._pace.has_time(BUILDS):
            return
        trials.say("timing layers")
        trials.time([c.name for c in built], rounds=FEW_ROUNDS)
        working = [c for c in built if trials.works(c.name)]
        first = min(working, key=lambda c: latency(trials, c.name), default=None)
        if first is None:
            return
        plain = BF16 if first.precision == "bf16" and trials.works(BF16) else LOSSLESS
        self._predict(working, plain, first.precision)
        self._try(first, latency(trials, plain) * 1e3)

    def curve_points(self) -> tuple[CurvePoint, ...]:
        """The curve, for the record."""
        return tuple(
            CurvePoint(c.loss, max(0.0, self._curve_us - c.gain), len(c.formats)) for c in self.curve
        )

    def _predict(self, built: Sequence[Candidate], plain: str, rest: str) -> None:
        """The curve, from candidates with all layers in one format and the rest in another precision."""
        trials, table = self._trials, self._table
        table.time(plain, rest)
        costs: list[LayerCost] = []
        for candidate in built:
            forms = set(candidate.formats.values())
            if len(forms) > 1 or candidate.precision != rest:
                continue
            (form,) = forms
            table.time(candidate.name, form)
            saved = (latency(trials, plain) - latency(trials, candidate.name)) * 1e3
            work = {layer: n for layer, n in table.work.items() if layer.name in candidate.formats}
            gained = gains(work, table.times.get(rest, {}), table.times.get(form, {}), saved)
            found = table.sensitivity.get(form)
            losses = {} if found is None else found.layers
            known = [n for n in losses if n in gained and math.isfinite(losses[n])]
            costs += [LayerCost(n, form, losses[n], gained[n]) for n in known]
        order = {layer.name: number for number, layer in enumerate(table.layers)}
        self.curve = curve(sorted(costs, key=lambda c: order[c.name]))
        self._curve_us = latency(trials, plain) * 1e3

    def _try(self, first: Candidate, base: float) -> None:
        """Candidates for falling shares of the loss, each worth its build.

        Args:
            first: the fastest candidate with all layers in one format.
            base: microseconds of a run without any.
        """
        trials = self._trials
        before, last = latency(trials, first.name) * 1e3, first.name
        whole = self.curve[0].loss
        for share in SHARES:
            choice = next((c for c in self.curve if c.loss <= share * whole), None)
            if choice is None or not choice.formats or not self._pace.has_time(BUILDS):
                continue
            candidate = self._uniform.candidate(choice.formats, first.engine, self._table.methods[0])
            predicted = base - choice.gain
            if candidate.name in trials.candidates or choice.gain < _WORTH * base:
                continue
            if predicted < before * (1 + _WORTH) and within_budget(trials, last):
                continue  # nearly the time and the layers of what there is
            trials.add(candidate)
            before, last = predicted, candidate.name
