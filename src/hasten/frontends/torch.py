"""PyTorch: a module with example inputs, or an exported program."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from hasten.errors import MissingDependencyError, ModelError, OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.frontends.quiet import quiet, silent
from hasten.graph.inference import one_line

if TYPE_CHECKING:
    import torch

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
_log = logging.getLogger(__name__)

# Where a frontend leaves remarks about its result, for the report: one per line.
NOTES_KEY = "hasten.notes"


def accepts(source: object) -> bool:
    """Return whether `source` is a `torch.nn.Module` or an `ExportedProgram`."""
    torch = sys.modules.get("torch")  # An object of torch's exists only where torch is imported.
    if torch is None:
        return False
    return isinstance(source, torch.nn.Module | torch.export.ExportedProgram)


def load(source: object, *, example: Example | None = None, dynamic: Dynamic | None = None) -> ir.Model:
    """Export a PyTorch model by `torch.onnx.export`, in evaluation mode and without a decoder's cache.

    Args:
        source: A `torch.nn.Module`, which is left as it is, or an `ExportedProgram`.
        example: Inputs of the module's `forward`: one tensor or array, a tuple of them, or a
            mapping by parameter name. Not for an exported program.
        dynamic: For each input's name, which dimensions are symbolic and how they are called;
            inputs not named are fixed. Without it the first dimension of each input that has the
            size of the first input's is `batch`, where the module allows that; where it does not,
            all sizes are fixed, and a warning is logged.

    Returns:
        The exported model, whose weights are the module's own memory.

    Raises:
        ModelError: The module rejects the example, or cannot be exported.
        OptionError: There is no example, or `example` or `dynamic` does not fit the source.
        MissingDependencyError: `onnxscript`, which the exporter needs, is not installed.
    """
    import torch

    if isinstance(source, torch.export.ExportedProgram):
        if example is not None or dynamic is not None:
            raise OptionError(
                "`example` and `dynamic` cannot be used with an ExportedProgram, which has been "
                "traced already. Leave them out, or give the module itself."
            )
        return export(source, (), {})
    if not isinstance(source, torch.nn.Module):
        raise ModelError(f"Expected a torch.nn.Module, got {type(source).__name__}.")
    if example is None:
        raise OptionError(
            f"A {type(source).__name__} can only be traced with example inputs. Give example=: a "
            "tuple of tensors or arrays in the order of forward's parameters, or a dict by name."
        )
    args, kwargs = as_arguments(example)
    with evaluating(source):
        names = output_names(run(source, args, kwargs))
        inputs = named_inputs(source, args, kwargs)
        dims = _first_dims(inputs) if dynamic is None else check_dynamic(dynamic, inputs)
        attempts = [dims, {}] if dynamic is None and dims else [dims]
        return export_dynamic(source, args, kwargs, attempts, names)


def as_arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an example as positional and keyword arguments, with arrays turned into tensors.

    Raises:
        OptionError: An array holds what no tensor can.
    """
    if isinstance(example, Mapping):
        return (), {name: _as_tensor(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_as_tensor(value) for value in example), {}
    return (_as_tensor(example),), {}


def run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module once, so that an example that does not fit is found before the export.

    Raises:
        ModelError: The module raised an error.
    """
    import torch

    try:
        with torch.no_grad(), quiet():
            return module(*args, **kwargs)
    except Exception as error:  # a user's forward may raise anything
        given = {
            name: list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            for name, value in named_inputs(module, args, kwargs).items()
        }
        raise ModelError(
            f"{type(module).__name__} fails on the example inputs {given}: "
            f"{one_line(error) or type(error).__name__}. "
            "Give example= as forward expects it."
        ) from error


def named_inputs(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names of `forward`'s parameters."""
    import inspect

    named: dict[str, Any] = {}
    positional = iter(args)
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            named |= {f"{parameter.name}_{index}": value for index, value in enumerate(positional)}
            break
        try:
            named[parameter.name] = next(positional)
        except StopIteration:
            break
    return named | kwargs


def output_names(result: Any) -> list[str] | None:
    """Return names for what a module returned if it names its outputs, else None."""
    if not isinstance(result, Mapping):
        return None
    names: list[str] = []
    for key, value in result.items():
        if value is None:
            continue
        count = _count_tensors(value)
        names += [str(key)] if count == 1 else [f"{key}_{index}" for index in range(count)]
    return names


def check_dynamic(dynamic: Dynamic, inputs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Return a user's choice of symbolic dimensions after comparing it with the inputs.

    Raises:
        OptionError: An input or a dimension does not exist, or a name is no identifier.
    """
    for name, dims in dynamic.items():
        if name not in inputs:
            raise OptionError(f"dynamic: there is no input '{name}'. The inputs are {', '.join(inputs)}.")
        rank = len(getattr(inputs[name], "shape", ()))
        for axis, dim in dims.items():
            if not 0 <= axis < rank:
                raise OptionError(
                    f"dynamic: the input '{name}' has {rank} dimensions, so there is no dimension "
                    f"{axis}. Count from 0."
                )
            if not (dim.isascii() and dim.isidentifier()):
                raise OptionError(
                    f"dynamic: '{dim}' of input '{name}' cannot name a size. Use letters, digits "
                    "and underscores, such as 'batch'."
                )
    return {name: dict(dims) for name, dims in dynamic.items()}


def export_dynamic(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    attempts: Sequence[Mapping[str, Mapping[int, str]]],
    names: Sequence[str] | None,
    limits: Mapping[str, int] | None = None,
) -> ir.Model:
    """Export a module with the first choice of symbolic sizes that the exporter accepts.

    Args:
        module: The module, in evaluation mode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        attempts: Symbolic dimensions by input, in order of preference; an empty one fixes all.
        names: Names for the outputs, or None.
        limits: The greatest value of a symbolic size, where the model has one.

    Returns:
        The model. If it was not the first choice, a note says so under `NOTES_KEY`.

    Raises:
        ModelError: No choice was accepted; the message is about the last one.
    """
    failures: list[str] = []
    for position, dims in enumerate(attempts):
        try:
            model = export(module, args, kwargs, dims=dims, names=names, limits=limits)
            _check_symbolic(model, dims, type(module).__name__)
        except ModelError as error:
            if position == len(attempts) - 1:
                raise
            failures.append(str(error))
            continue
        if failures:
            sizes = sorted({name for axes in dims.values() for name in axes.values()})
            note = (
                f"{type(module).__name__} could not be exported with all sizes symbolic; "
                f"symbolic are: {', '.join(sizes) or 'none, all sizes are those of the example'}. "
                f"The exporter said: {failures[0]}"
            )
            _log.warning(note)
            model.metadata_props[NOTES_KEY] = note
        return model
    raise ValueError("no attempt was given")


def export(
    module: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    dims: Mapping[str, Mapping[int, str]] | None = None,
    names: Sequence[str] | None = None,
    limits: Mapping[str, int] | None = None,
) -> ir.Model:
    """Export a module or program to ONNX without its exporter's chatter.

    Raises:
        ModelError: The exporter refuses the model.
        MissingDependencyError: `onnxscript` is not installed.
    """
    import torch

    if importlib.util.find_spec("onnxscript") is None:
        raise MissingDependencyError(
            "Reading PyTorch models needs the package onnxscript: pip install 'hasten[torch]'"
        )
    from hasten.frontends.torch_translations import translations

    shapes: Any = None
    if dims and isinstance(module, torch.nn.Module):
        args, kwargs = _without_ones(module, args, kwargs, dims)
        shapes = _dynamic_shapes(module, args, kwargs, dims, limits or {})
    try:
        with silent(*_LOGGERS), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=list(names) if names else None,
                custom_translation_table=translations(),
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"PyTorch cannot export {type(module).__name__}: {_cause(error)}. "
            "Change the module so that torch.export accepts it, or give an ONNX file."
        ) from error
    assert program is not None
    model = program.model
    for graph in [*model.graphs(), *(function.graph for function in model.functions.values())]:
        for node in graph:
            node.metadata_props.clear()  # Stack traces of the tracing, larger than the graph.
            for output in node.outputs:
                output.metadata_props.clear()
    return model


def _check_symbolic(model: ir.Model, dims: Mapping[str, Mapping[int, str]], module: str) -> None:
    """Refuse an export in which the tracer quietly fixed a size that should be symbolic."""
    for value in model.graph.inputs:
        for axis, name in dims.get(value.name or "", {}).items():
            size = None if value.shape is None else value.shape[axis]
            if isinstance(size, int):
                raise ModelError(
                    f"PyTorch cannot export {module} with a symbolic size '{name}': its code makes "
                    f"dimension {axis} of the input '{value.name}' always {size}. Leave it out of "
                    "dynamic=, or change the module."
                )


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each part back into its own mode afterwards.

    Decoders of Hugging Face also give a cache of what they attended to, as an object that no exporter knows:
    it is left out meanwhile.
    """
    training = [part for part in module.modules() if part.training]
    configs = {id(c): c for part in module.modules() if (c := getattr(part, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", None) is True]
    module.eval()
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for config in caching:
            config.use_cache = True


def _as_tensor(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        try:
            return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), "C"))  # 0-d stays so
        except TypeError as error:
            raise OptionError(
                f"example: PyTorch has no tensors of {array.dtype}, received as an array of shape "
                f"{list(array.shape)}. Give numbers, such as float32 or int64."
            ) from error
    if isinstance(value, tuple | list):
        return type(value)(_as_tensor(part) for part in value)
    return value


def _count_tensors(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count_tensors(part) for part in value.values())
    if isinstance(value, tuple | list):
        return sum(_count_tensors(part) for part in value)
    return 0 if value is None else 1


def _first_dims(inputs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    sizes = {name: value.shape[0] for name, value in inputs.items() if getattr(value, "shape", ())}
    batch = next(iter(sizes.values()), None)
    return {name: {0: "batch"} for name, size in sizes.items() if size == batch}


def _without_ones(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dims: Mapping[str, Mapping[int, str]],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat the example along symbolic dimensions of size 1: the tracer takes 1 for a constant."""
    inputs = named_inputs(module, args, kwargs)
    for name, axes in dims.items():
        for axis in axes:
            if inputs[name].shape[axis] == 1:
                inputs[name] = inputs[name].repeat_interleave(2, dim=axis)
    values = list(inputs.values())
    return tuple(values[: len(args)]), {name: inputs[name] for name in kwargs}


def _dynamic_shapes(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dims: Mapping[str, Mapping[int, str]],
    limits: Mapping[str, int],
) -> Any:
    from torch.export import Dim

    names = {name for axes in dims.values() for name in axes.values()}
    sizes = {name: Dim(name, max=limits[name]) if name in limits else Dim(name) for name in names}
    inputs = named_inputs(module, args, kwargs)
    shapes = {
        name: {axis: sizes[dim] for axis, dim in dims[name].items()} if name in dims else None
        for name in inputs
    }
    if not kwargs:
        return tuple(shapes.values())
    return shapes


def _cause(error: BaseException) -> str:
    """Return the first informative line of what went wrong below the exporter's own summary."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(RuntimeError(" ".join(lines[:3])))[:400] or type(error).__name__
