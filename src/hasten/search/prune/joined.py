"""Samples of equal shapes run together, where a model takes several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hasten.search.prune.cost import Feeds


@dataclass(frozen=True)
class Batch:
    """Some samples as one run takes them.

    Attributes:
        feeds: an array for each input, along whose first axis the samples lie.
        members: which samples they are.
    """

    feeds: Feeds
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.members)


def batch_dim(model: ir.Model) -> str | None:
    """The symbolic size of the first axis of all that a model takes and gives: that of several samples.

    None where there is no such size; samples are then run one by one.
    """
    names = set()
    for value in [*model.graph.inputs, *model.graph.outputs]:
        first = value.shape[0] if value.shape is not None and len(value.shape) else None
        names.add(first.value if isinstance(first, ir.SymbolicDim) else None)
    return names.pop() if len(names) == 1 else None


class Batches(Sequence[Batch]):
    """Batches that are put together when it is their turn, so that samples in mapped files stay there."""

    def __init__(self, samples: Sequence[Feeds], groups: Sequence[Sequence[int]]) -> None:
        self._samples, self._groups = samples, groups

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> Batch | Batches:
        if isinstance(place, slice):
            return Batches(self._samples, self._groups[place])
        return _batch(self._samples, self._groups[place])

    def largest(self) -> Batch:
        """The first of those with the most bytes; the others are not made for that."""

        def size(members: Sequence[int]) -> int:
            arrays = self._samples[members[0]].values()
            return len(members) * sum(np.asarray(array).nbytes for array in arrays)

        return _batch(self._samples, max(self._groups, key=size))


def join(model: ir.Model, samples: Sequence[Feeds], size: int, order: Sequence[int] | None = None) -> Batches:
    """Puts samples of equal shapes together.

    Args:
        model: what will run them.
        samples: inputs by name, each with a first axis of length 1.
        size: samples in a batch, at most.
        order: samples in the order in which they are taken; by default as they come.

    Returns:
        Batches that have all the samples, each once; the arrays of a batch are made when it is asked for.
    """
    most = size if batch_dim(model) is not None else 1
    open_: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    groups = []
    for number in range(len(samples)) if order is None else order:
        shapes = tuple(np.shape(array) for array in samples[number].values())
        group = open_.setdefault(shapes, [])
        if not group:
            groups.append(group)
        group.append(int(number))
        if len(group) == most:
            del open_[shapes]
    return Batches(samples, groups)


def _batch(samples: Sequence[Feeds], members: Sequence[int]) -> Batch:
    first = samples[members[0]]
    if len(members) == 1:
        return Batch(first, np.array(members))
    feeds = {name: np.concatenate([samples[k][name] for k in members]) for name in first}
    return Batch(feeds, np.array(members))
