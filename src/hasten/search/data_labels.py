"""Labels of classes: by the names that a Hugging Face folder gives them, and what is no class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import DataError

Array = NDArray[Any]
Names = Mapping[str, int]
"""The number of each class by its name; empty where the model has none."""


def class_names(folder: Path | None) -> Names:
    """The classes that a folder's config.json names, without those that are called LABEL_0 and so on."""
    if folder is None:
        return {}
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        named = {str(name): int(number) for number, name in config.get("id2label", {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # what is wrong with the folder is said where the model is read
    return {} if all(name == f"LABEL_{number}" for name, number in named.items()) else named


def numbers_of(label: Array, names: Names, where: str) -> Array:
    """Names of classes as their numbers, int64.

    Raises:
        DataError: there is no such class, or the model does not name its classes.
    """
    if not names:
        raise DataError(
            f"{where} is {label.ravel()[0]!r}: give the class's number, or a Hugging Face folder whose "
            "config.json names its classes (id2label)"
        )
    unknown = sorted({str(name) for name in label.ravel()} - set(names))
    if unknown:
        raise DataError(f"{where} is {unknown[0]!r}: the model's classes are {', '.join(names)}")
    return np.array([names[str(name)] for name in label.ravel()], np.int64).reshape(label.shape)


@dataclass(frozen=True)
class Wrong:
    """A label that is no class: whose, and why, in words."""

    sample: int
    why: str


def wrong_label(labels: Array, count: int | None) -> Wrong | None:
    """The first label that is no class; None if all are.

    Args:
        labels: numbers, of samples `[samples]` or of positions of samples, where a negative one hides its
            position.
        count: classes of the model; None where its outputs are classes themselves, whatever their numbers.
    """
    if labels.dtype.kind == "f":
        odd = labels != np.rint(labels)
        if odd.any():
            return Wrong(_first(odd), f"label {labels[odd][0]:g} is no whole number: give a class's number")
    if count is None:
        return None
    known = f"no class of the model, which has {count}, numbered from 0 to {count - 1}"
    high = labels >= count
    if high.any():
        hint = "; a negative label, such as -100, hides a position" if labels.ndim > 1 else ""
        return Wrong(_first(high), f"label {labels[high][0]:g} is {known}{hint}")
    low = labels < 0
    if labels.ndim == 1 and low.any():
        return Wrong(_first(low), f"label {labels[low][0]:g} is {known}: leave out samples without a label")
    return None


def check_labels(labels: Array, count: int | None) -> None:
    """Refuses labels that are no classes, as `wrong_label` finds them.

    Args:
        labels: one for each sample, or an array for each.
        count: as for `wrong_label`.

    Raises:
        DataError: there is one; it says of which sample.
    """
    parts = [labels] if labels.dtype != object else [np.asarray(label)[None] for label in labels]
    for number, part in enumerate(parts):
        wrong = wrong_label(part, count)
        if wrong is not None:
            raise DataError(f"sample {number + wrong.sample}: {wrong.why}")


def _first(found: Array) -> int:
    """Of which sample the first one is."""
    return int(np.argwhere(found)[0][0])
