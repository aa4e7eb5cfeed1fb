"""What can be removed from a graph and what it is worth: all that does not depend on how much is to go."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import OptionError
from hasten.passes.prune.layers import LAYERS, Layer, find_branches, remove_layers
from hasten.passes.prune.units import Analysis, Group, LeftAlone, find_units
from hasten.search.prune.amounts import choose_amounts
from hasten.search.prune.cost import Cost, Feeds, Price, graph_flops, operations, typical_sizes
from hasten.search.prune.criteria import (
    OF_THE_LOSS,
    Scores,
    answers_of,
    relative,
    score_layers,
    score_units,
)
from hasten.search.prune.loss import judged
from hasten.search.prune.plan import Plan, Progress, criterion_of_layers
from hasten.search.prune.products import readings
from hasten.search.prune.rearrange import rearranged
from hasten.search.samples import Samples, some


@dataclass(frozen=True)
class Ranking:
    """Units and layers of a graph with what they are worth.

    Attributes:
        model: the graph.
        plan: by whose criterion they were ranked.
        samples: all that there are.
        examined: those that ranking, and repair without training, look at.
        sizes: the symbolic sizes at which arithmetic is counted.
        analysis: what can be removed.
        groups: those of the kinds that are wanted.
        left: what cannot be removed, of the kinds that are wanted.
        scores: of the groups' units.
        layers: that can be left out, if they are wanted.
        worth: of the layers.
        notes: what the user should know.
        price: of a node: what amounts are chosen by.
        labels: of the samples, where they are classes of the first output.
    """

    model: ir.Model
    plan: Plan
    samples: Sequence[Feeds]
    examined: Sequence[Feeds]
    sizes: Mapping[str, int]
    analysis: Analysis
    groups: tuple[Group, ...]
    left: tuple[LeftAlone, ...]
    scores: Scores
    layers: tuple[Layer, ...]
    worth: NDArray[np.float64]
    notes: tuple[str, ...]
    price: Price = operations
    labels: Sequence[int] | None = None

    def cost(self, model: ir.Model, analysis: Analysis) -> Cost:
        """What the graph, or what layers have left of it, costs."""
        return Cost(model, analysis, self.sizes, self.price)


GroupKey = tuple[str, str, int, str, int, int]
"""A group's name, kind of units and their number, and where its first unit lies: a value, an axis, an index.

The same for the same graph in every process, and with whole layers left out. Parts of one axis that go
different ways are groups of one name and often of one size, so that those alone would not do.
"""


def key_of(group: Group) -> GroupKey:
    """What tells a group from the others of its graph."""
    slots = [slot for slot in group.members if not slot[0].is_constant] or list(group.members)
    first = int(np.flatnonzero(group.members[slots[0]] >= 0)[0])
    return group.name, group.unit, group.count, slots[0][0].value, slots[0][1], first


@dataclass(frozen=True)
class Worth:
    """What units and layers are worth, apart from the graph.

    Attributes:
        units: of each group.
        layers: by the value that comes out of them.
    """

    units: Mapping[GroupKey, NDArray[np.float64]]
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """What goes.

    Attributes:
        model: the graph without the layers that go.
        analysis: of that graph.
        layers: that go.
        removed: units of the groups of the analysis.
        loss: what all that goes is worth.
        left: what is left costs, as a share of what the whole graph does.
    """

    model: ir.Model
    analysis: Analysis
    layers: tuple[Layer, ...]
    removed: Mapping[Group, NDArray[np.int64]]
    loss: float = 0.0
    left: float = 1.0


def rank(
    model: ir.Model,
    plan: Plan,
    data: Samples | None,
    *,
    until: float = math.inf,
    progress: Progress = lambda _: None,
    known: Worth | None = None,
) -> Ranking:
    """Finds what can be removed and how much it matters.

    Args:
        model: as `optimize_graph` leaves it; it is not changed.
        plan: what may go and by which criterion.
        data: samples.
        until: a time by `time.monotonic` after which no more samples are looked at than a few.
        progress: is told what begins.
        known: what units and layers are worth, from `worth_of` the same graph and plan; then only the rest is
            found, which takes neither samples nor gradients.

    Raises:
        OptionError: there is nothing to prune.
        UnsupportedModelError: gradients are needed and cannot pass through an operator.
    """
    chosen = some(data or Samples(()), plan.looked_at, plan.seed)
    samples = chosen.feeds
    every, notes = classes_of(model, data) if known is not None else labels_of(model, plan, data)
    labels = None if every is None else [int(label) for label in np.asarray(chosen.labels)]
    if plan.flops is None:
        return replace(_unranked(model, plan, data, samples), labels=every)
    progress("finding what hangs together")
    analysis = find_units(model)
    groups = tuple(group for group in analysis.groups if group.unit in plan.units)
    layers, kept = find_branches(model) if LAYERS in plan.units else ((), ())
    left = [*(each for each in analysis.left_alone if each.unit in plan.units), *kept]
    if not groups and not layers:
        raise OptionError(_nothing(plan, analysis, left))
    scores, worth = Scores({}), np.zeros(0)
    if groups and known is not None:
        scores = Scores({group: known.units[key_of(group)] for group in groups})
    elif groups:
        progress(f"ranking {sum(g.count for g in groups)} units by {plan.criterion}")
        half = min(until, (time.monotonic() + until) / 2) if layers else until
        scores = score_units(
            plan.criterion, model, groups, samples, labels=labels, seed=plan.seed, until=half
        )
    if layers and known is not None:
        worth = np.array([known.layers[layer.exit] for layer in layers])
    elif layers:
        by = criterion_of_layers(plan.criterion)
        progress(f"ranking {len(layers)} layers by {by}")
        worth = score_layers(by, model, layers, samples, labels=labels, seed=plan.seed, until=until)
    sizes = typical_sizes(model, samples)
    if plan.criterion not in OF_THE_LOSS and known is None:
        # A group's units together matter as much as the arithmetic that they are.
        values = _by_arithmetic(model, analysis, sizes, scores.values)
        scores, worth = Scores(values), relative(worth) if layers else worth
    return Ranking(
        model,
        plan,
        () if data is None else data.feeds,
        samples,
        sizes,
        analysis,
        groups,
        tuple(left),
        scores,
        tuple(layers),
        worth,
        (*notes, *(_not_by_obs(model, groups) if plan.criterion == "obs" else ())),
        labels=every,
    )


def worth_of(
    model: ir.Model,
    plan: Plan,
    data: Samples | None,
    *,
    until: float = math.inf,
    progress: Progress = lambda _: None,
) -> Worth:
    """What `rank` takes samples and gradients for, as a value that another process can be given.

    Arguments and errors are those of `rank`.
    """
    found = rank(model, plan, data, until=until, progress=progress)
    return Worth(
        {key_of(group): values for group, values in found.scores.values.items()},
        {layer.exit: float(worth) for layer, worth in zip(found.layers, found.worth, strict=True)},
    )


def _unranked(model: ir.Model, plan: Plan, data: Samples | None, examined: Sequence[Feeds]) -> Ranking:
    """A graph of which no arithmetic is to go."""
    feeds = () if data is None else data.feeds
    sizes = typical_sizes(model, examined)
    nothing = Analysis((), (), ())
    return Ranking(model, plan, feeds, examined, sizes, nothing, (), (), Scores({}), (), np.zeros(0), ())


def decide(ranking: Ranking, share: float | None, until: float = math.inf) -> Decision:
    """What goes so that no more than a share of the cost is left, if that can be; nothing for None.

    Layers go by what they are worth for the arithmetic that they are. If other units may go too, so many
    layers go that the sum of what all that goes is worth is the least.

    Args:
        ranking: what can go.
        share: of the cost.
        until: a time by `time.monotonic` after which units are no longer chosen for what they are worth
            together.

    Raises:
        OptionError: nothing in the graph costs anything.
    """
    if share is None:
        return Decision(ranking.model, ranking.analysis, (), {})
    whole = ranking.cost(ranking.model, ranking.analysis).total
    if not whole:
        sizes = ", ".join(f"{name}={size}" for name, size in ranking.sizes.items())
        raise OptionError(
            "flops: no arithmetic of products, convolutions or attention is counted in this model"
            + (f" where {sizes}: give data, which tell the sizes" if sizes else "")
        )
    order = order_of_layers(ranking)
    if not ranking.groups:
        gone: list[Layer] = []
        model = ranking.model
        while graph_flops(model, ranking.sizes) > share * whole and len(gone) < len(order):
            gone.append(ranking.layers[order[len(gone)]])
            model = remove_layers(ranking.model, gone)
        return Decision(model, find_units(model) if gone else ranking.analysis, tuple(gone), {})
    best: tuple[tuple[bool, float], Decision] | None = None
    for count in range(len(order) + 1):
        chosen = tuple(ranking.layers[k] for k in order[:count])
        lost, found = _with_layers(ranking, chosen, share * whole)
        worth = (lost[0], lost[1] + float(ranking.worth[order[:count]].sum()))
        if best is None or worth < best[0]:
            best = worth, found
        if best is not None and count and lost[1] == 0:
            break  # layers alone are enough
    assert best is not None
    return _rearranged(ranking, best[1], until)


def decide_without(ranking: Ranking, layers: tuple[Layer, ...], share: float | None) -> Decision:
    """What goes if some layers do: units too, until a share of the whole cost is left; None for none."""
    whole = ranking.cost(ranking.model, ranking.analysis).total
    target = math.inf if share is None else share * whole
    return _rearranged(ranking, _with_layers(ranking, layers, target)[1])


def _with_layers(
    ranking: Ranking, layers: tuple[Layer, ...], target: float
) -> tuple[tuple[bool, float], Decision]:
    """Whether the target is missed, and what the units that go are worth, if some layers go."""
    model = remove_layers(ranking.model, layers) if layers else ranking.model
    analysis = find_units(model) if layers else ranking.analysis
    known = {key_of(g): g for g in ranking.groups}
    values = {
        group: ranking.scores.values[known[key_of(group)]]
        for group in analysis.groups
        if key_of(group) in known
    }
    uniform = ranking.plan.amounts == "uniform"
    choice = choose_amounts(values, ranking.cost(model, analysis), target, uniform=uniform)
    total = ranking.cost(ranking.model, ranking.analysis).total
    left = choice.cost / total if total else 1.0
    found = Decision(model, analysis, layers, choice.removed, choice.loss, left)
    return (not choice.reached, choice.loss), found


def _rearranged(ranking: Ranking, decision: Decision, until: float = math.inf) -> Decision:
    """The same amounts, with each group's units chosen for what they are worth together."""
    if ranking.plan.criterion != "fisher" or ranking.scores.gradients is None:
        return decision
    known = {key_of(g): g for g in ranking.groups}
    removed = {
        group: rearranged(ranking.scores.gradients[known[key_of(group)]], units, until)
        for group, units in decision.removed.items()
    }
    return replace(decision, removed=removed)


def order_of_layers(ranking: Ranking) -> list[int]:
    """The layers, by number, in the order in which they go: by what they are worth for their arithmetic."""
    total = graph_flops(ranking.model, ranking.sizes)
    saved = [
        total - graph_flops(remove_layers(ranking.model, [layer]), ranking.sizes) for layer in ranking.layers
    ]
    return sorted(range(len(ranking.layers)), key=lambda k: ranking.worth[k] / max(1, saved[k]))


def classes_of(model: ir.Model, data: Samples | None) -> tuple[Sequence[int] | None, tuple[str, ...]]:
    """Labels, if they are numbers of classes of the first output; and what is to be said of that."""
    if data is None or data.labels is None:
        return None, ()
    answers = judged(model)
    shape, labels = answers[0].shape if answers else None, np.asarray(data.labels)
    classes = shape[-1] if shape is not None and len(shape) == 2 else None
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if whole and isinstance(classes, int) and labels.min() >= 0 and labels.max() < classes:
        return [int(label) for label in labels], ()
    return None, (
        "the labels are no classes of the first output, so the loss is the distance to the outputs",
    )


def labels_of(
    model: ir.Model, plan: Plan, data: Samples | None
) -> tuple[Sequence[int] | None, tuple[str, ...]]:
    """The same, but for labels that only look like classes, such as topics beside an embedding of 384 values.

    They are told by what the model itself says: where labels name less than half of the classes, and the
    highest value is that of the label half as often as for one and the same class, or less.
    """
    labels, notes = classes_of(model, data)
    if labels is None or data is None or not (plan.criterion in OF_THE_LOSS or plan.repair == "distill"):
        return labels, notes
    answer, named = judged(model)[0], len(set(labels))
    classes = 0 if answer.shape is None else answer.shape[-1]
    if not isinstance(classes, int) or 2 * named >= classes:
        return labels, notes
    part = some(data, _ASKED, plan.seed)
    found, right = answers_of(model, answer.name or "", part.feeds), np.asarray(part.labels)
    share = float((found == right).mean())
    if share > np.unique(right, return_counts=True)[1].max() / len(right) / 2:
        return labels, notes
    return None, (
        f"the labels are not taken for classes of '{answer.name}': they name {named} of its {classes} "
        f"values, and the highest is that of the label in {share:.1%} of {len(right)} samples; so the loss "
        "is the distance to the outputs",
    )


_ASKED = 128  # samples whose answers are compared with their labels, at most


def _not_by_obs(model: ir.Model, groups: Sequence[Group]) -> tuple[str, ...]:
    """What is to be said of groups that `obs` cannot rank."""
    nodes = list(model.graph)
    found = [(group, reason) for group in groups if isinstance(reason := readings(nodes, group), str)]
    by_reason: dict[str, list[Group]] = {}
    for group, reason in found:
        by_reason.setdefault(reason, []).append(group)
    return tuple(
        f"ranked by fisher, not obs: {sum(g.count for g in alike)} {alike[0].unit} of "
        + ", ".join(dict.fromkeys(g.name for g in alike[:3]))
        + (" and others" if len(alike) > 3 else "")
        + f": {reason}"
        for reason, alike in by_reason.items()
    )


def _nothing(plan: Plan, analysis: Analysis, left: Collection[LeftAlone]) -> str:
    if plan.structure == (LAYERS,):
        return "nothing to prune: the model has no residual layers that can be left out"
    there = sorted({group.unit for group in analysis.groups})
    reasons = [f"{each.name}: {each.reasons[0]}" for each in left][:3]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    other = f"; it has {', '.join(there)}" if there else ""
    return f"nothing to prune: the model has no {' or '.join(plan.structure)} that can be removed{why}{other}"


def _by_arithmetic(
    model: ir.Model, analysis: Analysis, sizes: Mapping[str, int], scores: Mapping[Group, np.ndarray]
) -> dict[Group, np.ndarray]:
    """Scores times the arithmetic of a unit of each group, so that equal scores give equal shares."""
    cost = Cost(model, analysis, sizes)
    each = {g: (cost.total - cost.without(g, g.count // 2)) / max(1, g.count // 2) for g in scores}
    return {group: values * each[group] for group, values in scores.items()}
