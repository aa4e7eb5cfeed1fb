"""The interpreter of tensor programs in NumPy. It is their definition: compiled code must agree with it.

Agreement is exact for integers and booleans and *to rounding* for floats: arithmetic on f32 rounds to
f32 after each operation, but sums, products and contractions accumulate in f64 and round once, since
their order is free. `loops.scope` evaluates the expressions, `loops.sizes` the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hasten.errors import InputError
from hasten.loops.descriptions import (
    Attention,
    Forest,
    Gemm,
    Greedy,
    Order,
    Prefix,
    RankSelect,
    Recurrence,
    Scatter,
)
from hasten.loops.dtypes import BYTES, INDEX
from hasten.loops.expr import Expr, Var
from hasten.loops.operations import Array
from hasten.loops.program import Definition, Program
from hasten.loops.scope import (
    BLOCK,
    COMBINE,
    FAULT_PROGRAM,
    Range,
    Scope,
    Value,
    axis_arrays,
    join_faults,
    neutral,
    size_value,
)
from hasten.loops.sizes import bind_elements, bind_sizes, measured_sizes


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
                bind_elements(program, sizes, tensors)
    return {name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape) for name in wanted}


def _needed(program: Program, outputs: Iterable[str]) -> set[str]:
    """The definitions that the outputs, and the sizes of others, depend on."""
    needed: set[str] = set()
    stack = [*outputs, *(m.tensor for m in program.measured.values())]
    stack += [e.tensor for e in program.elements.values()]
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
        scope = Scope(tensors, sizes, axis_arrays(d.vars, block))
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
            case Order():
                value = _order(d.body, scope, ranges)
            case Scatter():
                value = _scatter(d.body, scope, ranges)
            case Greedy():
                value = _greedy(d.body, scope, ranges)
            case Recurrence():
                value = _recurrence(d.body, scope, ranges)
            case Forest():
                value = _forest(d.body, scope, ranges)
            case Prefix():
                value = scope.value(d.expr)
            case _:
                value = scope.value(d.body)
        if value.fault is not None:
            _raise_fault(d, np.broadcast_to(value.fault, extents), block)
        result[tuple(slice(*r) for r in block)] = value.array
    return result


def _raise_fault(d: Definition, fault: Array, block: Sequence[Range]) -> None:
    if not fault.any():
        return
    at = [int(i) + low for i, (low, _) in zip(np.argwhere(fault)[0], block, strict=True)]
    if (fault == FAULT_PROGRAM).any():
        raise AssertionError(f"{d.name}{at} ({d.origin}) reads outside a tensor")
    raise InputError(
        f"{d.origin or d.name}: an index taken from the data is out of range (first at element {at} "
        f"of its output); give indices within the dimension that they index"
    )


def _blocks(ranges: list[Range]) -> Iterator[list[Range]]:
    """Divides a domain into parts of at most `BLOCK` elements, halving the first axis that is not single."""
    if math.prod(high - low for low, high in ranges) <= BLOCK:
        yield ranges
        return
    axis = next(d for d, (low, high) in enumerate(ranges) if high - low > 1)
    low, high = ranges[axis]
    middle = (low + high) // 2
    for half in ((low, middle), (middle, high)):
        yield from _blocks([*ranges[:axis], half, *ranges[axis + 1 :]])


def _gemm(g: Gemm, d: Definition, scope: Scope, block: Mapping[Var, Range]) -> Value:
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


def _attention(a: Attention, d: Definition, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """Softmax attention by matrix products."""
    heads = _ranged([a.batch, a.head], scope, block)
    rows, column = _ranged([a.row], scope, block), _ranged([a.column], scope, block)
    result, fault = _attended(a, scope, block)
    return _arranged(result, [*heads, *rows, *column], d, fault)


def _ragged_attention(a: Attention, d: Definition, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """The same for batch entries that lie one behind the other, one entry after the other."""
    assert a.start is not None and a.stop is not None
    order = _ranged([a.head, a.row, a.column], scope, block)
    first, last = block[a.row]
    result = np.zeros([high - low for _, (low, high) in order])
    worst = 0
    (entries,) = _ranged([a.batch], scope, block)
    for b in range(*entries[1]):
        entry = Scope(scope.tensors, scope.sizes, {a.batch: np.asarray([b])})
        start, stop = (int(entry.value(e).array.item()) for e in (a.start, a.stop))
        low, high = max(first, start), min(last, stop)
        if low < high:
            own = {**block, a.batch: (b, b + 1), a.row: (low, high), a.key: (start, stop)}
            part, fault = _attended(a, scope, own)
            result[:, low - first : high - first] = part
            worst = max(worst, fault)
    return _arranged(result, order, d, worst)


def _attended(a: Attention, scope: Scope, block: Mapping[Var, Range]) -> tuple[Array, int]:
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


def _rank_select(c: RankSelect, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """Ranks by a running count."""
    held, fault = _operand(c.condition, scope, _ranged([c.position], scope, block))
    both = np.zeros((2, held.size + 1), INDEX.numpy)
    np.cumsum(held, out=both[0, 1:])
    found = np.flatnonzero(held)
    both[1, : found.size] = found
    parts = tuple(slice(*block[v]) for v in (c.which, c.at))
    return Value(both[parts], np.asarray(fault, np.int8) if fault else None)


def _order(c: Order, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """Places by counting what comes before each position, which compares all with all."""
    ((before,), fault) = _pairs(c, [c.before], scope, block)
    place = _places(before)
    both = np.stack([np.argsort(place, axis=-1, kind="stable"), place])
    own = (slice(*block[c.which]), *[slice(None)] * len(c.lanes), slice(*block[c.at]))
    return Value(both[own].astype(INDEX.numpy), fault)


def _pairs(
    c: Order | Greedy, expressions: Sequence[Expr], scope: Scope, block: Mapping[Var, Range]
) -> tuple[list[Array], Array | None]:
    """Expressions as arrays [lanes, position, other], and their worst fault."""
    ranged = _ranged([*c.lanes, c.position, c.other], scope, block)
    axes = axis_arrays([v for v, _ in ranged], [r for _, r in ranged])
    found = [Scope(scope.tensors, scope.sizes, axes).value(e) for e in expressions]
    fault = join_faults(*(v.fault for v in found))
    worst = None if fault is None or not fault.size else np.asarray(fault.max(), np.int8)
    return [np.broadcast_to(v.array, [high - low for _, (low, high) in ranged]) for v in found], worst


def _places(before: Array) -> Array:
    """The place of each position in order."""
    earlier = np.tri(before.shape[-1], k=-1, dtype=bool)  # [position, other]: other < position
    place: Array = (np.swapaxes(before, -1, -2) | (~before & earlier)).sum(axis=-1)
    return place


def _scatter(c: Scatter, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """All updates one after the other."""
    sizes = scope.sizes
    shape = [size_value(v.extent, sizes) for v in c.vars if v.extent is not None]
    updates = [(0, size_value(v.extent, sizes)) for v in c.updates if v.extent is not None]
    counts = tuple(high for _, high in updates)
    whole = Scope(scope.tensors, sizes, axis_arrays(c.vars, [(0, n) for n in shape]))
    old = whole.value(c.old)
    out = np.array(np.broadcast_to(old.array, shape))
    inner = Scope(scope.tensors, sizes, axis_arrays(c.updates, updates))
    found = [inner.value(e) for e in (c.new, *c.at)]
    new, *at = (np.broadcast_to(v.array, counts) for v in found)
    apply = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}.get(c.op)
    for u in np.ndindex(*counts):
        place = tuple(int(a[u]) for a in at)
        out[place] = new[u] if apply is None else apply(out[place], new[u])
    fault = join_faults(*(v.fault for v in (old, *found)))
    worst = None if fault is None or not fault.size else np.asarray(fault.max(), np.int8)
    return Value(out[tuple(slice(*block[v]) for v in c.vars)], worst)


def _greedy(c: Greedy, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """Each lane position by position."""
    arrays, fault = _pairs(c, [c.before, c.excluded, c.eligible, c.most], scope, block)
    before, excluded, eligible, most = arrays
    order = np.argsort(_places(before), axis=-1, kind="stable")
    count = before.shape[-1]
    both = np.zeros((2, *before.shape[:-2], count + 1), INDEX.numpy)
    for lane in np.ndindex(*before.shape[:-2]) if count else ():
        chosen: list[int] = []
        for p in order[lane]:
            free = not excluded[lane][p, chosen].any()
            if eligible[(*lane, p, 0)] and free and len(chosen) < most[(*lane, 0, 0)]:
                chosen.append(int(p))
        both[(0, *lane)][: len(chosen)] = chosen
        both[(0, *lane, count)] = len(chosen)
    own = (slice(*block[c.which]), *[slice(None)] * len(c.lanes), slice(*block[c.at]))
    return Value(both[own], fault)


def _recurrence(c: Recurrence, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """Steps one after the other, all lanes at once."""
    sizes = scope.sizes
    domain = [(v, (0, size_value(v.extent, sizes))) for v in (*c.lanes, c.unit) if v.extent is not None]
    shape = tuple(high for _, (_, high) in domain)
    steps, positions = (size_value(v.extent, sizes) for v in (c.step, c.position) if v.extent is not None)
    tensors = dict(scope.tensors)
    faults: list[Array | None] = []

    def value(e: Expr, step: int = 0, active: Array | None = None) -> Array:
        axes = axis_arrays([c.step, *(v for v, _ in domain)], [(step, step + 1), *(r for _, r in domain)])
        found = Scope(tensors, sizes, axes).value(e)
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
    return Value(result[parts], join_faults(*faults))


def _forest(c: Forest, scope: Scope, block: Mapping[Var, Range]) -> Value:
    """All rows and trees step by step."""
    faults: list[Array | None] = []

    def table(e: Expr, *variables: Var) -> Array:
        ranges = [r for _, r in _ranged(variables, scope, block)]
        found = Scope(scope.tensors, scope.sizes, axis_arrays(variables, ranges)).value(e)
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
    total = COMBINE[c.op].reduce(values, axis=2, dtype=np.float64, initial=neutral(c.op, c.dtype))
    fault = join_faults(*faults)
    return Value(total.astype(c.dtype.numpy), None if fault is None else np.max(fault))


def _ranged(variables: Sequence[Var], scope: Scope, block: Mapping[Var, Range]) -> list[tuple[Var, Range]]:
    """Variables with their ranges: those of the block, or all of a summed variable's extent."""
    sizes = scope.sizes
    return [
        (v, block[v] if v in block else (0, size_value(v.extent, sizes)))
        for v in variables
        if v.extent is not None
    ]


def _count(group: Sequence[tuple[Var, Range]]) -> int:
    return math.prod(high - low for _, (low, high) in group)


def _row_parts(rows: list[tuple[Var, Range]], elements: int) -> Iterator[list[tuple[Var, Range]]]:
    """Divides rows along their first variable; `elements` is the length of an operand's row."""
    if not rows:
        yield rows
        return
    (first, (low, high)), *others = rows
    step = max(BLOCK // (elements * max(_count(others), 1)), 1)
    for start in range(low, high, step):
        yield [(first, (start, min(start + step, high))), *others]


def _arranged(flat: Array, order: Sequence[tuple[Var, Range]], d: Definition, fault: int) -> Value:
    """A contraction's result with its axes as the definition has them.

    Every element of an operand takes part in the result, so that a fault is everywhere.
    """
    variables = [v for v, _ in order]
    array = flat.reshape([high - low for _, (low, high) in order])
    array = array.transpose([variables.index(v) for v in d.vars])
    return Value(array.astype(d.dtype.numpy), np.asarray(fault, np.int8) if fault else None)


def _operand(e: Expr, scope: Scope, *groups: Sequence[tuple[Var, Range]]) -> tuple[Array, int]:
    """An operand as an array with one axis for each group of variables, and its worst fault."""
    flat = [pair for group in groups for pair in group]
    axes = axis_arrays([v for v, _ in flat], [r for _, r in flat])
    value = Scope(scope.tensors, scope.sizes, axes).value(e)
    lengths = [high - low for _, (low, high) in flat]
    # Sums of products of bytes are exact in f64, and quick.
    wide = np.float64 if e.dtype.is_float or e.dtype in BYTES else e.dtype.numpy
    array = np.broadcast_to(value.array, lengths).astype(wide)
    shape = [math.prod(high - low for _, (low, high) in group) for group in groups]
    fault = 0 if value.fault is None else int(np.broadcast_to(value.fault, lengths).max(initial=0))
    return array.reshape(shape), fault
