"""How much each unit matters, by a criterion.

`magnitude` (Han et al. 2015, "Learning both Weights and Connections"; for filters Li et al. 2017, "Pruning
Filters for Efficient ConvNets"): the L2 or L1 norm of a unit's weights. `activation` (Hu et al. 2016,
"Network Trimming"): the size of what a unit gives to those who read it, over the data; of a layer, how far
its output is from its input. `gradient` (Molchanov et al. 2017, "Pruning Convolutional Neural Networks for
Resource Efficient Inference"): |mask x gradient| of the loss, first order. `fisher` (Kwon et al. 2022, "A
Fast Post-Training Pruning Framework for Transformers"): the diagonal of the Fisher information of masks.
`random`: the control.

A mask multiplies what a unit gives to its readers, and is 1. Without labels the loss is the distance to the
original's outputs, whose gradient is zero at the original; its curvature is not. With J the derivative of
the outputs by the masks, each output in units of its norm, the distance is m' J' J m to second order, and
for random v of independent standard normal elements the mean of (v' J)^2 is the diagonal of J' J. So v'
times the outputs stands for the loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.errors import MissingDependencyError, OptionError
from hasten.passes.prune.layers import Layer
from hasten.passes.prune.units import Group
from hasten.search.prune.cost import Feeds, weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.backends.torch_graph import TorchGraph

CRITERIA = ("magnitude", "magnitude-l1", "activation", "gradient", "fisher", "random")
WITH_DATA = ("activation", "gradient", "fisher")
"""Criteria that need samples, and PyTorch to run them."""

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


def score_units(
    criterion: str,
    model: ir.Model,
    groups: Sequence[Group],
    samples: Sequence[Feeds],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[Group, Values]:
    """How much each unit of some groups matters.

    Args:
        criterion: one of `CRITERIA`.
        model: the graph that was analysed.
        groups: of the analysis.
        samples: inputs by name; each is run by itself.
        labels: the class of each sample, for the loss of `gradient` and `fisher`: cross-entropy of the first
            output. Without them the loss is the distance to the model's own outputs.
        seed: of random numbers.

    Returns:
        For each group a number for each unit. Those of `gradient` and `fisher` are changes of the loss;
        the others are relative to the mean square of their group, since sizes in different layers say nothing
        about each other.
    """
    rng = np.random.default_rng(seed)
    if criterion == "random":
        return {group: rng.uniform(0.5, 1.5, group.count) for group in groups}
    if criterion.startswith("magnitude"):
        order = 1 if criterion.endswith("l1") else 2
        return {group: relative(_magnitudes(model, group, order)) for group in groups}
    from hasten.backends.torch_graph import TorchGraph

    graph = TorchGraph(model)
    if criterion == "activation":
        return {group: relative(v) for group, v in _activations(graph, groups, samples).items()}
    found = _gradients(graph, groups, samples, labels, rng)
    reduce = np.abs if criterion == "gradient" else np.square
    return {group: reduce(each).mean(0) for group, each in found.items()}


def score_layers(
    criterion: str,
    model: ir.Model,
    layers: Sequence[Layer],
    samples: Sequence[Feeds],
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
) -> Values:
    """How much each layer matters; see `score_units`."""
    rng = np.random.default_rng(seed)
    if criterion == "random":
        return rng.uniform(0.5, 1.5, len(layers))
    if criterion.startswith("magnitude"):
        order = 1 if criterion.endswith("l1") else 2
        return np.array([_layer_magnitude(model, layer, order) for layer in layers])
    from hasten.backends.torch_graph import TorchGraph

    return _layer_changes(criterion, TorchGraph(model), layers, samples, labels, rng)


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


def _positions(graph: TorchGraph, group: Group) -> list[tuple[int, int, int, NDArray[np.int64]]]:
    """Where a group is read: node, input, axis, and the unit of each index."""
    found = []
    for consumer in group.consumers:
        place, axis = consumer.value
        names = [None if v is None else v.name for v in graph.nodes[consumer.node].inputs]
        found.append((consumer.node, names.index(place.value), axis, group.members[consumer.value]))
    return found


def _masked(mask: Tensor, axis: int, members: NDArray[np.int64], x: Tensor) -> Tensor:
    """A tensor times the mask of the unit that each index along an axis belongs to."""
    import torch

    shape = [1] * x.dim()
    shape[axis] = -1
    return x * mask[torch.from_numpy(members)].reshape(shape)


def _watched(totals: Values, counts: Values, axis: int, members: NDArray[np.int64], x: Tensor) -> Tensor:
    """The tensor itself; the squares of its elements are added up by unit."""
    squares = x.double().square().movedim(axis, 0).reshape(x.shape[axis], -1)
    tied = members >= 0
    np.add.at(totals, members[tied], squares.sum(1).numpy()[tied])
    np.add.at(counts, members[tied], squares.shape[1])
    return x


def _activations(graph: TorchGraph, groups: Sequence[Group], samples: Sequence[Feeds]) -> dict[Group, Values]:
    """Root of the mean square of what each unit gives to its readers."""
    import torch

    totals = {group: np.zeros(group.count) for group in groups}
    counts = {group: np.zeros(group.count) for group in groups}
    taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
    for group in groups:
        for node, position, axis, members in _positions(graph, group):
            taps[node, position].append(partial(_watched, totals[group], counts[group], axis, members))
    with torch.no_grad():
        for feeds in samples:
            graph.run(feeds, taps=taps)
    return {group: np.sqrt(totals[group] / np.maximum(counts[group], 1)) for group in groups}


def loss_of(
    outputs: Mapping[str, Tensor], names: Sequence[str], label: int | None, rng: np.random.Generator
) -> Tensor:
    """What is differentiated: cross-entropy with a label, or outputs times random numbers (see above)."""
    import torch

    first = outputs[names[0]]
    if label is not None:
        return torch.nn.functional.cross_entropy(first.reshape(1, -1), torch.tensor([label]))
    total = torch.zeros(())
    for name in names:
        value = outputs[name]
        if value.is_floating_point():
            v = torch.from_numpy(rng.standard_normal(tuple(value.shape))).to(value.dtype)
            total = total + (v * value).sum() / value.detach().norm().clamp_min(1e-12)
    return total


def _gradients(
    graph: TorchGraph,
    groups: Sequence[Group],
    samples: Sequence[Feeds],
    labels: Sequence[int] | None,
    rng: np.random.Generator,
) -> dict[Group, Values]:
    """For each group the derivatives of the loss by its masks, [samples, units]."""
    import torch

    found: dict[Group, list[Any]] = {group: [] for group in groups}
    for number, feeds in enumerate(samples):
        # The last entry of a mask is for indices of no unit, which are numbered -1.
        masks = {group: torch.ones(group.count + 1, requires_grad=True) for group in groups}
        taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
        for group, mask in masks.items():
            for node, position, axis, members in _positions(graph, group):
                taps[node, position].append(partial(_masked, mask, axis, members))
        outputs = graph.run(feeds, taps=taps)
        label = None if labels is None else int(labels[number])
        loss = loss_of(outputs, graph.outputs, label, rng)
        gradients = torch.autograd.grad(loss, list(masks.values()), allow_unused=True)
        for group, gradient in zip(masks, gradients, strict=True):
            by_unit = torch.zeros(group.count) if gradient is None else gradient[:-1]
            found[group].append(by_unit.double().numpy())
    return {group: np.stack(each) for group, each in found.items()}


def _layer_changes(
    criterion: str,
    graph: TorchGraph,
    layers: Sequence[Layer],
    samples: Sequence[Feeds],
    labels: Sequence[int] | None,
    rng: np.random.Generator,
) -> Values:
    """How much leaving a layer out changes its output, or to first order the loss."""
    import torch

    names = {name for layer in layers for name in (layer.entry, layer.exit)}
    total = np.zeros(len(layers))
    for number, feeds in enumerate(samples):
        with torch.set_grad_enabled(criterion != "activation"):
            if criterion != "activation":
                for weight in graph.weights.values():
                    if weight.is_floating_point() and weight.dim() > 1:
                        weight.requires_grad_()
            values = graph.run(feeds, keep=names)
        changes = [(values[layer.exit] - values[layer.entry]) for layer in layers]
        if criterion == "activation":
            sizes = [values[layer.exit].norm() for layer in layers]
            total += [float(c.norm() / n) for c, n in zip(changes, sizes, strict=True)]
            continue
        label = None if labels is None else int(labels[number])
        loss = loss_of(values, graph.outputs, label, rng)
        gradients = torch.autograd.grad(loss, [values[layer.exit] for layer in layers], allow_unused=True)
        for k, (change, gradient) in enumerate(zip(changes, gradients, strict=True)):
            first = 0.0 if gradient is None else float((change.detach() * gradient).sum())
            total[k] += abs(first) if criterion == "gradient" else first**2
    return total / max(1, len(samples))
