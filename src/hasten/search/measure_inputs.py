"""Inputs made up from an artifact's description, for timing and for a first comparison.

Names and shapes tell what an input is: token ids, a mask, positions, a picture. Ids stay below the number
of rows of the table that they index, and texts are among those that an encoder knows, which the artifact's
graph shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from hasten.errors import OptionError
from hasten.runtime.checks import bind_sizes, element
from hasten.runtime.manifest import OBJECT, TensorInfo

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

_TOKENS = 128
_PICTURE = 224
_SMALL_VOCABULARY = 100
_LARGE_VOCABULARY = 20_000
_TEXTS, _TEXT = "object", "text"
_KNOWN_TEXTS = ("keys_strings", "cats_strings", "pool_strings")
"""Attributes of operators that look their texts up in a list."""


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes from the command line, such as "input_ids=1x128".

    Raises:
        OptionError: one is not of that form.
    """
    shapes = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=(\d+(?:[x,]\d+)*)", text)
        if match is None:
            raise OptionError(f"--shape {text!r}: write the input's name and its sizes, input_ids=1x128")
        shapes[match[1]] = tuple(int(size) for size in re.split("[x,]", match[2]))
    return shapes


def make_inputs(
    inputs: Sequence[TensorInfo],
    shapes: Shapes,
    *,
    batch: int = 1,
    graph: onnx.GraphProto | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Plausible inputs.

    Args:
        inputs: what the model takes.
        shapes: shapes of some inputs; sizes that these do not bind are chosen by name and place.
        batch: the batch size where nothing else says it. If above 1, the last row of a mask ends early.
        graph: the artifact's graph, to see how many rows the tables have that ids index, and which texts
            it knows.
        seed: of the generator.

    Returns:
        An array for each input.

    Raises:
        OptionError: a shape is for an input that the model does not have.
        InputError: the shapes do not fit the model or each other.
    """
    check_names(shapes, [info.name for info in inputs])
    sizes = likely_sizes(inputs, shapes, batch=batch)
    rows = {} if graph is None else table_rows(graph)
    texts = {} if graph is None else known_texts(graph)
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for info in inputs:
        shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in info.shape)
        if info.dtype == _TEXTS:
            known = np.array(texts.get(info.name, (_TEXT,)), object)
            made[info.name] = known[rng.integers(len(known), size=shape)]
        else:
            made[info.name] = _fill(info, shape, rows.get(info.name), inputs, made, rng)
    return made


def check_names(shapes: Shapes, inputs: Sequence[str]) -> None:
    """Refuses shapes of inputs that a model does not have.

    Raises:
        OptionError: there is one.
    """
    for name in shapes:
        if name not in inputs:
            raise OptionError(f"--shape: there is no input {name!r}; the model takes {', '.join(inputs)}")


def likely_sizes(inputs: Sequence[TensorInfo], shapes: Shapes, *, batch: int = 1) -> dict[str, int]:
    """Values of the symbolic sizes of inputs: from the shapes of some, else chosen by name and place.

    Raises:
        InputError: the shapes do not fit the inputs or each other.
    """
    known = {info.name: info for info in inputs}
    given = list(shapes)
    sizes = bind_sizes([known[name] for name in given], [shapes[name] for name in given])
    for info in inputs:
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, str):
                sizes.setdefault(dim, _likely_size(info, dim, axis, batch))
    return sizes


def table_rows(graph: onnx.GraphProto) -> dict[str, int]:
    """For inputs that are indices into a table: the least number of rows of the tables."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Gather" or len(node.input) != 2:
            continue
        table, indices = node.input
        dims = shapes.get(table, ())
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis < len(dims) and dims[axis].dim_value > 0:
            found[indices] = min(found.get(indices, dims[axis].dim_value), dims[axis].dim_value)
    return found


def known_texts(graph: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """For inputs that are looked up in a list of texts: that list."""
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _KNOWN_TEXTS and attribute.strings:
                found[node.input[0]] = tuple(text.decode("utf-8", "replace") for text in attribute.strings)
    return found


def _likely_size(info: TensorInfo, dim: str, axis: int, batch: int) -> int:
    name = dim.lower()
    if "batch" in name or (axis == 0 and len(info.shape) > 1):
        return batch
    if any(word in name for word in ("height", "width")) or (len(info.shape) == 4 and axis >= 2):
        return _PICTURE
    if len(info.shape) == 4:
        return 3
    if any(word in name for word in ("seq", "len", "token")) or info.dtype.startswith("int"):
        return batch if len(info.shape) == 1 else _TOKENS
    return _TOKENS if len(info.shape) == 3 else batch


def _fill(
    info: TensorInfo,
    shape: tuple[int, ...],
    rows: int | None,
    inputs: Sequence[TensorInfo],
    made: Mapping[str, Array],
    rng: np.random.Generator,
) -> Array:
    if info.dtype == OBJECT:
        raise OptionError(f"the input {info.name!r} is a sequence or a map, which cannot be made up: give it")
    name, dtype = info.name.lower(), element(info.dtype)
    kind = dtype.kind if dtype.kind != "V" else "f" if "float" in dtype.name else "i"  # of ml_dtypes
    if "mask" in name:
        mask = np.ones(shape, dtype)
        if len(shape) == 2 and shape[0] > 1:
            mask[-1, max(1, shape[1] // 2) :] = 0
        return mask
    if kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if kind not in "iu":
        return np.zeros(shape, dtype)
    if "length" in name and len(shape) == 1:
        # How long each row of the tokens is.
        rows_of = [a for a in made.values() if a.ndim == 2] or [np.empty((1, _TOKENS))]
        return np.full(shape, rows_of[0].shape[1], dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype) % (rows or shape[-1] or 1), shape).copy()
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    largest: int = ml_dtypes.iinfo(dtype).max  # type: ignore[no-untyped-call]
    most = min(rows or _SMALL_VOCABULARY, _LARGE_VOCABULARY, largest)
    return rng.integers(min(1, most - 1), max(most, 1), shape).astype(dtype)
