"""Pruning from end to end: rank, choose amounts, remove, repair, report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hasten.errors import OptionError
from hasten.passes.prune.layers import Layer, find_layers, remove_layers
from hasten.passes.prune.remove import remove_units
from hasten.passes.prune.units import UNITS, Analysis, Group, LeftAlone, find_units
from hasten.search.prune.amounts import choose_amounts
from hasten.search.prune.cost import Cost, Feeds, graph_flops, typical_sizes
from hasten.search.prune.criteria import (
    check_criterion,
    need_torch,
    relative,
    score_layers,
    score_units,
)
from hasten.search.prune.report import Cut, Pruned, PruneReport
from hasten.search.prune.training import Training
from hasten.search.samples import Samples

LAYERS = "layers"
ALL_UNITS = (*UNITS, LAYERS)
REPAIRS = ("none", "least-squares", "distill")
Progress = Callable[[str], None]
"""Is told what begins: a few words, such as "reading the model"."""


@dataclass(frozen=True)
class Plan:
    """What to prune, how, and how much.

    Attributes:
        units: kinds of units, of `ALL_UNITS`; layers only by themselves.
        criterion: one of `criteria.CRITERIA`.
        flops: the share of the arithmetic of products, convolutions and attention that may be left, at the
            median shape of the samples.
        repair: "none", "least-squares", or "distill", which trains after least squares.
        training: for "distill".
        seed: of random numbers.
    """

    units: tuple[str, ...]
    criterion: str
    flops: float
    repair: str
    training: Training = field(default_factory=Training)
    seed: int = 0


def check_plan(plan: Plan, *, with_data: bool) -> None:
    """Refuses a plan that makes no sense.

    Raises:
        OptionError: a unit, criterion, repair or target is none, or needs samples that there are not.
        MissingDependencyError: PyTorch is needed and not installed.
    """
    unknown = [unit for unit in plan.units if unit not in ALL_UNITS]
    if unknown or not plan.units:
        raise OptionError(f"unit={', '.join(unknown) or '()'}: give some of {', '.join(ALL_UNITS)}")
    if LAYERS in plan.units and len(plan.units) > 1:
        raise OptionError("unit: layers are pruned by themselves; prune the result again by the other units")
    if not 0 < plan.flops < 1:
        raise OptionError(f"flops={plan.flops}: give the share to keep, between 0 and 1, such as 0.6")
    if plan.repair not in REPAIRS:
        raise OptionError(f"repair={plan.repair!r}: give one of {', '.join(REPAIRS)}")
    check_criterion(plan.criterion, with_data=with_data)
    if plan.repair != "none":
        if not with_data:
            raise OptionError(f"repair={plan.repair!r} needs samples: give data, or repair='none'")
        need_torch(f"repair={plan.repair!r}")


def prune_model(
    model: ir.Model,
    plan: Plan,
    data: Samples | None = None,
    progress: Progress = lambda _: None,
) -> Pruned:
    """Prune a graph.

    Args:
        model: as `optimize_graph` leaves it; it is not changed.
        plan: what to prune.
        data: samples, each run by itself. Labels that are numbers of classes of the first output make
            the loss of gradients; others are not used.
        progress: is told what begins.

    Raises:
        OptionError: the plan makes no sense, or there is nothing to prune.
        MissingDependencyError: PyTorch is needed and not installed.
        UnsupportedModelError: gradients are needed and cannot pass through an operator.
    """
    check_plan(plan, with_data=data is not None)
    samples = () if data is None else data.feeds
    labels, noted = _classes(model, data)
    sizes = typical_sizes(model, samples)
    if plan.units == (LAYERS,):
        return _without_layers(model, plan, samples, labels, sizes, progress, noted)
    progress("finding what hangs together")
    analysis = find_units(model)
    groups = [group for group in analysis.groups if group.unit in plan.units]
    left = tuple(each for each in analysis.left_alone if each.unit in plan.units)
    if not groups:
        raise OptionError(_nothing(plan, analysis, left))
    progress(f"ranking {sum(g.count for g in groups)} units by {plan.criterion}")
    scores = score_units(plan.criterion, model, groups, samples, labels=labels, seed=plan.seed)
    if plan.criterion not in ("gradient", "fisher"):
        # A group's units together matter as much as the arithmetic that they are.
        scores = _by_arithmetic(model, analysis, sizes, scores)
    choice = choose_amounts(scores, Cost(model, analysis, sizes), plan.flops)
    progress("removing units")
    removed = {group: units.tolist() for group, units in choice.removed.items()}
    small = remove_units(model, analysis, removed)
    notes = list(noted)
    if plan.repair != "none":
        from hasten.search.prune.repair import reconstruct

        consumers = {
            analysis.operands[consumer.node].node.outputs[0].name or ""
            for group in removed
            for consumer in group.consumers
        }
        skipped = reconstruct(model, small, consumers, samples, progress=progress)
        notes += [f"not repaired: {reason}" for reason in skipped]
    notes += _distilled(model, small, plan, samples, progress)
    cuts = tuple(Cut(g.name, g.unit, g.count, g.count - len(removed.get(g, ()))) for g in groups)
    return Pruned(small, _report(model, small, plan, sizes, cuts, left, notes))


def _distilled(
    model: ir.Model, small: ir.Model, plan: Plan, samples: Sequence[Feeds], progress: Progress
) -> list[str]:
    """Trains what is left, if that is wanted; what is to be said of it."""
    if plan.repair != "distill":
        return []
    from hasten.search.prune.distill import distill

    progress("training")
    done = distill(model, small, samples, plan.training, seed=plan.seed, progress=progress)
    return [
        f"{done.epochs} epochs in {done.seconds:.0f} s: distance to the original {done.after:.3g} on samples "
        f"held out, {done.before:.3g} before"
    ]


def _classes(model: ir.Model, data: Samples | None) -> tuple[Sequence[int] | None, tuple[str, ...]]:
    """Labels, if they are numbers of classes of the first output; and what is to be said of that."""
    if data is None or data.labels is None:
        return None, ()
    shape, labels = model.graph.outputs[0].shape, np.asarray(data.labels)
    classes = shape[-1] if shape is not None and len(shape) == 2 else None
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if whole and isinstance(classes, int) and labels.min() >= 0 and labels.max() < classes:
        return [int(label) for label in labels], ()
    return None, (
        "the labels are no classes of the first output, so the loss is the distance to the outputs",
    )


def _nothing(plan: Plan, analysis: Analysis, left: Collection[LeftAlone]) -> str:
    there = sorted({group.unit for group in analysis.groups})
    reasons = [f"{each.name}: {each.reasons[0]}" for each in left][:3]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    other = f"; it has {', '.join(there)}" if there else ""
    return f"nothing to prune: the model has no {' or '.join(plan.units)} that can be removed{why}{other}"


def _by_arithmetic(
    model: ir.Model, analysis: Analysis, sizes: Mapping[str, int], scores: Mapping[Group, np.ndarray]
) -> dict[Group, np.ndarray]:
    """Scores times the arithmetic of a unit of each group, so that equal scores give equal shares."""
    cost = Cost(model, analysis, sizes)
    each = {g: (cost.total - cost.without(g, g.count // 2)) / max(1, g.count // 2) for g in scores}
    return {group: values * each[group] for group, values in scores.items()}


def _without_layers(
    model: ir.Model,
    plan: Plan,
    samples: Sequence[Feeds],
    labels: Sequence[int] | None,
    sizes: Mapping[str, int],
    progress: Progress,
    noted: Sequence[str],
) -> Pruned:
    """Leaves out the layers that matter least for the arithmetic they are, until the target is met."""
    layers = find_layers(model)
    if not layers:
        raise OptionError("nothing to prune: the model has no residual layers that can be left out")
    progress(f"ranking {len(layers)} layers by {plan.criterion}")
    scores = relative(score_layers(plan.criterion, model, layers, samples, labels=labels, seed=plan.seed))
    total = graph_flops(model, sizes)
    saved = [total - graph_flops(remove_layers(model, [layer]), sizes) for layer in layers]
    order = sorted(range(len(layers)), key=lambda k: scores[k] / max(1, saved[k]))
    gone: list[Layer] = []
    small, now = model, total
    for k in order:
        if now <= plan.flops * total:
            break
        gone.append(layers[k])
        small = remove_layers(model, gone)
        now = graph_flops(small, sizes)
    cuts = tuple(Cut(layer.name, LAYERS, 1, 0 if layer in gone else 1) for layer in layers)
    notes = list(noted)
    if plan.repair == "least-squares":
        notes.append("layers leave nothing that least squares could repair")
    if gone:
        notes += _distilled(model, small, plan, samples, progress)
    return Pruned(small, _report(model, small, plan, sizes, cuts, (), notes))


def _report(
    model: ir.Model,
    small: ir.Model,
    plan: Plan,
    sizes: Mapping[str, int],
    cuts: tuple[Cut, ...],
    left: tuple[LeftAlone, ...],
    notes: Sequence[str],
) -> PruneReport:
    before, after = graph_flops(model, sizes), graph_flops(small, sizes)
    reached = after <= plan.flops * before
    told = list(notes)
    if not reached:
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


def _parameters(model: ir.Model) -> int:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return sum(int(t.size) for t in tensors if t is not None)
