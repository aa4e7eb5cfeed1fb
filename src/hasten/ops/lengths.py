"""What definitions ask of the lengths of axes, and what is known of lengths: also where some are 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hasten.loops.expr import Bounded, Const, Expr, Load, Op, Var, children, const, constant_int, walk
from hasten.loops.simplify import nonnegative, to_poly


@dataclass(frozen=True)
class ShortAxis:
    """An axis that may be shorter than what is read of it.

    Attributes:
        tensor: whose axis.
        number: which.
        wanted: how far a variable runs along it, or one more than the place that is read.
        length: how long the axis is.
    """

    tensor: str
    number: int
    wanted: Expr
    length: Expr


def short_axes(e: Expr, shape_of: Callable[[str], tuple[Expr, ...] | None]) -> Iterator[ShortAxis]:
    """The axes that an expression reads with a variable of another extent, or where it may end.

    Where an operator takes one value for each channel, the shapes of two tensors meet in this alone. What a
    choice guards is left out: there an operator says itself what is read.

    Args:
        e: an element of a definition.
        shape_of: the shape of a tensor of the program, None for anything else.
    """
    stack, seen = [e], set[Expr]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Op) and node.op == "select":
            stack.append(node.args[0])
            continue
        stack.extend(children(node))
        shape = shape_of(node.buffer) if isinstance(node, Load) else None
        if isinstance(node, Load) and shape is not None:
            for d, (i, n) in enumerate(zip(node.index, shape, strict=True)):
                if isinstance(i, Var) and i.extent is not None and i.extent != n:
                    yield ShortAxis(node.buffer, d, i.extent, n)
                elif isinstance(i, Const) and not isinstance(n, Const):
                    yield ShortAxis(node.buffer, d, i + 1, n)
                elif not constant_int(n) and any(isinstance(e, Bounded) for e in walk(i)):
                    # A place out of bounds is reported, and the first read in its stead.
                    yield ShortAxis(node.buffer, d, const(1), n)


def is_at_most(e: Expr, limit: Expr) -> bool:
    """Whether a size is provably no more than another."""
    if isinstance(e, Op) and e.op == "min":
        return any(is_at_most(a, limit) for a in e.args)
    return nonnegative(to_poly(limit - e), 0)
