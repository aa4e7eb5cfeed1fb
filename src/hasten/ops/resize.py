"""Resize: nearest, linear and cubic interpolation.

Where an output position lies in the input is a fraction of integers, and stays one: it is split into
whole and remainder by integer arithmetic, so that ties round as the model says on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, binary, cast, const, constant_int, reduce, select, unary, var
from hasten.loops.simplify import divide, to_poly
from hasten.ops.antialias import Shrunk, shrink
from hasten.ops.attributes import attribute_float, attribute_int, attribute_ints, attribute_str
from hasten.ops.axes import index_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, moved, normalize_axis, optional, required
from hasten.ops.indices import clamp, product
from hasten.ops.interpolation import cubic_weights, linear_weights, weighted
from hasten.ops.movement_pruning import RESIZE

T = TypeVar("T")


@dataclass(frozen=True)
class _Axis:
    """One resized axis: its input and output length and the scale num / den between them."""

    old: Expr
    new: Expr
    num: Expr
    den: Expr


_Position = tuple[Expr, Expr]
"""A position in the input as (numerator, denominator), the latter positive."""

_Place = tuple[Expr, Expr]
"""A position as the element before it and how far behind that it lies, in [0, 1)."""


def _half_pixel(a: _Axis, i: Expr) -> _Position:
    return (i * 2 + 1) * a.den - a.num, a.num * 2


def _half_pixel_symmetric(a: _Axis, i: Expr) -> _Position:
    numerator, denominator = _half_pixel(a, i)
    return numerator + a.old * a.num - a.new * a.den, denominator


def _pytorch_half_pixel(a: _Axis, i: Expr) -> _Position:
    numerator, denominator = _half_pixel(a, i)
    return select(binary("eq", a.new, const(1)), const(0), numerator), denominator


def _align_corners(a: _Axis, i: Expr) -> _Position:
    # A scale of 0.6 makes 2.4 of 4, as ONNX has it, whose corners are 1.4 apart, though there are 2 elements.
    return i * (a.old - 1) * a.den, binary("max", a.old * a.num - a.den, const(1))


def _asymmetric(a: _Axis, i: Expr) -> _Position:
    return i * a.den, a.num


_POSITIONS: tuple[tuple[str, Callable[[_Axis, Expr], _Position]], ...] = (
    ("half_pixel", _half_pixel),
    ("half_pixel_symmetric", _half_pixel_symmetric),
    ("pytorch_half_pixel", _pytorch_half_pixel),
    ("align_corners", _align_corners),
    ("asymmetric", _asymmetric),
)


def _ceildiv(a: Expr, b: Expr) -> Expr:
    return 0 - (0 - a) // b


_ROUNDING: tuple[tuple[str, Callable[[Expr, Expr], Expr]], ...] = (
    ("round_prefer_floor", lambda a, b: _ceildiv(a * 2 - b, b * 2)),
    ("round_prefer_ceil", lambda a, b: (a * 2 + b) // (b * 2)),
    ("floor", lambda a, b: a // b),
    ("ceil", _ceildiv),
)


def lower_resize(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X at another resolution, given as scales or as sizes."""
    x = required(inputs, 0)
    mode = attribute_str(node, "mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise Declined(f"mode '{mode}' is not supported, only nearest, linear and cubic")
    exclude = mode == "cubic" and attribute_int(node, "exclude_outside", 0) == 1
    if mode != "nearest" and not x.dtype.is_float:
        raise Declined(f"{mode} interpolation of {x.dtype.numpy} is not supported, only of floats")
    smooth = mode != "nearest" and attribute_int(node, "antialias", 0) == 1
    if attribute_str(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        if smooth:
            raise Declined("tf_crop_and_resize with antialias is not supported")
        return _cropped(ctx, node, x, inputs, mode)
    where = _choice(node, "coordinate_transformation_mode", "half_pixel", _POSITIONS)
    rounding = _choice(node, "nearest_mode", "round_prefer_floor", _ROUNDING)
    axes = _resized_axes(ctx, node, x, optional(inputs, 2), optional(inputs, 3))
    shape = [axes[d].new if d in axes else n for d, n in enumerate(x.shape)]
    if mode == "nearest":

        def nearest(axis: _Axis, i: Expr) -> Expr:
            return clamp(rounding(*where(axis, i)), const(0), axis.old - 1)

        sources = {
            d: ctx.temporary([axis.new], partial(nearest, axis), INDEX, "nearest", vars=("i",))
            for d, axis in axes.items()
        }

        def source(index: tuple[Expr, ...]) -> list[Expr]:
            return [sources[d].at(i) if d in sources else i for d, i in enumerate(index)]

        return moved(ctx, x, shape, source)

    a = attribute_float(node, "cubic_coeff_a", -0.75) if mode == "cubic" else None

    def place(axis: _Axis, i: Expr) -> _Place:
        numerator, denominator = where(axis, i)
        fraction = binary("div", cast(numerator % denominator, x.dtype), cast(denominator, x.dtype))
        return numerator // denominator, fraction

    if smooth:
        for d, axis in axes.items():
            shrunk = Shrunk(d, axis.new, axis.num, axis.den, partial(place, axis))
            x = shrink(ctx, x, shrunk, a, attribute_int(node, "exclude_outside", 0) == 1)
        return [ctx.define(shape, x.at, x.dtype)]

    # Tables: the divisions once for each row and column, not for each element.
    tables = {d: _tabulated(ctx, partial(place, axis), axis.new, x.dtype) for d, axis in axes.items()}

    def body(*index: Expr) -> Expr:
        places = {d: (low.at(index[d]), behind.at(index[d])) for d, (low, behind) in tables.items()}
        return _interpolated(x, index, places, a, exclude)

    return [ctx.define(shape, body, x.dtype)]


def _tabulated(
    ctx: Lowering, place: Callable[[Expr], _Place], length: Expr, dtype: DType
) -> tuple[Tensor, Tensor]:
    """The place of each output position along an axis, as two tensors [length] of INDEX and of `dtype`."""
    low = ctx.temporary([length], lambda i: place(i)[0], INDEX, "low", vars=("i",))
    return low, ctx.temporary([length], lambda i: place(i)[1], dtype, "behind", vars=("i",))


_FLOAT_ROUNDING: tuple[tuple[str, Callable[[Expr], Expr]], ...] = (
    ("round_prefer_floor", lambda p: unary("ceil", binary("sub", p, const(0.5, p.dtype)))),
    ("round_prefer_ceil", lambda p: unary("floor", binary("add", p, const(0.5, p.dtype)))),
    ("floor", lambda p: unary("floor", p)),
    ("ceil", lambda p: unary("ceil", p)),
)


def _cropped(ctx: Lowering, node: ir.Node, x: Tensor, inputs: Inputs, mode: str) -> list[Tensor]:
    """A region of X, given by its ends as parts of the whole, at another resolution."""
    region = required(inputs, 1)
    order = [normalize_axis(a, x.rank) for a in attribute_ints(node, "axes", range(x.rank))]
    axes = _resized_axes(ctx, node, x, optional(inputs, 2), optional(inputs, 3), every=True)
    ctx.require_equal(region.shape[0], const(2 * len(order)))
    rounding = _choice(node, "nearest_mode", "round_prefer_floor", _FLOAT_ROUNDING)
    outside_value = const(attribute_float(node, "extrapolation_value", 0.0), x.dtype)
    a = attribute_float(node, "cubic_coeff_a", -0.75) if mode == "cubic" else None
    exclude = mode == "cubic" and attribute_int(node, "exclude_outside", 0) == 1
    f32 = DType.F32

    def position(d: int, i: Expr) -> tuple[Expr, Expr]:
        """Where an element lies, and whether that is inside of X."""
        axis, k = axes[d], order.index(d)
        start, end = (cast(region.at(const(n)), f32) for n in (k, len(order) + k))
        last = cast(axis.old - 1, f32)
        length = binary("div", cast(axis.old * axis.num, f32), cast(axis.den, f32))
        span = binary("mul", binary("sub", end, start), last)
        one = const(1.0, f32)
        apart = binary("div", binary("mul", cast(i, f32), span), binary("sub", length, one))
        single = binary("eq", length, one)
        from_start = select(single, binary("mul", span, const(0.5, f32)), apart)
        at = binary("add", from_start, binary("mul", start, last))
        inside = binary("and", binary("le", const(0.0, f32), at), binary("le", at, last))
        return select(inside, at, const(0.0, f32)), inside

    def body(*index: Expr) -> Expr:
        places, at = {}, list(index)
        there: Expr = const(True, DType.BOOL)
        for d, axis in axes.items():
            place, inside = position(d, index[d])
            there = binary("and", there, inside)
            low = cast(unary("floor", place), INDEX)
            fraction = binary("sub", place, cast(low, f32))
            places[d] = (clamp(low, const(0), axis.old - 1), cast(fraction, x.dtype))
            at[d] = clamp(cast(rounding(place), INDEX), const(0), axis.old - 1)
        value = x.at(*at) if mode == "nearest" else _interpolated(x, index, places, a, exclude)
        return select(there, value, outside_value)

    shape = [axes[d].new if d in axes else n for d, n in enumerate(x.shape)]
    return [ctx.define(shape, body, x.dtype)]


def _choice(node: ir.Node, name: str, default: str, choices: Sequence[tuple[str, T]]) -> T:
    given = attribute_str(node, name, default)
    for known, value in choices:
        if known == given:
            return value
    raise Declined(f"{name} '{given}' is not supported")


def _interpolated(
    x: Tensor,
    index: Sequence[Expr],
    places: dict[int, _Place],
    a: float | None,
    exclude: bool,
) -> Expr:
    """Interpolation along the axes that have a position; the edge continues outside.

    It is linear, or cubic where the parameter `a` of its kernel is given. With `exclude` elements outside
    have no weight, and the sum of the others' is 1.
    """
    if not places:
        return x.at(*index)
    d, (low, fraction) = next(iter(places.items()))
    rest = {k: v for k, v in places.items() if k != d}
    last = x.shape[d] - 1

    def tap(offset: int) -> Expr:
        at = clamp(low + offset, const(0), last)
        return _interpolated(x, [*index[:d], at, *index[d + 1 :]], rest, a, exclude)

    if a is None:
        return weighted([tap(0), tap(1)], linear_weights(fraction))
    taps, weights = [tap(k) for k in (-1, 0, 1, 2)], cubic_weights(fraction, a)
    if not exclude:
        return weighted(taps, weights)
    none, one = const(0, x.dtype), const(1, x.dtype)
    for n, k in enumerate((-1, 0, 1, 2)):
        inside = binary("and", binary("le", const(0), low + k), binary("le", low + k, last))
        weights[n] = select(inside, weights[n], none)
    return binary("div", weighted(taps, weights), weighted([one] * 4, weights))


def _resized_axes(
    ctx: Lowering,
    node: ir.Node,
    x: Tensor,
    scales: Tensor | None,
    sizes: Tensor | None,
    *,
    every: bool = False,
) -> dict[int, _Axis]:
    """The axes whose length or scale changes, or all that are listed."""
    listed = attribute_ints(node, "axes", range(x.rank))
    order = [normalize_axis(a, x.rank) for a in listed]
    if sizes is not None and constant_int(sizes.shape[0]) != 0:
        policy = attribute_str(node, "keep_aspect_ratio_policy", "stretch")
        lengths = [ctx.dim(n) for n in index_values(ctx, sizes, "the new size")]
        # With scales, what is made of nothing is empty.
        shape = [lengths[order.index(d)] if d in order else n for d, n in enumerate(x.shape)]
        for old, new in zip(x.shape, shape, strict=True):
            if old != new:
                ctx.require_some(old, shape)
        if policy != "stretch":
            return _by_one_scale(ctx, x, order, lengths, policy)
        found = {d: _by_size(x.shape[d], n) for d, n in zip(order, lengths, strict=True)}
        return {d: a for d, a in found.items() if every or a.old != a.new}
    assert scales is not None
    factors = ctx.constant_of(scales)
    if factors is None:
        return _by_read_scales(ctx, x, order, scales)
    pairs = zip(order, factors.reshape(-1), strict=True)
    return {d: _by_scale(ctx, x.shape[d], f) for d, f in pairs if every or f != 1}


def _by_one_scale(
    ctx: Lowering, x: Tensor, order: Sequence[int], sizes: Sequence[Expr], policy: str
) -> dict[int, _Axis]:
    """Axes that keep their proportions: the least or the greatest of their scales is that of all."""
    if policy not in ("not_larger", "not_smaller"):
        raise Declined(f"keep_aspect_ratio_policy '{policy}' is not supported")
    num, den = sizes[0], x.shape[order[0]]
    for d, size in zip(order[1:], sizes[1:], strict=True):
        less = binary("lt", size * den, num * x.shape[d])
        better = less if policy == "not_larger" else binary("lt", num * x.shape[d], size * den)
        num, den = select(better, size, num), select(better, x.shape[d], den)
    num, den = ctx.dim(num), ctx.dim(den)
    # Half a pixel is rounded up.
    return {d: _Axis(x.shape[d], ctx.dim((x.shape[d] * num * 2 + den) // (den * 2)), num, den) for d in order}


FRACTION_BITS = 40
"""Binary places that a scale which is read at each call has at the most; none that occurs has more."""


def _by_read_scales(ctx: Lowering, x: Tensor, order: Sequence[int], scales: Tensor) -> dict[int, _Axis]:
    """The axes for scales that are known at each call only: lengths and fractions are computed first."""
    if constant_int(product(scales.shape)) != len(order) or not scales.dtype.is_float:
        raise Declined(f"there must be {len(order)} scales")

    def denominator(axis: Expr) -> Expr:
        """The least power of two whose product with the scale is whole."""
        scale = cast(scales.at(axis), DType.F64)
        place = var("place", FRACTION_BITS + 1)
        power = cast(binary("shl", const(1), place), DType.F64)
        scaled = binary("mul", scale, power)
        last = const(float(1 << FRACTION_BITS), DType.F64)
        return reduce("min", (place,), select(binary("eq", unary("floor", scaled), scaled), power, last))

    def entry(which: Expr, axis: Expr) -> Expr:
        scale = scales.at(axis)
        below = denominator(axis)
        above = cast(binary("mul", cast(scale, DType.F64), below), INDEX)
        length: Expr = const(0, DType.F32)
        for k, d in enumerate(order):
            length = select(binary("eq", axis, const(k)), cast(x.shape[d], DType.F32), length)
        new = cast(binary("mul", length, cast(scale, DType.F32)), INDEX)
        fraction = select(binary("eq", which, const(1)), above, cast(below, INDEX))
        return select(binary("eq", which, const(0)), new, fraction)

    table = ctx.temporary([const(3), const(len(order))], entry, INDEX, "lengths")
    result = {}
    for k, d in enumerate(order):
        new, above, below = (ctx.element(table, (which, k)) for which in range(3))
        assert new is not None and above is not None and below is not None
        ctx.require(binary("lt", const(0), above), "scales that are positive")
        result[d] = _Axis(x.shape[d], ctx.dim(new), ctx.dim(above), ctx.dim(below))
    return result


def _by_size(old: Expr, new: Expr) -> _Axis:
    """An axis whose scale is the ratio of its lengths, in lowest terms where that is a constant."""
    for a, b, inverse in ((new, old, False), (old, new, True)):
        divisor = to_poly(b)
        quotient, remainder = divide(to_poly(a), divisor) if divisor else ({}, {(): 1})
        if not remainder and set(quotient) == {()}:
            factor = const(quotient[()])
            return _Axis(old, new, *((const(1), factor) if inverse else (factor, const(1))))
    return _Axis(old, new, new, old)


def _by_scale(ctx: Lowering, old: Expr, factor: np.floating) -> _Axis:
    """An axis whose length is floor(old * factor), the product rounded to f32 as in ONNX's inference."""
    if not factor > 0:
        raise Declined(f"scale {factor} is not positive")
    ratio = Fraction(float(factor))
    known = constant_int(old)
    if known is not None:
        new: Expr = const(int(np.floor(np.float32(known) * np.float32(factor))))
    elif ratio.denominator <= 1024:  # The f32 product is exact for all lengths that occur.
        new = (old * ratio.numerator) // ratio.denominator
    else:
        new = cast(binary("mul", cast(old, DType.F32), const(float(factor), DType.F32)), old.dtype)
    return _Axis(old, ctx.dim(new), const(ratio.numerator), const(ratio.denominator))


OPS: tuple[Op, ...] = (Op(name="Resize", lower=lower_resize, pruning=RESIZE),)
