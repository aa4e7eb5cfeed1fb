"""Scatter: a tensor in which some elements are replaced by, or combined with, updates.

Each element asks which updates name it, so that threads never write to one place and sums have one
order. That takes as many comparisons as there are updates it might be named by; where those are many,
the node is declined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, bounded, cast, const, constant_int, reduce, select, var
from hasten.ops.attributes import attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, normalize_axis, optional, required
from hasten.ops.indices import linear_index, product, split_index

CANDIDATES = 1024
"""Largest number of updates that are compared for each element."""

WORK = 1 << 26
"""Largest number of comparisons, where it is known."""

At = Callable[[Sequence[Expr], Sequence[Expr]], Expr]
"""A value for an element's index and an update's index."""

_COMBINED = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}


def _affordable(node: ir.Node, elements: Sequence[Expr], updates: Sequence[Expr]) -> None:
    """Declines what would take too many comparisons."""
    candidates, count = constant_int(product(updates)), constant_int(product(elements))
    if candidates is None or candidates > CANDIDATES or (count or 0) * candidates > WORK:
        raise Declined(
            f"{node.op_type} compares each element with each update that might name it: compiled for up to "
            f"{CANDIDATES} of a number known beforehand, and {WORK} comparisons"
        )


def _reduction(node: ir.Node, x: Tensor) -> str:
    reduction = attribute_str(node, "reduction", "none")
    if reduction != "none" and (reduction not in _COMBINED or x.dtype is DType.BOOL):
        raise Declined(f"reduction '{reduction}' of {x.dtype.numpy} is not supported")
    return reduction


def _variables(extents: Sequence[Expr]) -> list[Expr]:
    return [const(0) if n == const(1) else var(f"u{d}", n) for d, n in enumerate(extents)]


def _over(op: str, variables: Sequence[Expr], body: Expr) -> Expr:
    return reduce(op, tuple(v for v in variables if isinstance(v, Var)), body)


def _last(extents: Sequence[Expr], index: Sequence[Expr], named: At) -> Expr:
    """Row-major number of the last update that names the element, or -1."""
    u = _variables(extents)
    return _over("max", u, select(named(index, u), linear_index(u, extents), const(-1)))


def _combined(
    x: Tensor, extents: Sequence[Expr], index: Sequence[Expr], named: At, update: At, reduction: str
) -> Expr:
    """The element combined with all updates that name it."""
    u, old = _variables(extents), x.at(*index)
    neutral = {"add": const(0, x.dtype), "mul": const(1, x.dtype)}.get(reduction, old)
    found = _over(_COMBINED[reduction], u, select(named(index, u), update(index, u), neutral))
    return binary(reduction, old, found)


def lower_scatter_elements(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """y[indices[i, j], j] = updates[i, j] and the like: along one axis the index is read."""
    x, indices, updates = (required(inputs, n) for n in range(3))
    axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
    if indices.rank != x.rank or updates.rank != x.rank:
        raise Declined("the indices and updates have another rank than the data")
    for a, b in zip(indices.shape, updates.shape, strict=True):
        ctx.require_equal(a, b)
    ctx.require_some(x.shape[axis], indices.shape)
    reduction = _reduction(node, x)
    extents = [indices.shape[axis]]
    _affordable(node, x.shape, extents)
    inside = _covered(ctx, x, indices, axis)

    def place(index: Sequence[Expr], u: Sequence[Expr]) -> list[Expr]:
        return [*index[:axis], u[0], *index[axis + 1 :]]

    def named(index: Sequence[Expr], u: Sequence[Expr]) -> Expr:
        given = bounded(cast(indices.at(*place(index, u)), index[axis].dtype), x.shape[axis])
        return select(inside(index), binary("eq", given, index[axis]), const(False, DType.BOOL))

    def update(index: Sequence[Expr], u: Sequence[Expr]) -> Expr:
        return updates.at(*place(index, u))

    if reduction != "none":
        return [ctx.define(x.shape, lambda *i: _combined(x, extents, i, named, update, reduction), x.dtype)]
    if constant_int(extents[0]) == 0:
        return [ctx.define(x.shape, x.at, x.dtype)]

    def body(*index: Expr) -> Expr:
        last = _last(extents, index, named)
        new = update(index, [bounded(last, extents[0])])
        return select(binary("lt", last, const(0)), x.at(*index), new)

    return [ctx.define(x.shape, body, x.dtype)]


def _covered(ctx: Lowering, x: Tensor, indices: Tensor, axis: int) -> Callable[[Sequence[Expr]], Expr]:
    """Whether an element has updates at all: the indices may be shorter than the data on other axes."""
    shorter = []
    for d in range(x.rank):
        have, want = constant_int(x.shape[d]), constant_int(indices.shape[d])
        if d == axis or (have is not None and have == want):
            continue
        if have is not None and want is not None and want < have:
            shorter.append(d)
        else:
            ctx.require_equal(x.shape[d], indices.shape[d])

    def inside(index: Sequence[Expr]) -> Expr:
        result: Expr = const(True, DType.BOOL)
        for d in shorter:
            result = binary("and", result, binary("lt", index[d], indices.shape[d]))
        return result

    return inside


def lower_scatter_nd(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Slices of the updates at positions that the last dimension of the indices lists."""
    x, indices, updates = (required(inputs, n) for n in range(3))
    depth = constant_int(indices.shape[-1]) if indices.rank else None
    if depth is None or depth > x.rank:
        raise Declined("the last dimension of the indices is not a constant within the rank of the data")
    extents = list(indices.shape[:-1])
    expected = [*extents, *x.shape[depth:]]
    if updates.rank != len(expected):
        raise Declined(f"the updates have rank {updates.rank}, not {len(expected)}")
    for a, b in zip(updates.shape, expected, strict=True):
        ctx.require_equal(a, b)
    for n in x.shape[:depth]:
        ctx.require_some(n, updates.shape)
    reduction = _reduction(node, x)

    def named(index: Sequence[Expr], u: Sequence[Expr]) -> Expr:
        result: Expr = const(True, DType.BOOL)
        for k in range(depth):
            given = bounded(cast(indices.at(*u, const(k)), index[k].dtype), x.shape[k])
            result = binary("and", result, binary("eq", given, index[k]))
        return result

    def update(index: Sequence[Expr], u: Sequence[Expr]) -> Expr:
        return updates.at(*u, *index[depth:])

    if reduction != "none":
        _affordable(node, x.shape, extents)
        return [ctx.define(x.shape, lambda *i: _combined(x, extents, i, named, update, reduction), x.dtype)]
    _affordable(node, x.shape[:depth], extents)
    if constant_int(product(extents)) == 0:
        return [ctx.define(x.shape, x.at, x.dtype)]
    # One search for a whole slice.
    last = ctx.temporary(x.shape[:depth], lambda *i: _last(extents, i, named), DType.I64, "last")

    def body(*index: Expr) -> Expr:
        at = last.at(*index[:depth])
        u = split_index(bounded(at, product(extents)), extents) if extents else []
        return select(binary("lt", at, const(0)), x.at(*index), update(index, u))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_tensor_scatter(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """A cache in which a stretch along an axis, at a place of its own for each batch entry, is replaced."""
    cache, update, places = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    mode = attribute_str(node, "mode", "linear")
    axis = normalize_axis(attribute_int(node, "axis", -2), cache.rank)
    if mode not in ("linear", "circular") or axis == 0:
        raise Declined(f"mode '{mode}' along axis {axis} is not supported")
    for d in range(cache.rank):
        if d != axis:
            ctx.require_equal(cache.shape[d], update.shape[d])
    length, count = cache.shape[axis], update.shape[axis]
    ctx.require(binary("le", count, length), "updates that are not longer than the cache")

    def body(*index: Expr) -> Expr:
        start: Expr = const(0)
        if places is not None:
            start = cast(places.at(index[0]), INDEX)
        if mode == "circular":
            at = (index[axis] - start) % length
        else:
            # The last element is checked too: all of the update must find its place.
            last = bounded(start + (count - 1), length) - (count - 1)
            at = index[axis] - binary("min", bounded(start, length), last)
        inside = binary("and", binary("le", const(0), at), binary("lt", at, count))
        return select(inside, update.at(*index[:axis], at, *index[axis + 1 :]), cache.at(*index))

    return [ctx.define(cache.shape, body, cache.dtype)]


OPS: tuple[Op, ...] = (
    Op(name="TensorScatter", lower=lower_tensor_scatter),
    Op(name="Scatter", lower=lower_scatter_elements),
    Op(name="ScatterElements", lower=lower_scatter_elements),
    Op(name="ScatterND", lower=lower_scatter_nd),
)
