"""Elements read between those of a picture, at positions that are computed: RoiAlign and DeformConv.

Positions are those of ONNX: 0 is the center of the first element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, binary, bounded, cast, const, constant_int, reduce, select, unary, var
from hasten.ops.attributes import attribute_float, attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.convolution import convolved
from hasten.ops.indices import clamp
from hasten.ops.interpolation import linear_weights
from hasten.ops.reductions import lowest
from hasten.ops.windows import Window, windows

_FAR = float(1 << 22)
"""Positions further outside than this read what lies at it."""


def _near(position: Expr, length: Expr) -> Expr:
    """A position that is surely a number and fits an index."""
    low = const(-_FAR, position.dtype)
    high = binary("add", cast(length, position.dtype), const(_FAR, position.dtype))
    return select(binary("le", low, position), binary("min", position, high), low)


@dataclass(frozen=True)
class _Side:
    """The two elements that a position along one axis lies between: where, how much, and whether they are."""

    at: tuple[Expr, Expr]
    weights: tuple[Expr, Expr]
    there: tuple[Expr, Expr]


def _four(x: Tensor, lead: Sequence[Expr], rows: _Side, columns: _Side) -> list[Expr]:
    """What four neighbours give to a position, 0 where there is none."""
    terms = []
    for i in range(2):
        for j in range(2):
            weight = binary("mul", rows.weights[i], columns.weights[j])
            value = binary("mul", weight, x.at(*lead, rows.at[i], columns.at[j]))
            there = binary("and", rows.there[i], columns.there[j])
            terms.append(select(there, value, const(0, x.dtype)))
    return terms


def _sum(terms: Sequence[Expr]) -> Expr:
    result = terms[0]
    for t in terms[1:]:
        result = binary("add", result, t)
    return result


def _clamped(position: Expr, length: Expr) -> _Side:
    """As RoiAlign has it: nothing beyond one element outside, else the nearest place inside."""
    zero, one = const(0, position.dtype), const(1, position.dtype)
    n = cast(length, position.dtype)
    inside = binary("and", binary("le", unary("neg", one), position), binary("le", position, n))
    place = binary("min", binary("max", _near(position, length), zero), binary("sub", n, one))
    low = clamp(cast(unary("floor", place), INDEX), const(0), length - 1)
    fraction = binary("sub", place, cast(low, position.dtype))
    weights = linear_weights(fraction)
    high = binary("min", low + 1, length - 1)
    return _Side((low, high), (weights[0], weights[1]), (inside, inside))


def _free(position: Expr, length: Expr) -> _Side:
    """As DeformConv has it: what lies outside is 0."""
    place = _near(position, length)
    floor = unary("floor", place)
    first = cast(floor, INDEX)
    weights = linear_weights(binary("sub", place, floor))
    ends = [first, first + 1]
    there = [binary("and", binary("le", const(0), e), binary("lt", e, length)) for e in ends]
    at = [clamp(e, const(0), length - 1) for e in ends]
    return _Side((at[0], at[1]), (weights[0], weights[1]), (there[0], there[1]))


def lower_roi_align(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Means or maxima over points spread in the cells of a grid over each region."""
    x, rois, pictures = (required(inputs, k) for k in range(3))
    mode = attribute_str(node, "mode", "avg")
    given = attribute_str(node, "coordinate_transformation_mode", "half_pixel")
    if mode not in ("avg", "max") or given not in ("half_pixel", "output_half_pixel") or x.rank != 4:
        raise Declined(f"mode '{mode}' with '{given}' of rank {x.rank} is not supported")
    shifted = given == "half_pixel"
    high, wide = (attribute_int(node, f"output_{n}", 1) for n in ("height", "width"))
    ratio = attribute_int(node, "sampling_ratio", 0)
    scale = const(attribute_float(node, "spatial_scale", 1.0), x.dtype)
    ctx.require_equal(rois.shape[1], const(4))
    count = ctx.same_size(rois.shape[0], pictures.shape[0])
    cells, one = (high, wide), const(1, x.dtype)
    for n in (x.shape[0], *x.shape[2:]):
        ctx.require_some(n, [count])

    def region(r: Expr, axis: Expr, what: Expr) -> Expr:
        """Start and cell length of a region along an axis (height first), and the points in a cell."""
        offset = const(0.5 if shifted else 0.0, x.dtype)
        first, last = (
            binary("sub", binary("mul", cast(rois.at(r, column), x.dtype), scale), offset)
            for column in (1 - axis, 3 - axis)
        )
        length = binary("sub", last, first)
        length = length if shifted else binary("max", length, one)
        number = cast(select(binary("eq", axis, const(0)), const(high), const(wide)), x.dtype)
        cell = binary("div", length, number)
        points = const(ratio, x.dtype) if ratio > 0 else binary("max", unary("ceil", cell), const(0, x.dtype))
        is_first = binary("eq", what, const(0))
        return select(is_first, first, select(binary("eq", what, const(1)), cell, points))

    regions = ctx.temporary([count, const(2), const(3)], region, x.dtype, "regions")
    most = [_most_points(ctx, regions, axis, ratio) for axis in range(2)]

    def body(r: Expr, c: Expr, *o: Expr) -> Expr:
        picture = bounded(cast(pictures.at(r), INDEX), x.shape[0])
        sides, points = [], []
        taken: Expr = const(True, DType.BOOL)
        variables = [var("iy", most[0]), var("ix", most[1])]
        for axis, (cell, k) in enumerate(zip(o, variables, strict=True)):
            start, length, number = (regions.at(r, axis, what) for what in range(3))
            step = binary("div", binary("add", cast(k, x.dtype), const(0.5, x.dtype)), number)
            place = binary("add", cast(cell, x.dtype), step)
            position = binary("add", start, binary("mul", place, length))
            sides.append(_clamped(position, x.shape[2 + axis]))
            taken = binary("and", taken, binary("lt", cast(k, x.dtype), number))
            points.append(number)
        terms = _four(x, (picture, c), *sides)
        total = binary("mul", *points)
        zero = const(0, x.dtype)
        if mode == "avg":
            summed = reduce("sum", tuple(variables), select(taken, _sum(terms), zero))
            return binary("div", summed, binary("max", total, one))
        largest = terms[0]
        for t in terms[1:]:
            largest = binary("max", largest, t)
        found = reduce("max", tuple(variables), select(taken, largest, lowest(x.dtype)))
        return select(binary("lt", zero, total), found, zero)

    return [ctx.define([count, x.shape[1], *map(const, cells)], body, x.dtype)]


def _most_points(ctx: Lowering, regions: Tensor, axis: int, ratio: int) -> Expr:
    """How many points a cell has along an axis at the most, over all regions."""
    if ratio > 0:
        return const(ratio)
    r = var("r", regions.shape[0])

    def most() -> Expr:
        limit = const(_FAR, regions.dtype)
        points = binary("min", regions.at(r, axis, 2), limit)
        return binary("max", cast(reduce("max", (r,), points), INDEX), const(1))

    number = ctx.temporary([], most, INDEX, f"points{axis}")
    size = ctx.element(number, ())
    assert size is not None
    return ctx.dim(size)


def lower_deform_conv(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """A convolution whose windows read at positions that are moved, and weighted by a mask.

    What the windows read is written first, side by side; a convolution whose windows do not overlap follows.
    """
    x, w, offset = (required(inputs, k) for k in range(3))
    bias, mask = optional(inputs, 3), optional(inputs, 4)
    shape = [constant_int(n) for n in w.shape]
    kernel = [n for n in shape[2:] if n is not None]
    channels = constant_int(x.shape[1])
    if x.rank != 4 or None in shape or channels is None or not x.dtype.is_float:
        raise Declined("DeformConv of floats over two axes with constant channels and windows is compiled")
    groups = attribute_int(node, "offset_group", 1)
    if groups < 1 or channels % groups:
        raise Declined(f"{channels} channels do not divide into {groups} groups of offsets")
    sliding = windows(ctx, node, x.shape[2:], kernel)
    taps, own = kernel[0] * kernel[1], channels // groups
    ctx.require_equal(offset.shape[1], const(groups * taps * 2))
    spatial = [ctx.same_size(ctx.dim(s.out), offset.shape[2 + d]) for d, s in enumerate(sliding)]
    for d, n in enumerate(x.shape[2:]):
        ctx.require_some(n, [spatial[d]])

    def read(n: Expr, c: Expr, *place: Expr) -> Expr:
        o = [at // k for at, k in zip(place, kernel, strict=True)]
        t = [at % k for at, k in zip(place, kernel, strict=True)]
        tap = c // own * taps + t[0] * kernel[1] + t[1]
        sides = []
        for d, window in enumerate(sliding):
            at = cast(window.position(o[d], t[d]), x.dtype)
            moved = binary("add", at, cast(offset.at(n, tap * 2 + d, *o), x.dtype))
            sides.append(_free(moved, x.shape[2 + d]))
        value = _sum(_four(x, (n, c), *sides))
        return value if mask is None else binary("mul", value, cast(mask.at(n, tap, *o), x.dtype))

    wide = [ctx.dim(n * k) for n, k in zip(spatial, kernel, strict=True)]
    columns = ctx.temporary([x.shape[0], x.shape[1], *wide], read, x.dtype, "read")
    apart = [Window(n, k, k, 1, const(0), const(0)) for n, k in zip(wide, kernel, strict=True)]
    return [convolved(ctx, columns, w, bias, apart, attribute_int(node, "group", 1))]


OPS: tuple[Op, ...] = (
    Op(name="RoiAlign", lower=lower_roi_align),
    Op(name="DeformConv", lower=lower_deform_conv),
)
