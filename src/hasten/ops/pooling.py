"""Pooling over windows and over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from hasten.loops.expr import Expr, Var, binary, cast, const, reduce, unary, var
from hasten.ops.attributes import attribute_int, attribute_ints
from hasten.ops.base import Declined, Inputs, Lower, Lowering, Op, Tensor, required
from hasten.ops.pruning import WINDOWS, alike
from hasten.ops.reductions import count_of, lowest, reduce_axes
from hasten.ops.windows import SPATIAL_NAMES, TAP_NAMES, Window, names, padded, windows

Epilogue = Callable[[Expr, Sequence[Expr]], Expr]


def _sliding(node: ir.Node, x: Tensor) -> list[Window]:
    if x.rank < 3:
        raise Declined(f"{node.op_type} of rank {x.rank} has no spatial axis")
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Declined(f"{node.op_type} with the indices of its elements")
    kernel = attribute_ints(node, "kernel_shape", ())
    return windows(node, x.shape[2:], kernel, attribute_int(node, "ceil_mode", 0) != 0)


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
    sliding = _sliding(node, x)
    return [_pool(ctx, x, sliding, "max", _unchanged, lowest(x.dtype), lambda y, o: y)]


def lower_average_pool(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The mean of each window over its elements in the input, or also over the padding."""
    x = required(inputs, 0)
    sliding = _sliding(node, x)
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
    sliding = _sliding(node, x)
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

OPS = alike(WINDOWS, _ALL)
