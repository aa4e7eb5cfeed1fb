"""Samples of a user's data: those to calibrate with, and those held out for the guarantee.

A sample is an array for each input of the model, with a batch axis of length 1, and maybe a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import DataError, OptionError
from hasten.graph.constants import raw_bytes
from hasten.search.bounds import binomial_upper

Array = NDArray[Any]
Feeds = Mapping[str, Array]

_MOST_CALIBRATION = 256
_MOST_CLASSES = 100  # more are not held in proportion
_FEW = 300  # held-out samples: the least that certify a point at 95%


@dataclass(frozen=True)
class Samples:
    """Some samples.

    Attributes:
        feeds: for each sample an array for each input, with a batch axis of length 1.
        labels: one for each sample, `[samples]` or `[samples, ...]`; of type object where their shapes
            differ; None without labels.
        notes: what was done to the data or is missing of them, in words.
    """

    feeds: tuple[Feeds, ...]
    labels: Array | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.feeds)

    def noted(self, *notes: str) -> Samples:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def typical(self) -> Feeds:
        """The sample of median size: of all its arrays' elements, then of those that are not zero."""

        def size(given: Feeds) -> tuple[int, int]:
            arrays = [np.asarray(a) for a in given.values()]
            shown = [int(np.count_nonzero(a)) for a in arrays if a.dtype.kind in "iub"]
            return sum(a.size for a in arrays), sum(shown)

        return sorted(self.feeds, key=size)[len(self.feeds) // 2]


def split(
    samples: Samples, seed: int, calibration: int | None = None, *, confidence: float = 0.95
) -> tuple[Samples, Samples]:
    """Divides samples into those that choices may look at and those held out for the guarantee.

    Whole-numbered labels of few classes are in both parts in proportion. Both parts are in random order.

    Args:
        samples: two at least.
        seed: of the order.
        calibration: how many to calibrate with; None for a quarter, 256 at most.
        confidence: of the guarantee, for the note about what too few samples cost.

    Returns:
        The calibration part and the held-out part; the latter's notes say what too few samples cost.

    Raises:
        DataError: a single sample.
        OptionError: `calibration` leaves one of the parts empty.
    """
    count = len(samples)
    if count < 2:
        raise DataError(
            f"the data have {count} sample: some are needed to calibrate with and others to measure the "
            "drop on; give hundreds"
        )
    if calibration is None:
        calibration = min(_MOST_CALIBRATION, max(1, count // 4))
    if not 0 < calibration < count:
        raise OptionError(
            f"calibration={calibration} of {count} samples: give a number from 1 to {count - 1}"
        )
    order = np.random.default_rng(seed).permutation(count)
    chosen = np.zeros(count, bool)
    chosen[_in_proportion(order, samples.labels, calibration)] = True
    parts = _select(samples, order[chosen[order]]), _select(samples, order[~chosen[order]])
    held_out = len(parts[1])
    if held_out >= _FEW:
        return parts
    least = 100 * binomial_upper(0, held_out, 1 - confidence)
    note = (
        f"{held_out} held-out samples: even for answers that never change, no drop below {least:.2g} points "
        f"of accuracy or agreement can be certified at {confidence:.0%}; a tenth of that takes ten times as "
        "many"
    )
    return parts[0], Samples(parts[1].feeds, parts[1].labels, (*parts[1].notes, note))


def some(samples: Samples, most: int, seed: int) -> Samples:
    """As many samples as may be looked at: all of them as they come, or some in random order.

    Whole-numbered labels of few classes are there in proportion, so that of data sorted by class each class
    is looked at.

    Args:
        samples: all that there are.
        most: how many are looked at, at most.
        seed: of the choice.
    """
    if len(samples) <= most:
        return samples
    order = np.random.default_rng(seed).permutation(len(samples))
    chosen = np.zeros(len(samples), bool)
    chosen[_in_proportion(order, samples.labels, most)] = True
    return _select(samples, order[chosen[order]])


def shuffled(samples: Samples, seed: int) -> Samples:
    """All samples in random order."""
    return _select(samples, np.random.default_rng(seed).permutation(len(samples)))


def apart(calibration: Samples, held_out: Samples) -> tuple[Samples, Samples]:
    """Leaves samples out of the calibration part that are held out too, so that no choice has looked at them.

    Returns:
        Both parts, with notes of what was left out, and of samples that are held out more than once: a bound
        takes them as independent.

    Raises:
        DataError: nothing would be left to calibrate with.
    """
    seen = [_digest(feeds) for feeds in held_out.feeds]
    there = set(seen)
    kept = [i for i, feeds in enumerate(calibration.feeds) if _digest(feeds) not in there]
    shared, repeated = len(calibration) - len(kept), len(seen) - len(there)
    if not kept:
        raise DataError(
            f"all {len(calibration)} samples to calibrate with are held out too: give others, or "
            "calibration=N for a share of the data"
        )
    notes = []
    if shared:
        notes.append(f"{shared} samples to calibrate with were left out, since they are held out too")
    if repeated:
        notes.append(
            f"{repeated} held-out samples repeat others: the certificate takes them as independent, which "
            "holds where data like yours repeat as often"
        )
    if shared:
        calibration = _select(calibration, np.array(kept))
    return calibration, held_out.noted(*notes)


def told_apart(array: Array) -> Array:
    """An array whose type, shape and bytes are those of every array that says the same.

    Texts have room for the longest of the array that they came in, which is no part of what they say.
    """
    if array.dtype.kind != "U":
        return array
    return np.array(array.tolist(), str).reshape(array.shape)


def _digest(feeds: Feeds) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        array = told_apart(np.asarray(feeds[name]))
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(raw_bytes(array).data)
    return digest.digest()


def batches(samples: Samples, size: int) -> Iterator[tuple[Feeds, slice]]:
    """Joins neighbouring samples of equal shapes along the batch axis.

    Args:
        samples: in the order in which they are to be answered.
        size: samples in a batch, at most.

    Yields:
        An array for each input, and which samples they are. All samples come, once and in order.
    """
    start = 0
    while start < len(samples):
        shapes = _shapes(samples.feeds[start])
        stop = start + 1
        while stop < min(start + size, len(samples)) and _shapes(samples.feeds[stop]) == shapes:
            stop += 1
        yield _together(samples.feeds[start:stop]), slice(start, stop)
        start = stop


def in_batches(samples: Samples, size: int) -> tuple[list[Feeds], int]:
    """Joins neighbouring samples of equal shapes to batches of one size, as a model with a fixed batch takes.

    Returns:
        The batches, and how many rows of them repeat the last sample of a batch that was not full.
    """
    found, repeated = [], 0
    for _, place in batches(samples, size):
        part = samples.feeds[place]
        missing = size - len(part)
        found.append(_together([*part, *part[-1:] * missing]))
        repeated += missing
    return found, repeated


def _together(part: Sequence[Feeds]) -> Feeds:
    """Samples that fit as one batch; an input without axes is the same in all of them."""
    return {
        name: np.concatenate([feed[name] for feed in part]) if first.ndim else first
        for name, first in part[0].items()
    }


def _shapes(feeds: Feeds) -> list[object]:
    """What must be equal in one batch: shapes, and the values of what has no axes."""
    return [array.shape or array.item() for array in feeds.values()]


def _select(samples: Samples, which: Array) -> Samples:
    labels = None if samples.labels is None else samples.labels[which]
    return Samples(tuple(samples.feeds[i] for i in which), labels, samples.notes)


def _in_proportion(order: Array, labels: Array | None, wanted: int) -> Array:
    """The first samples of an order, of each class as many as are its share."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return order[:wanted]
    found, members = np.unique(labels, return_inverse=True)
    if len(found) > min(_MOST_CLASSES, wanted):
        return order[:wanted]
    share = np.bincount(members) * (wanted / len(labels))
    quota = np.floor(share).astype(int)
    left = wanted - int(quota.sum())
    quota[np.argsort(quota - share, kind="stable")[:left]] += 1
    by_class = [order[members[order] == c][: quota[c]] for c in range(len(found))]
    return np.concatenate(by_class)
