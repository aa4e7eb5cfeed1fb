"""Steps whose elements or sizes are chosen: by indices, by position, by the data; and shapes as data."""

from __future__ import annotations

import numpy as np
from tests.differential.graph import Builder, Dim, Unfit, Value, elements, fixed


def gather(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1)
    axis = b.int(0, x.rank - 1)
    lengths = x.shape[axis]
    kind = b.rng.random()
    if kind < 0.3:
        if not fixed(lengths) or lengths[0] == 0:
            raise Unfit
        shape = tuple(b.int(1, 3) for _ in range(b.int(0, 2)))
        index = b.constant(b.rng.integers(-lengths[0], lengths[0], shape), b.pick(["int64", "int32"]))
    elif kind < 0.7:
        shape_ = tuple(b.dim() for _ in range(b.int(0, 2)))
        index = b.indices(shape_, lengths, b.pick(["int64", "int32"]))
    else:
        index = _computed_index(b, lengths)
    shape2 = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    b.emit("Gather", [x, index], x, shape2, axis=axis - x.rank if b.chance(0.3) else axis)


def _computed_index(b: Builder, lengths: Dim) -> Value:
    """An integer value of the graph, brought into range."""
    if not fixed(lengths) or lengths[0] == 0:
        raise Unfit
    y = b.source(lambda v: v.dtype in ("int32", "int64") and v.elements() <= 200)
    n = b.constant(np.array(lengths[0]), y.dtype)
    return b.emit("Mod", [y, n], y, bound=lengths[0])


def gather_elements(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1)
    axis = b.int(0, x.rank - 1)
    shape = tuple(b.dim() if k == axis else d for k, d in enumerate(x.shape))
    index = b.indices(shape, x.shape[axis])
    b.emit("GatherElements", [x, index], x, shape, axis=axis)


def gather_nd(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1 and all(0 not in d for d in v.shape))
    depth = b.int(1, min(2, x.rank))
    if not all(fixed(d) for d in x.shape[:depth]):
        raise Unfit
    batch = b.dim()
    limits = [d[0] for d in x.shape[:depth]]

    def make(r: np.random.Generator, _: int, s: tuple[int, ...]) -> np.ndarray:
        return np.stack([r.integers(-n, n, s[:-1]) for n in limits], -1).astype(np.int64)

    index = b.add_input("int64", (batch, b.const_dim(depth)), make, max(limits), 0)
    b.emit("GatherND", [x, index], x, (batch, *x.shape[depth:]))


def scatter(b: Builder) -> None:
    x = b.source(
        lambda v: v.rank >= 1 and all(fixed(d) and d[0] > 0 for d in v.shape) and v.elements() <= 600
    )
    reduction = b.pick(["none", "none", "add", "mul", "max", "min"])
    if reduction != "none" and (x.dtype not in ("float32", "float64", "int32", "int64") or (x.bound > 100)):
        raise Unfit
    dims = [d[0] for d in x.shape]
    if b.chance(0.5):
        axis = b.int(0, x.rank - 1)
        extents = [b.int(1, dims[k]) for k in range(x.rank)]
        if reduction == "none":
            order = np.argsort(b.rng.random(dims), axis)[tuple(slice(n) for n in extents)]
        else:
            order = b.rng.integers(-dims[axis], dims[axis], extents)
        index: Value = b.constant(order, "int64")
        updates = b.weights_of(x.dtype, *extents)
        op, attributes = "ScatterElements", {"axis": axis}
    else:
        depth = b.int(1, x.rank)
        count = b.int(1, 3)
        flat = b.rng.choice(
            int(np.prod(dims[:depth])),
            count,
            replace=reduction != "none" or int(np.prod(dims[:depth])) < count,
        )
        if reduction == "none" and len(set(flat)) < count:
            raise Unfit
        order = np.stack(np.unravel_index(flat, dims[:depth]), -1)
        index = b.constant(order, "int64")
        updates = b.weights_of(x.dtype, count, *dims[depth:])
        op, attributes = "ScatterND", {}
    bound, fraction = max(x.bound, updates.bound), x.fraction
    if reduction in ("add", "mul"):
        bound, fraction = (
            (x.bound + 20 * updates.bound, x.fraction)
            if reduction == "add"
            else (x.bound * updates.bound**4, None if x.is_float else x.fraction)
        )
    if not x.is_float and bound > 1e6:
        raise Unfit
    if x.fraction is not None and fraction is not None:
        fraction = max(fraction, updates.fraction or 0)
    if reduction != "none":
        attributes["reduction"] = reduction
    b.emit(op, [x, index, updates], x, bound=bound, fraction=fraction, **attributes)


def trilu(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 2 and v.dtype in ("float32", "float64", "int64", "bool"))
    inputs: list[Value | str] = [x]
    if b.chance(0.6):
        inputs.append(b.constant(np.array(b.int(-3, 3)), "int64"))
    b.emit("Trilu", inputs, x, upper=b.int(0, 1))


def one_hot(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 1 and v.dtype in ("int64", "int32") and v.elements() <= 200)
    depth = b.int(1, 6)
    axis = b.int(-x.rank - 1, x.rank)
    at = axis + x.rank + 1 if axis < 0 else axis
    dtype = b.pick(["float32", "int64"])
    values = b.constant(np.array([0, 3]), dtype)
    shape = (*x.shape[:at], b.const_dim(depth), *x.shape[at:])
    b.emit(
        "OneHot", [x, b.constant(np.array(depth), "int64"), values], x, shape, dtype=dtype, bound=3, axis=axis
    )


def sizes(b: Builder) -> None:
    """Numbers that shapes consist of."""
    x = b.source()
    op = b.pick(["Shape", "Size", "ConstantOfShape", "Range", "EyeLike"])
    if op == "Shape":
        start = b.int(-x.rank, x.rank)
        end = b.int(-x.rank, x.rank)
        count = len(range(x.rank)[start:end])
        b.emit(op, [x], x, (b.const_dim(count),), dtype="int64", bound=1e4, fraction=0, start=start, end=end)
    elif op == "Size":
        b.emit(op, [x], x, (), dtype="int64", bound=1e4, fraction=0)
    elif op == "ConstantOfShape":
        whole = b.emit("Shape", [x], x, (b.const_dim(x.rank),), dtype="int64", bound=1e4, fraction=0)
        b.emit(op, [whole], whole, x.shape, dtype="float32", bound=0, fraction=0)
    elif op == "Range":
        if not x.rank:
            raise Unfit
        whole = b.emit("Shape", [x], x, (b.const_dim(x.rank),), dtype="int64", bound=1e4, fraction=0)
        axis = b.int(0, x.rank - 1)
        limit = b.emit("Gather", [whole, b.constant(np.array(axis))], whole, (), axis=0)
        step = b.pick([1, 2, 3])
        one = [b.constant(np.array(n), "int64") for n in (b.pick([0, 1]), step)]
        start = int(one[0].bound)
        lengths = tuple(max(0, -(-(n - start) // step)) for n in x.shape[axis])
        b.emit(op, [one[0], limit, one[1]], limit, (lengths,), bound=1e4)
    else:
        if x.rank != 2 or x.dtype not in ("float32", "int64", "float64", "int32"):
            raise Unfit
        b.emit(op, [x], x, bound=1, fraction=0, k=b.int(-2, 2))


def reverse(b: Builder) -> None:
    x = b.source(lambda v: v.rank >= 2 and v.dtype != "bfloat16" and all(0 not in d for d in v.shape[:2]))
    time = b.int(0, 1)
    lengths, batch = x.shape[time], x.shape[1 - time]
    least = min(lengths)
    index = b.add_input("int64", (batch,), lambda r, _, s: r.integers(1, least + 1, s), least, 0)
    b.emit("ReverseSequence", [x, index], x, time_axis=time, batch_axis=1 - time)


def scan(b: Builder) -> None:
    x = b.source(
        lambda v: v.rank >= 1 and v.dtype in ("float32", "float64", "int32", "int64") and v.bound <= 1e3
    )
    axis = b.int(-x.rank, x.rank - 1)
    longest = max(*x.shape[axis], 1)
    b.emit(
        "CumSum",
        [x, b.constant(np.array(axis), b.pick(["int64", "int32"]))],
        x,
        bound=x.bound * longest,
        exclusive=b.int(0, 1),
        reverse=b.int(0, 1),
    )


def chosen_by_data(b: Builder) -> None:
    """Operators whose output sizes depend on the data, brought back to a known shape."""
    op = b.pick(["NonZero", "Unique", "Compress", "TopK"])
    if op == "TopK":
        x = b.source(
            lambda v: v.rank >= 1 and v.exact and v.dtype in ("float32", "float64", "int64", "int32")
        )
        axis = b.int(0, x.rank - 1)
        if min(x.shape[axis]) < 1:
            raise Unfit
        k = b.int(1, min(*x.shape[axis], 5))
        shape = (*x.shape[:axis], b.const_dim(k), *x.shape[axis + 1 :])
        made = b.emit_all(
            op, [x, b.ints(k)], x, [shape, shape], dtypes=[x.dtype, "int64"], axis=axis, largest=b.int(0, 1)
        )
        b.again(made[1], bound=max(x.shape[axis]), fraction=0)
        return
    x = b.source(lambda v: v.exact and v.rank >= 1 and v.dtype in ("float32", "int64", "int32", "bool"))
    if op == "NonZero":
        found = b.emit(
            op, [x], x, (b.const_dim(x.rank), b.const_dim(0)), dtype="int64", bound=100, fraction=0
        )
        b.values.remove(found)
        total = b.emit("ReduceSum", [found, b.ints(1)], found, (b.const_dim(x.rank),), bound=1e6, keepdims=0)
        assert total.rank == 1
    elif op == "Unique":
        if x.dtype == "bool":
            raise Unfit
        found = b.emit(op, [x], x, (b.const_dim(0),))
        b.values.remove(found)
        b.emit(
            "ReduceMax", [found, b.ints(0)], found, (b.const_dim(1),), keepdims=1
        ) if x.dtype != "bool" and elements(x.shape) else None
    else:
        mask = b.constant(np.array([True, False, True])[: min(*x.shape[0], 3)])
        if not mask.shape[0][0]:
            raise Unfit
        count = b.const_dim(int(np.array([True, False, True])[: mask.shape[0][0]].sum()))
        b.emit(op, [x, mask], x, (count, *x.shape[1:]), axis=0)


STEPS = (
    (gather, 2.5), (gather_elements, 0.8), (gather_nd, 0.8), (scatter, 1.2), (trilu, 0.6), (one_hot, 0.6),
    (sizes, 1.5), (reverse, 0.4), (scan, 0.7), (chosen_by_data, 0.6),
)  # fmt: skip
