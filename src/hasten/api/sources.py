"""What models come from, and what data must know of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hasten.runtime.manifest import TensorInfo
from hasten.search.prune.report import Pruned


def plain(source: object) -> object:
    """A source that frontends take: of what `prune` made, its graph."""
    return source.model if isinstance(source, Pruned) else source


def folder_of(source: object) -> Path | None:
    """The folder of a source, or of its original, which may bring what reads raw texts and pictures."""
    if isinstance(source, Pruned):
        return source.folder
    return Path(source) if isinstance(source, str | os.PathLike) and Path(source).is_dir() else None


def inputs_of(model: ir.Model) -> list[TensorInfo]:
    """What a model takes."""
    described = []
    for value in model.graph.inputs:
        dims = tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape or ())
        dtype = "float32" if value.dtype is None else np.dtype(value.dtype.numpy()).name
        described.append(TensorInfo(value.name or "", dtype, dims))
    return described
