"""Resize with antialias: where a picture shrinks, each element is a mean over all that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasten.loops.expr import Expr, binary, cast, const, reduce, select, unary, var
from hasten.ops.base import Lowering, Tensor
from hasten.ops.indices import clamp
from hasten.ops.interpolation import cubic_weights


@dataclass(frozen=True)
class Shrunk:
    """An axis that is resized.

    Attributes:
        axis: its number.
        new: its new length.
        num, den: the scale, num / den.
        place: for a new index the element before the position that it stands for, and how far behind
            that it lies, in [0, 1).
    """

    axis: int
    new: Expr
    num: Expr
    den: Expr
    place: Callable[[Expr], tuple[Expr, Expr]]


def shrink(ctx: Lowering, x: Tensor, s: Shrunk, a: float | None, exclude: bool) -> Tensor:
    """The tensor with one axis resized.

    The weights of interpolation reach as much further as the axis shrinks, and their sum is 1.

    Args:
        ctx: what is lowered to.
        x: the tensor.
        s: the axis.
        a: parameter of the cubic kernel; None for the linear one.
        exclude: elements outside have no weight, instead of being those at the edge.
    """
    reach = (s.den * (1 if a is None else 2) + s.num - 1) // s.num
    reach = ctx.dim(binary("max", reach, const(1 if a is None else 2)))
    taps, old = ctx.dim(reach * 2), x.shape[s.axis]
    one = const(1, x.dtype)
    scale = binary("min", binary("div", cast(s.num, x.dtype), cast(s.den, x.dtype)), one)

    def raw(i: Expr, k: Expr) -> Expr:
        low, fraction = s.place(i)
        offset = k - reach + 1
        away = unary("abs", binary("mul", binary("sub", cast(offset, x.dtype), fraction), scale))
        weight = _kernel(away, a)
        if not exclude:
            return weight
        at = low + offset
        inside = binary("and", binary("le", const(0), at), binary("lt", at, old))
        return select(inside, weight, const(0, x.dtype))

    raws = ctx.temporary([s.new, taps], raw, x.dtype, f"raw{s.axis}")

    def share(i: Expr, k: Expr) -> Expr:
        other = var("other", taps)
        return binary("div", raws.at(i, k), reduce("sum", (other,), raws.at(i, other)))

    shares = ctx.temporary([s.new, taps], share, x.dtype, f"weights{s.axis}")

    def body(*index: Expr) -> Expr:
        i, k = index[s.axis], var("k", taps)
        low, _ = s.place(i)
        at = clamp(low + (k - reach + 1), const(0), old - 1)
        element = x.at(*index[: s.axis], at, *index[s.axis + 1 :])
        return reduce("sum", (k,), binary("mul", element, shares.at(i, k)))

    shape = [*x.shape[: s.axis], s.new, *x.shape[s.axis + 1 :]]
    return ctx.temporary(shape, body, x.dtype, f"axis{s.axis}")


def _kernel(away: Expr, a: float | None) -> Expr:
    """The weight of an element at a distance."""
    zero, one, two = (const(n, away.dtype) for n in (0, 1, 2))
    if a is None:
        return binary("max", binary("sub", one, away), zero)
    # Of weights at -1, 0, 1 and 2 for a position t the second is that of distance t, the first of t + 1.
    near = cubic_weights(away, a)[1]
    far = cubic_weights(binary("sub", away, one), a)[0]
    return select(binary("le", away, one), near, select(binary("lt", away, two), far, zero))
