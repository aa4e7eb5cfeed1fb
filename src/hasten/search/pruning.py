"""Candidates that units were removed from: how much of each layer, and with which precision.

Units are ranked once. How much of each group goes follows from their losses and from the time that it
saves, measured at several sizes (`size_times.py`), so that for each share of the time that is left there is
a set of least loss. Each set that is tried is removed, repaired by least squares, and compiled in the
precision that is fastest for the whole graph. Shares fall in steps while candidates keep the budget on the
calibration part; the last step is halved.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.passes.prune.units import UNITS, find_units
from hasten.passes.quantize import Range, products
from hasten.search import candidates as made
from hasten.search.build import Build, compile_model
from hasten.search.candidates import LOSSLESS, Candidate
from hasten.search.comparison import in_the_running, latency, within_budget
from hasten.search.data import Samples
from hasten.search.formats import in_formats
from hasten.search.pace import Pace
from hasten.search.prune.amounts import choose_amounts
from hasten.search.prune.plan import Plan, Progress
from hasten.search.prune.ranking import Decision, GroupKey, Ranking, decide, rank, worth_of_units
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import carry_out
from hasten.search.record import PrunePoint
from hasten.search.size_times import SHARES, Point, node_times, price_from, thinned
from hasten.search.trials import Trials
from hasten.search.uniform import BUILDS, Uniform
from hasten.search.variants import Variant

CRITERION, REPAIR = "obs", "least-squares"

_FIRST, _STEP, _FINEST = 0.75, 0.15, 0.04  # shares of the time: the first tried, the steps, the least step
_LEAST = 0.1
_RANKED = 0.3  # of the time left that ranking may take
_MOST = 6  # candidates
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
        self._worth: Mapping[GroupKey, NDArray[np.float64]] = {}
        self._points: list[dict[str, Point]] = []
        self._trials, self._pace, self._uniform, self._notes = trials, pace, uniform, notes

    def try_amounts(self) -> None:
        """Tries pruned candidates, from much that is left to little, as long as they keep the budget.

        Raises:
            HastenError: the graph has nothing to prune, or cannot be run where gradients are.
        """
        trials, clock = self._trials, self._trials.clock
        if not trials.problem.asked.prune or not self._pace.has_time(3 * BUILDS):
            return
        begin = clock.elapsed
        plan = Plan(UNITS, CRITERION, 0.5, REPAIR, seed=trials.problem.asked.seed)
        until = time.monotonic() + _RANKED * (clock.left - clock.reserve)
        self._worth = self._apart(worth_of_units, plan, doing="ranking", until=until, progress=trials.say)
        ranking = rank(trials.problem.graph, plan, trials.problem.calibration, known=self._worth)
        ranked = clock.elapsed - begin
        self.left_alone = [f"{u.count} {u.unit} of {u.name}: {u.reasons[0]}" for u in ranking.left]
        fastest = self._fastest()
        self._points = self._times(ranking, fastest)
        ranking = replace(ranking, price=price_from(self._points))
        self._predict(ranking, fastest)
        good, bad = [1.0], [0.0]
        took = ranked / 3 + self._pace.build_seconds  # repair is one pass over what ranking looks at
        while (share := next_share(good, bad)) is not None and len(good) + len(bad) < _MOST + 2:
            if not self._pace.has_seconds(took):
                break
            begin = clock.elapsed
            name = self._try(ranking, share, fastest)
            took = clock.elapsed - begin
            (good if name is not None and within_budget(trials, name) else bad).append(share)

    def _fastest(self) -> Candidate:
        """The candidate of the whole graph whose precision pruned ones take over."""
        trials = self._trials
        good = [n for n, c in trials.candidates.items() if c.ours and in_the_running(trials, n)]
        trials.time(good)
        return trials.candidates[min([LOSSLESS, *good], key=lambda n: latency(trials, n))]

    def _times(self, ranking: Ranking, fastest: Candidate) -> list[dict[str, Point]]:
        """Times of nodes at several sizes; those of an earlier search if there was one."""
        trials = self._trials
        known = trials.memory.get("node times", candidate=fastest.name, quantized=sorted(fastest.quantized))
        if known is not None:
            trials.reused += 1
            return [{name: Point(*point) for name, point in nodes.items()} for nodes in known]
        found = [measured(trials, trials.model(fastest), ranking.model, ranking.sizes)]
        for share in SHARES:
            trials.say(f"timing kernels with {share:.0%} of the units")
            model, artifact = self._thinned(fastest, share)
            found.append(measured(trials, artifact, model, ranking.sizes))
        kept = [{name: (p.flops, p.us) for name, p in nodes.items()} for nodes in found]
        trials.memory.put("node times", kept, candidate=fastest.name, quantized=sorted(fastest.quantized))
        return found

    def _thinned(self, like: Candidate, share: float) -> tuple[ir.Model, Path]:
        """A thinned graph and its artifact in the precision of a candidate; its answers mean nothing."""
        trials, problem = self._trials, self._trials.problem
        artifact = problem.folder / f"thinned{share:g}.hasten"
        graph: ir.Model = trials.apart(
            build_thinned,
            *(problem.graph, share, like, artifact, problem.build),
            doing="compiling a part of the units",
        )
        return graph, artifact

    def _apart(self, function: Callable[..., Any], *args: Any, doing: str, **named: Any) -> Any:
        """Calls a function of the graph and the samples in a process of its own."""
        problem = self._trials.problem
        plan, *rest = args
        given = (problem.graph, plan, problem.calibration, *rest)
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

    def _try(self, ranking: Ranking, share: float, fastest: Candidate) -> str | None:
        """Makes a candidate with a share of the layers' time; its name, or None if it could not be made."""
        trials, decision = self._trials, decide(ranking, share)
        variant = _digest(ranking, decision)
        if variant in trials.variants or not decision.removed:
            return None
        trials.say(f"pruning to {decision.left:.0%} of the time of the layers")
        try:
            left = trials.clock.left - trials.clock.reserve
            plan = replace(ranking.plan, seconds=None if math.isinf(left) else max(0.0, left))
            job = (plan, self._worth, self._points, share)
            pruned: Pruned = self._apart(pruned_model, *job, doing="pruning", progress=trials.say)
            if not self._pace.has_seconds(0.0):
                return None  # perhaps it was not repaired to its end
            graph = pruned.model
            trials.variants[variant] = Variant(graph)
            if fastest.how is not None:
                trials.say("smoothing and observing what is left")
                layers = tuple(layer.name for layer in products(graph))
                trials.variants[variant] = self._uniform.prepared(graph, layers)
        except HastenError as error:
            self._notes.append(f"pruning to {decision.left:.0%} of the time failed: {error}")
            return None
        candidate = made.pruned(fastest, variant, pruned.report.flops)
        trials.add(candidate)
        cuts = tuple(cut for cut in pruned.report.cuts if cut.before > 1)
        trials.note(candidate.name, flops=pruned.report.flops, cuts=cuts)
        return candidate.name


def pruned_model(
    model: ir.Model,
    plan: Plan,
    data: Samples,
    worth: Mapping[GroupKey, NDArray[np.float64]],
    points: Sequence[Mapping[str, Point]],
    share: float,
    progress: Progress = lambda _: None,
) -> Pruned:
    """A graph with a share of its layers' time left, repaired, in this process.

    Args:
        model: the graph.
        plan: what to prune.
        data: samples to repair on.
        worth: of units (`ranking.worth_of_units`).
        points: measured times, which say what units cost (`size_times.price_from`).
        share: of the time.
        progress: is told what begins.
    """
    ranking = replace(rank(model, plan, data, known=worth), price=price_from(points))
    return carry_out(ranking, decide(ranking, share), plan, progress=progress)


def build_thinned(
    model: ir.Model,
    share: float,
    like: Candidate,
    artifact: Path,
    how: Build,
) -> ir.Model:
    """Writes the artifact of a graph with a share of the units of each group, in this process.

    Only its time matters, so any ranges of activations do: those of the smoothed graph have other names.

    Args:
        model: the graph.
        share: of the units.
        like: a candidate, whose precision it gets.
        artifact: the file.
        how: to compile.

    Returns:
        The graph, without formats.
    """
    analysis = find_units(model)
    small = thinned(model, analysis, [g for g in analysis.groups if g.unit in UNITS], share)
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
        *(artifact, model, sizes, trials.typical_sample(), problem.asked.threads),
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


def _digest(ranking: Ranking, decision: Decision) -> str:
    """What tells a pruned graph from all others of the same model and data."""
    removed = [[g.name, g.unit, units.tolist()] for g, units in decision.removed.items()]
    plan = {k: v for k, v in asdict(ranking.plan).items() if k not in ("flops", "training")}
    return hashlib.sha256(repr((plan, removed)).encode()).hexdigest()[:16]
