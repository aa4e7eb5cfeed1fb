"""Hugging Face: a folder with config.json and weights, loaded by `transformers`, offline."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten.errors import MissingDependencyError, ModelError
from hasten.frontends.protocol import Dynamic, Example
from hasten.frontends.quiet import silent
from hasten.frontends.torch import (
    as_arguments,
    check_dynamic,
    export_dynamic,
    named_inputs,
    output_names,
    run,
)
from hasten.graph.inference import one_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Sizes to trace with. They differ from each other and from 1, which the tracer would fix.
_BATCH, _SEQUENCE = 2, 16
_DECODER = "decoder_sequence"


def accepts(source: object) -> bool:
    """Return whether `source` is the path of a folder with a config.json.

    So is a folder that cannot be looked into: `load` says that then.
    """
    if not isinstance(source, str | os.PathLike):
        return False
    try:
        return (Path(source) / "config.json").is_file()
    except OSError:
        with contextlib.suppress(OSError):
            return Path(source).is_dir()
        return False


def check_downloaded(source: object) -> None:
    """Refuse what looks like a name on the Hub, such as bert-base-uncased, and is no path.

    Raises:
        ModelError: It is one: nothing is downloaded here.
    """
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    missing = False
    with contextlib.suppress(OSError):
        missing = not path.exists()
    if missing and path.suffix != ".onnx" and _NAME.fullmatch(str(path)):
        raise ModelError(
            f"There is no file '{path}'. Check the path; if it is the name of a model on the Hugging Face "
            "Hub, download that first (huggingface_hub.snapshot_download) and give its folder."
        )


def load(source: object, *, example: Example | None = None, dynamic: Dynamic | None = None) -> ir.Model:
    """Export the model in a Hugging Face folder, in evaluation mode and float32.

    Inputs and outputs have the names that `transformers` gives them: `input_ids`,
    `attention_mask`, `token_type_ids` (where the model has several types) or `pixel_values`;
    `last_hidden_state`, `pooler_output`, `logits` and so on. For text `batch` and `sequence` are
    symbolic (and `decoder_sequence`, which may differ), for pictures `batch`; the picture's size is the
    configuration's.

    Args:
        source: The folder.
        example: Inputs by name, for models that take other ones than text or a picture.
        dynamic: For each input's name, which dimensions are symbolic and how they are called.

    Returns:
        The exported model.

    Raises:
        ModelError: The folder is incomplete or damaged, the architecture is unknown, weights are
            missing in the files, or the model cannot be exported.
        MissingDependencyError: `torch` or `transformers` is not installed, or what the model needs beside.
        OptionError: `dynamic` does not fit the inputs.
    """
    if not isinstance(source, str | os.PathLike):
        raise ModelError(f"Expected the path of a folder, got {type(source).__name__}.")
    folder = Path(source)
    architecture = _architecture(folder)
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelError(
            f"'{folder}' holds a config.json but no weights: none of {', '.join(_WEIGHTS)}. "
            "Copy them into the folder."
        )
    model = _load_model(folder, architecture)
    if example is None:
        inputs = _example(model, folder)
    else:
        args, kwargs = as_arguments(example)
        inputs = named_inputs(model, args, kwargs)
    result = run(model, (), inputs)
    names = output_names(result)
    attempts = _symbolic(inputs) if dynamic is None else [check_dynamic(dynamic, inputs)]
    limit = getattr(model.config, "max_position_embeddings", None)
    limits = {}
    if isinstance(limit, int) and limit > _SEQUENCE:
        limits = {"sequence": limit, _DECODER: limit}
    exported = export_dynamic(model, (), inputs, attempts, names, limits)
    _drop_unused_inputs(exported)
    return exported


def _architecture(folder: Path) -> str | None:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"There is no '{path}'. Give a Hugging Face model folder.") from error
    except OSError as error:
        raise ModelError(
            f"'{path}' cannot be read: {error.strerror}. Give yourself access, or copy the folder."
        ) from error
    except ValueError as error:
        raise ModelError(f"'{path}' cannot be read as JSON: {one_line(error)}.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            f"'{path}' does not name a model_type, so it is not the configuration of a "
            "transformers model. Give the folder of the model itself."
        )
    names = config.get("architectures") or [None]
    return names[0] if isinstance(names[0], str) else None


def _load_model(folder: Path, architecture: str | None) -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading a Hugging Face folder needs the package {error.name}: pip install 'hasten[huggingface]'"
        ) from error
    try:
        kind = getattr(transformers, architecture or "AutoModel", None)
    except ImportError as error:
        raise _lacking(folder, error) from error
    if kind is None:
        raise ModelError(
            f"'{folder / 'config.json'}' names the architecture '{architecture}', which "
            f"transformers {transformers.__version__} does not know. Install a newer transformers, "
            "or load the model yourself and give it to hasten with example=."
        )
    model, missing = _from_pretrained(kind, folder)
    if missing and all(name.split(".")[0] == "pooler" for name in missing):
        # Encoders are often saved without the pooler, which nobody uses then.
        model, missing = _from_pretrained(kind, folder, add_pooling_layer=False)
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        raise ModelError(
            f"The weights in '{folder}' lack {len(missing)} tensors of {architecture}, which would "
            f"be random: {shown}{' ...' if len(missing) > 5 else ''}. Correct `architectures` in "
            "config.json, or copy complete weights."
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.float().eval()


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> tuple[Any, set[str]]:
    from safetensors import SafetensorError

    try:
        with silent("transformers", "transformers.modeling_utils", "huggingface_hub"):
            model, info = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **options
            )
    except ImportError as error:  # of quantized weights, and of code that comes with a model
        raise _lacking(folder, error) from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, EOFError) as error:
        raise ModelError(
            f"The Hugging Face model in '{folder}' cannot be loaded: {one_line(error)[:400]}. "
            "Copy or save it again."
        ) from error
    return model, set(info["missing_keys"])


def _lacking(folder: Path, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"The Hugging Face model in '{folder}' needs more packages: {one_line(error)[:400]}. Install them."
    )


def _example(model: Any, folder: Path) -> dict[str, Any]:
    """Make inputs to trace with: text or a picture, by the name of the model's main input."""
    import torch

    config = model.config
    main = model.main_input_name
    if main == "input_ids" and not getattr(config, "is_encoder_decoder", False):
        words = max(getattr(config, "vocab_size", 2), 2)
        ids = torch.arange(_BATCH * _SEQUENCE).reshape(_BATCH, _SEQUENCE) * 7 % words
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if (getattr(config, "type_vocab_size", None) or 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        taken = inspect.signature(model.forward).parameters
        return {name: value for name, value in inputs.items() if name in taken}
    if main == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (_BATCH, getattr(config, "num_channels", 3), height, width)
        picture = torch.linspace(-1, 1, steps=_BATCH * shape[1] * height * width)
        return {"pixel_values": picture.reshape(shape)}
    raise ModelError(
        f"The model in '{folder}' takes '{main}' and is neither a text encoder, a decoder nor a "
        "picture model, so its inputs cannot be guessed. Give example= with all inputs by name."
    )


def _symbolic(inputs: Mapping[str, Any]) -> list[dict[str, dict[int, str]]]:
    """Return which sizes to make symbolic, best first: batch and lengths, batch, none."""
    import torch

    text = {
        name: {0: "batch", 1: _DECODER if name.startswith("decoder_") else "sequence"}
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()
    }
    first = {
        name: {0: "batch"}
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    }
    return [first | text, first, {}] if text else [first, {}]


def _drop_unused_inputs(model: ir.Model) -> None:
    used = {value for node in model.graph.all_nodes() for value in node.inputs}
    used |= set(model.graph.outputs)
    kept = [value for value in model.graph.inputs if value in used]
    model.graph.inputs[:] = kept
