"""What operators say about pruning: which indices of their operands stand and fall together.

A *tie* joins axes of a node's inputs and outputs. Each index of a tied axis belongs to one *slot* of the tie,
or to none; who removes a slot removes all indices that belong to it, in every member, and the node then
computes what it did for all others. An axis that no tie of a node names cannot lose an index there: a softmax
needs all of what it sums over. So an operator that says nothing about an axis, or has no facts at all, keeps
what it reads and writes from being pruned.

    def relu_ties(node: Operands) -> list[Tie]:
        return [same(node, (input_(0), d), (output(0), d)) for d in range(rank)]

What a node must be told afterwards, such as the target of a `Reshape`, the other half of the facts says:
`shrink` returns new attributes and new constant inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.graph.constants import constant_value

if TYPE_CHECKING:
    from hasten.ops.base import Op

Dim = int | str
Dims = tuple[Dim, ...]
Array = NDArray[Any]
Indices = NDArray[np.int64]

NEURONS, HEADS, CHANNELS = "neurons", "heads", "channels"


@dataclass(frozen=True)
class Port:
    """An input or output of a node, by its position."""

    position: int
    is_output: bool = False


def input_(position: int) -> Port:
    """An input."""
    return Port(position)


def output(position: int) -> Port:
    """An output."""
    return Port(position, True)


@dataclass(frozen=True)
class Member:
    """An axis of an operand, and for each of its indices the slot of the tie, or -1 for none."""

    port: Port
    axis: int
    slots: Indices


@dataclass(frozen=True)
class Tie:
    """Axes whose indices stand and fall together.

    Attributes:
        members: the axes.
        unit: what a slot is where this tie makes or shares features: "neurons", "heads" or "channels".
        contracts: whether the node sums over the axis with weights: the first member is the axis of the
            variable, the second that of the constant.
    """

    members: tuple[Member, ...]
    unit: str | None = None
    contracts: bool = False


@dataclass(frozen=True)
class Operands:
    """A node with the shapes of what it reads and writes.

    Attributes:
        node: the node.
        inputs: dimensions by position; None where the input is omitted or its rank unknown.
        outputs: the same of its outputs.
    """

    node: ir.Node
    inputs: tuple[Dims | None, ...]
    outputs: tuple[Dims | None, ...]

    def dims(self, port: Port) -> Dims | None:
        """Dimensions of an operand; None if it is omitted or its rank unknown."""
        group = self.outputs if port.is_output else self.inputs
        return group[port.position] if port.position < len(group) else None

    def length(self, port: Port, axis: int) -> int | None:
        """Length of an axis, or None where it is not a number."""
        dims = self.dims(port)
        if dims is None or not -len(dims) <= axis < len(dims):
            return None
        found = dims[axis]
        return found if isinstance(found, int) else None

    def constant(self, position: int) -> Array | None:
        """The array of an input that is known, or None."""
        inputs = self.node.inputs
        return constant_value(inputs[position]) if position < len(inputs) else None

    def elements(self, position: int) -> tuple[int | None, ...] | None:
        """The numbers of an input of one axis, None for those that are computed; None if that says nothing.

        Of an input that is computed those are known that a concatenation takes from constants.
        """
        known = self.constant(position)
        if known is not None:
            return tuple(int(number) for number in known.reshape(-1))
        inputs = self.node.inputs
        value = inputs[position] if position < len(inputs) else None
        producer = None if value is None else value.producer()
        if producer is None or (producer.domain, producer.op_type) != ("", "Concat"):
            return None
        found: list[int | None] = []
        for part in producer.inputs:
            array, shape = constant_value(part), None if part is None else part.shape
            if array is not None:
                found += [int(number) for number in array.reshape(-1)]
            elif shape is not None and len(shape) == 1 and isinstance(shape[0], int):
                found += [None] * shape[0]
            else:
                return None
        return tuple(found)

    def is_constant(self, position: int) -> bool:
        """Whether an input is a constant."""
        value = self.node.inputs[position] if position < len(self.node.inputs) else None
        return value is not None and value.is_initializer() and not value.is_graph_input()

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute, or its default."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()


@dataclass(frozen=True)
class Shrunk:
    """What a node must be told when its operands have lost indices.

    Attributes:
        attributes: new values of attributes; None removes one.
        inputs: new constants by position.
        elements: new numbers of some `Operands.elements` of inputs that are computed, by position and place.
    """

    attributes: Mapping[str, int | None] = field(default_factory=dict)
    inputs: Mapping[int, Array] = field(default_factory=dict)
    elements: Mapping[int, Mapping[int, int]] = field(default_factory=dict)


Kept = Callable[[Port, int], Indices | None]
"""Which indices of an operand's axis stay, or None where all do."""


@dataclass(frozen=True)
class PruningFacts:
    """An operator's facet for pruning.

    Attributes:
        ties: the axes of a node that stand and fall together.
        shrink: what must change in a node whose operands have lost indices; None where nothing must.
    """

    ties: Callable[[Operands], Iterable[Tie | None]]
    shrink: Callable[[Operands, Kept], Shrunk] | None = None


def alike(facts: PruningFacts, ops: Sequence[Op]) -> tuple[Op, ...]:
    """Operators that all have the same facts."""
    return tuple(dataclasses.replace(op, pruning=facts) for op in ops)


def same(
    node: Operands, *axes: tuple[Port, int], unit: str | None = None, contracts: bool = False
) -> Tie | None:
    """A tie of axes of equal length, index by index; None where their length is no number or differs.

    Operands that are omitted are left out.
    """
    present = [(port, axis) for port, axis in axes if node.dims(port) is not None]
    lengths = {node.length(port, axis) for port, axis in present}
    length = next(iter(lengths)) if len(lengths) == 1 else None
    if length is None:
        return None
    return grouped(node, *((port, axis, 1) for port, axis in present), unit=unit, contracts=contracts)


def grouped(
    node: Operands, *axes: tuple[Port, int, int], unit: str | None = None, contracts: bool = False
) -> Tie | None:
    """A tie of axes of which each slot is a run of indices: (operand, axis, indices to a slot).

    None where a length is no number or the numbers of slots differ.
    """
    members = []
    counts = set()
    for port, axis, run in axes:
        dims, length = node.dims(port), node.length(port, axis)
        if dims is None:
            continue
        if length is None or run < 1 or length % run:
            return None
        counts.add(length // run)
        members.append(Member(port, axis % len(dims), np.arange(length) // run))
    return Tie(tuple(members), unit, contracts) if len(counts) == 1 else None


def broadcast_ties(node: Operands, inputs: Iterable[int], *, last: int = 0) -> list[Tie | None]:
    """Ties of inputs that broadcast to the first output (NumPy's rule), but for its `last` axes."""
    dims = node.dims(output(0))
    if dims is None:
        return []
    positions = [i for i in inputs if node.dims(input_(i)) is not None]
    ties = []
    for axis in range(len(dims) - last):
        joined = [(output(0), axis)]
        for i in positions:
            own = node.dims(input_(i)) or ()
            at = axis - len(dims) + len(own)
            if at >= 0 and own[at] != 1:
                joined.append((input_(i), at))
        ties.append(same(node, *joined))
    return ties


def _elementwise(node: Operands) -> list[Tie | None]:
    return broadcast_ties(node, range(len(node.inputs)))


ELEMENTWISE = PruningFacts(_elementwise)
"""Each element of the output comes from the elements at its place; inputs broadcast."""


def except_axes(axes_of: Callable[[Operands], Iterable[int] | None]) -> PruningFacts:
    """Facts of an operator that keeps the shape and needs all of some axes, as a softmax does."""

    def ties(node: Operands) -> list[Tie | None]:
        dims, whole = node.dims(input_(0)), axes_of(node)
        if dims is None or whole is None:
            return []
        needed = {axis % len(dims) for axis in whole}
        return [same(node, (input_(0), d), (output(0), d)) for d in range(len(dims)) if d not in needed]

    return PruningFacts(ties)


def _windows(node: Operands) -> list[Tie | None]:
    return [same(node, (input_(0), d), (output(0), d)) for d in (0, 1)]


WINDOWS = PruningFacts(_windows)
"""Pooling: each channel for itself, the axes behind it as a whole."""


class Whole(Exception):  # noqa: N818 - not an error: the node keeps its operands whole
    """A node needs all of its operands; the message says why, in words for the user."""
