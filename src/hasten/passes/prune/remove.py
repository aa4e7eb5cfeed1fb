"""Removal of units: weights are cut, and every node is told what it must know."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.ops.pruning import Array, Indices, Operands, Port
from hasten.ops.table import find_op
from hasten.passes.dead_code import remove_dead_code
from hasten.passes.prune.units import Analysis, Group, Place, Slot, place_of

Kept = Mapping[str, Mapping[int, Indices]]
"""By value: the indices that stay, of each axis that has lost some."""


def remove_units(model: ir.Model, analysis: Analysis, removed: Mapping[Group, Collection[int]]) -> ir.Model:
    """Remove units from a copy of a model.

    Args:
        model: the model that was analysed.
        analysis: what `find_units` says of it.
        removed: the units to remove of each group.

    Returns:
        A new model; tensors that did not change are shared with the old one.

    Raises:
        ValueError: nothing would be left of a group.
    """
    kept = {slot: np.flatnonzero(~mask) for slot, mask in _gone(removed).items()}
    places = kept_indices(removed)
    copy = model.clone()
    nodes = list(copy.graph)
    for place, axes in places.items():
        if place.is_constant:
            _cut(copy.graph, nodes[place.node], place, axes)
    for node in nodes:
        for value in node.outputs:
            axes = places.get(Place(value.name or ""), {})
            if axes and value.shape is not None:
                dims = list(value.shape)
                for axis, stays in axes.items():
                    dims[axis] = len(stays)
                value.shape = ir.Shape(dims)
    for index, operands in enumerate(analysis.operands):
        _tell(copy.graph, nodes[index], index, operands, kept)
    remove_dead_code(copy.graph)
    return copy


def kept_indices(removed: Mapping[Group, Collection[int]]) -> dict[Place, dict[int, Indices]]:
    """For each value and constant that loses something: the indices that stay, of each axis that does."""
    places: dict[Place, dict[int, Indices]] = {}
    for (place, axis), mask in _gone(removed).items():
        places.setdefault(place, {})[axis] = np.flatnonzero(~mask)
    return places


def _gone(removed: Mapping[Group, Collection[int]]) -> dict[Slot, np.ndarray]:
    """For each axis, which of its indices go."""
    gone: dict[Slot, np.ndarray] = {}
    for group, units in removed.items():
        if not units:
            continue
        if len(set(units)) >= group.count:
            raise ValueError(f"all {group.count} {group.unit} of '{group.name}' would be removed")
        wanted = np.zeros(group.count + 1, bool)  # the last is for indices of no unit, numbered -1
        wanted[list(units)] = True
        for slot, members in group.members.items():
            mask = wanted[members]
            gone[slot] = mask | gone[slot] if slot in gone else mask
    return gone


def _cut(graph: ir.Graph, node: ir.Node, place: Place, axes: Mapping[int, Indices]) -> None:
    value = node.inputs[place.position]
    assert value is not None and value.const_value is not None, place
    array = value.const_value.numpy()
    for axis, stays in axes.items():
        array = array.take(stays, axis)
    set_constant(graph, node, place.position, array, f"{value.name}_{place.node}_{place.position}")


def set_constant(graph: ir.Graph, node: ir.Node, position: int, array: Array, name: str) -> None:
    """Gives a node a constant of its own, under the name of the old one if nobody else uses that."""
    old = node.inputs[position] if position < len(node.inputs) else None
    if old is not None and old.name and len(old.uses()) == 1 and old.name in graph.initializers:
        name = old.name
        del graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    if position >= len(node.inputs):
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def _tell(
    graph: ir.Graph, node: ir.Node, index: int, operands: Operands, kept: Mapping[Slot, Indices]
) -> None:
    """Changes a node's attributes and constants as its facts say, if it lost anything."""

    def stays(port: Port, axis: int) -> Indices | None:
        place = place_of(operands, index, port)
        return None if place is None else kept.get((place, axis))

    op = find_op(node.domain, node.op_type)
    facts = None if op is None else op.pruning
    if facts is None or facts.shrink is None:
        return
    shrunk = facts.shrink(operands, stays)
    for name, number in shrunk.attributes.items():
        if number is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.AttrInt64(name, number)
    for position, array in shrunk.inputs.items():
        old = operands.constant(position)
        if old is None or not np.array_equal(old, array):
            title = node.name or node.outputs[0].name or "node"
            set_constant(graph, node, position, array, f"{title}_{position}_pruned")
    for position, numbers in shrunk.elements.items():
        _set_elements(graph, node, position, numbers)


def _set_elements(graph: ir.Graph, node: ir.Node, position: int, numbers: Mapping[int, int]) -> None:
    """Gives a node a concatenation of its own in place of one, with other numbers in its constants."""
    old = node.inputs[position]
    joined = None if old is None else old.producer()
    assert old is not None and joined is not None, node
    title = f"{node.name or node.outputs[0].name or 'node'}_{position}_pruned"
    own = ir.node("Concat", list(joined.inputs), {"axis": 0}, name=title)
    own.outputs[0].name, own.outputs[0].type, own.outputs[0].shape = title, old.type, old.shape
    graph.insert_before(node, own)
    first = 0
    for k, part in enumerate(joined.inputs):
        array = constant_value(part)
        assert part is not None and part.shape is not None  # as `Operands.elements` has found
        length = part.shape.numpy()[0] if array is None else array.size
        mine = {place - first: number for place, number in numbers.items() if first <= place < first + length}
        first += length
        if array is not None and mine:
            new = np.array([mine.get(n, number) for n, number in enumerate(array.reshape(-1).tolist())])
            set_constant(graph, own, k, new.astype(array.dtype), f"{title}_{k}")
    node.replace_input_with(position, own.outputs[0])
