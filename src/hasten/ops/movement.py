"""Operators that only move elements: an output element is an input element at another index."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Size, binary, const, constant_int, select, substitute, walk
from hasten.loops.simplify import divide, is_nonnegative, to_poly
from hasten.ops import movement_pruning as pruning
from hasten.ops.attributes import attribute_int, attribute_ints, attribute_str
from hasten.ops.axes import axis_numbers, by_axis, index_values, listed, with_ones, without
from hasten.ops.base import (
    Declined,
    Inputs,
    Lowering,
    Op,
    Tensor,
    moved,
    normalize_axis,
    optional,
    required,
)
from hasten.ops.broadcasting import joint_shape, repeated, spread
from hasten.ops.indices import clamp, linear_index, product, split_index
from hasten.ops.resolve import is_signed

_FAR = 2**31 - 1

MOST_AXES = 8
"""New axes that data may place: each may come before or after each other one."""
"""Exporters write this, or more, for "to the end" in Slice."""


def lower_identity(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The input."""
    x = required(inputs, 0)
    return moved(ctx, x, x.shape, lambda i: i)


def lower_dropout(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The input, and a mask that keeps all of it: nothing is dropped when a model is only run."""
    x, training = required(inputs, 0), optional(inputs, 2)
    flag = None if training is None else ctx.constant_of(training)
    if training is not None and (flag is None or bool(flag)):
        raise Declined("the Dropout may run in training mode")
    same = moved(ctx, x, x.shape, lambda i: i)
    if len(node.outputs) < 2:
        return same
    return [*same, ctx.define(x.shape, lambda *_: const(True, DType.BOOL), DType.BOOL)]


def reshaped(ctx: Lowering, x: Tensor, shape: Sequence[Expr]) -> list[Tensor]:
    """The elements in the same row-major order under another shape of as many elements."""
    new = [ctx.dim(n) for n in shape]
    ctx.require_equal(product(x.shape), product(new))
    groups = _matching_groups(x.shape, new)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        result: list[Expr] = []
        for old_range, new_range in groups:
            flat = linear_index(index[new_range], new[new_range])
            result += split_index(flat, x.shape[old_range])
        return result

    return moved(ctx, x, new, source)


def _matching_groups(old: Sequence[Expr], new: Sequence[Expr]) -> list[tuple[slice, slice]]:
    """Runs of dimensions of two shapes with provably the same number of elements, as short as possible.

    Within a run the index is computed through a flat position; short runs keep that arithmetic simple.
    """
    groups: list[tuple[slice, slice]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start = (i, j)
        a: Expr = const(1)
        b: Expr = const(1)
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b and (i < len(old) or j < len(new)):
            if j == len(new) or (i < len(old) and not _divides(b, a)):
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        groups.append((slice(start[0], i), slice(start[1], j)))
    return groups


def _divides(d: Expr, n: Expr) -> bool:
    """True where n is provably a multiple of d."""
    divisor = to_poly(d)
    return bool(divisor) and not divide(to_poly(n), divisor)[1]


def lower_reshape(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Another shape: 0 copies a dimension (unless `allowzero`), -1 takes what is left."""
    x, target = required(inputs, 0), required(inputs, 1)
    allow_zero = attribute_int(node, "allowzero", 0) == 1
    shape: list[Expr] = []
    rest: list[Expr] = []
    for d, n in enumerate(index_values(ctx, target, "the new shape")):
        # Only numbers that are given or read can be 0 or -1 and mean something else.
        plain = constant_int(n) is None and not any(is_signed(v) for v in walk(n))
        copied = const(False, DType.BOOL) if plain or allow_zero else binary("eq", n, const(0))
        if constant_int(copied) == 1 and d >= x.rank:
            raise Declined(f"entry {d} of the new shape copies a dimension that the input lacks")
        rest.append(const(False, DType.BOOL) if plain else binary("eq", n, const(-1)))
        wanted = select(copied, x.shape[d], n) if d < x.rank else n
        shape.append(select(rest[d], const(1), ctx.dim(wanted) if plain else wanted))
    if sum(constant_int(r) == 1 for r in rest) > 1:
        raise Declined("the new shape has more than one -1")
    known = product(shape)
    left = const(0) if constant_int(known) == 0 else product(x.shape) // known
    return reshaped(ctx, x, [select(r, left, n) for r, n in zip(rest, shape, strict=True)])


def lower_flatten(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Two dimensions: those before `axis` and those from it on."""
    x = required(inputs, 0)
    axis = attribute_int(node, "axis", 1)
    axis = x.rank if axis == x.rank else normalize_axis(axis, x.rank)
    return reshaped(ctx, x, [product(x.shape[:axis]), product(x.shape[axis:])])


def lower_transpose(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Dimensions in another order, by default reversed."""
    x = required(inputs, 0)
    perm = attribute_ints(node, "perm", range(x.rank)[::-1])
    if sorted(perm) != list(range(x.rank)):
        raise Declined(f"perm {perm} is no order of {x.rank} dimensions")
    order = [perm.index(d) for d in range(x.rank)]
    return moved(ctx, x, [x.shape[p] for p in perm], lambda i: [i[d] for d in order])


def lower_squeeze(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Without the given dimensions, each of which must be 1, or all that are 1."""
    x, given = required(inputs, 0), optional(inputs, 1)
    if given is None and any(constant_int(n) is None for n in x.shape):
        raise Declined("without axes, the input's dimensions must be constant")
    ones = [d for d, n in enumerate(x.shape) if constant_int(n) == 1]
    axes = axis_numbers(ctx, given, x.rank, ones)
    for d, dropped in enumerate(listed(axes, x.rank)):
        ctx.require_equal(select(dropped, x.shape[d], const(1)), const(1))
    return [without(ctx, x, axes)]


def lower_unsqueeze(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """With new dimensions of 1 at the given places of the result."""
    x, given = required(inputs, 0), required(inputs, 1)
    count = constant_int(product(given.shape))
    if count is None:
        raise Declined("the number of new axes is not constant")
    if count > MOST_AXES and ctx.values(given, read=False) is None:
        raise Declined(f"{count} new axes are read from data")
    return [with_ones(ctx, x, axis_numbers(ctx, given, x.rank + count, ()))]


def lower_expand(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Broadcast against a shape, both ways."""
    x, target = required(inputs, 0), required(inputs, 1)
    values = index_values(ctx, target, "the new shape")
    for n in (n for n in values if any(is_signed(e) for e in walk(n))):
        ctx.require(binary("le", const(0), n), "a shape that is not negative")
    target_dims = [ctx.dim(n) for n in values]
    shape = joint_shape(ctx, x.shape, target_dims)
    repeated(ctx, target_dims, shape)
    return [ctx.define(shape, spread(ctx, x, shape), x.dtype)]


def lower_tile(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Repeated along each dimension."""
    x = required(inputs, 0)
    repeats = index_values(ctx, required(inputs, 1), "the number of repetitions")
    shape = [n * r for n, r in zip(x.shape, repeats, strict=True)]

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        once = [constant_int(r) == 1 for r in repeats]
        return [i if o else i % n for i, n, o in zip(index, x.shape, once, strict=True)]

    return moved(ctx, x, shape, source)


def lower_concat(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The inputs one after the other along an axis."""
    parts = [required(inputs, n) for n in range(len(inputs))]
    first = parts[0]
    axis = normalize_axis(attribute_int(node, "axis", 0), first.rank)
    for part in parts[1:]:
        for d in range(first.rank):
            if d != axis:
                ctx.require_equal(first.shape[d], part.shape[d])
    ends: list[Expr] = []
    total: Expr = const(0)
    for part in parts:
        total = total + part.shape[axis]
        ends.append(total)
    shape = [*first.shape[:axis], total, *first.shape[axis + 1 :]]
    filled = [(p, e) for p, e in zip(parts, ends, strict=True) if constant_int(p.shape[axis]) != 0]

    def body(*index: Expr) -> Expr:
        result: Expr | None = None
        for part, end in reversed(filled or [(first, total)]):
            at = index[axis] - (end - part.shape[axis])
            element = part.at(*index[:axis], at, *index[axis + 1 :])
            inside = binary("lt", index[axis], end)
            result = element if result is None else select(inside, element, result)
        assert result is not None
        return result

    return [ctx.define(shape, body, first.dtype)]


def lower_split(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Parts along an axis: of the given lengths, or `num_outputs` of which the last may be shorter."""
    x, lengths = required(inputs, 0), optional(inputs, 1)
    axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
    n = x.shape[axis]
    if lengths is not None:
        parts = [ctx.dim(e) for e in index_values(ctx, lengths, "the lengths of the parts")]
        total: Expr = const(0)
        for part in parts:
            total = total + part
        ctx.require_equal(total, n)
    else:
        count = attribute_int(node, "num_outputs", len(node.outputs))
        chunk = ctx.dim((n + (count - 1)) // count)
        ctx.require(binary("le", chunk * (count - 1), n), f"an axis that is long enough for {count} parts")
        parts = [chunk] * (count - 1) + [ctx.dim(n - chunk * (count - 1))]
    start: Expr = const(0)
    results: list[Tensor] = []
    for part in parts:
        results += _window(ctx, x, axis, start, part)
        start = start + part
    return results


def _window(ctx: Lowering, x: Tensor, axis: int, start: Expr, length: Expr) -> list[Tensor]:
    shape = [*x.shape[:axis], length, *x.shape[axis + 1 :]]
    return moved(ctx, x, shape, lambda i: [*i[:axis], i[axis] + start, *i[axis + 1 :]])


def lower_slice(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Every step-th element from start to end (exclusive) along some axes, as in Python."""
    x = required(inputs, 0)
    starts = index_values(ctx, required(inputs, 1), "the start of the slice")
    ends = index_values(ctx, required(inputs, 2), "the end of the slice")
    axes = axis_numbers(ctx, optional(inputs, 3), x.rank, range(len(starts)))
    given = optional(inputs, 4)
    steps: list[Expr] = [const(1)] * len(starts)
    if given is not None:
        steps = index_values(ctx, given, "the step of the slice")
    for step in steps:
        ctx.require(binary("ne", step, const(0)), "a step of the slice that is not 0")
    starts, ends, steps = (
        by_axis(axes, values, x.rank, [const(default)] * x.rank)
        for values, default in ((starts, 0), (ends, _FAR), (steps, 1))
    )
    ranges = [_slice_range(*r) for r in zip(x.shape, starts, ends, steps, strict=True)]
    for extent, (_, length) in zip(x.shape, ranges, strict=True):
        for n in (n for n in walk(extent) if isinstance(n, Size)):
            # Sizes are taken to be 1 or more, so that a slice of none may look like one of some.
            if constant_int(binary("max", substitute(length, {n: const(0)}), const(0))) != 0:
                ctx.require_some(n, [])

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        return [r[0] + i * step for i, r, step in zip(index, ranges, steps, strict=True)]

    return moved(ctx, x, [count for _, count in ranges], source)


def _slice_range(n: Expr, start: Expr, end: Expr, step: Expr) -> tuple[Expr, Expr]:
    """The first index and the number of elements of a slice of n elements."""
    forward = binary("lt", const(0), step)
    low, high = select(forward, const(0), const(-1)), select(forward, n, n - 1)
    first = _slice_bound(start, n, const(0), high)
    last = _slice_bound(end, n, low, high)
    distance, pace = select(forward, last - first, first - last), select(forward, step, 0 - step)
    length = binary("max", (distance + (pace - 1)) // pace, const(0))
    a, b, by = (constant_int(e) for e in (start, end, step))
    if a is not None and b is not None and by and (a < 0) == (b < 0) and 0 < (b - a) / by <= 1:
        # Which the difference of two bounds does not show.
        length = binary("min", length, const(1))
    return first, length


def _slice_bound(e: Expr, n: Expr, low: Expr, high: Expr) -> Expr:
    """A bound of a slice within [low, high]; a negative one counts from the end."""
    value = constant_int(e)
    if value is not None and abs(value) >= _FAR:
        return high if value > 0 else low
    if is_nonnegative(e):
        wrapped = e
    elif is_nonnegative(const(-1) - e):
        wrapped = e + n
    else:
        wrapped = select(binary("lt", e, const(0)), e + n, e)
    return clamp(wrapped, low, high)


def lower_depth_to_space(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Blocks of channels laid out as squares of pixels."""
    x = required(inputs, 0)
    size = attribute_int(node, "blocksize", 1)
    batch, channels, height, width = x.shape
    depth = ctx.dim(channels // (size * size))
    ctx.require_equal(depth * (size * size), channels)
    column_row_depth = attribute_str(node, "mode", "DCR") == "CRD"

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        n, c, h, w = index
        block = (h % size) * size + w % size
        channel = c * (size * size) + block if column_row_depth else block * depth + c
        return [n, channel, h // size, w // size]

    return moved(ctx, x, [batch, depth, height * size, width * size], source)


def lower_space_to_depth(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Squares of pixels laid out as blocks of channels."""
    x = required(inputs, 0)
    size = attribute_int(node, "blocksize", 1)
    by_channel = attribute_str(node, "mode", "DCR") == "CRD"
    batch, channels, height, width = x.shape
    rows, columns = ctx.dim(height // size), ctx.dim(width // size)
    ctx.require_equal(rows * size, height)
    ctx.require_equal(columns * size, width)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        n, c, h, w = index
        if by_channel:
            channel, block = c // (size * size), c % (size * size)
        else:
            channel, block = c % channels, c // channels
        return [n, channel, h * size + block // size, w * size + block % size]

    return moved(ctx, x, [batch, channels * (size * size), rows, columns], source)


OPS: tuple[Op, ...] = (
    Op(name="Dropout", lower=lower_dropout),
    Op(name="Identity", lower=lower_identity, pruning=pruning.UNMOVED),
    Op(name="Reshape", lower=lower_reshape, pruning=pruning.RESHAPE),
    Op(name="Flatten", lower=lower_flatten, pruning=pruning.RESHAPED),
    Op(name="Transpose", lower=lower_transpose, pruning=pruning.TRANSPOSE),
    Op(name="Squeeze", lower=lower_squeeze, pruning=pruning.RESHAPED),
    Op(name="Unsqueeze", lower=lower_unsqueeze, pruning=pruning.RESHAPED),
    Op(name="Expand", lower=lower_expand, pruning=pruning.EXPAND),
    Op(name="Tile", lower=lower_tile),
    Op(name="Concat", lower=lower_concat, pruning=pruning.CONCAT),
    Op(name="Split", lower=lower_split, pruning=pruning.SPLIT),
    Op(name="Slice", lower=lower_slice, pruning=pruning.SLICE),
    Op(name="DepthToSpace", lower=lower_depth_to_space),
    Op(name="SpaceToDepth", lower=lower_space_to_depth),
)
