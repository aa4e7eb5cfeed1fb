"""What the operators in PyTorch read of a node: its attributes and operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

Inputs = Sequence[Tensor | None]
Run = Callable[[ir.Node, Inputs], Tensor | Sequence[Tensor]]

DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute as a plain Python value."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, list | tuple) else value


def operand(inputs: Inputs, position: int = 0) -> Tensor:
    """An input that must be there."""
    found = inputs[position]
    assert found is not None, "a required input is missing"
    return found


def maybe(inputs: Inputs, position: int) -> Tensor | None:
    """An input that may be missing."""
    return inputs[position] if position < len(inputs) else None


def integers(inputs: Inputs, position: int) -> list[int] | None:
    """The whole numbers that an input holds."""
    found = maybe(inputs, position)
    return None if found is None else [int(v) for v in found.reshape(-1).tolist()]
