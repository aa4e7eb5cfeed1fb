"""Lean epilogues of quantized products: one multiply-add for each operand, and rounding without conversion.

What follows the sums of a quantized product is mostly linear: offsets, scales and biases of columns, the
residual that is de-quantized, the reciprocal of the next scale, its zero point. All that is known of it now
becomes one factor for each operand and one summand, and what bounds a result that the range of bytes bounds
anyway disappears. A number between 0 and 255 is rounded, to even, by adding 1.5 * 2**23: its bits then end in
the byte. Where the zero point is odd, one less is added before rounding and one after, so that what lies half
way between two steps goes to the even one, as ONNX says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.loops.dtypes import DType
from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    binary,
    cast,
    children,
    const,
    free_vars,
    rebuild,
    walk,
)
from hasten.loops.tabulate import tabulate

F32 = DType.F32

ROUNDING = 12582912.0
"""1.5 * 2**23: a float of this size has no bits behind the point."""

LARGEST_BYTE = 255

NEARLY = 1e-3
"""Steps by which a bound may lie inside the range of bytes and still be taken for its end."""


@dataclass(frozen=True)
class Linear:
    """sum of atom * factor + rest.

    Attributes:
        factors: by atom, an expression that is not known now: a known expression.
        rest: a known expression.
    """

    factors: Mapping[Expr, Expr]
    rest: Expr

    def plus(self, other: Linear) -> Linear:
        """The sum of both."""
        factors = dict(self.factors)
        for atom, factor in other.factors.items():
            factors[atom] = _add(factors[atom], factor) if atom in factors else factor
        return Linear(factors, _add(self.rest, other.rest))

    def times(self, factor: Expr) -> Linear:
        """All of it times a known expression."""
        return Linear({a: _mul(f, factor) for a, f in self.factors.items()}, _mul(self.rest, factor))

    @property
    def is_lean(self) -> bool:
        """Whether nothing in it is left to be worked out."""
        return all(isinstance(e, Const | Load) for e in (*self.factors.values(), self.rest))


@dataclass(frozen=True)
class Bounds:
    """min(max(inner, low), high); a bound is None where there is none."""

    inner: Expr
    low: float | None
    high: float | None


def lean_epilogues(
    stages: Sequence[Stage], constants: Mapping[str, np.ndarray]
) -> tuple[list[Stage], dict[str, np.ndarray]]:
    """The stages with what follows integers, or becomes bytes, simplified; and the constants that they read.

    Args:
        stages: after fusion.
        constants: all constants so far.
    """
    known = dict(constants)
    result: list[Stage] = []
    for s in stages:
        rewriter = _Rewriter(s, known)
        if s.epilogue is not None:
            result.append(replace(s, epilogue=rewriter.rewritten(s.epilogue)))
        elif isinstance(s.body, Expr):
            result.append(replace(s, body=rewriter.rewritten(s.body)))
        else:
            result.append(s)
    return result, known


class _Rewriter:
    """Rewrites what one stage writes."""

    def __init__(self, stage: Stage, constants: dict[str, np.ndarray]) -> None:
        self.stage, self.constants = stage, constants
        self.count = 0

    def rewritten(self, e: Expr) -> Expr:
        """The element that is written, simplified where it is quantized or comes from integers."""
        touched = any(_from_integer(n) or _quantized(n) is not None for n in walk(e))
        return self.simplified(e) if touched else e

    def byte(self, e: Expr, zero: float) -> Expr:
        """Round(e) + zero as a byte."""
        scaled = self.linear(e)
        if len(scaled.factors) == 1 and isinstance(next(iter(scaled.factors)), Op):
            # The bounds of an activation function stand between its argument and the scale.
            ((atom, factor),) = scaled.factors.items()
            bounds = _bounds(atom)
            step = self.scalar(factor)
            if bounds is not None and step is not None and step > 0 and self.scalar(scaled.rest) == 0:
                return self.rounded(self.linear(bounds.inner).times(factor), bounds, step, zero)
        return self.rounded(scaled, None, 1.0, zero)

    def rounded(self, value: Linear, bounds: Bounds | None, step: float, zero: float) -> Expr:
        """The byte nearest to a value within bounds, which are given before scaling by `step`; plus zero."""
        low, high = 0.0, float(LARGEST_BYTE)
        if bounds is not None:
            if bounds.low is not None and bounds.low * step + zero > NEARLY:
                low = min(float(np.rint(bounds.low * step)) + zero, high)
            if bounds.high is not None and bounds.high * step + zero < high - NEARLY:
                high = max(float(np.rint(bounds.high * step)) + zero, low)
        odd = int(zero) % 2
        y: Expr = self.built(value.plus(Linear({}, const(zero - odd, F32))))
        y = Op(F32, "min", (Op(F32, "max", (y, const(low - odd, F32))), const(high - odd, F32)))
        bits: Expr = Op(DType.I32, "bitcast", (Op(F32, "add", (y, const(ROUNDING, F32))),))
        return cast(binary("add", bits, const(odd, DType.I32)) if odd else bits, DType.U8)

    def simplified(self, e: Expr) -> Expr:
        """The largest linear parts as sums of products with known factors, and bytes rounded."""
        quantized = _quantized(e)
        if quantized is not None and self.known(quantized[1]):
            zero = self.scalar(quantized[1])
            if zero is not None:
                return self.byte(quantized[0], zero)
        if e.dtype is F32 and isinstance(e, Op) and e.op in ("add", "sub", "mul", "cast"):
            value = self.linear(e)
            if e not in value.factors and not value.is_lean:
                return self.built(value)
        if isinstance(e, Load | Reduce):
            return e
        old = children(e)
        new = tuple(self.simplified(c) for c in old)
        return e if new == old else rebuild(e, new)

    def linear(self, e: Expr) -> Linear:
        """An expression of f32 as a linear one of what is not known now."""
        if self.known(e):
            return Linear({}, e)
        if isinstance(e, Op):
            if e.op in ("add", "sub"):
                a, b = (self.linear(x) for x in e.args)
                return a.plus(b if e.op == "add" else b.times(const(-1.0, F32)))
            if e.op == "mul" and any(self.known(x) for x in e.args):
                value, factor = e.args if self.known(e.args[1]) else e.args[::-1]
                return self.linear(value).times(factor)
            if e.op == "cast" and isinstance(e.args[0], Op) and e.args[0].op == "sub":
                total, offset = e.args[0].args
                if e.args[0].dtype is DType.I32 and self.known(offset):
                    rest = _mul(cast(offset, F32), const(-1.0, F32))
                    return Linear({cast(total, F32): const(1.0, F32)}, rest)
        return Linear({e: const(1.0, F32)}, const(0.0, F32))

    def built(self, value: Linear) -> Expr:
        """A linear expression as nested multiply-adds, its factors and summand worked out now."""
        total = self.constant(value.rest)
        for atom, factor in value.factors.items():
            inner = self.simplified(atom)
            worked_out = self.constant(factor)
            term = inner if _is(worked_out, 1.0) else Op(F32, "mul", (inner, worked_out))
            total = term if _is(total, 0.0) else Op(F32, "add", (term, total))
        return total

    def known(self, e: Expr) -> bool:
        """Whether an expression reads nothing but constants, and no more of them than one for each column."""
        for n in walk(e):
            if isinstance(n, Reduce | Size) or (isinstance(n, Load) and n.buffer not in self.constants):
                return False
        used = free_vars(e)
        return len(used) <= 1 and all(isinstance(v.extent, Const) for v in used)

    def scalar(self, e: Expr) -> float | None:
        """The value of a known expression that has one, else None."""
        return None if free_vars(e) else float(tabulate(e, (), self.constants))

    def constant(self, e: Expr) -> Expr:
        """The value of a known expression: a literal for the neutral ones, else a load of a new constant."""
        if isinstance(e, Const | Load):
            return e
        variables = tuple(free_vars(e))
        array = tabulate(self.inside(e), variables, self.constants)
        for neutral in (0.0, 1.0):
            if (array == neutral).all():
                return const(neutral, F32)
        while (name := f"{self.stage.name}_lean_{self.count}") in self.constants:
            self.count += 1
        self.constants[name] = array
        return Load(F32, name, variables)

    def inside(self, e: Expr) -> Expr:
        """The same with indices kept within the constants: branches that a select leaves may read beyond."""
        new = tuple(self.inside(child) for child in children(e))
        if isinstance(e, Load):
            lengths = self.constants[e.buffer].shape
            new = tuple(binary("min", binary("max", i, 0), n - 1) for i, n in zip(new, lengths, strict=True))
        return rebuild(e, new) if new else e


def _quantized(e: Expr) -> tuple[Expr, Expr] | None:
    """(value in steps, zero point) where an element is a quantized one in unsigned bytes."""
    if not isinstance(e, Op) or e.op != "cast" or e.dtype is not DType.U8 or e.args[0].dtype is not F32:
        return None
    bounds = _bounds(e.args[0])
    if bounds is None or bounds.low != 0 or bounds.high != LARGEST_BYTE:
        return None
    y: Expr = bounds.inner
    zero: Expr = const(0.0, F32)
    if isinstance(y, Op) and y.op == "add":
        y, zero = y.args
    return (y.args[0], zero) if isinstance(y, Op) and y.op == "round" else None


def _bounds(e: Expr) -> Bounds | None:
    """An expression as a bounded one, or None if nothing bounds it."""
    low: float | None = None
    high: float | None = None
    inner = e
    while isinstance(inner, Op) and inner.op in ("min", "max"):
        numbers = [a for a in inner.args if isinstance(a, Const)]
        if len(numbers) != 1:
            break
        bound = float(numbers[0].value)
        # From the outside in: what an outer bound allows is what matters.
        if inner.op == "min":
            high = bound if high is None else min(high, max(bound, low if low is not None else bound))
        else:
            low = bound if low is None else max(low, min(bound, high if high is not None else bound))
        inner = next(a for a in inner.args if not isinstance(a, Const))
    return None if inner is e else Bounds(inner, low, high)


def _from_integer(e: Expr) -> bool:
    """Whether a number was an integer that a product summed."""
    return isinstance(e, Load) and e.buffer == ACCUMULATOR and e.dtype is DType.I32


def _is(e: Expr, value: float) -> bool:
    return isinstance(e, Const) and e.value == value


def _add(a: Expr, b: Expr) -> Expr:
    if _is(a, 0.0):
        return b
    return a if _is(b, 0.0) else Op(F32, "add", (a, b))


def _mul(a: Expr, b: Expr) -> Expr:
    if _is(a, 1.0) or _is(b, 0.0):
        return b
    return a if _is(b, 1.0) or _is(a, 0.0) else Op(F32, "mul", (a, b))
