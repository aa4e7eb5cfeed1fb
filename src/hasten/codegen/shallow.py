"""Convolutions of few input channels (the first layer of most networks): longer runs of memory.

With three channels the register tile would walk three elements, then fetch new row pointers. In a
padded copy of the picture, channels last, one row of the window is a single run of width x channels
elements; the taps along the width become part of the depth, and no pointer ever leaves the picture.
"""

from __future__ import annotations

from dataclasses import replace

from hasten.codegen.fuse import operand_load
from hasten.codegen.packing import padding_of
from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient
from hasten.codegen.window import bounded_axes
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    select,
    substitute,
)

Shape = tuple[Expr, ...]

SHALLOW = 8
"""Input channels below which the taps of a row are joined."""


def join_shallow_taps(stages: list[Stage], shapes: dict[str, Shape], group: int = 1) -> list[Stage]:
    """Rewrites every convolution of few channels over a padded copy of its input.

    Args:
        stages: all stages in order.
        shapes: shapes of inputs and constants.
        group: floats that are multiplied together; the joined depth becomes a multiple of it, over
            weights of zero. (Bytes need no such care: what stands beyond the last tap may be anything.)
    """
    known = shapes | {s.name: s.shape for s in stages}
    result: list[Stage] = []
    for s in stages:
        result += _joined(s, known, group) or [s]
    return result


def _joined(s: Stage, shapes: dict[str, Shape], group: int) -> list[Stage] | None:
    g = s.body
    if not isinstance(g, Gemm) or g.batch or not g.taps:
        return None
    channels, width = constant_int(g.depth.extent), constant_int(g.taps[-1].extent)
    load = operand_load(g.a, g.depth)
    if channels is None or channels >= SHALLOW or width is None or load is None:
        return None
    condition = g.a.args[0] if isinstance(g.a, Op) and g.a.op == "select" else None
    if condition is not None and bounded_axes(condition, load, shapes[load.buffer]) is None:
        return None  # a condition that the padded copy does not have
    tap = g.taps[-1]
    deep = [d for d, i in enumerate(load.index) if g.depth in free_vars(i)]
    wide = [d for d, i in enumerate(load.index) if tap in free_vars(i)]
    if len(deep) != 1 or len(wide) != 1 or deep == wide or load.index[deep[0]] != g.depth:
        return None
    if constant_int(coefficient(load.index[wide[0]], tap) or const(0)) != 1:
        return None
    ranges = [_range(i) for i in load.index]
    if any(r is None for r in ranges):
        return None
    lows = [r[0] for r in ranges if r is not None]
    extents = [r[1] for r in ranges if r is not None]
    order = [d for d in range(len(load.index)) if d not in (wide[0], deep[0])] + [wide[0], deep[0]]
    missing = -width * channels % group if load.dtype.is_float else 0
    # What is read beyond the last tap must be a number.
    extents[wide[0]] = extents[wide[0]] + -(-missing // channels)
    padding = padding_of(g) or const(0, load.dtype)
    padded = _padded_copy(s, load, lows, extents, order, shapes[load.buffer], padding)
    q = Var(INDEX, "q", const(width * channels + missing))
    index: list[Expr] = []
    for d in order:
        at = substitute(load.index[d], {tap: const(0)}) - lows[d]
        index.append(q % channels if d == deep[0] else at + q // channels if d == wide[0] else at)
    joined = replace(
        g,
        taps=g.taps[:-1],
        depth=q,
        a=Load(load.dtype, padded.name, tuple(index)),
        b=_weights(g, tap, q, width * channels),
    )
    return [padded, replace(s, body=joined)]


def _weights(g: Gemm, tap: Var, q: Var, count: int) -> Expr:
    """The second operand in terms of the joined depth, of which `count` elements are there."""
    channels = constant_int(g.depth.extent) or 1
    if constant_int(q.extent) == count:
        return substitute(g.b, {tap: q // channels, g.depth: q % channels})
    there = binary("min", q, count - 1)
    element = substitute(g.b, {tap: there // channels, g.depth: there % channels})
    return select(binary("lt", q, count), element, const(0, g.b.dtype))


def _range(index: Expr) -> tuple[int, Expr] | None:
    """Lowest value of an index that grows with its variables, and the number of values up to the highest."""
    low, high = index, index
    for v in free_vars(index):
        step = constant_int(coefficient(index, v) or const(0))
        if v.extent is None or step is None or step <= 0:
            return None
        low = substitute(low, {v: const(0)})
        high = substitute(high, {v: v.extent - 1})
    first = constant_int(low)
    return None if first is None else (first, high - first + 1)


def _padded_copy(
    s: Stage,
    load: Load,
    lows: list[int],
    extents: list[Expr],
    order: list[int],
    shape: Shape,
    padding: Const,
) -> Stage:
    """The tensor behind a load as far as its index reaches, and what padding counts as outside."""
    names = [f"p{d}" for d in range(len(order))]
    variables = {d: Var(INDEX, names[d], extents[d]) for d in order}
    index: list[Expr] = []
    inside: Expr = const(True, DType.BOOL)
    for d, low in enumerate(lows):
        at = variables[d] + low
        inside = binary("and", inside, binary("le", 0, at))
        inside = binary("and", inside, binary("lt", at, shape[d]))
        index.append(at)
    value = select(inside, Load(load.dtype, load.buffer, tuple(index)), padding)
    name = f"{s.name}_input_padded"
    return Stage(name, load.dtype, tuple(variables[d] for d in order), value, None, ("padded copy of input",))
