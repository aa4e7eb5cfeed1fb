"""Reading a user's data, in any of their forms, as samples that fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import DataError
from hasten.runtime.manifest import TensorInfo
from hasten.search.blocks import together
from hasten.search.data_files import items_of
from hasten.search.data_labels import Names, class_names, numbers_of
from hasten.search.data_raw import LABELS, Raw, are_texts
from hasten.search.samples import Feeds, Samples, apart, batches, in_batches, split

__all__ = ["Feeds", "Samples", "apart", "batches", "load_runs", "load_samples", "split"]

Array = NDArray[Any]

MOST_BYTES = 2 << 30
"""Of arrays in memory. What is mapped from an uncompressed .npz does not count."""

_ROWS = 256


def load_samples(
    data: object, inputs: Sequence[TensorInfo], *, folder: Path | None = None, most_bytes: int = MOST_BYTES
) -> Samples:
    """Reads a user's data.

    Args:
        data: one of
            - an iterable of samples, such as a list, a `datasets.Dataset` or a torch `DataLoader`. A sample
              is a mapping of inputs' names to arrays (with a "label" or "labels", if any), a pair of such a
              mapping and a label, an array where the model has one input, or a tuple of arrays in the order
              of the inputs. Arrays have the batch axis or lack it; batches are taken apart;
            - an `.npz` file of arrays by input name, whose first axes count samples, and maybe "labels"; a
              folder of such files. Uncompressed ones are mapped into memory, not read;
            - a Parquet file (needs pyarrow) or one with a JSON object on each line (`.jsonl`), a column for
              each input;
            - raw texts, pairs of texts, or pictures (paths or PIL images) in place of arrays, or in columns
              "text" and "text_pair" (or what well-known sets call them), or "image", of a sample or of a
              batch; a folder of pictures, in folders named by their classes if they have labels. They need
              `folder`.
        inputs: what the model takes.
        folder: the model's Hugging Face folder with its tokenizer or image processor, for raw texts and
            pictures, and with the names of its classes, for labels that are texts.
        most_bytes: of arrays in memory, at most.

    Raises:
        DataError: the data cannot be read, are empty or too large, or do not fit the model.
        MissingDependencyError: a package is needed to read them and not installed.
    """
    names = class_names(folder)
    collector = _Collector(inputs, Raw(folder, inputs), most_bytes, names)
    for item in items_of(data, names):
        collector.add(item)
    return collector.samples()


def load_runs(
    data: object, inputs: Sequence[TensorInfo], *, folder: Path | None = None
) -> tuple[Sequence[Feeds], tuple[str, ...]]:
    """Reads a user's data as arrays for runs of the model: samples, or batches where these have a fixed size.

    Arguments and errors are those of `load_samples`.

    Returns:
        Arrays by input name for each run; what is to be said of it.
    """
    sizes = {info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)}
    size = sizes.pop() if len(sizes) == 1 else 1
    if size == 1:
        return load_samples(data, inputs, folder=folder).feeds, ()
    free = [replace(info, shape=("batch", *info.shape[1:])) if info.shape else info for info in inputs]
    samples = load_samples(data, free, folder=folder)
    runs, repeated = in_batches(samples, size)
    filled = f"; {repeated} places repeat a sample" if repeated else ""
    return runs, (f"the model takes batches of {size}: {len(samples)} samples are {len(runs)}{filled}",)


class _Collector:
    """Takes items one after the other, checks them and gathers samples.

    Args:
        inputs: what the model takes.
        raw: makes arrays of raw texts and pictures.
        most_bytes: of arrays in memory, at most.
        names: of the classes.
    """

    def __init__(self, inputs: Sequence[TensorInfo], raw: Raw, most_bytes: int, names: Names) -> None:
        for info in inputs:
            if info.shape and isinstance(info.shape[0], int) and info.shape[0] != 1:
                raise DataError(
                    f"the model takes batches of exactly {info.shape[0]} ({info}), and single samples are "
                    "needed: export it with a batch axis that is free, or 1"
                )
        self._inputs = tuple(inputs)
        self._raw, self._names = raw, names
        self._most = most_bytes
        self._bytes = 0
        self._feeds: list[Feeds] = []
        self._labels: list[object] = []
        self._notes: dict[str, None] = {}

    def add(self, item: object) -> None:
        """Takes a sample, or a batch of samples.

        Raises:
            DataError: it does not fit the model.
        """
        for sample in self._raw.samples(item):
            self._add_arrays(sample)

    def _add_arrays(self, item: object) -> None:
        given, label = self._taken_apart(item)
        feeds, batched = self._rows(given)
        for feed in feeds:
            self._bytes += sum(array.nbytes for array in feed.values() if not _is_mapped(array))
        self._refuse_beyond(0)
        self._add_labels(label, len(feeds), batched)
        self._feeds += feeds

    def _refuse_beyond(self, more: int) -> None:
        if self._bytes + more > self._most:
            raise DataError(
                f"the data need more than {self._most / 1e9:.1f} GB of memory (after {len(self._feeds):,} "
                "samples): give fewer, or an uncompressed .npz of the model's own types (numpy.savez), "
                "which is mapped and not read"
            )

    def samples(self) -> Samples:
        """What was gathered.

        Raises:
            DataError: nothing; labels of a part only, or labels that are no numbers.
        """
        if not self._feeds:
            raise DataError("the data are empty: give at least some hundred samples")
        return Samples(tuple(self._feeds), self._joined_labels(), (*self._raw.notes, *self._notes))

    def _taken_apart(self, item: Any) -> tuple[Mapping[str, object], object]:
        """An item as inputs by name, and its label or None."""
        names = [info.name for info in self._inputs]
        where = f"sample {len(self._feeds)}"
        if isinstance(item, Mapping):
            label = next((item[key] for key in LABELS if key in item and key not in names), None)
            return self._raw.arrays(item, where) if self._raw.knows(item) else item, label
        pair = isinstance(item, tuple | list) and len(item) == 2
        if pair and isinstance(item[1], str) and item[1] in self._names and self._raw.knows(item[0]):
            return self._raw.arrays(item[0], where), item[1]
        if self._raw.knows(item):
            return self._raw.arrays(item, where), None
        if pair and (isinstance(item[0], Mapping) or self._raw.knows(item[0])):
            given, inner = self._taken_apart(item[0])
            return given, item[1] if inner is None else inner
        if isinstance(item, tuple) or (isinstance(item, list) and item and _is_part(item[0])):
            if len(item) in (len(names), len(names) + 1):
                label = item[len(names)] if len(item) > len(names) else None
                return dict(zip(names, item, strict=False)), label
            raise DataError(
                f"a sample has {len(item)} parts, and the model takes {len(names)} inputs "
                f"({', '.join(names)}) and a label maybe: give mappings by name"
            )
        if len(names) == 1 and (_is_array(item) or isinstance(item, str)):
            return {names[0]: item}, None
        raise DataError(
            f"{where} is {type(item).__name__}: give a mapping of {', '.join(names)} to "
            "arrays, or a pair of that and a label"
        )

    def _rows(self, given: Mapping[str, object]) -> tuple[list[Feeds], bool]:
        """Samples of one item, which may be a batch; whether it came with a batch axis."""
        missing = [info.name for info in self._inputs if info.name not in given]
        if missing:
            have = ", ".join(map(str, given)) or "nothing"
            raise DataError(
                f"sample {len(self._feeds)} has no {', '.join(missing)} (it has {have}); the model takes "
                f"{', '.join(map(str, self._inputs))}"
            )
        known = {info.name for info in self._inputs}
        extra = [str(name) for name in given if name not in known and name not in LABELS]
        if extra:
            self._notes[f"not used, since the model has no such input: {', '.join(extra)}"] = None
        arrays, batched = {}, False
        for info in self._inputs:
            arrays[info.name], has_axis = self._array(info, given[info.name])
            batched = batched or has_axis
        counts = {len(array) for array in arrays.values() if array.ndim}
        if len(counts) != 1:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise DataError(
                f"the inputs of item {len(self._feeds)} have different numbers of samples: {shapes}"
            )
        feeds: list[Feeds] = [
            {name: array[i : i + 1] if array.ndim else array for name, array in arrays.items()}
            for i in range(counts.pop())
        ]
        return feeds, batched

    def _array(self, info: TensorInfo, value: object) -> tuple[Array, bool]:
        """The value of an input with its batch axis, of the model's type; whether it came with the axis."""
        where = f"input {info.name!r} of sample {len(self._feeds)}"
        array = as_array(value, where)
        if (
            isinstance(value, list | int | float)
            and array.dtype.kind in "if"
            and np.dtype(info.dtype).kind == "f"
        ):
            array = array.astype(info.dtype)  # numbers without a type of their own, such as 1 for 1.0 in JSON
        array = self._cast(info, array, where)
        batched = array.ndim == len(info.shape) > 0
        if array.ndim == len(info.shape) - 1:
            array = array[None]
        fits = array.ndim == len(info.shape) and all(
            not isinstance(dim, int) or dim == length
            for dim, length in zip(info.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise DataError(f"{where} has the shape {list(array.shape)}; the model takes {info}")
        _refuse_nan(array, where)
        return array, batched

    def _cast(self, info: TensorInfo, array: Array, where: str) -> Array:
        wanted = np.dtype(info.dtype)
        if array.dtype == wanted or (wanted.kind == "O" and array.dtype.kind == "U"):
            return array  # texts stay such: objects have no bytes to tell them apart by
        # Before the copy is made: a mapped array may be of any size.
        self._refuse_beyond(array.size * wanted.itemsize)
        kinds = array.dtype.kind + wanted.kind
        if np.can_cast(array.dtype, wanted, "safe") and kinds in ("ii", "uu", "ui", "ff", "bb", "bi", "bu"):
            self._notes[f"input {info.name!r}: {array.dtype} widened to {wanted}"] = None
            return array.astype(wanted)
        if kinds == "ff":
            self._notes[f"input {info.name!r}: {array.dtype} rounded to {wanted}"] = None
            return array.astype(wanted)
        narrowed = array.astype(wanted) if kinds in ("ii", "iu", "ui", "uu", "ib", "ub") else None
        if narrowed is not None and bool((narrowed == array).all()):
            self._notes[f"input {info.name!r}: {array.dtype} to {wanted}, which holds all values"] = None
            return narrowed
        raise DataError(
            f"{where} is {array.dtype}; the model takes {info}: convert it if that is what you mean"
        )

    def _add_labels(self, label: object, count: int, batched: bool) -> None:
        if label is None:
            self._labels += [None] * count
            return
        where = f"the label of sample {len(self._feeds)}"
        found = as_array(label, where)
        if found.dtype.kind in "SU":
            found = numbers_of(found.astype(str), self._names, where)
        if count == 1 and not (batched and found.shape[:1] == (1,)):
            self._labels.append(found)
        elif found.ndim and len(found) == count:
            self._labels += list(found)
        else:
            raise DataError(
                f"{count} samples from {len(self._feeds)} on have labels of shape {list(found.shape)}"
            )

    def _joined_labels(self) -> Array | None:
        missing = [i for i, label in enumerate(self._labels) if label is None]
        if len(missing) == len(self._labels):
            return None
        if missing:
            raise DataError(
                f"sample {missing[0]} has no label, and {len(self._labels) - len(missing)} others have: give "
                "all or none"
            )
        arrays = [np.asarray(label) for label in self._labels]
        for index, array in enumerate(arrays):
            # Of several positions some may be NaN, which do not count; of a single one nothing would be left.
            if array.dtype.kind == "f" and array.size and bool(np.isnan(array).all()):
                raise DataError(f"the label of sample {index} is NaN: remove or repair such samples")
        joined = together(arrays)
        return joined.astype(np.int64) if joined.dtype.kind in "bu" else joined


def as_array(value: object, where: str) -> Array:
    """An array of a NumPy array, a tensor of another library, a number or nested lists.

    Raises:
        DataError: it cannot be made one.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()  # a tensor of PyTorch, which may need gradients or be on another device
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} cannot be made an array: {error}") from None
    if array.dtype == object and array.size and all(isinstance(text, str) for text in array.flat):
        return array.astype(str)
    if array.dtype.kind not in "biufSU":
        raise DataError(
            f"{where} is {type(value).__name__} of {array.dtype}: give an array of numbers or texts"
        )
    return value if isinstance(value, np.memmap) else array


def _refuse_nan(array: Array, where: str) -> None:
    if array.dtype.kind != "f" or not array.ndim:
        return
    for start in range(0, len(array), _ROWS):  # a mapped array may be larger than the memory
        found = np.isnan(array[start : start + _ROWS])
        if found.any():
            first, *rest = np.argwhere(found)[0].tolist()
            raise DataError(f"{where} has NaN at {[start + first, *rest]}: remove or repair such samples")


def _is_mapped(array: Array) -> bool:
    """Whether an array lies in a file; what is computed of such an array is of its class, and in memory."""
    return isinstance(array, np.memmap) and array.filename is not None


def _is_part(value: object) -> bool:
    """Whether it is the values of one input in a list of those of all, such as a `DataLoader` gives."""
    return _is_array(value) or are_texts(value)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic | list) or hasattr(value, "__array__")
