"""The sizes of a tensor program at a call: of the inputs, read from small tensors, derived from others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hasten.errors import InputError
from hasten.loops.expr import Const, Expr, Size, walk
from hasten.loops.program import Program, TensorInfo
from hasten.loops.scope import size_value
from hasten.loops.simplify import spell


def bind_sizes(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The value of every size of a program for the given inputs, derived ones included.

    Raises:
        InputError: the arrays do not fit the program's inputs, or a guard does not hold.
    """
    unknown = [name for name in feeds if name not in program.inputs]
    if unknown:
        raise InputError(f"unknown input '{unknown[0]}'; the inputs are {', '.join(program.inputs)}")
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for name, info in program.inputs.items():
        if name not in feeds:
            raise InputError(f"input '{name}' is missing; give an array of type {info.dtype.numpy}")
        _check_type(info, feeds[name])
        for d, (extent, n) in enumerate(zip(info.shape, feeds[name].shape, strict=True)):
            if isinstance(extent, Const):
                _check_extent(info, d, n, sizes)  # before an element is read
            if not isinstance(extent, Size):
                continue
            if sizes.setdefault(extent.name, n) != n:
                raise InputError(
                    f"dimension {d} of input '{name}' is {n}, but {extent.name} is "
                    f"{sizes[extent.name]} in {source[extent.name]}; they must be equal"
                )
            source.setdefault(extent.name, f"dimension {d} of input '{name}'")
    bind_elements(program, sizes, feeds)
    for name, info in program.inputs.items():
        for d, n in enumerate(feeds[name].shape):
            _check_extent(info, d, n, sizes)
    return sizes


def bind_elements(program: Program, sizes: dict[str, int], tensors: Mapping[str, np.ndarray]) -> None:
    """Adds the sizes that are elements of some tensors, and those that can be derived now; checks guards.

    Raises:
        InputError: a size is negative, or a guard does not hold.
    """
    for name, e in program.elements.items():
        if name not in sizes and e.tensor in tensors:
            sizes[name] = int(tensors[e.tensor][e.index])
    for name, value in program.derived.items():
        if name in sizes or not size_names(value) <= sizes.keys():
            continue
        sizes[name] = size_value(value, sizes)
        if sizes[name] < 0:
            raise InputError(
                f"a size of the model, {spell(value)}, is {sizes[name]} for these inputs "
                f"({_listing(sizes)}); give inputs for which it is not negative"
            )
    for guard in program.guards:
        if not size_names(guard.left) | size_names(guard.right) <= sizes.keys():
            continue
        left, right = size_value(guard.left, sizes), size_value(guard.right, sizes)
        if guard.holds(left, right):
            continue
        needs = f"{spell(guard.left)} == {spell(guard.right)}"
        if guard.kind == "some":
            needs = f"{spell(guard.left)} > 0 or {spell(guard.right)} == 0"
        needs = guard.says or f"{needs}, which are {left} and {right}"
        raise InputError(f"{guard.origin} needs {needs} ({_listing(sizes)})")


def size_names(e: Expr) -> set[str]:
    """The sizes that an expression of sizes is made of."""
    return {n.name for n in walk(e) if isinstance(n, Size)}


def _check_extent(info: TensorInfo, d: int, n: int, sizes: Mapping[str, int]) -> None:
    extent = info.shape[d]
    expected = size_value(extent, sizes)
    if n != expected:
        raise InputError(
            f"dimension {d} of input '{info.name}' is {n}; it must be {spell(extent)}"
            + ("" if isinstance(extent, Const) else f" = {expected}")
        )


def measured_sizes(
    program: Program, name: str, array: np.ndarray, sizes: Mapping[str, int]
) -> dict[str, int]:
    """The measured sizes that a tensor of a program holds.

    Args:
        program: the program.
        name: a definition.
        array: its value.
        sizes: the sizes known before the run.
    """
    return {
        size: int(array[tuple(size_value(i, sizes) for i in m.index)])
        for size, m in program.measured.items()
        if m.tensor == name
    }


def _check_type(info: TensorInfo, array: np.ndarray) -> None:
    if array.dtype != info.dtype.numpy:
        raise InputError(f"input '{info.name}' has type {array.dtype}; convert it to {info.dtype.numpy}")
    if array.ndim != len(info.shape):
        shape = ", ".join(spell(n) for n in info.shape)
        raise InputError(f"input '{info.name}' has {array.ndim} dimensions; it must be [{shape}]")


def _listing(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {n}" for name, n in sizes.items()) or "no symbolic sizes"
