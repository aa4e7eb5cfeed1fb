"""The interpreter of loop nests in Python and NumPy. It is their definition: generated C must agree with it.

It is strict where C is silent: an access outside a buffer, an index of the wrong rank or a value that
was never set is an error, and memory that was not written holds NaN or a conspicuous integer. Scalars
are Python integers (indices) and NumPy scalars (data), vectors are arrays of lanes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Bounded, Const, Expr, Load, Op, Ramp, Size, Var
from hasten.loops.nest import (
    Call,
    Comment,
    Declare,
    For,
    Function,
    If,
    Let,
    Prefetch,
    Stmt,
    Store,
    size_parameter,
)
from hasten.loops.operations import OPERATIONS, Array
from hasten.loops.simplify import spell

Memory = Any
"""A flat array, or a list of pointers (None where it was not set)."""

Value = Any
"""A Python int or bool, a NumPy scalar, an array of lanes, or a `Pointer`."""

_INDEX_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "min": min,
    "max": max,
}
"""Operations on int64 in Python's integers, which are faster than NumPy's."""

_BITCAST = {DType.F32: DType.I32, DType.I32: DType.F32, DType.F64: DType.I64, DType.I64: DType.F64}


class NestError(AssertionError):
    """A nest did what C leaves undefined: a bug in the code that built it, never in a user's model."""


@dataclass(frozen=True)
class Pointer:
    """An element of a flat array or of a table of pointers.

    Attributes:
        memory: the array; a list for a table of pointers.
        offset: the element.
        name: how messages call the memory.
    """

    memory: Memory
    offset: int = 0
    name: str = "memory"

    def at(self, index: int, count: int = 1) -> int:
        """The position of an element, of `count` in a row.

        Raises:
            NestError: it is outside the memory.
        """
        place = self.offset + index
        if not 0 <= place <= len(self.memory) - count:
            raise NestError(f"{count} element(s) at {place} of {self.name}, which has {len(self.memory)}")
        return place


@dataclass(frozen=True)
class Fault:
    """A data-dependent index outside its range, and the argument `kernel` of the function that met it."""

    value: int
    limit: int
    kernel: int


def interpret(
    function: Function, arguments: Sequence[Value], callees: Mapping[str, Function] | None = None
) -> Fault | None:
    """Runs a function.

    Args:
        function: a well-formed function (`loops.verify.verify_function`).
        arguments: one for each parameter: a number for a scalar, a flat array for a buffer (written in
            place), a `Pointer` into either; anything for `fault`.
        callees: functions that it calls, by name.

    Returns:
        The first fault, or None.

    Raises:
        NestError: it did what C leaves undefined.
    """
    faults: list[Fault] = []
    with np.errstate(all="ignore"):
        _call(function, arguments, callees or {}, faults)
    return faults[0] if faults else None


def uninitialized(dtype: DType, count: int) -> Array:
    """Memory as it is before anything was written: NaN, or an integer that no index should be."""
    poison: float | bool = (
        math.nan if dtype.is_float else True if dtype is DType.BOOL else np.iinfo(dtype.numpy.name).max
    )
    return np.full(count, poison, dtype.numpy)


def _call(
    f: Function, arguments: Sequence[Value], callees: Mapping[str, Function], faults: list[Fault]
) -> None:
    frame = _Frame(callees, faults)
    for p, value in zip(f.params, arguments, strict=True):
        if p.depth:
            pointer = value if isinstance(value, Pointer) else Pointer(value, 0, p.name)
            frame.memory[p.name] = pointer
        else:
            frame.values[p.name] = int(value) if p.dtype in (INDEX, DType.I32) else value
    frame.run(f.body)


@dataclass
class _Frame:
    """The variables of one call.

    Attributes:
        callees: functions by name.
        faults: collects faults of the whole run.
        values: scalars and vectors by name.
        memory: buffers and local arrays by name.
        arrays: declarations of the local arrays.
    """

    callees: Mapping[str, Function]
    faults: list[Fault]
    values: dict[str, Value] = field(default_factory=dict)
    memory: dict[str, Pointer] = field(default_factory=dict)
    arrays: dict[str, Declare] = field(default_factory=dict)

    def run(self, body: Sequence[Stmt]) -> None:
        for s in body:
            self.statement(s)

    def statement(self, s: Stmt) -> None:
        match s:
            case Let(v, value):
                self.values[v.name] = self.value(value)
            case Declare():
                self.declare(s)
            case Store():
                self.store(s)
            case For(v, start, stop, body):
                for i in range(self.value(start), self.value(stop), s.step):
                    self.values[v.name] = i
                    self.run(body)
            case If(condition, then, otherwise):
                self.run(then if self.value(condition) else otherwise)
            case Call(name, arguments):
                values = [self.value(a) for a in arguments]
                _call(self.callees[name], values, self.callees, self.faults)
            case Comment() | Prefetch():
                pass

    def declare(self, s: Declare) -> None:
        if s.dims:
            count = math.prod(s.dims)
            self.arrays[s.name] = s
            memory: Memory
            memory = [None] * count if s.pointer else uninitialized(s.dtype, count * s.lanes)
            self.memory[s.name] = Pointer(memory, 0, s.name)
        elif s.value is not None:
            self.values[s.name] = _broadcast(self.value(s.value), s.lanes)
        else:
            self.values[s.name] = _broadcast(uninitialized(s.dtype, 1)[0], s.lanes)

    def store(self, s: Store) -> None:
        value = self.value(s.value)
        if not s.index:
            if s.buffer not in self.values:
                raise NestError(f"{s.buffer} is set before it is declared")
            self.values[s.buffer] = _broadcast(value, np.size(self.values[s.buffer]))
            return
        pointer, index, width = self.place(s.buffer, s.index)
        width = max(width, s.value.lanes)
        at = pointer.at(index, width)
        if isinstance(pointer.memory, list):
            pointer.memory[at] = value
        else:
            pointer.memory[at : at + width] = value

    def place(self, buffer: str, index: Sequence[Expr]) -> tuple[Pointer, int, int]:
        """Memory and offset of an element, and how many scalars it is made of."""
        pointer = self.memory.get(buffer)
        if pointer is None:
            raise NestError(f"{buffer} is neither a parameter nor a local array")
        numbers = [self.value(i) for i in index]
        local = self.arrays.get(buffer)
        if local is None:
            if len(numbers) != 1:
                raise NestError(f"{buffer} is flat and has {len(numbers)} indices")
            return pointer, numbers[0], 1
        if local.pointer and len(numbers) == len(local.dims) + 1:
            *numbers, last = numbers
            target = pointer.memory[pointer.at(_flat(numbers, local))]
            if not isinstance(target, Pointer):
                raise NestError(f"{buffer}{numbers} is read before it is set")
            return target, last, 1
        return pointer, _flat(numbers, local) * local.lanes, local.lanes

    def value(self, e: Expr) -> Value:
        """The value of an expression."""
        match e:
            case Const():
                return e.value if e.dtype is INDEX else e.dtype.numpy.type(e.value)
            case Var() | Size():
                name = size_parameter(e.name) if isinstance(e, Size) else e.name
                if name not in self.values:
                    raise NestError(f"{name} is used before it is set")
                return self.values[name]
            case Op():
                return self.operation(e)
            case Load():
                return self.load(e)
            case Address():
                pointer, index, _ = self.place(e.buffer, e.index)
                return Pointer(pointer.memory, pointer.offset + index, pointer.name)
            case Ramp():
                base, stride = self.value(e.base), self.value(e.stride)
                return base + stride * np.arange(e.lanes, dtype=np.int64)
            case Bounded():
                return self.bounded(self.value(e.index), self.value(e.limit))
        raise NestError(f"a nest cannot have {spell(e)}, a {type(e).__name__}")

    def bounded(self, index: int, limit: int) -> int:
        wrapped = index + limit if index < 0 else index
        if 0 <= wrapped < limit:
            return wrapped
        self.faults.append(Fault(index, limit, int(self.values.get("kernel", 0))))
        return 0

    def load(self, e: Load) -> Value:
        if not e.index:
            return self.values[e.buffer]
        last = e.index[-1]
        if last.lanes > 1:
            offsets = self.value(last)
            pointer, index, _ = self.place(e.buffer, (*e.index[:-1], Const(INDEX, 0)))
            places = [pointer.at(index + int(o)) for o in offsets]
            return np.array([pointer.memory[p] for p in places])
        pointer, index, width = self.place(e.buffer, e.index)
        at = pointer.at(index, max(width, e.lanes))
        if isinstance(pointer.memory, list):
            return pointer.memory[at]
        if e.lanes > 1:
            return pointer.memory[at : at + e.lanes].copy()
        found = pointer.memory[at]
        return int(found) if e.dtype is INDEX else found

    def operation(self, e: Op) -> Value:
        if e.op == "select" and e.args[0].lanes == 1:
            return self.value(e.args[1] if self.value(e.args[0]) else e.args[2])
        if e.op in ("and", "or") and e.lanes == 1:
            first = bool(self.value(e.args[0]))
            return first if first == (e.op == "or") else bool(self.value(e.args[1]))
        a: list[Value] = [self.value(x) for x in e.args]
        plain = _INDEX_OPERATIONS.get(e.op)
        if plain is not None and e.args[0].dtype is INDEX and type(a[0]) is type(a[1]) is int:
            return _wrapped(plain(a[0], a[1]))
        if e.op == "select":
            return np.where(*a)
        result: Array
        if e.op == "cast":
            result = np.asarray(a[0]).astype(e.dtype.numpy)
        elif e.op == "bitcast":
            result = np.asarray(a[0]).view(_BITCAST[e.args[0].dtype].numpy)
        elif e.op.startswith("total_"):
            result = _total(e.op.removeprefix("total_"), a[0])
        elif e.op == "broadcast":
            result = np.full(e.lanes, a[0], e.dtype.numpy)
        elif e.op == "apart":
            result = np.asarray(a[0])
        elif e.op in ("exp_nonpositive", "exp_for_bf16"):
            result = np.exp(a[0])
        elif e.op == "repeat":
            result = np.tile(a[0], e.lanes // e.args[0].lanes)
        elif e.op == "interleave":
            result = np.stack(np.broadcast_arrays(*a), axis=1).reshape(-1)
        elif e.op == "lower":
            result = a[0][: e.lanes]
        elif e.op in ("zip_low", "zip_high"):
            result = _zip(a[0], a[1], 4 // e.dtype.bytes, high=e.op == "zip_high")
        elif e.op == "dot":
            result = _dot(a[0], a[1], a[2], e.dtype)
        else:
            dtype = e.args[0].dtype.numpy
            result = np.asarray(OPERATIONS[e.op].apply(*(np.asarray(x, dtype) for x in a)))
        if e.lanes > 1:
            return result
        return int(result) if e.dtype is INDEX else result[()]


def _wrapped(n: int) -> int:
    """An integer modulo 2^64, in the range of int64."""
    return n if -(2**63) <= n < 2**63 else (n + 2**63) % 2**64 - 2**63


def _zip(a: Array, b: Array, size: int, *, high: bool) -> Array:
    """Groups of the lower or upper halves of two vectors in turns."""
    groups = np.stack([a.reshape(-1, size), b.reshape(-1, size)], axis=1)
    half = len(groups) // 2
    return (groups[half:] if high else groups[:half]).reshape(-1)


def _dot(sums: Array, a: Array, b: Array, dtype: DType) -> Array:
    """Each sum and the products of the group of narrow elements that lies in its place."""
    wide = np.float64 if dtype.is_float else np.int64
    groups = (a.astype(wide) * b.astype(wide)).reshape(sums.size, -1)
    return np.asarray(sums + groups.sum(axis=1)).astype(dtype.numpy)


def _flat(index: Sequence[int], local: Declare) -> int:
    if len(index) != len(local.dims):
        raise NestError(f"{local.name} has {len(local.dims)} dimensions and {len(index)} indices")
    flat = 0
    for i, n in zip(index, local.dims, strict=True):
        if not 0 <= i < n:
            raise NestError(f"index {list(index)} of {local.name}{list(local.dims)}")
        flat = flat * n + i
    return flat


def _broadcast(value: Value, lanes: int) -> Value:
    return np.full(lanes, value) if lanes > 1 and np.ndim(value) == 0 else value


def _total(op: str, v: Array) -> Array:
    """A vector reduced by halves, the order that generated code keeps on every target."""
    name = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "peak": "max"}[op]
    while v.size > 1:
        v = np.asarray(OPERATIONS[name].apply(v[: v.size // 2], v[v.size // 2 :]))
    return v.reshape(())
