"""The engine that a model came from, as something to compare with."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from hasten.frontends import huggingface, sklearn, torch
from hasten.search.candidates import ORIGINAL, Candidate
from hasten.search.engines import ONNXRUNTIME, TORCH, Engine


@dataclass(frozen=True)
class Original:
    """A model in the engine that it was made for.

    Attributes:
        engine: the engine.
        model: what it takes.
    """

    engine: Engine
    model: Path

    @property
    def candidate(self) -> Candidate:
        """It as a candidate."""
        text = f"{self.engine.package} {self.engine.version} on the model as it was given"
        return Candidate(ORIGINAL, text, self.engine)


def original_of(source: object, folder: Path) -> Original | str:
    """The original of a source, written to a folder if need be; or why nothing here runs it.

    Args:
        source: what `hasten.compile` takes.
        folder: for files.
    """
    if isinstance(source, str | os.PathLike) and huggingface.accepts(Path(source)):
        return Original(TORCH, Path(source)) if TORCH.version else "PyTorch is not installed"
    if torch.accepts(source):
        return _saved_module(source, folder / "original.pt")
    if ONNXRUNTIME.version is None:
        return "ONNX Runtime is not installed"
    if sklearn.accepts(source):
        source = sklearn.convert(source)
    if isinstance(source, str | os.PathLike):
        return Original(ONNXRUNTIME, Path(source))
    path = folder / "original.onnx"
    if isinstance(source, ir.Model):
        ir.save(source.clone(), path, external_data="original.data")
    else:
        path.write_bytes(_content(source))
    return Original(ONNXRUNTIME, path)


def _content(source: Any) -> bytes:
    return bytes(source.SerializeToString()) if isinstance(source, onnx.ModelProto) else bytes(source)


def _saved_module(module: Any, path: Path) -> Original | str:
    from torch import export, save

    try:
        if isinstance(module, export.ExportedProgram):
            export.save(module, path.with_suffix(".pt2"))
            return Original(TORCH, path.with_suffix(".pt2"))
        save(module, path)
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        return f"the torch module cannot be saved for another process ({error})"
    return Original(TORCH, path)
