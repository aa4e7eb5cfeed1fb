"""Operators that PyTorch's exporter does not know, in ONNX's: the products of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onnxscript import FLOAT, INT32, opset18, script

Translations = dict[Callable[..., Any], Callable[..., Any]]


def translations() -> Translations:
    """Functions in ONNX by the operators that they stand for, of those that libraries have registered."""
    import torch

    grouped = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return {} if grouped is None else {grouped.default: grouped_product}


# onnxscript's own types are too narrow for what it takes.
op: Any = opset18
if TYPE_CHECKING:
    Floats = Any
    Integers = Any
else:
    Floats, Integers = FLOAT[...], INT32[...]


# onnxscript reads the function's text. Parameters are called as the operator's are.
@script(default_opset=opset18)
def grouped_product(input: Floats, weight: Floats, offs: Integers) -> Floats:  # noqa: A002
    """Rows of experts, those of each together, each by the matrix of its expert.

    Args:
        input: [rows, inputs].
        weight: [experts, inputs, outputs].
        offs: [experts], where the rows of each expert end.
    """
    first = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    bounds = op.Concat(first, op.Cast(offs, to=7), axis=0)
    product = op.MatMul(op.Slice(input, first, first, first), op.Gather(weight, op.Squeeze(first)))
    for expert in range(op.Squeeze(op.Shape(offs))):
        place = op.Reshape(expert, one)
        rows = op.Slice(input, op.Gather(bounds, place), op.Gather(bounds, place + one), first)
        product = op.Concat(product, op.MatMul(rows, op.Gather(weight, expert)), axis=0)
    return product
