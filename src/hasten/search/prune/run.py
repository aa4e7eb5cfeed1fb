"""Pruning from end to end: rank, choose amounts, remove, repair, report."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import onnx_ir as ir

from hasten.passes.prune.layers import LAYERS
from hasten.passes.prune.remove import Kept, kept_indices, remove_units
from hasten.passes.prune.rows import ROWS
from hasten.passes.prune.units import LeftAlone
from hasten.search.prune.cost import graph_flops
from hasten.search.prune.plan import Plan, Progress, check_plan
from hasten.search.prune.ranking import Decision, Ranking, decide, key_of, labels_of, rank
from hasten.search.prune.report import Cut, Pruned, PruneReport
from hasten.search.prune.rows import Rows, count_rows, drop_rows
from hasten.search.prune.sparsity import Sparsity, Zeros, sparsify
from hasten.search.prune.training import Training
from hasten.search.samples import Samples

_RANKED, _DECIDED, _REPAIRED = 0.4, 0.5, 0.7
"""Shares of the time limit by which ranking, the choice of units, and repair before training, are over."""


def prune_model(
    model: ir.Model,
    plan: Plan,
    data: Samples | None = None,
    progress: Progress = lambda _: None,
    *,
    start: float | None = None,
) -> Pruned:
    """Prune a graph.

    Args:
        model: as `optimize_graph` leaves it; it is not changed.
        plan: what to prune.
        data: samples. Labels that are numbers of classes of the first output make the loss of gradients;
            other labels are not used.
        progress: is told what begins.
        start: when the time limit began, by `time.monotonic`; None for now.

    Raises:
        OptionError: the plan makes no sense, or there is nothing to prune.
        DataError: the data do not fit the model.
        MissingDependencyError: PyTorch is needed and not installed.
        UnsupportedModelError: gradients are needed and cannot pass through an operator.
    """
    check_plan(plan, with_data=data is not None)
    begin = time.monotonic() if start is None else start
    limit = math.inf if plan.seconds is None else plan.seconds
    if ROWS in plan.units and data is not None:
        count_rows(model, data.feeds, plan.unseen)  # what cannot be is said before all the work
    if plan.repair == "distill" and data is not None:
        from hasten.search.prune.distill import check_training

        labels, _ = labels_of(model, plan, data)
        check_training(model, data.feeds, plan.training, labels=labels, request=_request(plan))
    ranking = rank(model, plan, data, until=begin + _RANKED * limit, progress=progress)
    return prune_ranked(ranking, plan, start=begin, progress=progress)


def prune_ranked(
    ranking: Ranking, plan: Plan, *, start: float | None = None, progress: Progress = lambda _: None
) -> Pruned:
    """Prune a graph that was ranked; several targets and repairs can share a ranking.

    Args:
        ranking: what can go.
        plan: as for the ranking, but for the target and the repair.
        start: when the time limit began, by `time.monotonic`; None for now.
        progress: is told what begins.
    """
    begin = time.monotonic() if start is None else start
    until = math.inf if plan.seconds is None else begin + _DECIDED * plan.seconds
    return carry_out(ranking, decide(ranking, plan.flops, until), plan, start=begin, progress=progress)


def carry_out(
    ranking: Ranking,
    decision: Decision,
    plan: Plan,
    *,
    start: float | None = None,
    progress: Progress = lambda _: None,
) -> Pruned:
    """Removes what was decided, and repairs; the arguments are those of `prune_ranked`."""
    begin = time.monotonic() if start is None else start
    progress("removing units")
    removed = {group: units.tolist() for group, units in decision.removed.items()}
    small = remove_units(decision.model, decision.analysis, removed)
    places = kept_indices(removed)
    kept = {place.value: axes for place, axes in places.items() if not place.is_constant}
    share = _REPAIRED if plan.repair == "distill" else 1.0
    until = math.inf if plan.seconds is None else begin + share * plan.seconds
    notes = list(ranking.notes)
    if removed or decision.layers:
        notes += _repaired(ranking, small, kept, plan, until, progress)
    zeros, rows = Zeros(), Rows()
    if plan.sparsity is not None:
        progress("making weights zero")
        repaired = plan.repair in ("least-squares", "distill")
        how = Sparsity(plan.sparsity, plan.of_weights, repaired, plan.seed)
        if plan.of_weights != plan.criterion:
            notes.append(f"single weights are ranked by {plan.of_weights}: {plan.criterion} ranks units only")
        zeros = sparsify(ranking.model, small, how, ranking.examined, kept=kept, until=until)
    notes += _distilled(ranking, decision, small, plan, begin, progress)
    if ROWS in plan.units:
        progress("taking rows that no sample asks for")
        rows = drop_rows(small, ranking.samples, plan.unseen)
    cuts = (*_cuts(ranking, decision), *zeros.cuts, *rows.cuts)
    left = (*ranking.left, *zeros.left_alone, *rows.left_alone)
    return Pruned(small, _report(ranking, small, plan, cuts, left, (*notes, *zeros.notes, *rows.notes)))


def _repaired(
    ranking: Ranking, small: ir.Model, kept: Kept, plan: Plan, until: float, progress: Progress
) -> list[str]:
    """Repairs without training, if that is wanted; what is to be said of it."""
    if plan.repair == "none":
        return []
    from hasten.search.prune.repair import least_squares, reconstruct, statistics

    skipped = reconstruct(
        ranking.model,
        small,
        kept,
        ranking.examined,
        solve=statistics if plan.repair == "statistics" else least_squares,
        until=until,
        progress=progress,
    )
    return [f"not repaired: {reason}" for reason in skipped]


def _distilled(
    ranking: Ranking, decision: Decision, small: ir.Model, plan: Plan, start: float, progress: Progress
) -> list[str]:
    """Trains what is left, if that is wanted; what is to be said of it."""
    if plan.repair != "distill":
        return []
    from hasten.search.prune.distill import distill

    training = plan.training
    if plan.seconds is not None:
        left = max(1e-3, plan.seconds - (time.monotonic() - start))
        training = dataclasses.replace(training, seconds=min(left, training.seconds or left))
    progress("training")
    done = distill(
        ranking.model,
        small,
        ranking.samples,
        training,
        labels=ranking.labels,
        seed=plan.seed,
        request=_request(plan),
        identity=identity_of(decision, plan),
        progress=progress,
    )
    return [
        f"{done.epochs} epochs in {done.seconds:.0f} s: distance to the original {done.after:.3g} on samples "
        f"held out, {done.before:.3g} before"
    ]


def _request(plan: Plan) -> str:
    """What tells what is asked for from all else: a plan without its limits and how long it trains."""
    return repr(dataclasses.replace(plan, training=Training(), seconds=None))


def identity_of(decision: Decision, plan: Plan) -> str:
    """What tells what goes from all else that might."""
    units = [(key_of(group), found.tolist()) for group, found in decision.removed.items()]
    return repr((units, [layer.exit for layer in decision.layers], plan.sparsity, plan.criterion))


def _cuts(ranking: Ranking, decision: Decision) -> tuple[Cut, ...]:
    """What each layer and each group has lost."""
    layers = [Cut(layer.name, LAYERS, 1, int(layer not in decision.layers)) for layer in ranking.layers]
    left = {key_of(g): g.count - len(decision.removed.get(g, ())) for g in decision.analysis.groups}
    groups = [Cut(g.name, g.unit, g.count, left.get(key_of(g), 0)) for g in ranking.groups]
    return (*layers, *groups)


def _report(
    ranking: Ranking,
    small: ir.Model,
    plan: Plan,
    cuts: tuple[Cut, ...],
    left: tuple[LeftAlone, ...],
    notes: Sequence[str],
) -> PruneReport:
    model, sizes = ranking.model, ranking.sizes
    before, after = graph_flops(model, sizes), graph_flops(small, sizes)
    reached = plan.flops is None or after <= plan.flops * before
    told = [*notes, *_sizes_note(ranking, small, plan)]
    if plan.flops is not None and not reached:
        nearest = f"{after / before:.1%}" if before else "all"
        told.insert(0, f"the target of {plan.flops:.1%} cannot be reached: {nearest} is the nearest")
    return PruneReport(
        plan.criterion,
        plan.repair,
        plan.flops,
        reached,
        before,
        after,
        sizes,
        _parameters(model),
        _parameters(small),
        cuts,
        left,
        tuple(told),
    )


_OTHER = 4  # times as large is what is symbolic, to see whether the share that is left depends on it


def _sizes_note(ranking: Ranking, small: ir.Model, plan: Plan) -> list[str]:
    """What is to be said of sizes that nobody knows."""
    if plan.flops is None or ranking.samples or not ranking.sizes:
        return []
    larger = {name: size * _OTHER if size > 1 else size for name, size in ranking.sizes.items()}
    shares = [
        graph_flops(small, sizes) / max(1, graph_flops(ranking.model, sizes))
        for sizes in (ranking.sizes, larger)
    ]
    if abs(shares[0] - shares[1]) < 0.005:
        return []
    taken, other = (
        ", ".join(f"{name}={size}" for name, size in sizes.items()) for sizes in (ranking.sizes, larger)
    )
    return [
        f"there are no data to tell sizes from: {shares[0]:.1%} of the arithmetic are left where {taken}, "
        f"and {shares[1]:.1%} where {other}"
    ]


def _parameters(model: ir.Model) -> int:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return sum(int(t.size) for t in tensors if t is not None)
