"""From any framework to one onnx_ir model."""

from types import ModuleType
from typing import cast

import onnx_ir as ir

from hasten.errors import ModelError
from hasten.frontends import huggingface, onnx, sklearn, torch
from hasten.frontends.huggingface import check_downloaded
from hasten.frontends.prepare import prepare
from hasten.frontends.protocol import Dynamic, Example, Frontend

__all__ = ["Dynamic", "Example", "Frontend", "check_downloaded", "load", "prepare"]

# In order: a Hugging Face folder is also a path.
_FRONTENDS: tuple[ModuleType, ...] = (huggingface, torch, sklearn, onnx)


def load(source: object, *, example: Example | None = None, dynamic: Dynamic | None = None) -> ir.Model:
    """Read a model of any accepted kind into the form that the rest of hasten works on.

    Args:
        source: The path of an ONNX file, its bytes, a `ModelProto`, an `onnx_ir.Model`; the path
            of a Hugging Face model folder; a `torch.nn.Module` or `ExportedProgram`; a fitted estimator
            of scikit-learn, LightGBM or XGBoost.
        example: Inputs to trace a PyTorch module with: a tuple in the order of its parameters,
            or a mapping by name. For an estimator with columns of several types, some rows. Others do
            not need it.
        dynamic: For PyTorch: which dimensions of an input are symbolic, and their names.

    Returns:
        A model at the internal opset, as `prepare` describes it.

    Raises:
        ModelError: The source is missing, unreadable, not a valid model or of an unknown kind.
        MissingDependencyError: The framework of the source is not installed.
        OptionError: `example` or `dynamic` does not fit the source.
    """
    check_downloaded(source)
    for module in _FRONTENDS:
        frontend = cast(Frontend, module)
        if frontend.accepts(source):
            return prepare(frontend.load(source, example=example, dynamic=dynamic))
    raise ModelError(
        f"Cannot read a model from an object of type {type(source).__module__}."
        f"{type(source).__qualname__}. Give the path of an .onnx file or of a Hugging Face folder, "
        "the bytes of an ONNX file, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module with "
        "example=, a torch.export.ExportedProgram, or a fitted estimator of scikit-learn, LightGBM or "
        "XGBoost."
    )
