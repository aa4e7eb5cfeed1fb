"""How much each unit matters, by a criterion.

`magnitude` (Han et al. 2015, "Learning both Weights and Connections"; for filters Li et al. 2017, "Pruning
Filters for Efficient ConvNets"): the L2 or L1 norm of a unit's weights. `activation` (Hu et al. 2016,
"Network Trimming"): the size of what a unit gives to those who read it, over the data; of a layer, how far
its output is from its input. `gradient` (Molchanov et al. 2017, "Pruning Convolutional Neural Networks for
Resource Efficient Inference"): |mask x gradient| of the loss, first order. `fisher` (Kwon et al. 2022, "A
Fast Post-Training Pruning Framework for Transformers"): the diagonal of the Fisher information of masks.
`obs`: what readers cannot make up for (`obs.py`).
`random`: the control.

A mask multiplies what a unit gives to its readers, and is 1. Readers are products with constant weights;
where there are none, what takes the features and gives none of them, such as a product of queries and keys,
of whose operands the first is masked. The loss is in `loss.py`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import MissingDependencyError, OptionError
from hasten.passes.facts import Facts
from hasten.passes.prune.layers import Layer
from hasten.passes.prune.units import Group, Place, Slot
from hasten.search.prune.cost import Feeds, weights_of
from hasten.search.prune.joined import Batch, batch_dim, join
from hasten.search.prune.loss import Loss, wide

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.backends.torch_graph import TorchGraph

CRITERIA = ("magnitude", "magnitude-l1", "activation", "gradient", "fisher", "obs", "random")
WITH_DATA = ("activation", "gradient", "fisher", "obs")
"""Criteria that need samples, and PyTorch to run them."""
OF_THE_LOSS = ("gradient", "fisher", "obs")
"""Criteria whose numbers are changes of the loss, so that they can be compared between groups."""

_TOGETHER = 16  # samples that are run at once
_FEWEST = 16  # samples that are looked at even if time is up

Values = NDArray[np.float64]


def check_criterion(criterion: str, *, with_data: bool) -> None:
    """Refuses a criterion that is unknown or cannot be had.

    Raises:
        OptionError: there is no such criterion, or it needs data and there are none.
        MissingDependencyError: it needs PyTorch, which is not installed.
    """
    if criterion not in CRITERIA:
        raise OptionError(f"criterion={criterion!r}: give one of {', '.join(CRITERIA)}")
    if criterion not in WITH_DATA:
        return
    if not with_data:
        raise OptionError(f"criterion={criterion!r} needs samples: give data, or criterion='magnitude'")
    need_torch(f"criterion={criterion!r}")


def need_torch(what: str) -> None:
    """Refuses what needs PyTorch where that is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import torch  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what} needs PyTorch, which is not installed: pip install 'hasten[torch]'; or choose "
            "criterion='magnitude' and repair='none', which do without"
        ) from error


@dataclass(frozen=True)
class Scores:
    """How much units matter.

    Attributes:
        values: for each group a number for each unit. Those of criteria `OF_THE_LOSS` are changes of the
            loss; the others are relative to the mean square of their group, since sizes in different layers
            say nothing about each other.
        gradients: derivatives of the loss by the masks of each group, [samples, units]; None where the
            criterion has none.
    """

    values: Mapping[Group, Values]
    gradients: Mapping[Group, Values] | None = None


def score_units(
    criterion: str,
    model: ir.Model,
    groups: Sequence[Group],
    samples: Sequence[Feeds],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    until: float = math.inf,
) -> Scores:
    """How much each unit of some groups matters.

    Args:
        criterion: one of `CRITERIA`.
        model: the graph that was analysed.
        groups: of the analysis.
        samples: inputs by name.
        labels: the class of each sample, for the loss of `gradient`, `fisher` and `obs`: cross-entropy of the
            first output. Without them the loss is the distance to the model's own outputs.
        seed: of random numbers.
        until: a time by `time.monotonic` after which no more samples are looked at than a few.
    """
    rng = np.random.default_rng(seed)
    if criterion == "random":
        return Scores({group: rng.uniform(0.5, 1.5, group.count) for group in groups})
    if criterion.startswith("magnitude"):
        order = 1 if criterion.endswith("l1") else 2
        return Scores({group: relative(_magnitudes(model, group, order)) for group in groups})
    from hasten.backends.torch_graph import TorchGraph

    graph = TorchGraph(model)
    batches = _batches(model, groups, samples)
    if criterion == "activation":
        sizes = _activations(graph, groups, batches, until)
        return Scores({group: relative(v) for group, v in sizes.items()})

    loss = Loss.of(model, labels, rng)
    if criterion == "obs":
        from hasten.search.prune.obs import obs_scores

        half = min(until, (time.monotonic() + until) / 2)  # the rest of the time is for the elimination
        found = obs_scores(model, groups, in_time(batches, half), loss, until)
        rest = [group for group in groups if group not in found]
        gradients = _gradients(graph, rest, batches, loss, until) if rest else {}
        others = {group: np.square(each).mean(0) for group, each in gradients.items()}
        return Scores({group: {**found, **others}[group] for group in groups})
    gradients = _gradients(graph, groups, batches, loss, until)
    if criterion == "gradient":
        return Scores({group: np.abs(each).mean(0) for group, each in gradients.items()}, gradients)
    return Scores({group: np.square(each).mean(0) for group, each in gradients.items()}, gradients)


def answers_of(model: ir.Model, name: str, samples: Sequence[Feeds]) -> Values:
    """The class of the highest score of each sample, by a value [samples, classes] of a graph."""
    import torch

    from hasten.backends.torch_graph import TorchGraph

    graph, found = TorchGraph(model), np.zeros(len(samples))
    with torch.no_grad():
        for batch in join(model, samples, _TOGETHER):
            scores = wide(graph.run(batch.feeds, keep=[name])[name])
            found[batch.members] = scores.reshape(len(batch), -1).argmax(1).numpy()
    return found


def score_layers(
    criterion: str,
    model: ir.Model,
    layers: Sequence[Layer],
    samples: Sequence[Feeds],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    until: float = math.inf,
) -> Values:
    """How much each layer matters; see `score_units`. `obs` ranks no layers."""
    rng = np.random.default_rng(seed)
    if criterion == "random":
        return rng.uniform(0.5, 1.5, len(layers))
    if criterion.startswith("magnitude"):
        order = 1 if criterion.endswith("l1") else 2
        return np.array([_layer_magnitude(model, layer, order) for layer in layers])
    from hasten.backends.torch_graph import TorchGraph

    graph, batches = TorchGraph(model), join(model, samples, 1)
    if criterion == "activation":
        return _layer_sizes(graph, layers, in_time(batches, until))
    return _layer_losses(criterion, graph, layers, in_time(batches, until), Loss.of(model, labels, rng))


def relative(values: Values) -> Values:
    """Values divided by the root of their mean square."""
    scale = float(np.sqrt(np.mean(np.square(values))))
    return values / scale if scale > 0 else values


def _magnitudes(model: ir.Model, group: Group, order: int) -> Values:
    total = np.zeros(group.count)
    for place, axis, array in weights_of(model, group):
        members = group.members[place, axis]
        sizes = np.abs(np.moveaxis(array, axis, 0).reshape(len(members), -1).astype(np.float64)) ** order
        tied = members >= 0
        np.add.at(total, members[tied], sizes.sum(1)[tied])
    return np.asarray(total ** (1 / order))


def _layer_magnitude(model: ir.Model, layer: Layer, order: int) -> float:
    total = 0.0
    nodes = list(model.graph)
    for index in layer.nodes:
        for value in nodes[index].inputs:
            tensor = None if value is None else value.const_value
            if tensor is not None and len(tensor.shape) > 1:
                total += float((np.abs(tensor.numpy().astype(np.float64)) ** order).sum())
    return float(total ** (1 / order))


@dataclass(frozen=True)
class _Reading:
    """Where a group is read: node, input, axis, and the unit of each index."""

    node: int
    position: int
    axis: int
    members: NDArray[np.int64]


def _readings(nodes: Sequence[ir.Node], group: Group) -> list[_Reading]:
    """Where the features of a group are masked."""
    found = []
    for number, (place, axis) in _read(nodes, group):
        names = [None if v is None else v.name for v in nodes[number].inputs]
        found.append(_Reading(number, names.index(place.value), axis, group.members[place, axis]))
    return found


def _read(nodes: Sequence[ir.Node], group: Group) -> list[tuple[int, Slot]]:
    """The nodes, by number, that take a group's features and give none, and what they take."""
    if group.consumers:
        return [(consumer.node, consumer.value) for consumer in group.consumers]
    axes = {place.value: axis for place, axis in group.members if not place.is_constant}
    found = []
    for number, node in enumerate(nodes):
        taken = [v.name for v in node.inputs if v is not None and v.name in axes]
        if taken and not any(v.name in axes for v in node.outputs):
            found.append((number, (Place(taken[0] or ""), axes[taken[0] or ""])))
    return found


def _batches(model: ir.Model, groups: Sequence[Group], samples: Sequence[Feeds]) -> Sequence[Batch]:
    """Samples that run together, if all that is read has a batch axis, so that each has masks of its own."""
    name, facts = batch_dim(model), Facts(model.graph)
    nodes = list(model.graph)
    for group in groups:
        for reading in _readings(nodes, group):
            dims = facts.dims(nodes[reading.node].inputs[reading.position])
            if name is None or reading.axis == 0 or dims is None or dims[0] != name:
                return join(model, samples, 1)
    return join(model, samples, _TOGETHER)


def _masked(masks: Tensor, reading: _Reading, x: Tensor) -> Tensor:
    """A tensor times the mask, a row for each sample, of the unit that each index of an axis belongs to."""
    import torch

    shape = [1] * x.dim()
    shape[0] = len(masks)
    shape[reading.axis] = len(reading.members)
    return x * masks[:, torch.from_numpy(reading.members)].reshape(shape).to(x.dtype)


def _watched(totals: Values, counts: Values, reading: _Reading, x: Tensor) -> Tensor:
    """The tensor itself; the squares of its elements are added up by unit."""
    squares = x.double().square().movedim(reading.axis, 0).reshape(x.shape[reading.axis], -1)
    tied = reading.members >= 0
    np.add.at(totals, reading.members[tied], squares.sum(1).numpy()[tied])
    np.add.at(counts, reading.members[tied], squares.shape[1])
    return x


def _activations(
    graph: TorchGraph, groups: Sequence[Group], batches: Sequence[Batch], until: float
) -> dict[Group, Values]:
    """Root of the mean square of what each unit gives to its readers."""
    import torch

    totals = {group: np.zeros(group.count) for group in groups}
    counts = {group: np.zeros(group.count) for group in groups}
    taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
    for group in groups:
        for reading in _readings(graph.nodes, group):
            tap = partial(_watched, totals[group], counts[group], reading)
            taps[reading.node, reading.position].append(tap)
    with torch.no_grad():
        for batch in in_time(batches, until):
            graph.run(batch.feeds, taps=taps)
    return {group: np.sqrt(totals[group] / np.maximum(counts[group], 1)) for group in groups}


def in_time(batches: Sequence[Batch], until: float) -> Iterator[Batch]:
    """Batches in turn, until a time; a few samples at least."""
    seen = 0
    for batch in batches:
        if seen >= _FEWEST and time.monotonic() >= until:
            return
        yield batch
        seen += len(batch)


def _gradients(
    graph: TorchGraph,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    loss: Loss,
    until: float,
) -> dict[Group, Values]:
    """For each group the derivatives of the loss by its masks, [samples, units]."""
    import torch

    found: dict[Group, list[Values]] = {group: [] for group in groups}
    for batch in in_time(batches, until):
        # The last entry of a mask is for indices of no unit, which are numbered -1.
        masks = {group: torch.ones(len(batch), group.count + 1, requires_grad=True) for group in groups}
        taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
        for group, mask in masks.items():
            for reading in _readings(graph.nodes, group):
                taps[reading.node, reading.position].append(partial(_masked, mask, reading))
        values = graph.run(batch.feeds, taps=taps, keep=loss.names)
        gradients = torch.autograd.grad(loss(values, batch), list(masks.values()), allow_unused=True)
        for group, gradient in zip(masks, gradients, strict=True):
            by_unit = torch.zeros(len(batch), group.count) if gradient is None else gradient[:, :-1]
            found[group].append(by_unit.double().numpy())
    return {group: np.concatenate(each) for group, each in found.items()}


def _layer_sizes(graph: TorchGraph, layers: Sequence[Layer], batches: Iterable[Batch]) -> Values:
    """How far the output of each layer is from its input, by the size of the output."""
    import torch

    names = {name for layer in layers for name in (layer.entry, layer.exit)}
    found = []
    with torch.no_grad():
        for batch in batches:
            values = graph.run(batch.feeds, keep=names)
            pairs = [(wide(values[layer.entry]), wide(values[layer.exit])) for layer in layers]
            found.append([float((after - before).norm() / after.norm()) for before, after in pairs])
    return np.asarray(np.mean(found, axis=0))


def _layer_losses(
    criterion: str, graph: TorchGraph, layers: Sequence[Layer], batches: Iterable[Batch], loss: Loss
) -> Values:
    """What leaving each layer out changes the loss by, to first order."""
    import torch

    names = {*loss.names, *(name for layer in layers for name in (layer.entry, layer.exit))}
    for weight in graph.weights.values():
        if weight.is_floating_point() and weight.dim() > 1:
            weight.requires_grad_()
    found = []
    for batch in batches:
        leaves: list[list[Tensor]] = [[] for _ in layers]
        taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
        for layer, own in zip(layers, leaves, strict=True):
            for place in graph.readers_of(layer.exit):
                taps[place].append(partial(_opened, own))
        values = graph.run(batch.feeds, taps=taps, keep=names)
        for layer, own in zip(layers, leaves, strict=True):
            if values[layer.exit].requires_grad:
                own[:] = [values[layer.exit]]
        every = [leaf for own in leaves for leaf in own]
        known = iter(torch.autograd.grad(loss(values, batch), every, allow_unused=True))
        changes = []
        for layer, own in zip(layers, leaves, strict=True):
            change = wide(values[layer.exit].detach()) - wide(values[layer.entry].detach())
            gradients = [gradient for gradient in islice(known, len(own)) if gradient is not None]
            changes.append(sum(float((change * wide(gradient)).sum()) for gradient in gradients))
        found.append(changes)
    return np.asarray((np.abs if criterion == "gradient" else np.square)(found).mean(0))


def _opened(leaves: list[Tensor], x: Tensor) -> Tensor:
    """The value itself if gradients reach it; else one that they do: operators without weights made it."""
    if x.requires_grad or not x.is_floating_point():
        return x
    leaves.append(x.detach().requires_grad_())
    return leaves[-1]
