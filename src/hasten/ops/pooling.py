"""Pooling over windows and over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Var,
    binary,
    bounded,
    cast,
    const,
    constant_int,
    reduce,
    select,
    unary,
    var,
)
from hasten.ops.attributes import attribute_int, attribute_ints
from hasten.ops.axes import index_values
from hasten.ops.base import Declined, Inputs, Lower, Lowering, Op, Tensor, optional, required
from hasten.ops.indices import linear_index, product, split_index
from hasten.ops.pruning import WINDOWS, alike
from hasten.ops.reductions import count_of, lowest, reduce_axes
from hasten.ops.windows import SPATIAL_NAMES, TAP_NAMES, Window, names, padded, windows

CANDIDATES = 1024
"""Largest number of elements that each one of MaxUnpool's output is looked for among."""

Epilogue = Callable[[Expr, Sequence[Expr]], Expr]


def _sliding(ctx: Lowering, node: ir.Node, x: Tensor) -> list[Window]:
    if x.rank < 3:
        raise Declined(f"{node.op_type} of rank {x.rank} has no spatial axis")
    kernel = attribute_ints(node, "kernel_shape", ())
    return windows(ctx, node, x.shape[2:], kernel, attribute_int(node, "ceil_mode", 0) != 0)


def _pool(
    ctx: Lowering,
    x: Tensor,
    sliding: Sequence[Window],
    op: str,
    before: Callable[[Expr], Expr],
    fill: Expr,
    after: Epilogue,
) -> Tensor:
    """`op` over the windows of `before(x)`, then `after` of the result and the window's index."""
    labels = names(len(sliding), TAP_NAMES)
    taps: list[Expr] = [
        var(n, w.kernel) if w.kernel != 1 else const(0) for n, w in zip(labels, sliding, strict=True)
    ]
    variables = tuple(t for t in taps if isinstance(t, Var))

    def body(n: Expr, c: Expr, *o: Expr) -> Expr:
        element = before(padded(x, (n, c), sliding, o, taps, fill))
        return after(reduce(op, variables, element), o)

    shape = [*x.shape[:2], *(ctx.dim(w.out) for w in sliding)]
    return ctx.define(shape, body, x.dtype, vars=("n", "c", *names(len(sliding), SPATIAL_NAMES)))


def _unchanged(e: Expr) -> Expr:
    return e


def lower_max_pool(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The largest element of each window; padding never wins."""
    x = required(inputs, 0)
    sliding = _sliding(ctx, node, x)
    largest = _pool(ctx, x, sliding, "max", _unchanged, lowest(x.dtype), lambda y, o: y)
    if len(node.outputs) == 1 or not node.outputs[1].name:
        return [largest]
    return [largest, _places_of(ctx, node, x, sliding, largest)]


def _places_of(ctx: Lowering, node: ir.Node, x: Tensor, sliding: Sequence[Window], largest: Tensor) -> Tensor:
    """Where in the whole input the first of the largest elements of each window stands."""
    labels = names(len(sliding), TAP_NAMES)
    taps = [var(n, w.kernel) for n, w in zip(labels, sliding, strict=True)]
    space = x.shape[2:]
    none = product(space)
    by_column = attribute_int(node, "storage_order", 0) == 1

    def body(n: Expr, c: Expr, *o: Expr) -> Expr:
        at = [w.position(oo, tt) for w, oo, tt in zip(sliding, o, taps, strict=True)]
        inside: Expr = const(True, DType.BOOL)
        for w, oo, tt in zip(sliding, o, taps, strict=True):
            inside = binary("and", inside, w.inside(oo, tt))
        value = padded(x, (n, c), sliding, o, taps, lowest(x.dtype))
        hit = binary("and", inside, binary("eq", value, largest.at(n, c, *o)))
        first = reduce("min", tuple(taps), select(hit, linear_index(at, space), none))
        # Without a number in the window none is the largest.
        first = binary("min", first, none - 1)
        if by_column:
            first = linear_index(split_index(first, space)[::-1], space[::-1])
        return linear_index((n, c), x.shape[:2]) * none + first

    return ctx.define(largest.shape, body, INDEX)


def lower_max_unpool(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Zeros, but for elements at the places that MaxPool said; they are counted in what pooling had."""
    x, places, wanted = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    kernel = attribute_ints(node, "kernel_shape", ())
    rank = x.rank - 2
    strides = attribute_ints(node, "strides", [1] * rank)
    pads = attribute_ints(node, "pads", [0] * (2 * rank))
    if rank < 1 or not len(kernel) == len(strides) == rank or len(pads) != 2 * rank:
        raise Declined(f"MaxUnpool: kernel, strides and pads must fit {rank} spatial axes")
    for a, b in zip(x.shape, places.shape, strict=True):
        ctx.require_equal(a, b)
    space = [
        ctx.dim((n - 1) * strides[d] + kernel[d] - pads[d] - pads[rank + d])
        for d, n in enumerate(x.shape[2:])
    ]
    full = [*x.shape[:2], *space]
    count = ctx.dim(product(x.shape))
    few = constant_int(count)
    if few is None or few > CANDIDATES:
        raise Declined(f"MaxUnpool is compiled for up to {CANDIDATES} elements, known beforehand")
    u = var("u", count)

    def named(index: Sequence[Expr]) -> Expr:
        given = bounded(places.at(*split_index(u, x.shape)), product(full))
        return binary("eq", given, linear_index(index, full))

    def body(*index: Expr) -> Expr:
        last = reduce("max", (u,), select(named(index), u, const(-1)))
        value = x.at(*split_index(binary("max", last, const(0)), x.shape))
        return select(binary("lt", last, const(0)), const(0, x.dtype), value)

    if wanted is None:
        return [ctx.define(full, body, x.dtype)]
    unpooled = ctx.temporary(full, body, x.dtype, "unpooled")
    shape = [ctx.dim(n) for n in index_values(ctx, wanted, "the shape of the result")]
    if len(shape) != x.rank:
        raise Declined(f"MaxUnpool to {len(shape)} axes")

    def surrounded(*index: Expr) -> Expr:
        inside: Expr = const(True, DType.BOOL)
        for i, n in zip(index, full, strict=True):
            inside = binary("and", inside, binary("lt", i, n))
        return select(inside, unpooled.at(*index), const(0, x.dtype))

    return [ctx.define(shape, surrounded, x.dtype)]


def lower_average_pool(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The mean of each window over its elements in the input, or also over the padding."""
    x = required(inputs, 0)
    sliding = _sliding(ctx, node, x)
    with_padding = attribute_int(node, "count_include_pad", 0) != 0

    def mean(total: Expr, o: Sequence[Expr]) -> Expr:
        count: Expr = const(1)
        for w, at in zip(sliding, o, strict=True):
            count = count * w.count(at, with_padding)
        return binary("div", total, cast(count, x.dtype))

    return [_pool(ctx, x, sliding, "sum", _unchanged, const(0, x.dtype), mean)]


def _power(e: Expr, p: int) -> Expr:
    absolute = unary("abs", e)
    if p == 1:
        return absolute
    return binary("mul", e, e) if p == 2 else binary("pow", absolute, const(p, e.dtype))


def _root(e: Expr, p: int) -> Expr:
    if p == 1:
        return e
    return unary("sqrt", e) if p == 2 else binary("pow", e, const(1 / p, e.dtype))


def lower_lp_pool(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The p-norm of each window."""
    x = required(inputs, 0)
    sliding = _sliding(ctx, node, x)
    p = attribute_int(node, "p", 2)
    zero = const(0, x.dtype)
    return [_pool(ctx, x, sliding, "sum", lambda e: _power(e, p), zero, lambda y, o: _root(y, p))]


def _global(op: str, before: Callable[[Expr, ir.Node], Expr], after: Callable[..., Expr]) -> Lower:
    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x = required(inputs, 0)
        axes = range(2, x.rank)
        total = reduce_axes(op, x, axes, lambda i: before(x.at(*i), node))
        count = count_of(x, axes, x.dtype)
        shape = [*x.shape[:2], *(const(1) for _ in axes)]
        return [ctx.define(shape, lambda *i: after(total(i), count, node), x.dtype)]

    return lower


def _p(node: ir.Node) -> int:
    return attribute_int(node, "p", 2)


_ALL = (
    Op(name="MaxPool", lower=lower_max_pool),
    Op(name="AveragePool", lower=lower_average_pool),
    Op(name="LpPool", lower=lower_lp_pool),
    Op(
        name="GlobalAveragePool",
        lower=_global("sum", lambda e, node: e, lambda y, count, node: binary("div", y, count)),
    ),
    Op(name="GlobalMaxPool", lower=_global("max", lambda e, node: e, lambda y, count, node: y)),
    Op(
        name="GlobalLpPool",
        lower=_global("sum", lambda e, n: _power(e, _p(n)), lambda y, count, n: _root(y, _p(n))),
    ),
)

OPS = (*alike(WINDOWS, _ALL), Op(name="MaxUnpool", lower=lower_max_unpool))
