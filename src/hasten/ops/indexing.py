"""Shapes as data, generated tensors, and elements chosen by data-dependent indices."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    as_expr,
    binary,
    bounded,
    cast,
    const,
    constant_int,
    select,
    unary,
    walk,
)
from hasten.ops.attributes import attribute_int
from hasten.ops.axes import index_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, moved, normalize_axis, optional, required
from hasten.ops.element_types import element_type
from hasten.ops.elementwise import scalar
from hasten.ops.indices import product
from hasten.ops.movement_pruning import GATHER, SHAPE


def lower_constant(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The attribute as a tensor."""
    array: np.ndarray | None = None
    for name, attribute in node.attributes.items():
        if name == "value":
            array = attribute.as_tensor().numpy()
        elif name in ("value_int", "value_ints"):
            array = np.array(attribute.value, np.int64)
        elif name in ("value_float", "value_floats"):
            array = np.array(attribute.value, np.float32)
    if array is None or DType.of(array.dtype) is None:
        raise Declined("the constant is not a dense tensor of a supported element type")
    name = ctx.fresh(ctx.names[0])
    ctx.program.constants[name] = array
    return [ctx.tensor(name)]


def lower_shape(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The dimensions from `start` to `end`."""
    x = required(inputs, 0)
    start, end = attribute_int(node, "start", 0), attribute_int(node, "end", x.rank)
    dims = x.shape[slice(start, end)]

    def body(i: Expr) -> Expr:
        result = dims[-1] if dims else const(0)
        for position in range(len(dims) - 2, -1, -1):
            result = select(binary("eq", i, const(position)), dims[position], result)
        return result

    return [ctx.define([const(len(dims))], body, DType.I64)]


def lower_size(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The number of elements."""
    x = required(inputs, 0)
    return [ctx.define([], lambda: product(x.shape), DType.I64)]


def lower_constant_of_shape(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """A tensor of a given shape with one value throughout."""
    shape = index_values(ctx, required(inputs, 0), "the shape")
    attribute = node.attributes.get("value")
    value = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    dtype = element_type(value.dtype)
    if dtype is None:
        raise Declined(f"element type {value.dtype} is not supported")
    for n in shape:
        ctx.require(binary("le", const(0), n), "a shape that is not negative")
    return [ctx.define(shape, lambda *_: const(value.reshape(-1)[0].item(), dtype), dtype)]


def lower_range(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Start, start + delta, ... up to limit (exclusive)."""
    start, limit, delta = (_number(ctx, required(inputs, n)) for n in range(3))
    if isinstance(delta, Const) and delta.value == 0:
        raise Declined("the step of the range is 0")
    given = required(inputs, 2)
    read = ctx.element(given, (0,) * given.rank) if any(isinstance(n, Load) for n in walk(delta)) else None
    if read is not None:
        ctx.require(binary("ne", cast(read, INDEX), const(0)), "a step of the range that is not 0")
    count = _range_count(start, limit, delta)
    if any(isinstance(n, Load) for n in walk(count)):
        # Which the run computes, before it is known how long the range is.
        counted = ctx.temporary([], lambda: count, INDEX, "count")
        count = ctx.element(counted, ()) or count

    def body(i: Expr) -> Expr:
        return binary("add", start, binary("mul", cast(i, start.dtype), delta))

    return [ctx.define([count], body, start.dtype)]


def _number(ctx: Lowering, t: Tensor) -> Expr:
    """A scalar in terms of sizes, or as it is read from memory."""
    values = ctx.values(t, read=False)
    return scalar(t) if values is None else as_expr(values.reshape(-1)[0])


def _range_count(start: Expr, limit: Expr, delta: Expr) -> Expr:
    """The number of elements of a range, at least 0."""
    if isinstance(start, Const) and isinstance(limit, Const) and isinstance(delta, Const):
        return const(max(math.ceil((limit.value - start.value) / delta.value), 0))
    if delta.dtype.is_float:
        start, limit, delta = (cast(e, DType.F64) for e in (start, limit, delta))
        steps = unary("ceil", binary("div", binary("sub", limit, start), delta))
        # Too many to count, or not a number of them: what no memory has.
        most = const(float(1 << 62), DType.F64)
        steps = select(binary("lt", steps, most), steps, most)
        return cast(binary("max", steps, const(0.0, DType.F64)), INDEX)
    distance = cast(limit, INDEX) - cast(start, INDEX)
    step = cast(delta, INDEX)
    forward = binary("lt", const(0), step)
    distance, pace = select(forward, distance, 0 - distance), select(forward, step, 0 - step)
    return binary("max", (distance + (pace - 1)) // pace, const(0))


def lower_gather(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Slices of x along an axis, chosen by the indices."""
    x, indices = required(inputs, 0), required(inputs, 1)
    return gathered(ctx, x, indices, normalize_axis(attribute_int(node, "axis", 0), x.rank))


def gathered(ctx: Lowering, x: Tensor, indices: Tensor, axis: int) -> list[Tensor]:
    """Slices of x along an axis, one for each index."""
    indices = _normalized(ctx, indices, x.shape[axis])
    safe = _within(ctx, indices, x.shape[axis])
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    ctx.require_some(x.shape[axis], shape)
    single = ctx.constant_of(indices) if constant_int(product(indices.shape)) == 1 else None

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        inner = index[axis : axis + indices.rank]
        if single is not None:
            chosen: Expr = const(int(single.reshape(-1)[0]))
        else:
            chosen = cast(indices.at(*inner), INDEX)
        if not safe:
            chosen = bounded(chosen, x.shape[axis])
        return [*index[:axis], chosen, *index[axis + indices.rank :]]

    return moved(ctx, x, shape, source)


def _within(ctx: Lowering, indices: Tensor, limit: Expr) -> bool:
    """True where all indices are constants in [0, limit)."""
    known, n = ctx.constant_of(indices), constant_int(limit)
    if known is None or n is None:
        return False
    return not known.size or bool(known.min() >= 0 and known.max() < n)


def _normalized(ctx: Lowering, indices: Tensor, limit: Expr) -> Tensor:
    """Constant indices counted from the front; others as they are.

    Raises:
        Declined: a constant index is out of range.
    """
    known, n = ctx.program.constants.get(indices.name), constant_int(limit)
    if known is None or n is None or not known.size or known.min() >= 0:
        if known is not None and n is not None and known.size and known.max() >= n:
            raise Declined(f"index {known.max()} is out of range for a dimension of {n}")
        return indices
    if known.min() < -n or known.max() >= n:
        raise Declined(f"an index is out of range for a dimension of {n}")
    return ctx.constant(np.where(known < 0, known + n, known), "indices")


def lower_gather_elements(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """x[i][index[i][j]] and the like: the index of one axis is read, the others stay."""
    x, indices = required(inputs, 0), required(inputs, 1)
    axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
    if indices.rank != x.rank:
        raise Declined(f"indices of rank {indices.rank} choose from a tensor of rank {x.rank}")
    for d in range(x.rank):
        have, want = constant_int(x.shape[d]), constant_int(indices.shape[d])
        fits = have is not None and want is not None and want <= have
        if d != axis and not fits:
            ctx.require_equal(x.shape[d], indices.shape[d])

    ctx.require_some(x.shape[axis], indices.shape)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        chosen = bounded(cast(indices.at(*index), INDEX), x.shape[axis])
        return [*index[:axis], chosen, *index[axis + 1 :]]

    return moved(ctx, x, indices.shape, source)


def lower_gather_nd(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Slices of x at positions listed in the last dimension of the indices."""
    x, indices = required(inputs, 0), required(inputs, 1)
    batch = attribute_int(node, "batch_dims", 0)
    depth = constant_int(indices.shape[-1])
    if depth is None:
        raise Declined("the last dimension of the indices is not constant")
    for d in range(batch):
        ctx.require_equal(x.shape[d], indices.shape[d])
    outer = indices.rank - 1
    shape = [*indices.shape[:-1], *x.shape[batch + depth :]]
    for n in x.shape[batch : batch + depth]:
        ctx.require_some(n, shape)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        chosen = [
            bounded(cast(indices.at(*index[:outer], const(k)), INDEX), x.shape[batch + k])
            for k in range(depth)
        ]
        return [*index[:batch], *chosen, *index[outer:]]

    return moved(ctx, x, shape, source)


def lower_reverse_sequence(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The first `length` steps of each sequence backward, the rest as it is."""
    x, lengths = required(inputs, 0), required(inputs, 1)
    time, batch = attribute_int(node, "time_axis", 0), attribute_int(node, "batch_axis", 1)
    ctx.require_equal(lengths.shape[0], x.shape[batch])

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        length, at = cast(lengths.at(index[batch]), INDEX), index[time]
        back = select(binary("lt", at, length), length - 1 - at, at)
        return [*index[:time], bounded(back, x.shape[time]), *index[time + 1 :]]

    return moved(ctx, x, x.shape, source)


def lower_one_hot(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """values[1] where the new dimension's index is the one given, else values[0]."""
    indices, values = required(inputs, 0), required(inputs, 2)
    ctx.require_equal(product(values.shape), const(2))
    depth = ctx.dim(index_values(ctx, required(inputs, 1), "the depth")[0])
    axis = normalize_axis(attribute_int(node, "axis", -1), indices.rank + 1)
    shape = [*indices.shape[:axis], depth, *indices.shape[axis:]]

    def body(*index: Expr) -> Expr:
        given = cast(indices.at(*index[:axis], *index[axis + 1 :]), INDEX)
        wrapped = select(binary("lt", given, const(0)), given + depth, given)
        return select(binary("eq", wrapped, index[axis]), values.at(1), values.at(0))

    return [ctx.define(shape, body, values.dtype)]


def lower_trilu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The upper or lower triangle of matrices, from the k-th diagonal on; 0 elsewhere."""
    x, k = required(inputs, 0), optional(inputs, 1)
    upper = attribute_int(node, "upper", 1) == 1

    def body(*index: Expr) -> Expr:
        row, column = index[-2:]
        diagonal = row + (const(0) if k is None else cast(scalar(k), INDEX))
        kept = binary("le", diagonal, column) if upper else binary("le", column, diagonal)
        return select(kept, x.at(*index), const(0, x.dtype))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_eye_like(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Ones on the k-th diagonal of a matrix of the input's shape."""
    x = required(inputs, 0)
    k, code = attribute_int(node, "k", 0), attribute_int(node, "dtype", 0)
    dtype = element_type(ir.DataType(code)) if code else x.dtype
    if dtype is None:
        raise Declined(f"element type {ir.DataType(code).name} is not supported")

    def body(row: Expr, column: Expr) -> Expr:
        return cast(binary("eq", column, row + k), dtype)

    return [ctx.define(x.shape, body, dtype)]


OPS: tuple[Op, ...] = (
    Op(name="Constant", lower=lower_constant),
    Op(name="Shape", lower=lower_shape, pruning=SHAPE),
    Op(name="Size", lower=lower_size),
    Op(name="ConstantOfShape", lower=lower_constant_of_shape),
    Op(name="Range", lower=lower_range),
    Op(name="Gather", lower=lower_gather, pruning=GATHER),
    Op(name="GatherElements", lower=lower_gather_elements),
    Op(name="GatherND", lower=lower_gather_nd),
    Op(name="ReverseSequence", lower=lower_reverse_sequence),
    Op(name="OneHot", lower=lower_one_hot),
    Op(name="Trilu", lower=lower_trilu),
    Op(name="EyeLike", lower=lower_eye_like),
)
