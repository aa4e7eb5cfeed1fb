"""Which stages reduce a window that slides: depthwise convolutions and pooling, channels innermost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.vectorize import coefficient, vectorizable
from hasten.codegen.window import Sliding, conjuncts, find_window, split_guard
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    substitute,
    walk,
)

MOST_COLUMNS = 32
"""Columns of the input that a window without weights may reach in a row, so that code stays short."""

STORED = (DType.F32, DType.BF16, DType.U8)
"""Element types of inputs and outputs; sums and weights are f32."""
SUMS = "sums"
"""Name of the array of a block's sums, and in an epilogue of a load that stands for one of them."""


@dataclass(frozen=True)
class Slide(Sliding):
    """A reduction over a window that slides along one row of a tensor, for each channel by itself.

    Attributes:
        op: the reduction's; with weights "sum".
        channel: the output variable along which everything is contiguous.
        rows: first and last (exclusive) value of each other variable of the window.
        edges: expressions, not negative where the input position that they belong to is inside; each
            grows by `1` or `-1` with that position.
        x: the input, at its logical index.
        zero: what is subtracted from each element of the input.
        w: the weight, at its logical index, or None.
        finish: the element, loads at addresses, in terms of a load of `SUMS` at `channel`.
        outer: the other output variables in the order of memory.
        out: address of the element.
    """

    op: str
    channel: Var
    rows: Mapping[Var, tuple[Expr, Expr]]
    edges: tuple[Expr, ...]
    x: Load
    zero: float
    w: Load | None
    finish: Expr
    outer: tuple[Var, ...]
    out: Expr


def find_slide(stage: Stage, layouts: Layouts) -> Slide | None:
    """The window that a stage reduces, or None if it is anything else."""
    if not isinstance(stage.body, Expr) or len(stage.vars) < 3 or stage.dtype not in STORED:
        return None
    found = [n for n in walk(stage.body) if isinstance(n, Reduce)]
    channel = stage.vars[layouts[stage.name].order[-1]]
    if len(found) != 1 or found[0].op not in ("sum", "max", "min") or found[0].dtype is not DType.F32:
        return None
    (total,) = found
    condition, element = split_guard(total.op, total.body) or (const(True, DType.BOOL), total.body)
    operands = _operands(element, total.op, stage, channel, layouts)
    extents = [constant_int(v.extent) for v in (*total.vars, channel)]
    if operands is None or None in extents or 0 in extents or channel in free_vars(condition):
        return None  # the channel may be an axis of a row-major picture, along which the window slides too
    x, zero, w = operands
    axis = layouts[x.buffer].order[-2]
    taps = [v for v in free_vars(x.index[axis]) if v in total.vars]
    positions = [v for v in free_vars(x.index[axis]) if v in stage.vars]
    if len(taps) != 1 or len(positions) != 1 or positions[0] == channel:
        return None
    (tap,), (position,) = taps, positions
    if any({tap, position} & free_vars(e) for d, e in enumerate(x.index) if d != axis):
        return None
    dilation, stride = (constant_int(coefficient(x.index[axis], v) or const(0)) for v in (tap, position))
    if dilation is None or stride is None or dilation < 1 or stride < 1:
        return None
    rows = _rows(total, condition, tap)
    edges = _edges(condition, tap, position, (dilation, stride))
    if rows is None or edges is None:
        return None
    # What lies inside is one range for a block of positions; of channels it is, as no condition has them.
    if any(position in free_vars(e) for pair in rows.values() for e in pair):
        return None
    accumulator = Load(DType.F32, ACCUMULATOR, ())
    finish = flatten(substitute(stage.body, {total: accumulator}), layouts)
    finish = substitute(finish, {accumulator: Load(DType.F32, SUMS, (channel,))})
    if not vectorizable(finish, channel):
        return None
    layout = layouts[stage.name]
    outer = tuple(stage.vars[d] for d in layout.order if stage.vars[d] not in (position, channel))
    out = layout.address(stage.vars)
    s = Slide(position, tap, stride, dilation, total.op, channel, rows, edges, x, zero, w, finish, outer, out)
    return None if w is None and s.reach(1) > MOST_COLUMNS else s


def _operands(
    element: Expr, op: str, stage: Stage, channel: Var, layouts: Layouts
) -> tuple[Load, float, Load | None] | None:
    """The input with its zero point and the weight, if there is one, both contiguous along the channel."""
    product = isinstance(element, Op) and element.op == "mul" and op == "sum"
    factors = element.args if isinstance(element, Op) and product else (element,)
    found = [stored for a in factors if (stored := _stored(a)) is not None]
    if len(found) != len(factors):
        return None
    loads, zeros = [load for load, _ in found], [zero for _, zero in found]
    addresses = [layouts[a.buffer].address(a.index) for a in loads]
    if any(constant_int(coefficient(a, channel) or const(0)) != 1 for a in addresses):
        return None
    if not product:
        return (loads[0], zeros[0], None) if len(loads[0].index) >= 2 else None
    others = frozenset(stage.vars) - {channel}
    weights = [not others & free_vars(a) for a in addresses]
    (x, w), (zero, shift) = (loads, zeros) if weights[1] else (loads[::-1], zeros[::-1])
    if sum(weights) != 1 or len(x.index) < 2 or w.dtype is not DType.F32 or shift:
        return None
    return x, zero, w


def _stored(e: Expr) -> tuple[Load, float] | None:
    """The load of an operand that is read as it is stored, or widened, and what is subtracted from it."""
    zero = 0.0
    if isinstance(e, Op) and e.op == "sub" and isinstance(e.args[1], Const):
        zero, e = float(e.args[1].value), e.args[0]
    if isinstance(e, Op) and e.op == "cast":
        e = e.args[0]
    return (e, zero) if isinstance(e, Load) and e.dtype in STORED else None


def _rows(total: Reduce, condition: Expr, tap: Var) -> dict[Var, tuple[Expr, Expr]] | None:
    """The part that lies inside of the window's variables other than `tap`."""
    rows = {v: (const(0), v.extent) for v in total.vars if v != tap and v.extent is not None}
    outer = tuple(rows)
    inside: Expr = const(True, DType.BOOL)
    for atom in conjuncts(condition):
        if tap not in free_vars(atom):
            inside = binary("and", inside, atom)
    if inside == const(True, DType.BOOL):
        return dict(rows)
    guarded = Op(DType.F32, "select", (inside, const(1.0, DType.F32), const(0.0, DType.F32)))
    window = find_window("sum", outer, guarded)
    return None if window is None else {**rows, **window.ranges}


def _edges(condition: Expr, tap: Var, position: Var, steps: tuple[int, int]) -> tuple[Expr, ...] | None:
    """What must not be negative for an input position to be inside, or None if that is not so simple."""
    found: list[Expr] = []
    for atom in conjuncts(condition):
        if tap not in free_vars(atom):
            continue
        if not isinstance(atom, Op) or atom.op not in ("le", "lt") or atom.args[0].dtype is not INDEX:
            return None
        margin = atom.args[1] - atom.args[0] - (1 if atom.op == "lt" else 0)
        grows = tuple(constant_int(coefficient(margin, v) or const(0)) for v in (tap, position))
        if grows not in (steps, (-steps[0], -steps[1])):
            return None
        found.append(margin)
    return tuple(found)
