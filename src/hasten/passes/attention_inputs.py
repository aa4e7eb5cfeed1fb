"""Queries, keys and values of an attention: scales, head layout and repeated heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from hasten.passes.facts import Facts
from hasten.passes.no_ops import permutation
from hasten.passes.rule import Builder, Declined
from hasten.passes.scalars import scalar_value
from hasten.passes.sizes import Dim, Dims


@dataclass(frozen=True)
class Operand:
    """A 4-D operand and how its axes are to be read.

    Attributes:
        value: rank 4.
        order: axes of `value` that hold batch, heads, sequence and size.
        batch: size of the batch.
        heads: number of heads, a number.
        sequence: number of positions.
        size: size of a head, a number.
    """

    value: ir.Value
    order: tuple[int, int, int, int]
    batch: Dim
    heads: int
    sequence: Dim
    size: int

    @staticmethod
    def of(value: ir.Value, dims: Dims | None, order: tuple[int, int, int, int]) -> Operand | Declined:
        """Read an operand, or say why it is none."""
        if dims is None or len(dims) != 4:
            return Declined(f"{value.name!r} has dimensions {dims}, not four of them")
        batch, heads, sequence, size = (dims[axis] for axis in order)
        if not isinstance(heads, int) or not isinstance(size, int):
            return Declined(f"{value.name!r}: heads {heads} and head size {size} are not numbers")
        return Operand(value, order, batch, heads, sequence, size)


def peel_scale(value: ir.Value) -> tuple[ir.Value, float]:
    """Take a constant factor off an operand and return both."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    left, right = node.inputs
    factor = scalar_value(right, rank=4)
    if factor and left is not None:
        return left, factor if node.op_type == "Mul" else 1 / factor
    factor = scalar_value(left, rank=4)
    if factor and right is not None and node.op_type == "Mul":
        return right, factor
    return value, 1.0


def ungroup(k: Operand, v: Operand, facts: Facts) -> tuple[Operand, Operand] | Declined:
    """Undo the repetition of key and value heads for the queries that share them."""
    single_k, single_v = _before_repeat(k, facts), _before_repeat(v, facts)
    if single_k is None and single_v is None:
        return k, v
    if single_k is None or single_v is None or single_k.heads != single_v.heads:
        return Declined("heads are repeated differently for keys and values")
    return single_k, single_v


def _before_repeat(operand: Operand, facts: Facts) -> Operand | None:
    """The operand before each head was repeated: Unsqueeze, Expand, Reshape over axis 1."""
    value, order = operand.value, operand.order
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and not node.domain:
        axes = permutation(node, facts)
        if axes is None or node.inputs[0] is None:
            return None
        value = node.inputs[0]
        order = (axes[order[0]], axes[order[1]], axes[order[2]], axes[order[3]])
    merged = value.producer()
    if order != (0, 1, 2, 3) or merged is None or merged.op_type != "Reshape":
        return None
    wide = merged.inputs[0]
    expanded = None if wide is None else wide.producer()
    if wide is None or expanded is None or expanded.op_type != "Expand":
        return None
    narrow = expanded.inputs[0]
    added = None if narrow is None else narrow.producer()
    if narrow is None or added is None or added.op_type not in ("Unsqueeze", "Reshape"):
        return None
    source = added.inputs[0]
    dims, wide_dims, narrow_dims = facts.dims(source), facts.dims(wide), facts.dims(narrow)
    if source is None or dims is None or len(dims) != 4:
        return None
    batch, heads, sequence, size = dims[0], dims[1], dims[2], dims[3]
    if narrow_dims != (batch, heads, 1, sequence, size) or wide_dims is None:
        return None
    if len(wide_dims) != 5 or wide_dims[:2] != dims[:2] or wide_dims[3:] != dims[2:]:
        return None
    if not isinstance(heads, int) or not isinstance(wide_dims[2], int):
        return None
    if heads * wide_dims[2] != operand.heads:
        return None
    return replace(operand, value=source, order=(0, 1, 2, 3), heads=heads)


def flatten_heads(operand: Operand, build: Builder) -> ir.Value:
    """Build `[batch, sequence, heads * size]` from an operand."""
    batch, heads, sequence, size = operand.order
    moved = build.op("Transpose", [operand.value], {"perm": (batch, sequence, heads, size)})
    target = build.integers([0, 0, operand.heads * operand.size], "merged")
    return build.op("Reshape", [moved, target])
