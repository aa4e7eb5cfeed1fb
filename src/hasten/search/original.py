"""The engine that a model came from, as something to compare with."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from hasten.frontends import huggingface, sklearn, torch
from hasten.frontends.protocol import Example
from hasten.frontends.quiet import silent
from hasten.graph.inference import one_line
from hasten.runtime.manifest import TensorInfo
from hasten.search.candidates import ORIGINAL, Candidate
from hasten.search.engines import ONNXRUNTIME, TORCH, Engine

_LOGGERS = ("torch", "torch.export", "torch.fx")
_CONSTANTS = (int, float, str, type(None))
_LONGEST = 200  # characters of an error of torch's


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


def original_of(
    source: object, folder: Path, example: Example | None, inputs: Sequence[TensorInfo]
) -> Original | str:
    """The original of a source, written to a folder if need be; or why nothing here runs it.

    Args:
        source: what `hasten.compile` takes.
        folder: for files.
        example: inputs that a module was traced with.
        inputs: of the graph that the source was read into.
    """
    if isinstance(source, str | os.PathLike) and huggingface.accepts(Path(source)):
        return Original(TORCH, Path(source)) if TORCH.version else "PyTorch is not installed"
    if torch.accepts(source):
        return _saved_module(source, folder / "original.pt", example, inputs)
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


def _saved_module(
    module: Any, path: Path, example: Example | None, inputs: Sequence[TensorInfo]
) -> Original | str:
    """A module in a file that needs none of the user's code: another process could not import that."""
    from torch import export, save

    exported = path.with_suffix(".pt2")
    try:
        with silent(*_LOGGERS):
            given = isinstance(module, export.ExportedProgram)
            export.save(module if given else _traced(module, example, inputs), exported)
        return Original(TORCH, exported)
    except Exception as error:  # noqa: BLE001 - the tracer and the writer raise anything
        why = f"torch.export: {one_line(error)[:_LONGEST]}"
    if isinstance(module, export.ExportedProgram):
        return f"the exported program cannot be saved for another process ({why})"
    try:
        save(module, path)
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        return f"the torch module cannot be saved for another process ({why}; pickle: {error})"
    return Original(TORCH, path)


def _traced(module: Any, example: Example | None, inputs: Sequence[TensorInfo]) -> Any:
    """A module as a program of one mapping of inputs, with the symbolic sizes that its graph has."""
    from torch import Tensor, export, nn, no_grad

    class ByName(nn.Module):
        """What gives its results in a plain dict if they have names: their own type may not be importable."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, feeds: Mapping[str, Tensor]) -> Any:
            result = self.module(**feeds)
            return dict(result.items()) if isinstance(result, Mapping) else result

    if example is None:
        raise ValueError("there is no example")
    feeds = torch.named_inputs(module, *torch.as_arguments(example))
    arrays = {name for name, value in feeds.items() if not isinstance(value, _CONSTANTS)}
    if arrays != {info.name for info in inputs}:
        raise ValueError(f"the inputs {', '.join(sorted(arrays))} are not those of the graph")
    sizes: dict[str, dict[int, Any]] = {name: {} for name in arrays}
    for info in inputs:
        for axis, size in enumerate(info.shape):
            if isinstance(size, str):
                sizes[info.name][axis] = export.Dim.AUTO
                if feeds[info.name].shape[axis] == 1:  # which the tracer would take for a constant
                    feeds[info.name] = feeds[info.name].repeat_interleave(2, axis)
    with torch.evaluating(module), no_grad():
        dynamic = {name: sizes.get(name) for name in feeds}
        return export.export(ByName().eval(), (feeds,), dynamic_shapes=(dynamic,), strict=False)
