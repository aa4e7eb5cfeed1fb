"""MatMulNBits of ONNX Runtime as a MatMul with a weight behind DequantizeLinear.

The operator multiplies with weights of few bits in blocks of depth, as its quantizer of large language models
writes them. Its weight is stored by column, `[columns, blocks, bytes]`, the lower bits of a byte first; zero
points are packed likewise, or floats; without them they are in the middle. Its attribute `accuracy_level`
lets an engine round activations, which nothing here does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from ml_dtypes import uint4

from hasten.graph.constants import constant_value
from hasten.passes.facts import integer
from hasten.passes.quantized_operand import input_at
from hasten.passes.rule import Builder


def matmul_nbits(node: ir.Node, build: Builder) -> ir.Value | None:
    """The product of a MatMulNBits, or None where it has weights of another width, order or type."""
    x, bias = node.inputs[0], input_at(node, 5)
    depth, columns = integer(node, "K", 0), integer(node, "N", 0)
    bits, block = integer(node, "bits", 4), integer(node, "block_size", 0)
    packed, scale, order = (constant_value(input_at(node, n)) for n in (1, 2, 4))
    if x is None or packed is None or scale is None or order is not None or bits not in (4, 8):
        return None
    if scale.dtype != np.float32 or block < 1 or depth < 1:
        return None
    blocks = -(-depth // block)
    codes = _unpacked(packed.reshape(columns, -1), bits)[:, :depth]
    zero = _zero_points(input_at(node, 3), bits, columns, blocks)
    if zero is None or codes.shape != (columns, depth) or scale.size != columns * blocks:
        return None
    stored = uint4 if bits == 4 else np.uint8
    constants = {
        "codes": codes.T.astype(stored),
        "scale": scale.reshape(columns, blocks).T,
        "zero": zero.T.astype(stored),
    }
    inputs = [build.constant(np.ascontiguousarray(a), name) for name, a in constants.items()]
    weight = build.op("DequantizeLinear", inputs, {"axis": 0, "block_size": block})
    product = build.op("MatMul", [x, weight])
    return product if bias is None else build.op("Add", [product, bias])


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers from rows of bytes."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _zero_points(value: ir.Value | None, bits: int, columns: int, blocks: int) -> np.ndarray | None:
    """Zero points `[columns, blocks]`; None where they are not known whole numbers of the width."""
    if value is None:
        return np.full((columns, blocks), 1 << (bits - 1), np.uint8)
    known = constant_value(value)
    if known is None:
        return None
    if known.dtype == np.uint8:
        return _unpacked(known.reshape(columns, -1), bits)[:, :blocks]
    whole = known.reshape(columns, blocks)
    fits = (whole == np.rint(whole)).all() and whole.min() >= 0 and whole.max() < 1 << bits
    return np.asarray(whole).astype(np.uint8) if fits else None
