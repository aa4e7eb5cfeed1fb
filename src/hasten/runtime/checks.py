"""Do arrays and numbers fit what a model, a step of it or an option takes? Errors say what was received."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import ArtifactError, InputError, MissingDependencyError, OptionError
from hasten.runtime.manifest import OBJECT, TensorInfo

_LITERALS = (list, tuple, bool, int, float)
_KINDS = "bif"  # a literal may become any kind further right


def element(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name, those that the package ml_dtypes adds to NumPy's included.

    Raises:
        MissingDependencyError: It is such a one, and the package is not installed.
        ArtifactError: There is no such type.
    """
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        importlib.import_module("ml_dtypes")
        return np.dtype(name)
    except ImportError:
        raise MissingDependencyError(
            f"the model has the element type {name}, which NumPy lacks: pip install ml_dtypes"
        ) from None
    except TypeError:
        raise ArtifactError(f"the element type {name} is not known") from None


def check_mapping(inputs: Sequence[TensorInfo], feeds: object) -> None:
    """Raises InputError unless the feeds are arrays by name, whichever their names are."""
    if isinstance(feeds, Mapping):
        return
    shape = getattr(feeds, "shape", None)
    received = f"a {type(feeds).__name__}" + ("" if shape is None else f" of shape {list(shape)}")
    expected = ", ".join(map(str, inputs)) or "none"
    example = ", ".join(f"{info.name!r}: ..." for info in inputs)
    raise InputError(
        f"a run takes its inputs by name and received {received}: give {{{example}}}; "
        f"the model takes {expected}"
    )


def check_names(inputs: Sequence[TensorInfo], feeds: Mapping[str, ArrayLike]) -> None:
    """Raises InputError unless the feeds are exactly the inputs."""
    missing = [info.name for info in inputs if info.name not in feeds]
    unknown = sorted(str(name) for name in feeds.keys() - {info.name for info in inputs})
    if missing or unknown:
        faults = [f"missing {', '.join(missing)}"] if missing else []
        faults += [f"unknown {', '.join(unknown)}"] if unknown else []
        expected = ", ".join(map(str, inputs)) or "none"
        raise InputError(f"wrong inputs: {'; '.join(faults)}; the model takes {expected}")


def to_array(info: TensorInfo, value: ArrayLike) -> NDArray[Any]:
    """The value as an array of the input's element type, without loss.

    Arrays may be promoted within their kind (int32 to int64, float16 to float32). Python numbers, strings and
    lists of them become what the input takes, if they are of such a kind and fit.

    Raises:
        InputError: That is not possible.
    """
    wanted = element(info.dtype)
    strings = wanted.kind == "O"
    # NumPy's own strings would make text of numbers beside text, and drop zeros at its end.
    listed = strings and isinstance(value, str | list | tuple)
    try:
        array = np.asarray(value, wanted if listed else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"input {info.name!r} cannot be made an array: {error}") from None
    if strings:
        return _to_strings(info, array, listed)
    if array.dtype == wanted:
        return array.astype(wanted, copy=False)  # foreign byte order, subclasses of dtypes
    if isinstance(value, _LITERALS):
        if _literal_fits(array, wanted):
            return array.astype(wanted)
    elif array.dtype.kind == wanted.kind and np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted)
    raise InputError(
        f"input {info.name!r} takes {wanted} and received {array.dtype}: "
        f"convert it with .astype({str(wanted)!r}) if that is what you mean"
    )


def _to_strings(info: TensorInfo, array: NDArray[Any], listed: bool) -> NDArray[Any]:
    """An array of Python's strings; elements are looked at only where they are from lists."""
    odd = next((item for item in array.flat if not isinstance(item, str)), None) if listed else None
    if odd is None and array.dtype.kind in "OUT":
        return array.astype(object, copy=False)
    received = array.dtype if odd is None else f"{odd!r} among them"
    raise InputError(
        f"input {info.name!r} takes strings and received {received}: give an array or a list of str"
    )


def _literal_fits(array: NDArray[Any], wanted: np.dtype[Any]) -> bool:
    kind = wanted.kind.replace("u", "i")
    if array.size == 0:
        return True
    if array.dtype.kind not in _KINDS or kind not in _KINDS:
        return False
    if _KINDS.index(array.dtype.kind) > _KINDS.index(kind):
        return False
    if kind != "i" or array.dtype.kind == "b":
        return True
    limits = np.iinfo(wanted)
    return bool(array.min() >= limits.min and array.max() <= limits.max)


def whole(name: str, value: object, least: int, otherwise: str = "") -> int:
    """The value of an option as a whole number, Python's or NumPy's.

    Args:
        name: Of the option.
        value: What was given.
        least: The smallest that makes sense.
        otherwise: What else can be given, for the message.

    Raises:
        OptionError: It is something else (2.0 and True are), or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name}={value!r}: give a whole number, {least} or more{otherwise}")
    return int(value)


def whole_threads(threads: object) -> int | None:
    """Threads of a run, or None for the cores of the machine.

    Raises:
        OptionError: It is neither None nor a whole number from 1 on.
    """
    return None if threads is None else whole("threads", threads, 1, ", or None for all cores")


def bind_sizes(inputs: Sequence[TensorInfo], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Values of the symbolic sizes, given the inputs' shapes.

    Raises:
        InputError: A rank or fixed length is wrong, or a size would have two values.
    """
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for info, shape in zip(inputs, shapes, strict=True):
        if info.dtype == OBJECT:
            continue
        expected = f"[{', '.join(map(str, info.shape))}]"
        if len(shape) != len(info.shape):
            raise InputError(
                f"input {info.name!r} takes {len(info.shape)} axes {expected} and received "
                f"{len(shape)}, shape {list(shape)}"
            )
        for axis, (dim, length) in enumerate(zip(info.shape, shape, strict=True)):
            if isinstance(dim, int):
                if dim != length:
                    raise InputError(
                        f"input {info.name!r} takes length {dim} on axis {axis} of {expected} and "
                        f"received {length}, shape {list(shape)}"
                    )
            elif sizes.setdefault(dim, length) != length:
                raise InputError(
                    f"size {dim!r} is {sizes[dim]} in input {source[dim]!r} and {length} in input "
                    f"{info.name!r} {list(shape)}: give both the same"
                )
            else:
                source.setdefault(dim, info.name)
    return sizes
