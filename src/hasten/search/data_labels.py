"""Labels that are the names of classes, by the names that a Hugging Face folder gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
