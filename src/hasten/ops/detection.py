"""What detectors do with boxes: NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.descriptions import Greedy
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, bounded, cast, const, constant_int, select
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.indices import product, split_index
from hasten.ops.selection import found

Side = tuple[Expr, Expr]
"""Least and greatest coordinate of a box along an axis."""


def lower_non_max_suppression(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Boxes by falling score but those that overlap one before too much: (picture, class, box) of each."""
    boxes, scores = required(inputs, 0), required(inputs, 1)
    given = [optional(inputs, k) for k in (2, 3, 4)]
    for t in given:
        if t is not None and any(constant_int(n) == 0 for n in t.shape):
            raise Declined(f"'{t.name}' is empty, where one number is needed")
    most, overlap, score = (None if t is None else t.at(*[const(0)] * t.rank) for t in given)
    centered = attribute_int(node, "center_point_box", 0) == 1
    ctx.require_equal(boxes.shape[0], scores.shape[0])
    ctx.require_equal(boxes.shape[2], const(4))
    count = ctx.same_size(boxes.shape[1], scores.shape[2])
    known = ctx.constant_of(given[0])
    # No more are chosen, so no more are looked for.
    width = count if known is None else binary("min", count, const(max(int(known.reshape(-1)[0]), 0)))
    lanes = [*scores.shape[:2], ctx.dim(width)]
    limit = const(0) if most is None else cast(most, INDEX)
    threshold = const(0.0, boxes.dtype) if overlap is None else cast(overlap, boxes.dtype)

    def choice(which: Expr, b: Expr, c: Expr, at: Expr) -> Greedy:
        assert isinstance(which, Var) and isinstance(b, Var) and isinstance(c, Var) and isinstance(at, Var)
        position, other = Var(INDEX, "position", count), Var(INDEX, "other", count)
        own = scores.at(b, c, position)
        high = const(True, DType.BOOL) if score is None else binary("lt", cast(score, scores.dtype), own)
        sides = [_sides(boxes, b, p, centered) for p in (position, other)]
        before = binary("lt", scores.at(b, c, other), own)
        excluded = _overlap(sides[0], sides[1], threshold)
        return Greedy(which, (b, c), at, position, other, high, before, excluded, limit)

    names = ["which", "b", "c", "at"]
    shape = [const(2), *scores.shape[:2], count + 1]
    chosen = ctx.temporary(shape, choice, INDEX, "chosen", vars=names)

    def holds(p: Expr) -> Expr:
        b, c, n = split_index(p, lanes)
        return binary("lt", n, chosen.at(0, b, c, count))

    total, place, _ = found(ctx, product(lanes), holds)

    def body(n: Expr, column: Expr) -> Expr:
        b, c, k = split_index(bounded(place(n), product(lanes)), lanes)
        box = chosen.at(0, b, c, k)
        return select(binary("eq", column, const(0)), b, select(binary("eq", column, const(1)), c, box))

    return [ctx.define([total, const(3)], body, INDEX)]


def _sides(boxes: Tensor, picture: Expr, box: Expr, centered: bool) -> tuple[Side, Side]:
    """A box as its two sides: from two opposite corners, or from its center and its size."""
    a, b, c, d = (boxes.at(picture, box, const(k)) for k in range(4))
    if not centered:
        return _ordered(a, c), _ordered(b, d)
    half = const(0.5, boxes.dtype)
    wide, high = (binary("mul", e, half) for e in (c, d))
    return (
        (binary("sub", a, wide), binary("add", a, wide)),
        (binary("sub", b, high), binary("add", b, high)),
    )


def _ordered(a: Expr, b: Expr) -> Side:
    return binary("min", a, b), binary("max", a, b)


def _overlap(one: Sequence[Side], other: Sequence[Side], threshold: Expr) -> Expr:
    """Whether the area that two boxes share is more than a part of the area that they cover together."""
    zero = const(0.0, threshold.dtype)
    lengths = []
    areas = []
    for (low, high), (low2, high2) in zip(one, other, strict=True):
        lengths.append(binary("sub", binary("min", high, high2), binary("max", low, low2)))
    for box in (one, other):
        sides = [binary("sub", high, low) for low, high in box]
        areas.append(binary("mul", *sides))
    shared = binary("mul", *lengths)
    covered = binary("sub", binary("add", *areas), shared)
    real = binary("lt", zero, lengths[0])
    for e in (lengths[1], shared, *areas, covered):
        real = binary("and", real, binary("lt", zero, e))
    # Where nothing is shared the quotient may be anything, even one by zero.
    safe = select(real, covered, const(1.0, threshold.dtype))
    return binary("and", real, binary("lt", threshold, binary("div", shared, safe)))


OPS: tuple[Op, ...] = (Op(name="NonMaxSuppression", lower=lower_non_max_suppression),)
