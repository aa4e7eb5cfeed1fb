"""Reductions over windows that reach beyond the edge of what they read: pooling and convolution.

An operator says `select(inside, x, neutral)`. Where `inside` is a conjunction of bounds, each linear in
one variable of the window, those variables can run over the part that lies inside, without conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.codegen.vectorize import coefficient
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Const, Expr, Load, Op, Var, binary, const, constant_int, free_vars, substitute
from hasten.loops.simplify import spell


@dataclass(frozen=True)
class Window:
    """The inside of a window.

    Attributes:
        ranges: first and last (exclusive) value of each variable that has an edge; the range may be
            empty, never outside the variable's own.
        body: what is reduced, without the condition.
    """

    ranges: Mapping[Var, tuple[Expr, Expr]]
    body: Expr


@dataclass(frozen=True)
class Sliding:
    """How a window goes along an axis.

    Attributes:
        position: the output variable along which it slides.
        tap: the window's variable along the same axis.
        stride: input positions from one output to the next.
        dilation: input positions from one tap to the next.
    """

    position: Var
    tap: Var
    stride: int
    dilation: int

    @property
    def taps(self) -> int:
        """Elements of the window along the axis."""
        return constant_int(self.tap.extent) or 1

    def reach(self, outputs: int) -> int:
        """Input positions from the first that some outputs side by side need to the last."""
        return (outputs - 1) * self.stride + (self.taps - 1) * self.dilation + 1


def find_window(op: str, variables: tuple[Var, ...], body: Expr) -> Window | None:
    """The window of a reduction whose body has no effect outside, or None if it is of another form."""
    guarded = split_guard(op, body)
    if guarded is None:
        return None
    condition, inner = guarded
    ranges: dict[Var, tuple[Expr, Expr]] = {}
    for atom in conjuncts(condition):
        own = [v for v in variables if v in free_vars(atom)]
        if len(own) != 1 or not isinstance(atom, Op) or atom.op not in ("le", "lt"):
            return None
        v = own[0]
        assert v.extent is not None
        bound = _bound(atom, v)
        if bound is None:
            return None
        low, high = ranges.get(v, (const(0), v.extent))
        side, value = bound
        if side == "low":
            low = binary("min", binary("max", low, value), v.extent)
        else:
            high = binary("max", binary("min", high, value), const(0))
        ranges[v] = (low, high)
    return Window(ranges, inner) if ranges else None


def split_guard(op: str, body: Expr) -> tuple[Expr, Expr] | None:
    """(condition, body without it) where the body is neutral wherever the condition fails."""
    if isinstance(body, Op) and body.op == "select":
        condition, value, other = body.args
        if isinstance(other, Const) and _is_neutral(op, other):
            return condition, value
    if op == "sum" and isinstance(body, Op) and body.op == "mul":
        for at in (0, 1):
            inner = split_guard("sum", body.args[at])
            if inner is not None:
                condition, value = inner
                arguments = (value, body.args[1]) if at == 0 else (body.args[0], value)
                return condition, Op(body.dtype, "mul", arguments, lanes=body.lanes)
    return None


def _is_neutral(op: str, c: Const) -> bool:
    value = float(c.value)
    if op == "sum":
        return value == 0
    if op in ("max", "min") and c.dtype.is_float:
        return value == (float("-inf") if op == "max" else float("inf"))
    return False


def conjuncts(condition: Expr) -> list[Expr]:
    """The conditions that must all hold."""
    if isinstance(condition, Op) and condition.op == "and":
        return [a for part in condition.args for a in conjuncts(part)]
    return [condition]


def bounded_axes(condition: Expr, x: Load, shape: Sequence[Expr]) -> frozenset[int] | None:
    """The axes along which a condition says that an element is inside; None if it says anything else.

    Args:
        condition: of reading `x`.
        x: the element.
        shape: of its tensor.
    """
    if condition == const(True, DType.BOOL):
        return frozenset()
    inside = {
        spell(e): d for d, (i, n) in enumerate(zip(x.index, shape, strict=True)) for e in (i, n - 1 - i)
    }
    found: set[int] = set()
    for atom in conjuncts(condition):
        if not isinstance(atom, Op) or atom.op not in ("le", "lt") or atom.args[0].dtype is not INDEX:
            return None
        margin = spell(atom.args[1] - atom.args[0] - (1 if atom.op == "lt" else 0))
        if margin not in inside:
            return None
        found.add(inside[margin])
    return frozenset(found)


def _bound(atom: Op, v: Var) -> tuple[str, Expr] | None:
    """The bound that a comparison puts on `v`: ("low", first value) or ("high", first beyond)."""
    left, right = atom.args
    if left.dtype is not INDEX:
        return None
    difference = right - left  # must be >= 0, or > 0
    factor = constant_int(coefficient(difference, v) or const(0))
    if not factor:
        return None
    rest = substitute(difference, {v: const(0)})
    if atom.op == "lt":
        rest = rest - 1  # now: factor * v + rest >= 0
    if factor > 0:
        return "low", (const(factor - 1) - rest) // factor  # v >= ceil(-rest / factor)
    return "high", rest // -factor + 1  # v <= floor(rest / -factor)
