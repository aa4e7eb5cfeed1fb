"""Candidates that units were removed from: how much of each layer, and with which precision.

Units are ranked once. How much of each group goes follows from their losses and from the time that it
saves, measured at several sizes (`size_times.py`), so that for each share of the time that is left there is
a set of least loss. Each set that is tried is removed, repaired by least squares, and compiled in the
precision that is fastest for the whole graph. Shares fall in steps while candidates keep the budget on the
calibration part; the last step is halved.

Whole layers go first: a few, more while candidates keep the budget, then half of the last step. What the most
layers left that could go loses units in turn; then the whole graph does.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.errors import HastenError
from hasten.passes.prune.layers import Layer
from hasten.passes.prune.units import find_units
from hasten.passes.quantize import Range, products
from hasten.search import candidates as made
from hasten.search.asked import Problem
from hasten.search.build import Build, compile_model
from hasten.search.candidates import LOSSLESS, Candidate
from hasten.search.comparison import in_the_running, latency, within_budget
from hasten.search.data import Samples
from hasten.search.formats import in_formats
from hasten.search.pace import Pace
from hasten.search.prune.amounts import choose_amounts
from hasten.search.prune.cost import name_of
from hasten.search.prune.plan import Plan, Progress
from hasten.search.prune.ranking import (
    Decision,
    Ranking,
    Worth,
    decide_without,
    order_of_layers,
    rank,
    worth_of,
)
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import carry_out, identity_of
from hasten.search.record import PrunePoint
from hasten.search.size_times import SHARES, Point, node_times, price_from, thinned
from hasten.search.trials import Trials
from hasten.search.uniform import BUILDS, Uniform
from hasten.search.variants import Variant

REPAIR = "least-squares"

_FIRST, _STEP, _FINEST = 0.75, 0.15, 0.04  # shares of the time: the first tried, the steps, the least step
_LEAST = 0.1
_RANKED = 0.3  # of the time left that ranking may take
_MOST = 6  # candidates of some layers or none that lose units
_MOST_LAYERS = 3  # that lose layers alone
_MOST_BEHIND = 3  # that lose layers and units
_CURVE = tuple(np.linspace(0.95, 0.25, 15).tolist())


class Pruning:
    """The phase that makes pruned candidates, and what it found.

    Attributes:
        curve: predicted time and loss for falling shares.
        left_alone: what could not be removed, and why, in words.
    """

    def __init__(self, trials: Trials, pace: Pace, uniform: Uniform, notes: list[str]) -> None:
        """Nothing is known yet."""
        self.curve: list[PrunePoint] = []
        self.left_alone: list[str] = []
        self._worth = Worth({}, {})
        self._points: list[dict[str, Point]] = []
        self._took = 0.0  # seconds that the last candidate took
        self._trials, self._pace, self._uniform, self._notes = trials, pace, uniform, notes

    def try_amounts(self) -> None:
        """Tries pruned candidates, from much that is left to little, as long as they keep the budget.

        Raises:
            HastenError: the graph has nothing to prune, or cannot be run where gradients are.
        """
        asked = self._trials.problem.asked
        if not asked.prune or not self._pace.has_time(3 * BUILDS):
            return
        ranking, ranked = self._ranked(Plan(asked.prune, asked.prune_criterion, 0.5, REPAIR, seed=asked.seed))
        fastest = self._fastest()
        self._points = self._times(ranking, fastest)
        ranking = replace(ranking, price=price_from(self._points))
        if ranking.groups:
            self._predict(ranking, fastest)
        self._took = ranked / 3 + self._pace.build_seconds  # repair is one pass over what ranking looks at
        layers = self._try_layers(ranking, fastest)
        if layers and ranking.groups:
            self._try_shares(ranking, layers, fastest, _MOST_BEHIND)
        if ranking.groups:
            self._try_shares(ranking, (), fastest, _MOST - (_MOST_BEHIND if layers else 0))

    def _ranked(self, plan: Plan) -> tuple[Ranking, float]:
        """What units and layers are worth, and the seconds that it took to find out."""
        trials, clock = self._trials, self._trials.clock
        begin = clock.elapsed
        until = time.monotonic() + _RANKED * (clock.left - clock.reserve)
        self._worth = self._apart(worth_of, plan, doing="ranking", until=until, progress=trials.say)
        ranking = rank(trials.problem.graph, plan, samples_for(trials.problem), known=self._worth)
        self._notes += ranking.notes
        self.left_alone = [f"{u.count} {u.unit} of {u.name}: {u.reasons[0]}" for u in ranking.left]
        return ranking, clock.elapsed - begin

    def _try_layers(self, ranking: Ranking, fastest: Candidate) -> tuple[Layer, ...]:
        """Tries graphs without some layers; the most of them without which a candidate keeps the budget."""
        order = [ranking.layers[k] for k in order_of_layers(ranking)]
        good, bad = [0], list[int]()
        while (count := next_count(good, bad, len(order))) is not None and len(good) + len(
            bad
        ) <= _MOST_LAYERS:
            if not self._pace.has_seconds(self._took):
                break
            kept = self._keeps_budget(ranking, tuple(order[:count]), None, fastest)
            (good if kept else bad).append(count)
        return tuple(order[: max(good)])

    def _try_shares(self, ranking: Ranking, layers: tuple[Layer, ...], fastest: Candidate, most: int) -> None:
        """Tries shares of the time that is left without some layers, as many as may be tried."""
        whole = decide_without(ranking, layers, None).left
        good, bad = [1.0], [0.0]
        while (share := next_share(good, bad)) is not None and len(good) + len(bad) < most + 2:
            if not self._pace.has_seconds(self._took):
                break
            kept = self._keeps_budget(ranking, layers, share * whole, fastest)
            (good if kept else bad).append(share)

    def _keeps_budget(
        self, ranking: Ranking, layers: tuple[Layer, ...], share: float | None, fastest: Candidate
    ) -> bool:
        """Makes a candidate; whether it could be made and keeps the budget on the calibration part."""
        clock = self._trials.clock
        begin = clock.elapsed
        name = self._try(ranking, layers, share, fastest)
        self._took = clock.elapsed - begin
        return name is not None and within_budget(self._trials, name)

    def _fastest(self) -> Candidate:
        """The candidate of the whole graph whose precision pruned ones take over."""
        trials = self._trials
        good = [n for n, c in trials.candidates.items() if c.ours and in_the_running(trials, n)]
        trials.time(good)
        return trials.candidates[min([LOSSLESS, *good], key=lambda n: latency(trials, n))]

    def _times(self, ranking: Ranking, fastest: Candidate) -> list[dict[str, Point]]:
        """Times of nodes at several sizes; those of an earlier search if there was one."""
        trials = self._trials
        about = {
            "candidate": fastest.name,
            "quantized": sorted(fastest.quantized),
            "units": [*ranking.plan.units],
        }
        known = trials.recall("node times", **about)
        if known is not None:
            return [{name: Point(*point) for name, point in nodes.items()} for nodes in known]
        found = [measured(trials, trials.model(fastest), ranking.model, ranking.sizes)]
        for share in SHARES if ranking.groups else ():
            trials.say(f"timing kernels with {share:.0%} of the units")
            model, artifact = self._thinned(fastest, ranking.plan.units, share)
            found.append(measured(trials, artifact, model, ranking.sizes))
        kept = [{name: (p.flops, p.us) for name, p in nodes.items()} for nodes in found]
        trials.remember("node times", kept, **about)
        return found

    def _thinned(self, like: Candidate, units: Sequence[str], share: float) -> tuple[ir.Model, Path]:
        """A thinned graph and its artifact in the precision of a candidate; its answers mean nothing."""
        trials, problem = self._trials, self._trials.problem
        artifact = problem.folder / f"thinned{share:g}.hasten"
        graph: ir.Model = trials.apart(
            build_thinned,
            *(problem.graph, units, share, like, artifact, problem.build),
            doing="compiling a part of the units",
        )
        return graph, artifact

    def _apart(self, function: Callable[..., Any], *args: Any, doing: str, **named: Any) -> Any:
        """Calls a function of the graph and the samples in a process of its own."""
        problem = self._trials.problem
        plan, *rest = args
        given = (problem.graph, plan, samples_for(problem), *rest)
        return self._trials.apart(function, *given, doing=doing, **named)

    def _predict(self, ranking: Ranking, fastest: Candidate) -> None:
        """The curve: the rest of a run takes as long as before."""
        whole = ranking.cost(ranking.model, ranking.analysis).total
        rest = max(0.0, latency(self._trials, fastest.name) * 1e3 - whole)
        points = [PrunePoint(0.0, rest + whole, 1.0)]
        for share in _CURVE:
            cost = ranking.cost(ranking.model, ranking.analysis)
            found = choose_amounts(ranking.scores.values, cost, share * whole)
            if found.cost < points[-1].share * whole:
                points.append(PrunePoint(found.loss, rest + found.cost, found.cost / whole))
        self.curve = points

    def _try(
        self, ranking: Ranking, layers: tuple[Layer, ...], share: float | None, fastest: Candidate
    ) -> str | None:
        """Makes a candidate with a share of the products' time; its name, or None if it could not be made."""
        trials, decision = self._trials, decide_without(ranking, layers, share)
        variant = _digest(ranking, decision)
        if variant in trials.variants or not (decision.removed or layers):
            return None
        trials.say(f"pruning to {decision.left:.0%} of the time of the layers")
        try:
            left = trials.clock.left - trials.clock.reserve
            plan = replace(ranking.plan, seconds=None if math.isinf(left) else max(0.0, left))
            job = (plan, self._worth, self._points, share, [layer.exit for layer in layers])
            pruned: Pruned = self._apart(pruned_model, *job, doing="pruning", progress=trials.say)
            if not self._pace.has_seconds(0.0):
                return None  # perhaps it was not repaired to its end
            graph = pruned.model
            trials.variants[variant] = Variant(graph)
            if fastest.how is not None:
                trials.say("smoothing and observing what is left")
                names = tuple(layer.name for layer in products(graph))
                trials.variants[variant] = self._uniform.prepared(graph, names)
        except HastenError as error:
            self._notes.append(f"pruning to {decision.left:.0%} of the time failed: {error}")
            return None
        there = {name_of(node) for node in graph.graph}
        like = replace(fastest, formats={n: form for n, form in fastest.formats.items() if n in there})
        candidate = made.pruned(like, variant, pruned.report.flops, layers=len(layers))
        if candidate.name in trials.candidates:  # of nearly as much arithmetic
            candidate = replace(candidate, name=f"{candidate.name}, {decision.left:.1%} of the time")
        trials.add(candidate)
        trials.note(candidate.name, flops=pruned.report.flops, cuts=pruned.report.cuts)
        return candidate.name


def samples_for(problem: Problem) -> Samples:
    """What ranking and repair look at: with labels where the metric takes them for classes of the model.

    Those of another metric may only look like classes, such as the topics of texts with embeddings.
    """
    metric, first = problem.asked.metric, problem.graph.graph.outputs[0].name
    classes = metric.of_classes and metric.output in (None, first)
    return problem.calibration if classes else replace(problem.calibration, labels=None)


def pruned_model(
    model: ir.Model,
    plan: Plan,
    data: Samples,
    worth: Worth,
    points: Sequence[Mapping[str, Point]],
    share: float | None,
    exits: Collection[str],
    progress: Progress = lambda _: None,
) -> Pruned:
    """A graph with a share of its layers' time left, repaired, in this process.

    Args:
        model: the graph.
        plan: what to prune.
        data: samples to repair on.
        worth: of units and layers (`ranking.worth_of`).
        points: measured times, which say what units cost (`size_times.price_from`).
        share: of the time; None for all that layers leave.
        exits: the values that come out of the layers that go.
        progress: is told what begins.
    """
    ranking = replace(rank(model, plan, data, known=worth), price=price_from(points))
    layers = tuple(layer for layer in ranking.layers if layer.exit in exits)
    return carry_out(ranking, decide_without(ranking, layers, share), plan, progress=progress)


def build_thinned(
    model: ir.Model,
    units: Collection[str],
    share: float,
    like: Candidate,
    artifact: Path,
    how: Build,
) -> ir.Model:
    """Writes the artifact of a graph with a share of the units of each group, in this process.

    Only its time matters, so any ranges of activations do: those of the smoothed graph have other names.

    Args:
        model: the graph.
        units: kinds of them.
        share: of the units.
        like: a candidate, whose precision it gets.
        artifact: the file.
        how: to compile.

    Returns:
        The graph, without formats.
    """
    analysis = find_units(model)
    small = thinned(model, analysis, [g for g in analysis.groups if g.unit in units], share)
    graph = small
    if like.how is not None:
        there = {layer.name: layer for layer in products(small)}
        formats = {name: form for name, form in like.formats.items() if name in there}
        ranges = {layer.activation: Range(-1.0, 1.0) for layer in there.values()}
        graph = in_formats(small, formats, ranges, like.how.scheme)
    compile_model(graph, artifact, how, like.precision, {})
    return small


def measured(trials: Trials, artifact: Path, model: ir.Model, sizes: Mapping[str, int]) -> dict[str, Point]:
    """Arithmetic and time of a graph's nodes (`size_times.node_times`), in a process of its own.

    Raises:
        HastenError: it cannot be run or timed.
    """
    problem = trials.problem
    found: dict[str, Point] = trials.apart(
        node_times,
        *(artifact, model, sizes, trials.problem.calibration.typical(), problem.asked.threads),
        Path(problem.build.cache),
        doing="timing kernels",
        limits=trials.limits(),
    )
    return found


def next_share(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """The share of the time to try next; None if the next is too near to one that was tried.

    Args:
        good: shares whose candidates kept the budget; 1.0 at least.
        bad: those whose candidates did not; 0.0 at least.
    """
    least, most = min(good), max(bad)
    if most > 0:
        return (least + most) / 2 if least - most > 2 * _FINEST else None
    following = _FIRST if least == 1.0 else least - _STEP
    return following if following >= _LEAST else None


def next_count(good: Sequence[int], bad: Sequence[int], of: int) -> int | None:
    """How many layers to leave out next; None if no other number is worth trying.

    Args:
        good: numbers whose candidates kept the budget; 0 at least.
        bad: those whose candidates did not.
        of: layers there are.
    """
    most = max(good)
    if bad:
        return (most + min(bad)) // 2 if min(bad) - most > 1 else None
    return min(most + max(1, round(of / 4)), of) if most < of else None


def _digest(ranking: Ranking, decision: Decision) -> str:
    """What tells a pruned graph from all others of the same model and data."""
    plan = {k: v for k, v in asdict(ranking.plan).items() if k not in ("flops", "training")}
    return hashlib.sha256(repr((plan, identity_of(decision, ranking.plan))).encode()).hexdigest()[:16]
