"""Elements read between those of the input, at positions that are data."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, binary, bounded, cast, const, select, unary
from hasten.ops.attributes import attribute_int, attribute_str
from hasten.ops.axes import index_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required
from hasten.ops.indices import clamp
from hasten.ops.interpolation import cubic_weights, linear_weights, weighted

_CUBIC_A = -0.75
_FAR = float(1 << 22)
"""Positions beyond this many elements outside read what lies at it."""


def lower_grid_sample(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X at the positions that the grid lists, -1 and 1 being the ends of each axis, the last axis first."""
    x, grid = required(inputs, 0), required(inputs, 1)
    mode = attribute_str(node, "mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding = attribute_str(node, "padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise Declined(f"mode '{mode}' with padding '{padding}' is not supported")
    if not x.dtype.is_float or not grid.dtype.is_float:
        raise Declined("only floats are sampled, at positions that are floats")
    space = x.rank - 2
    ctx.require_equal(grid.shape[0], x.shape[0])
    ctx.require_equal(grid.shape[-1], const(space))
    aligned = attribute_int(node, "align_corners", 0) == 1

    def body(n: Expr, c: Expr, *o: Expr) -> Expr:
        axes = []
        for d in range(space):
            given = cast(grid.at(n, *o, const(space - 1 - d)), DType.F32)
            axes.append(_taps(given, x.shape[2 + d], x.dtype, mode, padding, aligned))
        return _sampled(x, (n, c), axes)

    shape = [*x.shape[:2], *grid.shape[1:-1]]
    for n in x.shape[2:]:
        ctx.require_some(n, shape)
    return [ctx.define(shape, body, x.dtype)]


_Tap = tuple[Expr, Expr]
"""Where an element is read along one axis, and whether there is one."""


def _sampled(x: Tensor, lead: Sequence[Expr], axes: Sequence[tuple[list[_Tap], list[Expr]]]) -> Expr:
    """The weighted sum over the taps of all axes."""

    def along(at: tuple[Expr, ...], inside: Expr) -> Expr:
        d = len(at)
        if d == len(axes):
            return select(inside, x.at(*lead, *at), const(0, x.dtype))
        taps, weights = axes[d]
        elements = [along((*at, p), binary("and", inside, there)) for p, there in taps]
        return weighted(elements, weights) if weights else elements[0]

    return along((), const(True, DType.BOOL))


def _taps(
    given: Expr, length: Expr, dtype: DType, mode: str, padding: str, aligned: bool
) -> tuple[list[_Tap], list[Expr]]:
    """The elements that a position in [-1, 1] reads along an axis, and their weights."""
    n = cast(length, DType.F32)
    one, half = const(1, DType.F32), const(0.5, DType.F32)
    from_start = binary("add", given, one)
    if aligned:
        position = binary("mul", binary("mul", from_start, half), binary("sub", n, one))
    else:
        position = binary("mul", binary("sub", binary("mul", from_start, n), one), half)
    if mode == "nearest":
        position = unary("round", position)
    position = _within(position, const(-_FAR, DType.F32), binary("add", n, const(_FAR, DType.F32)))
    if padding == "border":
        # Up to the ends, half an element outside, a cubic sees the slope that leads there.
        reach = half if not aligned else const(0, DType.F32)
        last = binary("sub", n, one)
        near = binary(
            "and",
            binary("le", binary("sub", const(0, DType.F32), reach), position),
            binary("le", position, binary("add", last, reach)),
        )
        position = select(near, position, _within(position, const(0, DType.F32), last))
    elif padding == "reflection" and mode != "nearest":
        position = _reflected_position(position, n, aligned)
    low = unary("floor", position)
    first = cast(low, INDEX)

    def tap(offset: int) -> _Tap:
        at = first + offset
        there: Expr = const(True, DType.BOOL)
        if padding == "zeros":
            there = binary("and", binary("le", const(0), at), binary("lt", at, length))
        elif padding == "reflection":
            at = _reflected(at, length, aligned)
        return bounded(clamp(at, const(0), length - 1), length), there

    fraction = cast(binary("sub", position, low), dtype)
    if mode == "nearest":
        return [tap(0)], []
    if mode == "linear":
        return [tap(0), tap(1)], linear_weights(fraction)
    return [tap(k) for k in (-1, 0, 1, 2)], cubic_weights(fraction, _CUBIC_A)


def _within(v: Expr, low: Expr, high: Expr) -> Expr:
    """The nearest value in [low, high]; low for NaN."""
    return select(binary("le", low, v), binary("min", v, high), low)


def _reflected_position(v: Expr, n: Expr, aligned: bool) -> Expr:
    """A position mirrored at the ends until it lies between them.

    The ends are the corners' elements where `aligned`, else half an element outside of them.
    """
    zero, two = const(0, v.dtype), const(2, v.dtype)
    low = zero if aligned else const(-0.5, v.dtype)
    span = binary("sub", n, const(1, v.dtype)) if aligned else n
    distance = unary("abs", binary("sub", v, low))
    round_trip = binary("max", binary("mul", span, two), const(1, v.dtype))
    rest = binary("fmod", distance, round_trip)
    back = select(binary("lt", span, rest), binary("sub", binary("mul", span, two), rest), rest)
    return binary("add", back, low)


def _reflected(at: Expr, length: Expr, aligned: bool) -> Expr:
    """The same of an index."""
    period = binary("max", length * 2 - 2, const(1)) if aligned else length * 2
    rest = at % period
    mirrored = period - rest if aligned else period - 1 - rest
    return select(binary("lt", rest, length), rest, mirrored)


def lower_affine_grid(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Where an affine map, [batch, space, space + 1], takes each element of a picture."""
    theta, size = required(inputs, 0), required(inputs, 1)
    lengths = [ctx.dim(n) for n in index_values(ctx, size, "the size of the picture")]
    batch, space = lengths[0], lengths[2:]
    aligned = attribute_int(node, "align_corners", 0) == 1
    if len(space) not in (2, 3) or theta.rank != 3:
        raise Declined(f"a grid of {len(space)} axes by a map of rank {theta.rank} is not supported")
    ctx.require_equal(batch, theta.shape[0])
    for d, extra in ((1, 0), (2, 1)):
        ctx.require_equal(theta.shape[d], const(len(space) + extra))
    dtype = theta.dtype

    def coordinate(i: Expr, n: Expr) -> Expr:
        """From -1 to 1: the centers of the elements at the ends, or their outer edges."""
        above, below = (i * 2 - (n - 1), binary("max", n - 1, const(1))) if aligned else (i * 2 + 1 - n, n)
        return binary("div", cast(above, dtype), cast(below, dtype))

    def body(*index: Expr) -> Expr:
        n, *position, row = index
        result = theta.at(n, row, len(space))
        for k, (i, m) in enumerate(zip(reversed(position), reversed(space), strict=True)):
            result = binary("add", result, binary("mul", theta.at(n, row, k), coordinate(i, m)))
        return result

    return [ctx.define([batch, *space, const(len(space))], body, dtype)]


OPS: tuple[Op, ...] = (
    Op(name="GridSample", lower=lower_grid_sample),
    Op(name="AffineGrid", lower=lower_affine_grid),
)
