"""Attributes of a node, read with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from hasten.ops.base import Declined

_T = TypeVar("_T")


def _of_its_type(node: ir.Node, name: str, read: Callable[[], _T]) -> _T:
    """What reading an attribute gives.

    Raises:
        Declined: it has another type than the operator's definition says.
    """
    try:
        return read()
    except TypeError as error:
        raise Declined(f"the attribute {name} of {node.op_type} cannot be read: {error}") from error


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    a = node.attributes.get(name)
    return default if a is None else _of_its_type(node, name, a.as_int)


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An attribute that is a list of integers, or its default."""
    a = node.attributes.get(name)
    return list(default) if a is None else [int(v) for v in _of_its_type(node, name, a.as_ints)]


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    a = node.attributes.get(name)
    return default if a is None else _of_its_type(node, name, a.as_float)


def attribute_str(node: ir.Node, name: str, default: str) -> str:
    """A string attribute, or its default."""
    a = node.attributes.get(name)
    return default if a is None else _of_its_type(node, name, a.as_string)


def attribute_values(node: ir.Node, name: str) -> np.ndarray | None:
    """A vector of numbers: the attribute of that name, or the tensor of the same one with _as_tensor.

    Floats are float32 in a list; a tensor has its own type.
    """
    tensor = node.attributes.get(f"{name}_as_tensor")
    a = node.attributes.get(name) if tensor is None else tensor
    if a is None:
        return None
    if a.type is ir.AttributeType.TENSOR:
        return np.asarray(a.as_tensor().numpy()).reshape(-1)
    if a.type is ir.AttributeType.INTS:
        return np.array(a.as_ints(), np.int64)
    return np.array(_of_its_type(node, name, a.as_floats), np.float32)
