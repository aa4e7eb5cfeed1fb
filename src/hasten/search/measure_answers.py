"""Comparing an artifact's answers with those of the model that it was compiled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError, MissingDependencyError
from hasten.frontends import huggingface
from hasten.search.engines import ONNXRUNTIME, REFERENCE, TORCH, Engine, answers
from hasten.search.hidden import hidden_in

Array = NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """How far an output is from what it should be.

    Attributes:
        output: its name.
        absolute: the largest absolute difference; infinity where NaN or infinity is on one side alone, or
            the shapes or kinds of type differ.
        range: the distance from the least to the greatest finite element of the right output.
        relative: `absolute` by `range` (by the greatest magnitude where all elements are equal, by 1 where
            they are all zero).
    """

    output: str
    absolute: float
    range: float
    relative: float


def source_answers(
    source: Path, feeds: Mapping[str, Array], threads: int
) -> tuple[Engine, str | None, dict[str, Array]]:
    """What a model answers in the engine that it was made for.

    PyTorch runs a Hugging Face folder; ONNX Runtime an ONNX file, or ONNX's reference evaluator if that is
    not installed or cannot.

    Args:
        source: an ONNX file or a Hugging Face folder.
        feeds: an array for each input.
        threads: threads to use.

    Returns:
        The engine, why it was not the usual one, and its outputs by name.

    Raises:
        EngineError: no engine runs the model on these inputs.
        MissingDependencyError: the engine is not installed.
    """
    if huggingface.accepts(source):
        if TORCH.version is None:
            raise MissingDependencyError(
                "a Hugging Face folder is run by PyTorch, which is not installed: "
                "pip install 'hasten[huggingface]'"
            )
        return TORCH, None, answers(TORCH, source, feeds, threads)
    why = "onnxruntime is not installed"
    if ONNXRUNTIME.version is not None:
        try:
            return ONNXRUNTIME, None, answers(ONNXRUNTIME, source, feeds, threads)
        except EngineError as error:
            why = str(error)
    return REFERENCE, why, answers(REFERENCE, source, feeds, threads)


def compare(wanted: Mapping[str, Array], got: Mapping[str, Array]) -> list[Difference]:
    """The difference of each output in `got` from the one of that name in `wanted`, which has them all."""
    return [difference(name, wanted[name], array) for name, array in got.items()]


def without_padding(
    padding: Sequence[Mapping[str, Any]], feeds: Mapping[str, Array], found: Mapping[str, Array]
) -> dict[str, Array]:
    """Answers with 0 at positions that a mask hides, where an artifact does not compute them.

    Args:
        padding: the artifact's report of it (`codegen.padding.Skipped`).
        feeds: the inputs.
        found: what any engine answered.
    """
    hidden = hidden_in(padding, feeds)
    return {name: hidden[name].filled(array) if name in hidden else array for name, array in found.items()}


def difference(name: str, wanted: Array, got: Array) -> Difference:
    """How far one array is from another."""
    of_another_package = wanted.dtype.isbuiltin == 2  # numbers too: bfloat16 and such of ml_dtypes
    if wanted.dtype.kind not in "biuf" and not of_another_package:
        apart = float("inf") if wanted.shape != got.shape or (wanted != got).any() else 0.0
        return Difference(name, apart, 0.0, apart)
    right, found = wanted.astype(np.float64), got.astype(np.float64)
    finite = right[np.isfinite(right)]
    extent = float(np.ptp(finite)) if finite.size else 0.0
    if right.shape != found.shape or wanted.dtype.kind != got.dtype.kind:
        return Difference(name, float("inf"), extent, float("inf"))
    with np.errstate(invalid="ignore"):
        apart_by = np.abs(right - found)
    same = (right == found) | (np.isnan(right) & np.isnan(found))
    # What is left without a number is NaN or infinity on one side alone.
    apart_by = np.where(same, 0.0, np.where(np.isnan(apart_by), np.inf, apart_by))
    worst = float(apart_by.max()) if apart_by.size else 0.0
    scale = extent or (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
    return Difference(name, worst, extent, worst / scale)
