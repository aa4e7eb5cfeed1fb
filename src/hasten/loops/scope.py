"""Evaluating expressions over blocks of index space in NumPy, for the interpreter of tensor programs.

An element is computed only where the program asks for it. The interpreter computes both sides of every
`select` at every index, so it clips addresses and carries along a mask of the places where an access
was out of bounds; a `select` drops the mask of the side not taken, and what is left at the end is a fault.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Bounded, Const, Expr, Load, Op, Reduce, Size, Var, free_vars
from hasten.loops.operations import OPERATIONS, Array

BLOCK = 1 << 22
"""Most elements that an intermediate array may have; larger domains are computed in blocks."""

FAULT_DATA, FAULT_PROGRAM = 1, 2

Range = tuple[int, int]


@dataclass(frozen=True)
class Value:
    """The values of an expression and, where an access was out of bounds, the kind of fault (else None)."""

    array: Array
    fault: Array | None = None


def size_value(e: Expr, sizes: Mapping[str, int]) -> int:
    """The value of an expression of sizes."""
    if isinstance(e, Const):
        return int(e.value)
    with np.errstate(all="ignore"):
        return int(Scope({}, sizes, {}).value(e).array)


def axis_arrays(variables: Sequence[Var], block: Sequence[Range], inner: int = 0) -> dict[Var, Array]:
    """The values of variables as arrays that broadcast against each other, the last one innermost."""
    axes: dict[Var, Array] = {}
    for d, (v, (low, high)) in enumerate(zip(variables, block, strict=True)):
        trailing = len(variables) - d - 1 + inner
        axes[v] = np.arange(low, high, dtype=np.int64).reshape((high - low, *(1,) * trailing))
    return axes


def join_faults(*faults: Array | None) -> Array | None:
    """The worst fault at each place, or None where there is none at all."""
    found = [f for f in faults if f is not None]
    if not found:
        return None
    result = found[0]
    for f in found[1:]:
        result = np.maximum(result, f)
    return result


@dataclass
class Scope:
    """Evaluates expressions over a block of index space.

    The axes of the variables stand on the left of those of the scope around it, so that values
    computed outside broadcast without change; what does not depend on the own variables is computed there.

    Attributes:
        tensors: tensors by name.
        sizes: values of the symbolic sizes.
        axes: the values of this scope's own variables.
        outer: the scope around a reduction, or None.
    """

    tensors: Mapping[str, Array]
    sizes: Mapping[str, int]
    axes: Mapping[Var, Array]
    outer: Scope | None = None
    _known: dict[Expr, Value] = field(default_factory=dict)

    def extents(self, used: frozenset[Var]) -> tuple[int, ...]:
        """The lengths of all axes, outermost scope last; 1 for a variable that is not among the used."""
        own = tuple(a.shape[0] if v in used else 1 for v, a in self.axes.items())
        return own + (self.outer.extents(used) if self.outer else ())

    def value(self, e: Expr) -> Value:
        """The values of an expression; they broadcast to the extents of the scope's axes."""
        if self.outer is not None and not (free_vars(e) & self.axes.keys()):
            return self.outer.value(e)
        found = self._known.get(e)
        if found is None:
            found = self._known[e] = self._compute(e)
        return found

    def _compute(self, e: Expr) -> Value:
        match e:
            case Const():
                return Value(np.asarray(e.value).astype(e.dtype.numpy))
            case Var():
                return Value(self.axes[e])
            case Size():
                return Value(np.asarray(self.sizes[e.name], INDEX.numpy))
            case Op(op="select"):
                return self._select(e)
            case Op(op="cast"):
                inner = self.value(e.args[0])
                return Value(inner.array.astype(e.dtype.numpy), inner.fault)
            case Op(op="bitcast"):
                inner = self.value(e.args[0])
                return Value(inner.array.view(e.dtype.numpy), inner.fault)
            case Op():
                args = [self.value(a) for a in e.args]
                array = np.asarray(OPERATIONS[e.op].apply(*(a.array for a in args)))
                return Value(array.astype(e.dtype.numpy, copy=False), join_faults(*(a.fault for a in args)))
            case Load():
                return self._load(e)
            case Bounded():
                return self._bounded(e)
            case Reduce():
                return self._reduce(e)
        raise AssertionError(f"{type(e).__name__} has no meaning in a tensor program")

    def _select(self, e: Op) -> Value:
        condition, a, b = (self.value(arg) for arg in e.args)
        fault = None
        if a.fault is not None or b.fault is not None:
            none = np.zeros((), np.int8)
            sides = (none if s.fault is None else s.fault for s in (a, b))
            fault = np.where(condition.array, *sides)
        return Value(np.where(condition.array, a.array, b.array), join_faults(condition.fault, fault))

    def _load(self, e: Load) -> Value:
        source = self.tensors[e.buffer]
        index = [self.value(i) for i in e.index]
        fault = join_faults(*(i.fault for i in index))
        clipped: list[Array] = []
        for i, n in zip(index, source.shape, strict=True):
            outside = (i.array < 0) | (i.array >= n)
            if outside.any():
                fault = join_faults(fault, outside.astype(np.int8) * np.int8(FAULT_PROGRAM))
                clipped.append(np.clip(i.array, 0, max(n - 1, 0)))
            else:
                clipped.append(i.array)
        if not source.size:
            return Value(np.zeros((), source.dtype), fault)
        return Value(np.asarray(source[tuple(clipped)]), fault)

    def _bounded(self, e: Bounded) -> Value:
        index, limit = self.value(e.index), self.value(e.limit)
        wrapped = np.where(index.array < 0, index.array + limit.array, index.array)
        outside = (wrapped < 0) | (wrapped >= limit.array)
        fault = join_faults(index.fault, limit.fault)
        if outside.any():
            fault = join_faults(fault, outside.astype(np.int8) * np.int8(FAULT_DATA))
        return Value(np.where(outside, 0, wrapped), fault)

    def _reduce(self, e: Reduce) -> Value:
        """Reduces over blocks of the own variables, such that one block with all outer axes is small."""
        outer = self.extents(free_vars(e))
        ranges = [(0, size_value(v.extent, self.sizes)) for v in e.vars if v.extent is not None]
        start = neutral(e.op, e.dtype)
        wide = np.float64 if e.dtype.is_float else e.dtype.numpy
        total = np.full(outer, start, wide)
        fault: Array | None = None
        combine = COMBINE[e.op]
        if all(high > low for low, high in ranges):
            for block in _reduce_blocks(ranges, math.prod(outer)):
                axes = axis_arrays(e.vars, block, inner=len(outer))
                scope = Scope(self.tensors, self.sizes, axes, self)
                body = scope.value(e.body)
                dims = tuple(range(len(block)))
                full = (*(high - low for low, high in block), *outer)
                array = np.broadcast_to(body.array, full)
                total = combine(total, combine.reduce(array, axis=dims, dtype=wide))
                if body.fault is not None:
                    spread = np.broadcast_to(body.fault, full)
                    fault = join_faults(fault, np.maximum.reduce(spread, axis=dims))
        return Value(np.asarray(total).astype(e.dtype.numpy, copy=False), fault)


COMBINE: Mapping[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def neutral(op: str, dtype: DType) -> int | float | bool:
    """The value of a reduction over nothing."""
    if op in ("sum", "prod"):
        return int(op == "prod")
    lowest = op == "max"
    if dtype is DType.BOOL:
        return not lowest
    if dtype.is_float:
        return -math.inf if lowest else math.inf
    limits = np.iinfo(dtype.numpy.name)
    return int(limits.min if lowest else limits.max)


def _reduce_blocks(ranges: Sequence[Range], outer: int) -> Iterator[list[Range]]:
    """Blocks of a reduction's domain, each with at most `BLOCK` elements together with the outer axes."""
    room = max(BLOCK // max(outer, 1), 1)
    steps: list[int] = []
    for low, high in reversed(ranges):
        steps.insert(0, max(min(high - low, room), 1))
        room = max(room // steps[0], 1)
    cut = [
        [(i, min(i + step, high)) for i in range(low, high, step)]
        for (low, high), step in zip(ranges, steps, strict=True)
    ]
    for block in itertools.product(*cut):
        yield list(block)
