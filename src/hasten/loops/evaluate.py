"""The interpreter of tensor programs in NumPy. It is their definition: compiled code must agree with it.

Agreement is exact for integers and booleans and *to rounding* for floats: arithmetic on f32 rounds to
f32 after each operation, but sums, products and contractions accumulate in f64 and round once, since
their order is free.

An element is computed only where the program asks for it. The interpreter computes both sides of every
`select` at every index, so it clips addresses and carries along a mask of the places where an access
was out of bounds; a `select` drops the mask of the side not taken, and what is left at the end is a fault.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.errors import InputError
from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import Bounded, Const, Expr, Load, Op, Reduce, Size, Var, free_vars
from hasten.loops.operations import OPERATIONS, Array
from hasten.loops.program import (
    Attention,
    Definition,
    Forest,
    Gemm,
    Program,
    RankSelect,
    Recurrence,
    TensorInfo,
)
from hasten.loops.simplify import spell

BLOCK = 1 << 22
"""Most elements that an intermediate array may have; larger domains are computed in blocks."""

_FAULT_DATA, _FAULT_PROGRAM = 1, 2

_Range = tuple[int, int]


@dataclass(frozen=True)
class _Value:
    """The values of an expression and, where an access was out of bounds, the kind of fault (else None)."""

    array: Array
    fault: Array | None = None


def evaluate(
    program: Program, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Runs a program.

    Args:
        program: a well-formed program (`loops.verify`).
        feeds: an array for each input.
        outputs: names of the tensors to return, any input, constant or definition; by default the
            program's outputs. Definitions that none of them needs are not computed.

    Returns:
        The tensors by name.

    Raises:
        InputError: an array is missing, unknown, of another type or rank; a dimension contradicts
            another; a guard does not hold; or an index in the data is out of range.
    """
    sizes = bind_sizes(program, feeds)
    tensors: dict[str, Array] = {**program.constants, **feeds}
    wanted = list(program.outputs if outputs is None else outputs)
    needed = _needed(program, wanted)
    with np.errstate(all="ignore"):
        for name, definition in program.definitions.items():
            if name in needed:
                tensors[name] = _define(definition, tensors, sizes)
                sizes |= measured_sizes(program, name, tensors[name], sizes)
    return {name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape) for name in wanted}


def bind_sizes(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The value of every size of a program for the given inputs, derived ones included.

    Raises:
        InputError: the arrays do not fit the program's inputs, or a guard does not hold.
    """
    unknown = [name for name in feeds if name not in program.inputs]
    if unknown:
        raise InputError(f"unknown input '{unknown[0]}'; the inputs are {', '.join(program.inputs)}")
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for name, info in program.inputs.items():
        if name not in feeds:
            raise InputError(f"input '{name}' is missing; give an array of type {info.dtype.numpy}")
        _check_type(info, feeds[name])
        for d, (extent, n) in enumerate(zip(info.shape, feeds[name].shape, strict=True)):
            if not isinstance(extent, Size):
                continue
            if sizes.setdefault(extent.name, n) != n:
                raise InputError(
                    f"dimension {d} of input '{name}' is {n}, but {extent.name} is "
                    f"{sizes[extent.name]} in {source[extent.name]}; they must be equal"
                )
            source.setdefault(extent.name, f"dimension {d} of input '{name}'")
    for name, value in program.derived.items():
        sizes[name] = size_value(value, sizes)
        if sizes[name] < 0:
            raise InputError(
                f"a size of the model, {spell(value)}, is {sizes[name]} for these inputs "
                f"({_listing(sizes)}); give inputs for which it is not negative"
            )
    for name, info in program.inputs.items():
        for d, (extent, n) in enumerate(zip(info.shape, feeds[name].shape, strict=True)):
            expected = size_value(extent, sizes)
            if n != expected:
                raise InputError(
                    f"dimension {d} of input '{name}' is {n}; it must be {spell(extent)}"
                    + ("" if isinstance(extent, Const) else f" = {expected}")
                )
    for guard in program.guards:
        left, right = size_value(guard.left, sizes), size_value(guard.right, sizes)
        if not guard.holds(left, right):
            needs = f"{spell(guard.left)} == {spell(guard.right)}"
            if guard.kind == "some":
                needs = f"{spell(guard.left)} > 0 or {spell(guard.right)} == 0"
            raise InputError(
                f"{guard.origin} needs {needs}, which are {left} and {right} ({_listing(sizes)})"
            )
    return sizes


def measured_sizes(
    program: Program, name: str, array: np.ndarray, sizes: Mapping[str, int]
) -> dict[str, int]:
    """The measured sizes that a tensor of a program holds.

    Args:
        program: the program.
        name: a definition.
        array: its value.
        sizes: the sizes known before the run.
    """
    return {
        size: int(array[tuple(size_value(i, sizes) for i in m.index)])
        for size, m in program.measured.items()
        if m.tensor == name
    }


def size_value(e: Expr, sizes: Mapping[str, int]) -> int:
    """The value of an expression of sizes."""
    if isinstance(e, Const):
        return int(e.value)
    with np.errstate(all="ignore"):
        return int(_Scope({}, sizes, {}).value(e).array)


def _check_type(info: TensorInfo, array: np.ndarray) -> None:
    if array.dtype != info.dtype.numpy:
        raise InputError(f"input '{info.name}' has type {array.dtype}; convert it to {info.dtype.numpy}")
    if array.ndim != len(info.shape):
        shape = ", ".join(spell(n) for n in info.shape)
        raise InputError(f"input '{info.name}' has {array.ndim} dimensions; it must be [{shape}]")


def _listing(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {n}" for name, n in sizes.items()) or "no symbolic sizes"


def _needed(program: Program, outputs: Iterable[str]) -> set[str]:
    """The definitions that the outputs, and the sizes of others, depend on."""
    needed: set[str] = set()
    stack = [*outputs, *(m.tensor for m in program.measured.values())]
    while stack:
        name = stack.pop()
        if name not in program.definitions or name in needed:
            continue
        needed.add(name)
        stack.extend(program.definitions[name].reads())
    return needed


def _define(d: Definition, tensors: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    """The tensor of one definition, block by block."""
    shape = tuple(size_value(n, sizes) for n in d.shape)
    result = np.empty(shape, d.dtype.numpy)
    if not result.size:
        return result
    for block in _blocks([(0, n) for n in shape]):
        scope = _Scope(tensors, sizes, _axes(d.vars, block))
        extents = tuple(high - low for low, high in block)
        ranges = dict(zip(d.vars, block, strict=True))
        match d.body:
            case Gemm():
                value = _gemm(d.body, d, scope, ranges)
            case Attention() if d.body.start is None:
                value = _attention(d.body, d, scope, ranges)
            case Attention():
                value = _ragged_attention(d.body, d, scope, ranges)
            case RankSelect():
                value = _rank_select(d.body, scope, ranges)
            case Recurrence():
                value = _recurrence(d.body, scope, ranges)
            case Forest():
                value = _forest(d.body, scope, ranges)
            case _:
                value = scope.value(d.body)
        if value.fault is not None:
            _raise_fault(d, np.broadcast_to(value.fault, extents), block)
        result[tuple(slice(*r) for r in block)] = value.array
    return result


def _raise_fault(d: Definition, fault: Array, block: Sequence[_Range]) -> None:
    if not fault.any():
        return
    at = [int(i) + low for i, (low, _) in zip(np.argwhere(fault)[0], block, strict=True)]
    if (fault == _FAULT_PROGRAM).any():
        raise AssertionError(f"{d.name}{at} ({d.origin}) reads outside a tensor")
    raise InputError(
        f"{d.origin or d.name}: an index taken from the data is out of range (first at element {at} "
        f"of its output); give indices within the dimension that they index"
    )


def _blocks(ranges: list[_Range]) -> Iterator[list[_Range]]:
    """Divides a domain into parts of at most `BLOCK` elements, halving the first axis that is not single."""
    if math.prod(high - low for low, high in ranges) <= BLOCK:
        yield ranges
        return
    axis = next(d for d, (low, high) in enumerate(ranges) if high - low > 1)
    low, high = ranges[axis]
    middle = (low + high) // 2
    for half in ((low, middle), (middle, high)):
        yield from _blocks([*ranges[:axis], half, *ranges[axis + 1 :]])


def _axes(variables: Sequence[Var], block: Sequence[_Range], inner: int = 0) -> dict[Var, Array]:
    """The values of variables as arrays that broadcast against each other, the last one innermost."""
    axes: dict[Var, Array] = {}
    for d, (v, (low, high)) in enumerate(zip(variables, block, strict=True)):
        trailing = len(variables) - d - 1 + inner
        axes[v] = np.arange(low, high, dtype=np.int64).reshape((high - low, *(1,) * trailing))
    return axes


def _join(*faults: Array | None) -> Array | None:
    found = [f for f in faults if f is not None]
    if not found:
        return None
    result = found[0]
    for f in found[1:]:
        result = np.maximum(result, f)
    return result


@dataclass
class _Scope:
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
    outer: _Scope | None = None
    _known: dict[Expr, _Value] = field(default_factory=dict)

    def extents(self, used: frozenset[Var]) -> tuple[int, ...]:
        """The lengths of all axes, outermost scope last; 1 for a variable that is not among the used."""
        own = tuple(a.shape[0] if v in used else 1 for v, a in self.axes.items())
        return own + (self.outer.extents(used) if self.outer else ())

    def value(self, e: Expr) -> _Value:
        """The values of an expression; they broadcast to the extents of the scope's axes."""
        if self.outer is not None and not (free_vars(e) & self.axes.keys()):
            return self.outer.value(e)
        found = self._known.get(e)
        if found is None:
            found = self._known[e] = self._compute(e)
        return found

    def _compute(self, e: Expr) -> _Value:
        match e:
            case Const():
                return _Value(np.asarray(e.value).astype(e.dtype.numpy))
            case Var():
                return _Value(self.axes[e])
            case Size():
                return _Value(np.asarray(self.sizes[e.name], INDEX.numpy))
            case Op(op="select"):
                return self._select(e)
            case Op(op="cast"):
                inner = self.value(e.args[0])
                return _Value(inner.array.astype(e.dtype.numpy), inner.fault)
            case Op(op="bitcast"):
                inner = self.value(e.args[0])
                return _Value(inner.array.view(e.dtype.numpy), inner.fault)
            case Op():
                args = [self.value(a) for a in e.args]
                array = np.asarray(OPERATIONS[e.op].apply(*(a.array for a in args)))
                return _Value(array.astype(e.dtype.numpy, copy=False), _join(*(a.fault for a in args)))
            case Load():
                return self._load(e)
            case Bounded():
                return self._bounded(e)
            case Reduce():
                return self._reduce(e)
        raise AssertionError(f"{type(e).__name__} has no meaning in a tensor program")

    def _select(self, e: Op) -> _Value:
        condition, a, b = (self.value(arg) for arg in e.args)
        fault = None
        if a.fault is not None or b.fault is not None:
            none = np.zeros((), np.int8)
            sides = (none if s.fault is None else s.fault for s in (a, b))
            fault = np.where(condition.array, *sides)
        return _Value(np.where(condition.array, a.array, b.array), _join(condition.fault, fault))

    def _load(self, e: Load) -> _Value:
        source = self.tensors[e.buffer]
        index = [self.value(i) for i in e.index]
        fault = _join(*(i.fault for i in index))
        clipped: list[Array] = []
        for i, n in zip(index, source.shape, strict=True):
            outside = (i.array < 0) | (i.array >= n)
            if outside.any():
                fault = _join(fault, outside.astype(np.int8) * np.int8(_FAULT_PROGRAM))
                clipped.append(np.clip(i.array, 0, max(n - 1, 0)))
            else:
                clipped.append(i.array)
        if not source.size:
            return _Value(np.zeros((), source.dtype), fault)
        return _Value(np.asarray(source[tuple(clipped)]), fault)

    def _bounded(self, e: Bounded) -> _Value:
        index, limit = self.value(e.index), self.value(e.limit)
        wrapped = np.where(index.array < 0, index.array + limit.array, index.array)
        outside = (wrapped < 0) | (wrapped >= limit.array)
        fault = _join(index.fault, limit.fault)
        if outside.any():
            fault = _join(fault, outside.astype(np.int8) * np.int8(_FAULT_DATA))
        return _Value(np.where(outside, 0, wrapped), fault)

    def _reduce(self, e: Reduce) -> _Value:
        """Reduces over blocks of the own variables, such that one block with all outer axes is small."""
        outer = self.extents(free_vars(e))
        ranges = [(0, size_value(v.extent, self.sizes)) for v in e.vars if v.extent is not None]
        neutral = _neutral(e.op, e.dtype)
        wide = np.float64 if e.dtype.is_float else e.dtype.numpy
        total = np.full(outer, neutral, wide)
        fault: Array | None = None
        combine = _COMBINE[e.op]
        if all(high > low for low, high in ranges):
            for block in _reduce_blocks(ranges, math.prod(outer)):
                axes = _axes(e.vars, block, inner=len(outer))
                scope = _Scope(self.tensors, self.sizes, axes, self)
                body = scope.value(e.body)
                dims = tuple(range(len(block)))
                full = (*(high - low for low, high in block), *outer)
                array = np.broadcast_to(body.array, full)
                total = combine(total, combine.reduce(array, axis=dims, dtype=wide))
                if body.fault is not None:
                    spread = np.broadcast_to(body.fault, full)
                    fault = _join(fault, np.maximum.reduce(spread, axis=dims))
        return _Value(np.asarray(total).astype(e.dtype.numpy, copy=False), fault)


_COMBINE: Mapping[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _neutral(op: str, dtype: DType) -> int | float | bool:
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


def _reduce_blocks(ranges: Sequence[_Range], outer: int) -> Iterator[list[_Range]]:
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


def _gemm(g: Gemm, d: Definition, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """A sum of products as matrix products, a block of rows at a time."""
    batch, rows = _ranged(g.batch, scope, block), _ranged(g.rows, scope, block)
    column, summed = _ranged([g.column], scope, block), _ranged([*g.taps, g.depth], scope, block)
    b, fault = _operand(g.b, scope, batch, summed, column)
    parts: list[Array] = []
    for part in _row_parts(rows, _count(batch) * max(_count(summed), 1)):
        a, a_fault = _operand(g.a, scope, batch, part, summed)
        fault = max(fault, a_fault)
        parts.append(np.matmul(a, b))
    return _arranged(np.concatenate(parts, axis=1), [*batch, *rows, *column], d, fault)


def _attention(a: Attention, d: Definition, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """Softmax attention by matrix products."""
    heads = _ranged([a.batch, a.head], scope, block)
    rows, column = _ranged([a.row], scope, block), _ranged([a.column], scope, block)
    result, fault = _attended(a, scope, block)
    return _arranged(result, [*heads, *rows, *column], d, fault)


def _ragged_attention(a: Attention, d: Definition, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """The same for batch entries that lie one behind the other, one entry after the other."""
    assert a.start is not None and a.stop is not None
    order = _ranged([a.head, a.row, a.column], scope, block)
    first, last = block[a.row]
    result = np.zeros([high - low for _, (low, high) in order])
    worst = 0
    (entries,) = _ranged([a.batch], scope, block)
    for b in range(*entries[1]):
        entry = _Scope(scope.tensors, scope.sizes, {a.batch: np.asarray([b])})
        start, stop = (int(entry.value(e).array.item()) for e in (a.start, a.stop))
        low, high = max(first, start), min(last, stop)
        if low < high:
            own = {**block, a.batch: (b, b + 1), a.row: (low, high), a.key: (start, stop)}
            part, fault = _attended(a, scope, own)
            result[:, low - first : high - first] = part
            worst = max(worst, fault)
    return _arranged(result, order, d, worst)


def _attended(a: Attention, scope: _Scope, block: Mapping[Var, _Range]) -> tuple[Array, int]:
    """The result [batch and head, row, column], a block of query rows at a time, and the worst fault."""
    heads = _ranged([a.batch, a.head], scope, block)
    rows, column = _ranged([a.row], scope, block), _ranged([a.column], scope, block)
    key, depth = _ranged([a.key], scope, block), _ranged([a.depth], scope, block)
    k, k_fault = _operand(a.k, scope, heads, depth, key)
    v, v_fault = _operand(a.v, scope, heads, key, column)
    faults, parts = [k_fault, v_fault], []
    for part in _row_parts(rows, _count(heads) * max(_count(key), 1)):
        q, q_fault = _operand(a.q, scope, heads, part, depth)
        scores = np.matmul(q, k) * a.scale
        faults.append(q_fault)
        if a.bias is not None:
            bias, bias_fault = _operand(a.bias, scope, heads, part, key)
            scores += bias
            faults.append(bias_fault)
        if a.keep is not None:
            keep, keep_fault = _operand(a.keep, scope, heads, part, key)
            scores = np.where(keep, scores, -np.inf)
            faults.append(keep_fault)
        peak = scores.max(axis=2, keepdims=True, initial=-np.inf)
        dead = peak == -np.inf
        weight = np.exp(scores - np.where(dead, 0.0, peak))
        total = weight.sum(axis=2, keepdims=True)
        parts.append(np.where(dead, 0.0, np.matmul(weight, v) / total))
    return np.concatenate(parts, axis=1), max(faults)


def _rank_select(c: RankSelect, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """Ranks by a running count."""
    held, fault = _operand(c.condition, scope, _ranged([c.position], scope, block))
    both = np.zeros((2, held.size + 1), INDEX.numpy)
    np.cumsum(held, out=both[0, 1:])
    found = np.flatnonzero(held)
    both[1, : found.size] = found
    parts = tuple(slice(*block[v]) for v in (c.which, c.at))
    return _Value(both[parts], np.asarray(fault, np.int8) if fault else None)


def _recurrence(c: Recurrence, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """Steps one after the other, all lanes at once."""
    sizes = scope.sizes
    domain = [(v, (0, size_value(v.extent, sizes))) for v in (*c.lanes, c.unit) if v.extent is not None]
    shape = tuple(high for _, (_, high) in domain)
    steps, positions = (size_value(v.extent, sizes) for v in (c.step, c.position) if v.extent is not None)
    tensors = dict(scope.tensors)
    faults: list[Array | None] = []

    def value(e: Expr, step: int = 0, active: Array | None = None) -> Array:
        axes = _axes([c.step, *(v for v, _ in domain)], [(step, step + 1), *(r for _, r in domain)])
        found = _Scope(tensors, sizes, axes).value(e)
        if found.fault is not None:  # of lanes that take the step
            faults.append(np.max(found.fault if active is None else np.where(active, found.fault, 0)))
        whole: Array = np.broadcast_to(found.array, (1, *shape))
        return whole.reshape(shape)

    states = [value(e) for e in c.initial]
    result = np.zeros((len(states), *shape[:-1], positions, shape[-1]), c.dtype.numpy)
    length = value(c.length)
    for step in range(steps):
        tensors |= dict(zip(c.states, states, strict=True))
        active = step < length
        for name, body in zip(c.values, c.bodies, strict=True):
            tensors[name] = value(body, step, active)
        states = [np.where(active, tensors[n], s) for n, s in zip(c.carried, states, strict=True)]
        at = value(c.at, step, active)[..., 0]
        for lane in np.argwhere(active[..., 0]) if shape[-1] else ():
            for number, state in enumerate(states):
                result[(number, *lane, at[tuple(lane)])] = state[tuple(lane)]
    parts = tuple(slice(*block[v]) for v in (c.which, *c.lanes, c.position, c.unit))
    return _Value(result[parts], _join(*faults))


def _forest(c: Forest, scope: _Scope, block: Mapping[Var, _Range]) -> _Value:
    """All rows and trees step by step."""
    faults: list[Array | None] = []

    def table(e: Expr, *variables: Var) -> Array:
        ranges = [r for _, r in _ranged(variables, scope, block)]
        found = _Scope(scope.tensors, scope.sizes, _axes(variables, ranges)).value(e)
        faults.append(found.fault)
        return np.broadcast_to(found.array, [high - low for low, high in ranges])

    x = table(c.x, c.row, c.feature)
    x = np.concatenate([x, -x], axis=1)
    split, limit, below, end = (table(e, c.node) for e in (c.split, c.limit, c.below, c.end))
    rows = np.arange(len(x)).reshape(-1, 1)
    roots = table(c.root, c.part, c.tree)[:, None]
    node = np.broadcast_to(roots, (len(roots), len(x), roots.shape[-1]))
    for _ in range(c.depth):
        node = below[node] + ~(x[rows, split[node]] <= limit[node])
    values = table(c.value, c.leaf, c.target)[end[node]]
    total = _COMBINE[c.op].reduce(values, axis=2, dtype=np.float64, initial=_neutral(c.op, c.dtype))
    fault = _join(*faults)
    return _Value(total.astype(c.dtype.numpy), None if fault is None else np.max(fault))


def _ranged(variables: Sequence[Var], scope: _Scope, block: Mapping[Var, _Range]) -> list[tuple[Var, _Range]]:
    """Variables with their ranges: those of the block, or all of a summed variable's extent."""
    sizes = scope.sizes
    return [
        (v, block[v] if v in block else (0, size_value(v.extent, sizes)))
        for v in variables
        if v.extent is not None
    ]


def _count(group: Sequence[tuple[Var, _Range]]) -> int:
    return math.prod(high - low for _, (low, high) in group)


def _row_parts(rows: list[tuple[Var, _Range]], elements: int) -> Iterator[list[tuple[Var, _Range]]]:
    """Divides rows along their first variable; `elements` is the length of an operand's row."""
    if not rows:
        yield rows
        return
    (first, (low, high)), *others = rows
    step = max(BLOCK // (elements * max(_count(others), 1)), 1)
    for start in range(low, high, step):
        yield [(first, (start, min(start + step, high))), *others]


def _arranged(flat: Array, order: Sequence[tuple[Var, _Range]], d: Definition, fault: int) -> _Value:
    """A contraction's result with its axes as the definition has them.

    Every element of an operand takes part in the result, so that a fault is everywhere.
    """
    variables = [v for v, _ in order]
    array = flat.reshape([high - low for _, (low, high) in order])
    array = array.transpose([variables.index(v) for v in d.vars])
    return _Value(array.astype(d.dtype.numpy), np.asarray(fault, np.int8) if fault else None)


def _operand(e: Expr, scope: _Scope, *groups: Sequence[tuple[Var, _Range]]) -> tuple[Array, int]:
    """An operand as an array with one axis for each group of variables, and its worst fault."""
    flat = [pair for group in groups for pair in group]
    axes = _axes([v for v, _ in flat], [r for _, r in flat])
    value = _Scope(scope.tensors, scope.sizes, axes).value(e)
    lengths = [high - low for _, (low, high) in flat]
    # Sums of products of bytes are exact in f64, and quick.
    wide = np.float64 if e.dtype.is_float or e.dtype in BYTES else e.dtype.numpy
    array = np.broadcast_to(value.array, lengths).astype(wide)
    shape = [math.prod(high - low for _, (low, high) in group) for group in groups]
    fault = 0 if value.fault is None else int(np.broadcast_to(value.fault, lengths).max(initial=0))
    return array.reshape(shape), fault
