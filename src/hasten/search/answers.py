"""What a version of a model answers to many samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError
from hasten.search.blocks import Rows, blocks
from hasten.search.data import Samples, batches
from hasten.search.engines import Worker
from hasten.search.engines_worker import save_npz
from hasten.search.hidden import Shown

Array = NDArray[Any]
Outputs = Mapping[str, Array]
"""By name; the first axis counts samples. Where samples differ in shape: arrays of arrays."""


@dataclass(frozen=True)
class Batch:
    """A file of inputs, and which samples they are."""

    path: Path
    place: slice


@dataclass(frozen=True)
class Part:
    """Samples in files that workers read more than once.

    Attributes:
        samples: what is in them.
        batches: the files, in order.
    """

    samples: Samples
    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        return len(self.samples)


def write_part(samples: Samples, size: int, folder: Path) -> Part:
    """Writes samples to files of at most `size` each in a new folder, which stay."""
    folder.mkdir()
    return Part(samples, tuple(_written(samples, size, folder)))


def passing(samples: Samples, size: int, folder: Path) -> Iterator[Batch]:
    """The same files one after the other: each is there until the next one is asked for.

    For samples that may be more than the folder takes, or the memory that it is in: those of a mapped file.
    """
    folder.mkdir(exist_ok=True)
    for batch in _written(samples, size, folder):
        try:
            yield batch
        finally:
            batch.path.unlink()


def _written(samples: Samples, size: int, folder: Path) -> Iterator[Batch]:
    for number, (feeds, place) in enumerate(batches(samples, size)):
        path = folder / f"{number}.npz"
        save_npz(str(path), feeds)
        yield Batch(path, place)


def answers_to(
    worker: Worker,
    samples: Samples,
    files: Iterable[Batch],
    wanted: Collection[str],
    order: Sequence[str] = (),
    shown: Shown | None = None,
) -> dict[str, Array]:
    """What a worker's model answers to all samples.

    Args:
        worker: with the model open.
        samples: what it is asked.
        files: the same in files, in order.
        wanted: names of the outputs to keep.
        order: names of all outputs of the graph. A torch module that does not name its results gives them in
            this order.
        shown: tells what does not count of them, which is blotted out; None for nothing.

    Raises:
        EngineError: it failed, or an output has no axis that counts samples.
    """
    rows = {name: Rows() for name in wanted}
    for batch in files:
        outputs = worker.outputs(batch.path)
        if len(outputs) == len(order) and not set(wanted) <= set(outputs):
            outputs = dict(zip(order, outputs.values(), strict=True))
        count = batch.place.stop - batch.place.start
        for name in wanted:
            if name not in outputs:
                raise EngineError(
                    f"{worker.engine.name} has no output {name!r} (it has {', '.join(outputs)})"
                )
            array = outputs[name]
            if array.ndim == 0 or len(array) != count:
                if count > 1:
                    raise EngineError(
                        f"output {name!r} of {worker.engine.name} has the shape {list(array.shape)} "
                        f"for {count} samples: its first axis must count samples"
                    )
                array = array[None]
            if shown is not None:
                array = shown.answer(samples.feeds[batch.place], name, array)
            rows[name].add(array)
    return {name: found.joined() for name, found in rows.items()}


def relative_change(reference: Outputs, changed: Outputs) -> float:
    """The mean squared change of the float outputs by their variance; infinity where it is no number.

    What is infinite or no number in both, as logits that a model masks are, does not count.
    """
    squares = spread = 0.0
    for name, wanted in reference.items():
        if not len(wanted) or np.asarray(wanted[0]).dtype.kind != "f":
            continue
        count, total = 0, 0.0
        for before, _ in _pairs(wanted, wanted):
            finite = before[np.isfinite(before)]
            count, total = count + finite.size, total + float(finite.sum())
        mean = total / max(1, count)
        variance = changes = 0.0
        for before, after in _pairs(wanted, changed[name]):
            same = (before == after) | (np.isnan(before) & np.isnan(after))
            counted = np.isfinite(before) | ~same
            variance += float(np.square(before[counted] - mean).sum())
            changes += float(np.square(after[counted] - before[counted]).sum())
        # A variance of zero says nothing of the scale.
        squares += changes / max(1, count) / (variance / max(1, count) or 1.0)
        spread += 1.0
    value = squares / spread if spread else 0.0
    return value if np.isfinite(value) else float("inf")


def _pairs(left: Array, right: Array) -> Iterator[tuple[Array, Array]]:
    """The elements of two versions' answers in float64, a few megabytes at a time."""
    for some in blocks(left):
        a, b = (x[some.start] if left.dtype == object else x[some] for x in (left, right))
        yield np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
