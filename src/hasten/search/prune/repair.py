"""Repair without training: products get new weights from the user's samples.

The original and the pruned graph run side by side, node by node, over all samples. At each product that has
lost features, or reads what has changed, its weights W are chosen anew so that it gives what the original
gave, from what now arrives:

    minimize |X W + b - Y|^2

drawn towards the weights that were left as far as samples advise (`equations.py`). Products further down
then see the repaired values, so errors do not add up. Where the product is the end of a residual branch, Y
also makes up for what its shortcut has lost. He et al. 2017, "Channel Pruning for Accelerating Very Deep
Neural Networks", section 3.1, does this for convolutions.

The method "statistics" only gives each output of a product the mean and the variance that it had: what
estimating batch normalization anew does, where that is folded into the weights, and the correction of biases.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.backends.torch_graph import TorchGraph
from hasten.backends.torch_node import DTYPES
from hasten.backends.torch_operators import to_array, to_tensor
from hasten.graph.constants import constant_value
from hasten.passes.prune.remove import Kept, set_constant
from hasten.search.prune.cost import Feeds
from hasten.search.prune.equations import Equations
from hasten.search.prune.joined import join
from hasten.search.prune.products import (
    LARGEST_SYSTEM,
    Product,
    added_by,
    bias_of,
    grouped_product_of,
    product_of,
    shortcut_of,
)

_TOGETHER = 16  # samples that are run at once
_BYTES = 2**31  # of values of all runs at a node, beyond which some samples join at later, smaller ones
_TINY = 1e-12  # a variance below it is none
_SCALES = (0.2, 5.0)  # by how much "statistics" changes weights, at most
_AXES = {
    "Conv": (1, 0),
    "MatMul": (-1, -1),
    "Gemm": (-1, 1),
}  # axis of the outputs: of the value, of the weights


Solve = Callable[["Site"], str]


def reconstruct(
    original: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    samples: Sequence[Feeds],
    *,
    solve: Solve | None = None,
    everywhere: bool = False,
    until: float = math.inf,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Give products of a pruned graph new weights, in place.

    Args:
        original: the graph before.
        pruned: the graph after; values that both have are called alike.
        kept: what has stayed of values that have lost something.
        samples: inputs by name.
        solve: changes the product at a site, and says why if it does not; by default `least_squares`.
        everywhere: whether products are solved for that lost nothing and read nothing that changed.
        until: a time by `time.monotonic` after which products stay as they are.
        progress: is told which product is being repaired.

    Returns:
        The products that have lost features and were left as they are, with reasons.
    """
    runs = _SideBySide(original, pruned, samples)
    after = runs.after
    changed, skipped = set[str](), list[str]()
    repair = solve or least_squares
    with torch.no_grad():
        for index, node in enumerate(runs.before.nodes):
            if time.monotonic() >= until:
                return [*skipped, f"what comes after '{node.name or node.outputs[0].name}', for want of time"]
            place = runs.arrive(index)
            if place is not None:
                lost = _lost(node, after.nodes[place])
                reads = any(v is not None and v.name in changed for v in after.nodes[place].inputs)
                if lost or reads or everywhere:
                    name = node.name or node.outputs[0].name
                    changed.update(v.name or "" for v in node.outputs)
                    progress(f"repairing {name}")
                    reason = repair(Site(pruned, after, place, node, runs.old, runs.new, kept, lost))
                    if reason and (everywhere or (lost and _has_matrix(node))):
                        skipped.append(f"'{name}' {reason}")
            runs.leave(index)
    return skipped


class _SideBySide:
    """Both graphs on batches of samples, node by node.

    Values of all batches at a node are there at once. Where they are large, as at the first nodes for
    pictures, only so many batches run as there is memory for, and the others join when values are smaller:
    a batch says more of a large value, which has many positions.

    Attributes:
        before: what runs the original.
        after: what runs the pruned graph.
        old: values of the original for each batch.
        new: values of the pruned graph.
    """

    def __init__(self, original: ir.Model, pruned: ir.Model, samples: Sequence[Feeds]) -> None:
        self.before, self.after = TorchGraph(original), TorchGraph(pruned)
        places = {node.outputs[0].name: index for index, node in enumerate(self.after.nodes)}
        self._places = [places.get(node.outputs[0].name) for node in self.before.nodes]
        self._behind = _new_nodes(len(self.after.nodes), {p for p in self._places if p is not None})
        order = np.random.default_rng(0).permutation(len(samples)).tolist()  # what comes first stands for all
        self._parts = join(pruned, samples, _TOGETHER, order)
        self.old: list[dict[str, Tensor]] = []
        self.new: list[dict[str, Tensor]] = []
        self._left: list[tuple[Counter[str], Counter[str]]] = []
        self._most = self._capacities()

    def arrive(self, index: int) -> int | None:
        """Runs a node of the original on all batches there is memory for; its place in the pruned graph."""
        for part in self._parts[len(self.old) : self._most[index]]:
            self._start(part.feeds)
            for passed in range(index):
                self.before.step(passed, self.old[-1])
                self._leave(passed, len(self.old) - 1)
        for known in self.old:
            self.before.step(index, known)
        return self._places[index]

    def leave(self, index: int) -> None:
        """Runs the node of the pruned graph, and drops what no later node reads."""
        for batch in range(len(self.old)):
            self._leave(index, batch)

    def _start(self, feeds: Feeds) -> None:
        self.old.append(self.before.start(feeds))
        self.new.append(self.after.start(feeds))
        self._left.append((self.before.readers(), self.after.readers()))
        self._run_new(_FIRST, len(self.new) - 1)

    def _leave(self, index: int, batch: int) -> None:
        place, (left, later) = self._places[index], self._left[batch]
        if place is not None:
            self.after.step(place, self.new[batch])
            self.after.forget(self.after.nodes[place], self.new[batch], later, self.after.outputs)
            self._run_new(place, batch)
        self.before.forget(self.before.nodes[index], self.old[batch], left, self.before.outputs)

    def _run_new(self, place: int, batch: int) -> None:
        """Runs what the original has not, up to the next node that it has."""
        for new in self._behind.get(place, ()):
            self.after.step(new, self.new[batch])
            self.after.forget(
                self.after.nodes[new], self.new[batch], self._left[batch][1], self.after.outputs
            )

    def _capacities(self) -> list[int]:
        """How many batches there is memory for at a node and all that follow."""
        self._start(self._parts.largest().feeds)
        weights = {w.data_ptr() for graph in (self.before, self.after) for w in graph.weights.values()}
        sizes = []
        with torch.no_grad():
            for index in range(len(self._places)):
                self.before.step(index, self.old[0])
                there = {t.data_ptr(): t.nbytes for t in (*self.old[0].values(), *self.new[0].values())}
                sizes.append(sum(size for place, size in there.items() if place not in weights))
                self._leave(index, 0)
        for each in (self.old, self.new, self._left):
            each.clear()
        ahead = list(accumulate(reversed(sizes), max))[::-1]
        return [max(1, _BYTES // max(1, size)) for size in ahead]


_FIRST = -1


def _new_nodes(count: int, known: Collection[int]) -> dict[int, list[int]]:
    """Nodes of the pruned graph that the original has not, by the place of the one before that it has."""
    found: dict[int, list[int]] = {}
    last = _FIRST
    for place in range(count):
        if place in known:
            last = place
        else:
            found.setdefault(last, []).append(place)
    return found


@dataclass(frozen=True)
class Site:
    """A node of the pruned graph, and all values of both graphs there.

    Attributes:
        model: the pruned graph.
        graph: what runs it.
        place: the index of the node.
        before: the node of the original.
        old: values of the original for each run.
        new: values of the pruned graph.
        kept: what has stayed of values.
        lost: whether the node has lost features or its weights some of their rows.
    """

    model: ir.Model
    graph: TorchGraph
    place: int
    before: ir.Node
    old: Sequence[dict[str, Tensor]]
    new: Sequence[dict[str, Tensor]]
    kept: Kept
    lost: bool

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.graph.nodes[self.place]

    @property
    def has_bias(self) -> bool:
        """Whether a constant is added to what the node gives."""
        return bias_of(self.node) is not None

    def right(self, known: Mapping[str, Tensor], name: str, like: str | None = None) -> Tensor:
        """What the original has for a value, as far as the pruned graph has it too, or what is `like` it."""
        found = known[name]
        for axis, stays in self.kept.get(like or name, {}).items():
            found = found.index_select(axis, torch.from_numpy(stays))
        return found

    def targets(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """For each run the values of the pruned graph, and what the product, with its bias, should give."""
        added = added_by(self.node)
        had, shortcut = _shortcut_behind(self.before), _shortcut_behind(self.node)
        name = self.node.outputs[0].name or ""
        for then, now in zip(self.old, self.new, strict=True):
            target = self.right(then, name)
            if had in then and shortcut in now:
                lost = self.right(then, had, like=shortcut)
                if lost.shape == target.shape == now[shortcut].shape:
                    target = target + (lost - now[shortcut])
            if added is not None:
                target = target - now[added]
            yield now, target

    def put(self, node: ir.Node, position: int, array: NDArray[np.generic]) -> None:
        """Replaces a constant in the model and in what runs it."""
        _put(self.model, self.graph, node, position, array, self.new)


def _shortcut_behind(node: ir.Node) -> str:
    """The shortcut that is added to what a product gives, with its bias; empty if there is none.

    Behind a layer that has gone, it is another value than in the original: what went into that layer.
    """
    bias = bias_of(node)
    return shortcut_of(node if bias is None else bias[0]) or ""


def _lost(before: ir.Node, after: ir.Node) -> bool:
    """Whether a node reads something else than before, or weights of another shape."""
    if [None if v is None else v.name for v in before.inputs[:1]] != [
        None if v is None else v.name for v in after.inputs[:1]
    ]:
        return True
    shapes = [
        [tuple(v.const_value.shape) for v in node.inputs if v is not None and v.const_value is not None]
        for node in (before, after)
    ]
    return shapes[0] != shapes[1]


def _has_matrix(node: ir.Node) -> bool:
    """Whether a node has weights to solve for: not where a bias is added or a scale multiplied."""
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        return False
    constants = [v.const_value for v in node.inputs if v is not None]
    return any(c is not None and len(c.shape) > 1 for c in constants)


def linear(at: Site) -> tuple[Product, Tensor, Equations] | str:
    """The product at a site, its weights as a matrix, and equations for them; a reason if there are none."""
    node, graph = at.node, at.graph
    source = node.inputs[0] if node.inputs else None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if source is None or weight is None or weight.name not in graph.weights:
        return "has no constant weights on its right"
    tensor = graph.weights[weight.name]
    shape = tuple(tensor.shape)
    product = product_of(node, shape) or grouped_product_of(node, shape)
    if product is None:
        return "is of a form whose weights are not solved for"
    matrix = product.matrix(tensor)
    *groups, unknowns, outputs = matrix.shape
    if unknowns > LARGEST_SYSTEM:
        return f"reads more than {LARGEST_SYSTEM} values for each result"
    equations = Equations.of(unknowns, outputs, groups)
    for now, target in at.targets():
        equations.add(product.rows(now[source.name or ""]), product.outputs(target))
    equations.finish()
    return product, matrix, equations


def least_squares(at: Site) -> str:
    """Solves for one product's weights; the reason if it is left as it is."""
    found = linear(at)
    if isinstance(found, str):
        return found
    product, matrix, equations = found
    put_weights(at, product, equations, equations.solve(matrix, centered=at.has_bias))
    return ""


def put_matrix(at: Site, product: Product, weights: Tensor) -> None:
    """Gives a product new weights, [unknowns, outputs], and leaves its bias."""
    at.put(at.node, 1, _as_before(at.node, 1, product.weights(weights)))


def put_weights(at: Site, product: Product, equations: Equations, weights: Tensor) -> None:
    """Gives a product new weights, [unknowns, outputs], and the bias that goes with them."""
    put_matrix(at, product, weights)
    bias = bias_of(at.node)
    if bias is not None:
        shift = equations.bias(weights)
        if bias[0] is not at.node:  # a MatMul gives Y without bias
            before = _bias(*bias)
            shift = shift.to(before) + before
        _put_bias(at, bias, shift)


def _bias(holder: ir.Node, position: int) -> Tensor:
    """A bias: a number for each output, or one for all, in what sums with it are made in."""
    value = constant_value(holder.inputs[position])
    assert value is not None
    tensor = to_tensor(value)
    return tensor.reshape(-1).to(_sums_of(tensor))


def _put_bias(at: Site, place: tuple[ir.Node, int], shift: Tensor) -> None:
    """Replaces a bias by one number for each output of the product at a site."""
    holder, position = place
    value = constant_value(holder.inputs[position])
    assert value is not None
    at.put(holder, position, _as_before(holder, position, shift).reshape(*value.shape[:-1], -1))


def _as_before(node: ir.Node, position: int, tensor: Tensor) -> NDArray[np.generic]:
    """An array of the type that a constant of a node has."""
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return to_array(tensor.to(DTYPES[value.const_value.dtype]))


def _sums_of(tensor: Tensor) -> torch.dtype:
    """What sums with a tensor are made in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def statistics(at: Site) -> str:
    """Gives a product's outputs the mean and the variance that they had; the reason if that is not done."""
    node, graph = at.node, at.graph
    weight, bias = node.inputs[1] if len(node.inputs) > 1 else None, bias_of(node)
    if node.op_type not in _AXES or weight is None or weight.name not in graph.weights:
        return "is no product with constant weights"
    if bias is None:
        return "adds no constant of one number for each output"
    channel, rows = _AXES[node.op_type]
    if node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int():
        rows = 0
    goal, found = _Spread(), _Spread()
    for now, target in at.targets():
        graph.step(at.place, now)
        goal.add(target.movedim(channel, -1))
        found.add(now[node.outputs[0].name or ""].movedim(channel, -1))
    scale = (goal.variance / found.variance.clamp_min(_TINY)).sqrt().clamp(*_SCALES)
    scale = torch.where(goal.variance > _TINY, scale, 1)  # what was constant has no scale
    shape = [1] * graph.weights[weight.name].dim()
    shape[rows] = -1
    before = graph.weights[weight.name]
    sums = _sums_of(before)
    scaled = before.to(sums) * scale.to(sums).reshape(shape)
    at.put(node, 1, _as_before(node, 1, scaled))
    known = _bias(*bias).double()
    inside = known if bias[0] is node else torch.zeros_like(known)
    _put_bias(at, bias, goal.mean - scale * (found.mean - inside) + known - inside)
    return ""


class _Spread:
    """Mean and variance of the last axis of tensors."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(1), torch.zeros(1)

    def add(self, x: Tensor) -> None:
        """Takes all positions of a tensor in."""
        rows = x.reshape(-1, x.shape[-1]).double()
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._squares = self._squares + rows.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """By index of the last axis."""
        return self._sum / self._count

    @property
    def variance(self) -> Tensor:
        """By index of the last axis."""
        return (self._squares / self._count - self.mean.square()).clamp_min(0)


def _put(
    model: ir.Model,
    graph: TorchGraph,
    node: ir.Node,
    position: int,
    array: NDArray[np.generic],
    values: Sequence[dict[str, Tensor]],
) -> None:
    """Replaces a constant in the model and in what runs it."""
    title = node.name or node.outputs[0].name
    set_constant(model.graph, node, position, array, f"{title}_{position}_repaired")
    changed = node.inputs[position]
    assert changed is not None and changed.name is not None
    graph.weights[changed.name] = to_tensor(array)
    for known in values:
        known[changed.name] = graph.weights[changed.name]
