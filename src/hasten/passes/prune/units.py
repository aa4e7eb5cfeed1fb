"""Dependency analysis: which units of a graph can be removed, each with all that belongs to it.

Every index of every axis of known length is an element. The ties that operators state (`ops/pruning.py`) join
elements that stand and fall together; what is joined, directly or in steps, is a *unit*: a filter with its
bias, its channel in every value up to the next convolution, and that convolution's weights for it. A unit is
left alone where one of its elements belongs to the model's interface or to an axis that some operator needs
whole. Units that lie along the same axes form a *group*, such as the neurons of one layer.

The same idea, with graphs of layers instead of elements, is in Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hasten.graph.describe import describe_node
from hasten.ops.pruning import CHANNELS, HEADS, NEURONS, Indices, Operands, Port, Tie, Whole
from hasten.ops.table import find_op
from hasten.passes.facts import Facts

UNITS = (NEURONS, HEADS, CHANNELS)
_RANKED = (HEADS, CHANNELS, NEURONS)  # what a group is that has ties of several kinds


@dataclass(frozen=True)
class Place:
    """A value, or a constant where one node uses it: each use of a constant is cut by itself.

    Attributes:
        value: its name.
        node: for a constant, the index of the node that uses it; otherwise -1.
        position: for a constant, which input of that node it is; otherwise -1.
    """

    value: str
    node: int = -1
    position: int = -1

    @property
    def is_constant(self) -> bool:
        """Whether this is a constant at one of its uses."""
        return self.node >= 0


Slot = tuple[Place, int]
"""An axis of a value or constant."""


@dataclass(frozen=True)
class Consumer:
    """A product that sums over a group's features with constant weights.

    Attributes:
        node: its index in the graph.
        value: what it reads, and the axis of the features.
        weight: its weights, and the axis of the features.
    """

    node: int
    value: Slot
    weight: Slot


@dataclass(frozen=True, eq=False)
class Group:
    """Units that lie along the same axes.

    Attributes:
        name: of the first node that makes or shares the features.
        unit: "neurons", "heads" or "channels".
        count: number of units.
        members: for each axis, the unit that each index belongs to, or -1.
        consumers: the products that read the features.
    """

    name: str
    unit: str
    count: int
    members: Mapping[Slot, Indices]
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True)
class LeftAlone:
    """Units that cannot be removed, and why."""

    name: str
    unit: str
    count: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What of a graph can be pruned.

    Attributes:
        groups: in the order of the graph.
        left_alone: what cannot be pruned, with reasons.
        operands: the nodes of the graph with shapes, in order.
    """

    groups: tuple[Group, ...]
    left_alone: tuple[LeftAlone, ...]
    operands: tuple[Operands, ...]


def find_units(model: ir.Model) -> Analysis:
    """Find what can be removed from a graph.

    Args:
        model: as `optimize_graph` leaves it: constants folded, shapes of values known.

    Returns:
        Groups of units. All groups are disjoint, so that any units can be removed together, as long as one of
        each group stays.
    """
    elements = _Elements(model)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        kind = "an input" if value.is_graph_input() else "an output"
        elements.block(Place(value.name or ""), f"'{value.name}' is {kind} of the model")
    for value in _captured(model):
        elements.block(Place(value.name or ""), f"'{value.name}' is used inside a body of If, Loop or Scan")
    for index in range(len(elements.operands)):
        _tie_node(elements, index)
    return _collect(elements)


@dataclass
class _Elements:
    """All indices of all axes of known length, numbered, with what joins them."""

    model: ir.Model
    operands: tuple[Operands, ...] = ()
    first: dict[Slot, int] = field(default_factory=dict)
    lengths: dict[Slot, int] = field(default_factory=dict)
    count: int = 0
    pairs: list[tuple[Indices, Indices]] = field(default_factory=list)
    blocked: list[tuple[Slot, Indices, str]] = field(default_factory=list)
    ties: list[tuple[int, Tie]] = field(default_factory=list)
    _slots: dict[Place, list[Slot]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = Facts(self.model.graph)
        self.operands = tuple(
            Operands(n, tuple(map(facts.dims, n.inputs)), tuple(map(facts.dims, n.outputs)))
            for n in self.model.graph
        )
        for index, node in enumerate(self.operands):
            for port in ports(node):
                dims, place = node.dims(port), place_of(node, index, port)
                if place is None or dims is None or place in self._slots:
                    continue
                self._slots[place] = [
                    self._new((place, axis), d) for axis, d in enumerate(dims) if isinstance(d, int) and d > 1
                ]

    def _new(self, slot: Slot, length: int) -> Slot:
        self.first[slot], self.lengths[slot] = self.count, length
        self.count += length
        return slot

    def slots(self, place: Place) -> list[Slot]:
        """The axes of a place that have elements."""
        return self._slots.get(place, [])

    def block(self, place: Place, reason: str, axis: int | None = None) -> None:
        """Keeps all of one axis of a value, or of all of them."""
        for slot in self.slots(place):
            if axis in (None, slot[1]):
                self.blocked.append((slot, np.arange(self.lengths[slot]), reason))

    def of(self, node: int, port: Port, axis: int) -> Slot | None:
        """The axis of an operand, if it has elements."""
        place = place_of(self.operands[node], node, port)
        return (place, axis) if place is not None and (place, axis) in self.first else None

    def join(self, node: int, tie: Tie, covered: dict[Slot, Indices]) -> None:
        """Joins what a tie joins, by elements of its own for its slots."""
        base, size = self.count, 1 + max(int(m.slots.max(initial=-1)) for m in tie.members)
        self.count += size
        self.ties.append((node, tie))
        self._keep_last(node, tie)
        for member in tie.members:
            slot = self.of(node, member.port, member.axis)
            if slot is None:
                continue
            tied = np.flatnonzero(member.slots >= 0)
            self.pairs.append((self.first[slot] + tied, base + member.slots[tied]))
            known = covered.setdefault(slot, np.zeros(self.lengths[slot], np.int64))
            known[tied] = 1

    def _keep_last(self, node: int, tie: Tie) -> None:
        """Keeps what an axis of length 1 is tied to: that axis has no elements, and cannot become shorter."""
        for alone in tie.members:
            if self.operands[node].length(alone.port, alone.axis) != 1:
                continue
            place = place_of(self.operands[node], node, alone.port)
            reason = f"it is all that axis {alone.axis} of '{place.value if place else ''}' has"
            for member in tie.members:
                slot = self.of(node, member.port, member.axis)
                stays = np.flatnonzero(np.isin(member.slots, alone.slots[alone.slots >= 0]))
                if slot is not None and len(stays):
                    self.blocked.append((slot, stays, reason))

    def roots(self) -> Indices:
        """For each element, the smallest of those that it is joined with."""
        label = np.arange(self.count)
        if not self.pairs:
            return label
        left, right = (np.concatenate(side) for side in zip(*self.pairs, strict=True))
        while True:
            a, b = label[left], label[right]
            low, new = np.minimum(a, b), label.copy()
            np.minimum.at(new, a, low)
            np.minimum.at(new, b, low)
            while not np.array_equal(new, new[new]):
                new = new[new]
            if np.array_equal(new, label):
                return label
            label = new


def ports(node: Operands) -> list[Port]:
    """All operands of a node."""
    inputs = [Port(i) for i in range(len(node.inputs))]
    return inputs + [Port(i, True) for i in range(len(node.outputs))]


def place_of(node: Operands, index: int, port: Port) -> Place | None:
    """Where the operand of a node lies; None where it is omitted."""
    values: Sequence[ir.Value | None] = node.node.outputs if port.is_output else node.node.inputs
    value = values[port.position]
    if value is None or not value.name:
        return None
    constant = not port.is_output and node.is_constant(port.position)
    return Place(value.name, index, port.position) if constant else Place(value.name)


def _captured(model: ir.Model) -> list[ir.Value]:
    """Values of the main graph that nodes of other graphs use."""
    graph = model.graph
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    return [v for v in values if any(use.node.graph is not graph for use in v.uses())]


def _tie_node(elements: _Elements, index: int) -> None:
    """Joins what a node's facts join, and blocks what they do not name."""
    node = elements.operands[index]
    title = describe_node(node.node)
    op = find_op(node.node.domain, node.node.op_type)
    facts = None if op is None else op.pruning
    ties: list[Tie] = []
    reason = ""
    if facts is None:
        reason = f"{title}: what it does to single indices is not known"
    else:
        try:
            ties = [tie for tie in facts.ties(node) if tie is not None and tie.members]
        except Whole as whole:
            reason = f"{title}: {whole}"
    covered: dict[Slot, Indices] = {}
    for tie in ties:
        elements.join(index, tie, covered)
        _keep_shared(elements, index, tie)
    for port in ports(node):
        place = place_of(node, index, port)
        for slot in [] if place is None else elements.slots(place):
            known = covered.get(slot)
            left = np.arange(elements.lengths[slot]) if known is None else np.flatnonzero(known == 0)
            if len(left):
                needs = reason or f"{title} needs all of axis {slot[1]} of '{slot[0].value}'"
                elements.blocked.append((slot, left, needs))


def _keep_shared(elements: _Elements, index: int, tie: Tie) -> None:
    """Leaves weights alone that several nodes use: what one loses the other may need."""
    if tie.unit is None and not tie.contracts:
        return
    node = elements.operands[index]
    for member in tie.members:
        place = place_of(node, index, member.port)
        dims = node.dims(member.port)
        value = None if member.port.is_output else node.node.inputs[member.port.position]
        if place is None or not place.is_constant or value is None or len(dims or ()) < 2:
            continue
        if len(value.uses()) > 1:
            reason = f"the weights '{place.value}' are used {len(value.uses())} times"
            elements.block(place, reason, member.axis)


@dataclass
class _Class:
    """One unit, or what would be one: its elements by axis, and why it cannot be removed."""

    axes: dict[Slot, list[int]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[str, None] = field(default_factory=dict)


def _collect(elements: _Elements) -> Analysis:
    """Groups units by the axes that they lie along."""
    roots = elements.roots()
    tagged = _tagged(elements, roots)
    classes: dict[int, _Class] = {root: _Class() for root in tagged}
    for slot, first in elements.first.items():
        for index, root in enumerate(roots[first : first + elements.lengths[slot]].tolist()):
            if root in classes:
                classes[root].axes[slot].append(index)
    for slot, indices, reason in elements.blocked:
        for root in np.unique(roots[elements.first[slot] + indices]).tolist():
            if root in classes:
                classes[root].reasons[reason] = None
    alike: dict[tuple[Slot, ...], list[int]] = defaultdict(list)
    refused: dict[tuple[Slot, ...], list[int]] = defaultdict(list)
    for root, found in classes.items():
        signature = tuple(found.axes)
        if found.reasons:
            refused[signature].append(root)
        else:
            alike[signature].append(root)
    groups = []
    for signature, members in alike.items():
        name, unit = _called(elements, tagged, members)
        if len(members) > 1:
            groups.append(_group(elements, signature, [classes[r] for r in members], name, unit))
    left = []
    for members in refused.values():
        name, unit = _called(elements, tagged, members)
        reasons = dict.fromkeys(r for root in members for r in classes[root].reasons)
        left.append(LeftAlone(name, unit, len(members), tuple(reasons)))
    return Analysis(tuple(groups), tuple(left), elements.operands)


def _tagged(elements: _Elements, roots: Indices) -> dict[int, list[tuple[int, str]]]:
    """For each class that has features of some unit: the nodes that say so, and which unit."""
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for node, tie in elements.ties:
        if tie.unit is None:
            continue
        for member in tie.members:
            slot = elements.of(node, member.port, member.axis)
            if slot is not None:
                tied = np.flatnonzero(member.slots >= 0)
                for root in np.unique(roots[elements.first[slot] + tied]).tolist():
                    found[root].append((node, tie.unit))
    return found


def _called(
    elements: _Elements, tagged: Mapping[int, list[tuple[int, str]]], members: Iterable[int]
) -> tuple[str, str]:
    """Name and unit of some classes: the first node that makes them, the first kind in rank."""
    tags = [tag for root in members for tag in tagged[root]]
    unit = min((unit for _, unit in tags), key=_RANKED.index)
    node = elements.operands[min(node for node, named in tags if named == unit)].node
    return node.name or describe_node(node), unit


def _group(
    elements: _Elements, signature: tuple[Slot, ...], classes: Sequence[_Class], name: str, unit: str
) -> Group:
    members = {slot: np.full(elements.lengths[slot], -1) for slot in signature}
    for number, found in enumerate(classes):
        for slot, indices in found.axes.items():
            members[slot][indices] = number
    consumers = []
    for node, tie in elements.ties:
        if not tie.contracts:
            continue
        value, weight = (elements.of(node, m.port, m.axis) for m in tie.members[:2])
        if value in members and weight is not None and value is not None:
            consumers.append(Consumer(node, value, weight))
    return Group(name, unit, len(classes), members, tuple(consumers))
