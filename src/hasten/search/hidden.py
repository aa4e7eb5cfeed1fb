"""Positions that a mask hides do not count.

A compiled model answers 0 at them (`codegen.padding`), other engines what comes of padding. Whoever compares
their answers must neither call that a difference nor, between two compiled models, a position where they
agree: most of the positions of a padded batch may be such.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.search.blocks import together
from hasten.search.metrics import Metric
from hasten.search.samples import Feeds, Samples

Array = NDArray[Any]
Padding = Sequence[Mapping[str, Any]]
"""An artifact's report of what it leaves out: `codegen.padding.Skipped`."""

_NOT_COUNTED = -100  # as usual for labels of positions


@dataclass(frozen=True)
class Hidden:
    """Which positions of an output are hidden.

    Attributes:
        positions: bool, `[entries, positions]`.
        axes: those of entries and of positions in the output.
    """

    positions: Array
    axes: tuple[int, int]

    def filled(self, array: Array, *, lowest: bool = False) -> Array:
        """An output with 0 at hidden positions.

        Args:
            array: the output.
            lowest: minus infinity instead, in entries that have a position that is not hidden.
        """
        first = np.moveaxis(array, self.axes, (0, 1))
        if first.shape[:2] != self.positions.shape or not self.positions.any():
            return array
        cleared = first.copy()
        cleared[self.positions] = 0
        if lowest:
            cleared[self.positions & ~self.positions.all(axis=1, keepdims=True)] = -np.inf
        return np.moveaxis(cleared, (0, 1), self.axes)


def hidden_in(padding: Iterable[Mapping[str, Any]], feeds: Mapping[str, Array]) -> dict[str, Hidden]:
    """For each output that is not computed at hidden positions which those are, where masks tell.

    Args:
        padding: the artifact's report of it.
        feeds: the inputs.
    """
    result: dict[str, Hidden] = {}
    for skipped in padding:
        if skipped["hidden"] is not None:
            positions = np.asarray(feeds[skipped["masks"][0]]) == skipped["hidden"]
            result |= {name: Hidden(positions, tuple(axes)) for name, axes in skipped["outputs"].items()}
    return result


def padding_of(artifact: Path) -> Padding:
    """What an artifact of ours that was just built says of it."""
    with zipfile.ZipFile(artifact) as archive:
        return tuple(json.loads(archive.read("manifest.json"))["report"]["padding"])


def unknown(padding: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """The outputs that are 0 at positions that cannot be told from inputs, and the inputs that hide those."""
    return {name: s["masks"] for s in padding if s["hidden"] is None for name in s["outputs"]}


def untold(padding: Padding, outputs: Collection[str]) -> bool:
    """Whether some outputs are 0 at positions that cannot be told from inputs, sample by sample."""
    crossed = {name for s in padding for name, axes in s["outputs"].items() if axes[0] != 0}
    return not crossed.union(unknown(padding)).isdisjoint(outputs)


@dataclass(frozen=True)
class Shown:
    """What of answers and labels counts.

    Attributes:
        metric: what is measured.
        padding: of the lossless compilation. What another candidate leaves out beyond that does count.
    """

    metric: Metric
    padding: Padding = ()

    def answer(self, feeds: Sequence[Feeds], name: str, array: Array) -> Array:
        """An output with nothing at hidden positions.

        That is 0. Where positions are what has the scores, it is the lowest score.

        Args:
            feeds: of samples of equal shapes.
            name: of the output.
            array: what any engine answers to them, along the first axis.
        """
        hidden = self._hidden(feeds, name)
        if hidden is None:
            return array
        return hidden.filled(array, lowest=self._scored(array, hidden.axes[1]))

    def labels(self, samples: Samples, outputs: Mapping[str, Array]) -> Array | None:
        """Labels that tell which positions count, as the metrics by name understand them.

        Args:
            samples: with labels or without.
            outputs: of any engine to all of them.
        """
        name = self.metric.output or next(iter(outputs))
        if self.metric.any_output or not any(name in skipped["outputs"] for skipped in self.padding):
            return samples.labels
        given = [None] * len(samples) if samples.labels is None else samples.labels
        rows = []
        for feeds, row, label in zip(samples.feeds, outputs[name], given, strict=True):
            hidden = self._hidden([feeds], name)
            told = None if label is None else np.asarray(label)
            told = told if hidden is None else self._label(row, hidden, told)
            if told is None:
                return None  # neither given nor needed
            rows.append(told)
        return together(rows)

    def said(self, outputs: Collection[str]) -> list[str]:
        """In words, of the outputs that are looked at, for reports."""
        known = [s for s in self.padding if not set(outputs).isdisjoint(s["outputs"])]
        masks = sorted({mask for s in known for mask in s["masks"]})
        return [f"positions that {' and '.join(masks)} hides do not count"] if masks else []

    def _label(self, row: Array, hidden: Hidden, label: Array | None) -> Array | None:
        """The label of a sample, or of its positions, with those marked that do not count."""
        at, positions = hidden.axes[1] - 1, hidden.positions[0]
        if self._scored(row, at):
            return label
        if not self.metric.needs_labels:
            # Of others' labels only those matter that do not count.
            shape = row.shape if row.dtype.kind in "biu" else row.shape[:-1]
            fits = label is not None and label.shape == shape and label.dtype.kind in "biu"
            label = label if fits else np.zeros(shape, np.int64)
        assert label is not None
        if label.ndim <= at or label.shape[at] != len(positions):
            return label
        along = positions.reshape([-1 if axis == at else 1 for axis in range(label.ndim)])
        if self.metric.over_classes:
            return np.where(along, _NOT_COUNTED, label.astype(np.int64))
        return np.where(along, np.nan, label.astype(np.float64))

    def _scored(self, array: Array, at: int) -> bool:
        """Whether positions are what has the scores that the metric compares."""
        return self.metric.over_classes and array.dtype.kind == "f" and at == array.ndim - 1

    def _hidden(self, feeds: Sequence[Feeds], name: str) -> Hidden | None:
        skipped = [s for s in self.padding if name in s["outputs"] and s["hidden"] is not None]
        names = {s["masks"][0] for s in skipped}
        masks = {mask: np.concatenate([np.asarray(one[mask]) for one in feeds]) for mask in names}
        return hidden_in(skipped, masks).get(name)
