"""What is known of the layers of the whole graph: what each format of each costs and saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from hasten.errors import HastenError
from hasten.passes.quantize import Layer, products
from hasten.search.candidates import Candidate
from hasten.search.formats import Format, layers_for
from hasten.search.layer_times import layer_times
from hasten.search.pace import Pace
from hasten.search.prune.cost import flops_by_node, name_of, typical_sizes
from hasten.search.quantization import Ranges
from hasten.search.record import LayerRecord
from hasten.search.sensitivity import Sensitivity, probe_layers
from hasten.search.trials import Trials
from hasten.search.variants import WHOLE

_PROBE = 3.0  # times the lossless compilation's time that a probe takes


class LayerTable:
    """The layers that can be quantized, with their losses and times as far as they are known.

    Attributes:
        layers: in the order of the graph.
        macs: multiplications of each in a run of the typical sample, by name, as far as shapes are known.
        sensitivity: to each format.
        times: microseconds of each layer, by precision and format.
    """

    def __init__(self, trials: Trials, pace: Pace, notes: list[str]) -> None:
        """Nothing is known yet; what goes wrong will be said in the notes."""
        graph = trials.problem.graph
        self.layers: tuple[Layer, ...] = tuple(products(graph))
        typical = [trials.problem.calibration.typical()]
        flops = flops_by_node(graph, typical_sizes(graph, typical)) if self.layers else {}
        self.macs = {layer.name: flops[layer.name] // 2 for layer in self.layers if layer.name in flops}
        self.sensitivity: dict[Format, Sensitivity] = {}
        self.times: dict[str, dict[str, float]] = {}
        self._trials, self._pace, self._notes = trials, pace, notes

    @property
    def work(self) -> Mapping[Layer, float]:
        """Multiplications of each layer in a run, or those of one place where that is all that is known."""
        return {layer: float(self.macs.get(layer.name, math.prod(layer.shape))) for layer in self.layers}

    @property
    def losses_of_methods(self) -> Mapping[Ranges, float]:
        """For each method of calibration the loss of all layers in int8, if that was measured."""
        found = self.sensitivity.get("int8")
        return {} if found is None else found.methods

    @property
    def methods(self) -> list[Ranges]:
        """How ranges can be found, the one of the least loss first."""
        losses = self.losses_of_methods
        return sorted(self._trials.variants[WHOLE].ranges, key=lambda m: losses.get(m, 0.0))

    def probe(self, form: Format) -> None:
        """Measures how much each layer matters in a format, and each method of calibration in int8."""
        trials = self._trials
        variant = trials.variants[WHOLE]
        if variant.prepared is None or not self._pace.has_time(_PROBE):
            return
        trials.say(f"probing how much each layer matters in {form}")
        try:
            self.sensitivity[form] = probe_layers(trials, variant, form)
        except HastenError as error:
            self._notes.append(f"how much layers matter in {form} was not measured: {error}")
            return
        broken = self._broken(form)
        if broken:
            kept = broken.isdisjoint(self.able(form))
            which = f"{', '.join(sorted(broken))}: left as they are" if kept else "any layer"
            self._notes.append(f"in {form} outputs are no numbers with {which}")

    def able(self, form: Format) -> list[str]:
        """Names of the layers that can have a format, in the order of the graph.

        Those that the probe found to break in it are left out, unless all do.
        """
        prepared = self._trials.variants[WHOLE].prepared
        assert prepared is not None
        names = [layer.name for layer in layers_for(prepared.model, form) if layer.name in prepared.layers]
        broken = self._broken(form)
        return [name for name in names if name not in broken] or names

    def _broken(self, form: Format) -> set[str]:
        """Names of the layers that make outputs infinite or no numbers in a format, as far as is known."""
        found = self.sensitivity.get(form)
        return set() if found is None else {n for n, loss in found.layers.items() if not math.isfinite(loss)}

    def time(self, name: str, precision: str) -> None:
        """Measures the layers' times in a candidate, unless those in its precision or format are known."""
        if precision in self.times:
            return
        trials, candidate = self._trials, self._trials.candidates[name]
        known = trials.recall("layer times", **trials.identity(candidate))
        if known is not None:
            self.times[precision] = known
            return
        try:
            self.times[precision] = measured_times(trials, candidate, self.work)
        except HastenError as error:
            self._notes.append(f"the layers of {name} were not timed: {error}")
            return
        trials.remember("layer times", self.times[precision], **trials.identity(candidate))

    def records(self, best: str) -> tuple[LayerRecord, ...]:
        """The table, with the precision that a candidate gives each layer."""
        candidate = self._trials.candidates[best]
        losses = {form: found.layers for form, found in self.sensitivity.items()}
        there = {name_of(node) for node in self._trials.variants[candidate.variant].graph.graph}
        return tuple(
            LayerRecord(
                name=layer.name,
                operator=layer.op_type,
                precision=candidate.formats.get(layer.name, candidate.precision)
                if layer.name in there
                else "removed",
                macs=self.macs.get(layer.name),
                sensitivity={f: found[layer.name] for f, found in losses.items() if layer.name in found},
                us={p: found[layer.name] for p, found in self.times.items() if layer.name in found},
            )
            for layer in self.layers
        )


def measured_times(trials: Trials, candidate: Candidate, work: Mapping[Layer, float]) -> dict[str, float]:
    """Microseconds of each layer in a run of a candidate, in a process of its own.

    Args:
        trials: the candidate is one of them.
        candidate: to be timed.
        work: the layers, with what each computes.

    Raises:
        HastenError: it cannot be compiled, run or timed.
    """
    problem = trials.problem
    found: dict[str, float] = trials.apart(
        layer_times,
        *(trials.model(candidate), work, trials.problem.calibration.typical(), problem.asked.threads),
        Path(problem.build.cache),
        doing="timing layers",
        limits=trials.limits(),
    )
    return found
