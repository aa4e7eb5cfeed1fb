"""What a graph costs when some units are gone, without changing it: its arithmetic, or its time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.dims import input_dims
from hasten.passes.facts import Facts
from hasten.passes.prune.units import Analysis, Group, Place, Slot, place_of, ports
from hasten.search.measure_flops import node_flops

Feeds = Mapping[str, NDArray[np.generic]]


_LENGTH, _SIDE = 128, 224


def typical_sizes(model: ir.Model, samples: Iterable[Feeds]) -> dict[str, int]:
    """The median of each symbolic size over some samples.

    One that no sample binds is 1 where it is that of a first axis, which counts samples; else 224 where it is
    the side of a picture, of four axes, and 128 where not.
    """
    found: dict[str, list[int]] = {name: [] for name in input_dims(model)}
    for feeds in samples:
        for value in model.graph.inputs:
            array = feeds.get(value.name or "")
            if array is None or value.shape is None:
                continue
            for dim, size in zip(value.shape, array.shape, strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value in found:
                    found[dim.value].append(size)
    return {
        name: int(statistics.median(sizes)) if sizes else _size_without_data(model, name)
        for name, sizes in found.items()
    }


def _size_without_data(model: ir.Model, name: str) -> int:
    places = [
        (axis, len(value.shape))
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if value.shape is not None and isinstance(dim, ir.SymbolicDim) and dim.value == name
    ]
    if any(axis == 0 for axis, _ in places):
        return 1
    return _SIDE if any(axes == 4 for _, axes in places) else _LENGTH


def graph_flops(model: ir.Model, sizes: Mapping[str, int]) -> int:
    """Floating-point operations of products, convolutions and attention in one run (`measure_flops`).

    What a node of unknown shape costs is not counted.

    Args:
        model: a graph.
        sizes: values of the symbolic sizes.
    """
    shapes = _shapes_at(model, sizes)
    return sum(_flops(ir.to_proto(node), shapes) for node in model.graph)


def _shapes_at(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all values that are known once the symbolic sizes are numbers."""
    copy = model.clone()
    for source in copy.graph.inputs:
        if source.shape is not None:
            known = [d if isinstance(d, int) else sizes.get(d.value or "", d.value) for d in source.shape]
            source.shape = ir.Shape(known)
    inputs = set(copy.graph.inputs)
    for node in copy.graph:
        for value in node.outputs:
            if value.shape is not None and value not in inputs:
                sized = [d if isinstance(d, int) else d.evaluate(sizes) for d in value.shape]
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in sized])
    facts = Facts(copy.graph)
    values = [
        *copy.graph.inputs,
        *copy.graph.initializers.values(),
        *(v for n in copy.graph for v in n.outputs),
    ]
    shapes = {}
    for value in values:
        dims = facts.dims(value)
        if dims is not None and all(isinstance(d, int) for d in dims):
            shapes[value.name or ""] = tuple(d for d in dims if isinstance(d, int))
    return shapes


def _flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    # Sizes that are too small for the model, or nothing comes out. Behind the first three inputs something
    # may be empty, as the past of an attention is at first.
    if any(size < 1 for name in (*node.input[:3], *node.output[:1]) for size in shapes.get(name, ())):
        return 0
    try:
        return node_flops(node, shapes)
    except KeyError:
        return 0


Price = Callable[[str, int], float]
"""What a node costs, by its name (`name_of`) and the floating-point operations that it does."""


def operations(_: str, flops: int) -> float:
    """The price that is the operations themselves."""
    return flops


def name_of(node: ir.Node) -> str:
    """What a node is called: by its name, or that of its first output."""
    return node.name or node.outputs[0].name or ""


def flops_by_node(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, int]:
    """Floating-point operations of each node, by `name_of`, of those that do any."""
    shapes = _shapes_at(model, sizes)
    found = {name_of(node): _flops(ir.to_proto(node), shapes) for node in model.graph}
    return {name: flops for name, flops in found.items() if flops}


class Cost:
    """What a graph costs as a function of how many units of each group are left.

    Attributes:
        total: of the whole graph: floating-point operations, or what the price is in.
    """

    def __init__(
        self,
        model: ir.Model,
        analysis: Analysis,
        sizes: Mapping[str, int],
        price: Price = operations,
    ) -> None:
        """Counts a graph.

        Args:
            model: the graph that was analysed.
            analysis: what `find_units` says of it.
            sizes: values of the symbolic sizes.
            price: of a node; by default its operations.
        """
        self._price, self._names = price, [name_of(node) for node in model.graph]
        self._nodes = [ir.to_proto(node) for node in model.graph]
        self._shapes = _shapes_at(model, sizes)
        self._users: dict[str, list[int]] = {}
        for index, node in enumerate(analysis.operands):
            for port in ports(node):
                place = place_of(node, index, port)
                if place is not None:
                    self._users.setdefault(place.value, []).append(index)
        self._each = [self._cost(index, self._shapes) for index in range(len(self._nodes))]
        self._removed: dict[Slot, dict[int, float]] = {}
        self.total = self.now = sum(self._each)

    def without(self, group: Group, removed: int) -> float:
        """The cost if that many units of a group were gone, others staying as `remove` left them."""
        shapes = self._cut(group, removed)
        return self.now + sum(self._cost(index, shapes) - self._each[index] for index in self._touched(group))

    def remove(self, group: Group, removed: int) -> None:
        """Remembers that so many units of a group are gone."""
        for slot, members in group.members.items():
            share = np.count_nonzero(members >= 0) / group.count
            self._removed.setdefault(slot, {})[id(group)] = removed * share
        self.now = self.without(group, removed)
        self._shapes = self._cut(group, removed)
        for index in self._touched(group):
            self._each[index] = self._cost(index, self._shapes)

    def _cost(self, index: int, shapes: Mapping[str, tuple[int, ...]]) -> float:
        return self._price(self._names[index], _flops(self._nodes[index], shapes))

    def _touched(self, group: Group) -> list[int]:
        return sorted({i for place, _ in group.members for i in self._users.get(place.value, ())})

    def _cut(self, group: Group, removed: int) -> dict[str, tuple[int, ...]]:
        shapes = dict(self._shapes)
        for slot, members in group.members.items():
            place, axis = slot
            if place.value not in shapes:
                continue
            others = sum(n for key, n in self._removed.get(slot, {}).items() if key != id(group))
            gone = removed * np.count_nonzero(members >= 0) / group.count + others
            dims = list(shapes[place.value])
            dims[axis] = len(members) - round(gone)
            shapes[place.value] = tuple(dims)
        return shapes


def weights_of(model: ir.Model, group: Group) -> Iterable[tuple[Place, int, NDArray[np.generic]]]:
    """The weight matrices and filters that a group lies along, each with the axis, and its array."""
    nodes = list(model.graph)
    for place, axis in group.members:
        if place.is_constant:
            value = nodes[place.node].inputs[place.position]
            if value is not None and value.const_value is not None and len(value.const_value.shape) > 1:
                yield place, axis, value.const_value.numpy()
