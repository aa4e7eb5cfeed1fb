"""Operands of quantized operators: codes with a scale and a zero point, and what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.rule import Builder

Attributes = Mapping[str, int | float | str | Sequence[int]]


@dataclass(frozen=True)
class Operand:
    """(codes - zero) * scale.

    Attributes:
        codes: whole numbers of 8 bits.
        scale: one for all, or a vector along an axis.
        zero: as many as scales, of the type of the codes; None for 0.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    @staticmethod
    def at(node: ir.Node, first: int) -> Operand | None:
        """The operand whose three parts are inputs of a node in a row; None where one is missing."""
        codes, scale = input_at(node, first), input_at(node, first + 1)
        if codes is None or scale is None:
            return None
        return Operand(codes, scale, input_at(node, first + 2))

    def dequantized(self, build: Builder, axis: int) -> ir.Value | None:
        """DequantizeLinear of the codes, with scales along `axis` if there are several.

        Returns:
            The result; None where scales or zero points have a shape that DequantizeLinear does not take.
        """
        scale, zero = parameters(build, self.scale, self.zero)
        if scale is None:
            return None
        return build.op("DequantizeLinear", [self.codes, scale, zero], {"axis": axis})


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attributes_of(node: ir.Node, without: Collection[str] = ()) -> Attributes:
    """The attributes of a node as plain values, but for some."""
    return {name: a.value for name, a in node.attributes.items() if name not in without}


def parameters(
    build: Builder, scale: ir.Value, zero: ir.Value | None
) -> tuple[ir.Value | None, ir.Value | None]:
    """Scale and zero point as DequantizeLinear takes them: two scalars, or two vectors of one length.

    Returns:
        Both; no scale where that cannot be done.
    """
    known, offsets = constant_value(scale), constant_value(zero)
    if known is None or (zero is not None and offsets is None):
        return scale if is_single(scale) and (zero is None or is_single(zero)) else None, zero
    shapes = [a.shape for a in (known, offsets) if a is not None]
    if any(np.prod(s) != max(s, default=1) for s in shapes):
        return None, None  # neither one nor a vector
    length = max(int(np.prod(s)) for s in shapes)
    if any(int(np.prod(s)) not in (1, length) for s in shapes):
        return None, None

    def shaped(value: ir.Value | None, array: np.ndarray | None, name: str) -> ir.Value | None:
        if value is None or array is None:
            return None
        wanted = () if length == 1 else (length,)
        if array.shape == wanted:
            return value
        flat = array.reshape(-1)
        return build.constant(flat.reshape(wanted) if flat.size == length else np.full(wanted, flat[0]), name)

    return shaped(scale, known, "scale"), shaped(zero, offsets, "zero")


def is_single(value: ir.Value) -> bool:
    """Whether a value is known to have one element."""
    known = constant_value(value)
    if known is not None:
        return known.size == 1
    return value.shape is not None and all(d == 1 for d in value.shape)


def signed_codes(codes: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray | None:
    """Codes less their zero points as signed bytes; None where one does not fit, or shapes do not.

    Args:
        codes: whole numbers of 8 bits.
        zero: one zero point, or one for each index along `axis`.
        axis: of `codes`.
    """
    if codes.dtype not in (np.uint8, np.int8):
        return None
    if zero.size > 1:
        if zero.ndim != 1 or not codes.ndim or zero.size != codes.shape[axis]:
            return None
        zero = np.moveaxis(zero.reshape(-1, *[1] * (codes.ndim - 1)), 0, axis)
    else:
        zero = zero.reshape(())
    difference = codes.astype(np.int16) - zero.astype(np.int16)
    if difference.size and (difference.min() < -128 or difference.max() > 127):
        return None
    return difference.astype(np.int8)


def quantized(
    build: Builder, value: ir.Value, scale: ir.Value, zero: ir.Value | None, like: ir.Value
) -> ir.Value:
    """QuantizeLinear of a result by one scale, to the type of its zero point, or of `like` without one."""
    scale_, zero_ = parameters(build, scale, zero)
    if scale_ is None:
        raise ValueError(f"'{scale.name}' is not one scale")
    if zero_ is None:
        signed = like.dtype is ir.DataType.INT8
        zero_ = build.constant(np.zeros((), np.int8 if signed else np.uint8), "zero")
    return build.op("QuantizeLinear", [value, scale_, zero_])
