"""Which stages reduce a window that slides along rows in row-major order: depthwise convolution, pooling."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.vectorize import coefficient, vectorizable
from hasten.codegen.window import Sliding, bounded_axes, split_guard
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    const,
    constant_int,
    free_vars,
    substitute,
    walk,
)

SUMS = "sums"
"""Name of the array of a block's results, and in an epilogue of a load that stands for one of them."""

MOST_DIMENSIONS = 2
"""Axes along which a window slides."""


@dataclass(frozen=True)
class Axis(Sliding):
    """An axis of the picture along which the window slides; of one tap where the window has one element.

    Attributes:
        first: input position of the first output's first tap, negative where that is outside.
        length: of the input.
        step: elements of memory from one input position to the next.
    """

    first: Expr
    length: Expr
    step: Expr


@dataclass(frozen=True)
class Plane:
    """A reduction over a window that slides along rows.

    Attributes:
        op: the reduction's; with weights "sum".
        column: the axis along which the picture and the result are contiguous.
        row: the axis before it, or None where the window has one row.
        x: the picture.
        start: address in it of position 0 of both axes, in terms of `outer`.
        w: the weight, loads at addresses, in terms of `outer` and the taps; or None.
        finish: the element, loads at addresses, in terms of a load of `SUMS` at the column.
        outer: the other variables of the result in the order of memory.
        out: address of the element.
    """

    op: str
    column: Axis
    row: Axis | None
    x: str
    start: Expr
    w: Expr | None
    finish: Expr
    outer: tuple[Var, ...]
    out: Expr


def find_plane(stage: Stage, layouts: Layouts) -> Plane | None:
    """The window that a stage reduces, or None if it is anything else."""
    if not isinstance(stage.body, Expr) or not stage.vars or stage.dtype is not DType.F32:
        return None
    if any(constant_int(v.extent) == 0 for v in stage.vars):
        return None
    found = [n for n in walk(stage.body) if isinstance(n, Reduce)]
    if len(found) != 1 or found[0].op not in ("sum", "max", "min") or found[0].dtype is not DType.F32:
        return None
    (total,) = found
    condition, element = split_guard(total.op, total.body) or (const(True, DType.BOOL), total.body)
    layout = layouts[stage.name]
    column = stage.vars[layout.order[-1]]
    operands = _operands(element, total.op, column)
    if operands is None or any(constant_int(v.extent) is None for v in total.vars):
        return None
    x, w = operands
    bounded = bounded_axes(condition, x, layouts[x.buffer].shape)
    axes = None if bounded is None else _axes(x, total, bounded, stage, layouts)
    if axes is None or axes[-1].position != column:
        return None
    rest = [v for v in total.vars if v not in {a.tap for a in axes}]
    if any(constant_int(v.extent) != 1 for v in rest) or all(a.taps == 1 for a in axes):
        return None
    inner = axes[-1]
    if condition == const(True, DType.BOOL) and w is None and inner.taps <= inner.stride:
        return None  # neither a condition nor an element that two windows share: nothing to copy for
    ones: dict[Expr, Expr] = {v: const(0) for v in rest}
    accumulator = Load(DType.F32, ACCUMULATOR, ())
    finish = flatten(substitute(stage.body, {total: accumulator}), layouts)
    finish = substitute(finish, {accumulator: Load(DType.F32, SUMS, (column,))})
    if not vectorizable(finish, column):
        return None
    here: dict[Expr, Expr] = {v: const(0) for a in axes for v in (a.position, a.tap)}
    start = substitute(layouts[x.buffer].address(x.index), {**here, **ones})
    for a in axes:
        start = start - a.first * a.step
    moving = {a.position for a in axes}
    outer = tuple(stage.vars[d] for d in layout.order if stage.vars[d] not in moving)
    weight = None if w is None else flatten(substitute(w, ones), layouts)
    row = axes[0] if len(axes) > 1 else None
    return Plane(total.op, axes[-1], row, x.buffer, start, weight, finish, outer, layout.address(stage.vars))


def _operands(element: Expr, op: str, column: Var) -> tuple[Load, Expr | None] | None:
    """The picture, and the weight that does not depend on the column."""
    if isinstance(element, Load):
        return (element, None) if element.dtype is DType.F32 else None
    if not isinstance(element, Op) or element.op != "mul" or op != "sum":
        return None
    x, w = element.args if column in free_vars(element.args[0]) else element.args[::-1]
    plain = isinstance(x, Load) and x.dtype is DType.F32 and w.dtype is DType.F32
    return (x, w) if plain and isinstance(x, Load) and column not in free_vars(w) else None


def _axes(
    x: Load, total: Reduce, bounded: frozenset[int], stage: Stage, layouts: Layouts
) -> list[Axis] | None:
    """The axes along which the window slides or has an edge, innermost last: the picture's innermost ones."""
    layout, result = layouts[x.buffer], layouts[stage.name]
    if any(isinstance(n, Load) for i in x.index for n in walk(i)) or not layout.order:
        return None
    own = set(total.vars)
    moving = [d for d in layout.order if d in bounded or own & free_vars(x.index[d])] or [layout.order[-1]]
    first = min(layout.order.index(d) for d in moving)
    inner = layout.order[first:]
    if len(inner) > MOST_DIMENSIONS or len(inner) > len(stage.vars):
        return None
    axes: list[Axis] = []
    for d, place in zip(inner, result.order[len(result.order) - len(inner) :], strict=True):
        position = stage.vars[place]
        taps = [v for v in free_vars(x.index[d]) if v in own]
        if len(taps) > 1 or any(position in free_vars(e) for k, e in enumerate(x.index) if k != d):
            return None
        tap = taps[0] if taps else Var(INDEX, f"tap{d}", const(1))
        if any(tap in free_vars(e) for k, e in enumerate(x.index) if k != d):
            return None
        stride, dilation = (constant_int(coefficient(x.index[d], v) or const(0)) for v in (position, tap))
        at = substitute(x.index[d], {position: const(0), tap: const(0)})
        if not stride or stride < 1 or (taps and (not dilation or dilation < 1)):
            return None
        if free_vars(at) & {*own, *stage.vars}:
            return None
        place_of = [Var(INDEX, f"p{k}") if k == d else const(0) for k in range(len(x.index))]
        step = coefficient(layout.address(place_of), Var(INDEX, f"p{d}"))
        assert step is not None
        axes.append(Axis(position, tap, stride, dilation or 1, at, layout.shape[d], step))
    return axes
