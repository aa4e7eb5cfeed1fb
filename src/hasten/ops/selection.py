"""Outputs as long as what is found in the data: NonZero and Compress.

The positions that hold are counted and collected first (`loops.descriptions.RankSelect`); the count is read,
and the output is as long as it says.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from hasten.loops.descriptions import RankSelect
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, bounded, const, select
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, moved, normalize_axis, required
from hasten.ops.indices import product, split_index

Lookup = Callable[[Expr], Expr]


def found(ctx: Lowering, count: Expr, holds: Lookup) -> tuple[Expr, Lookup, Lookup]:
    """The positions in [0, count) at which a condition holds.

    Args:
        ctx: what is lowered to.
        count: number of positions.
        holds: the condition for a position, of BOOL.

    Returns:
        How many they are, as a size; the n-th of them; and how many are before a position.
    """
    total = ctx.dim(count)
    condition = ctx.temporary([total], holds, DType.BOOL, "holds", vars=["p"])
    position = Var(INDEX, "position", total)

    def ranks(which: Expr, at: Expr) -> RankSelect:
        assert isinstance(which, Var) and isinstance(at, Var)
        return RankSelect(which, at, position, condition.at(position))

    both = ctx.temporary([const(2), total + 1], ranks, INDEX, "ranks", vars=["which", "at"])
    number = ctx.temporary([], lambda: both.at(0, total), INDEX, "count")
    size = ctx.element(number, ())
    assert size is not None
    return ctx.dim(size), lambda n: both.at(1, n), lambda p: both.at(0, p)


def _is_set(e: Expr) -> Expr:
    return e if e.dtype is DType.BOOL else binary("ne", e, const(0, e.dtype))


def lower_non_zero(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The indices of the elements that are not zero, one column for each."""
    x = required(inputs, 0)
    if x.rank == 0:
        raise Declined("NonZero of a scalar has no axes")
    count, position, _ = found(ctx, product(x.shape), lambda p: _is_set(x.at(*split_index(p, x.shape))))

    def body(axis: Expr, n: Expr) -> Expr:
        index = split_index(position(n), x.shape)
        result = index[-1]
        for d in range(x.rank - 2, -1, -1):
            result = select(binary("eq", axis, const(d)), index[d], result)
        return result

    return [ctx.define([const(x.rank), count], body, INDEX)]


def lower_compress(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The slices along an axis, or the elements in row-major order, for which a condition is true."""
    x, condition = required(inputs, 0), required(inputs, 1)
    count, position, _ = found(ctx, condition.shape[0], condition.at)
    if "axis" not in node.attributes:
        total = product(x.shape)
        return moved(ctx, x, [count], lambda i: split_index(bounded(position(i[0]), total), x.shape))
    axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)

    def source(index: tuple[Expr, ...]) -> list[Expr]:
        return [*index[:axis], bounded(position(index[axis]), x.shape[axis]), *index[axis + 1 :]]

    return moved(ctx, x, [*x.shape[:axis], count, *x.shape[axis + 1 :]], source)


OPS: tuple[Op, ...] = (
    Op(name="NonZero", lower=lower_non_zero),
    Op(name="Compress", lower=lower_compress),
)
