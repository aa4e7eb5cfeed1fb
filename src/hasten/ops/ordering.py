"""Operators that put elements in order: TopK and Unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from hasten.loops.descriptions import Order
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Var, binary, const, reduce, select, var
from hasten.ops.attributes import attribute_int
from hasten.ops.axes import index_values
from hasten.ops.base import Inputs, Lowering, Op, Tensor, normalize_axis, required
from hasten.ops.indices import product, split_index
from hasten.ops.selection import Lookup, found

Before = Callable[[Sequence[Expr], Expr, Expr], Expr]
"""Whether one position comes before another, for an index of the lanes."""


def in_order(
    ctx: Lowering, lanes: Sequence[Expr], count: Expr, before: Before, first: Expr | None = None
) -> Tensor:
    """Positions in order (`loops.descriptions.Order`).

    Returns:
        A tensor [2, *lanes, count] of INDEX: the positions in order, and the place of each; or
        [1, *lanes, first] of the first ones alone.
    """
    position, other = Var(INDEX, "position", count), Var(INDEX, "other", count)

    def order(*index: Expr) -> Order:
        which, *own, at = (i for i in index if isinstance(i, Var))
        return Order(which, tuple(own), at, position, other, before(own, position, other))

    names = ["which", *(f"i{d}" for d in range(len(lanes))), "at"]
    shape = [const(2), *lanes, count] if first is None else [const(1), *lanes, first]
    return ctx.temporary(shape, order, INDEX, "order", vars=names)


def lower_top_k(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The k largest or smallest elements along an axis, in order, and where they stood."""
    x = required(inputs, 0)
    axis = normalize_axis(attribute_int(node, "axis", -1), x.rank)
    k = index_values(ctx, required(inputs, 1), "the number of elements")[0]
    length = x.shape[axis]
    fits = binary("and", binary("le", const(0), k), binary("le", k, length))
    ctx.require(fits, "a number of elements that the axis has")
    largest = attribute_int(node, "largest", 1) != 0

    def element(lanes: Sequence[Expr], at: Expr) -> Expr:
        return x.at(*lanes[:axis], at, *lanes[axis:])

    def before(lanes: Sequence[Expr], a: Expr, b: Expr) -> Expr:
        low, high = (b, a) if largest else (a, b)
        return binary("lt", element(lanes, low), element(lanes, high))

    lanes = [*x.shape[:axis], *x.shape[axis + 1 :]]
    places = ctx.dim(k)
    first = None if places == length else ctx.dim(binary("min", places, length))
    order = in_order(ctx, lanes, length, before, first)

    def chosen(*index: Expr) -> Expr:
        return order.at(0, *index[:axis], *index[axis + 1 :], index[axis])

    shape = [*x.shape[:axis], places, *x.shape[axis + 1 :]]
    values = ctx.define(shape, lambda *i: x.at(*i[:axis], chosen(*i), *i[axis + 1 :]), x.dtype)
    return [values, ctx.define(shape, chosen, INDEX)]


def lower_unique(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The different elements, or slices along an axis; where each stands first; which each is; how many."""
    x = required(inputs, 0)
    axis = None
    if "axis" in node.attributes:
        axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
    rest = [] if axis is None else [*x.shape[:axis], *x.shape[axis + 1 :]]
    count = ctx.dim(product(x.shape)) if axis is None else x.shape[axis]

    def element(p: Expr, r: Sequence[Expr]) -> Expr:
        """An element of the slice at a position."""
        return x.at(*split_index(p, x.shape)) if axis is None else x.at(*r[:axis], p, *r[axis:])

    before, differ = _comparisons(ctx, element, rest)
    order = in_order(ctx, [], count, lambda _, a, b: before(a, b))

    def begins(s: Expr) -> Expr:
        """Whether another value begins at a place in order."""
        back = binary("max", s - 1, const(0))
        return binary("or", binary("eq", s, const(0)), differ(order.at(0, s), order.at(0, back)))

    number, start, rank = found(ctx, count, begins)

    def first_of(group: Expr) -> Expr:
        """Where a value stands first."""
        return order.at(0, start(group))

    def group_at(p: Expr) -> Expr:
        """Which value stands at a position."""
        return rank(order.at(1, p) + 1) - 1

    first: Lookup = first_of
    inverse: Lookup = group_at
    by_value = attribute_int(node, "sorted", 1) != 0
    if not by_value:
        _, first, earlier = found(ctx, count, lambda p: binary("eq", first_of(group_at(p)), p))

        def place_of_first(p: Expr) -> Expr:
            return earlier(first_of(group_at(p)))

        inverse = place_of_first

    def many(u: Expr) -> Expr:
        g = u if by_value else group_at(first(u))
        last = binary("le", number, g + 1)
        following = binary("min", g + 1, number - 1)
        return select(last, count, start(following)) - start(g)

    if axis is None:
        y = ctx.define([number], lambda u: element(first(u), ()), x.dtype)
    else:
        shape = [*x.shape[:axis], number, *x.shape[axis + 1 :]]
        y = ctx.define(shape, lambda *i: element(first(i[axis]), [*i[:axis], *i[axis + 1 :]]), x.dtype)
    return [
        y,
        ctx.define([number], first, INDEX),
        ctx.define([count], inverse, INDEX),
        ctx.define([number], many, INDEX),
    ]


def _comparisons(
    ctx: Lowering, element: Callable[[Expr, Sequence[Expr]], Expr], rest: Sequence[Expr]
) -> tuple[Callable[[Expr, Expr], Expr], Callable[[Expr, Expr], Expr]]:
    """Whether a slice comes before another, element by element, and whether they differ."""
    if not rest:
        return (
            lambda a, b: binary("lt", element(a, ()), element(b, ())),
            lambda a, b: binary("ne", element(a, ()), element(b, ())),
        )
    total = ctx.dim(product(rest))

    def first_other(a: Expr, b: Expr) -> Expr:
        r = var("r", total)
        at = split_index(r, rest)
        return reduce("min", (r,), select(binary("ne", element(a, at), element(b, at)), r, total))

    def before(a: Expr, b: Expr) -> Expr:
        r = first_other(a, b)
        at = split_index(binary("min", r, total - 1), rest)
        return binary("and", binary("lt", r, total), binary("lt", element(a, at), element(b, at)))

    return before, lambda a, b: binary("lt", first_other(a, b), total)


OPS: tuple[Op, ...] = (
    Op(name="TopK", lower=lower_top_k),
    Op(name="Unique", lower=lower_unique),
)
