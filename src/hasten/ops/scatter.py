"""Scatter: a tensor in which some elements are replaced by, or combined with, updates."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.descriptions import Scatter
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, bounded, cast, const, constant_int, select
from hasten.ops.attributes import attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, normalize_axis, optional, required

_REDUCTIONS = ("none", "add", "mul", "max", "min")


def _scattered(
    ctx: Lowering, node: ir.Node, x: Tensor, updates: Tensor, at: Sequence[Expr], u: Sequence[Var]
) -> list[Tensor]:
    """`x` with the updates at their places, in terms of the updates' variables."""
    reduction = attribute_str(node, "reduction", "none")
    if reduction not in _REDUCTIONS or (reduction != "none" and x.dtype is DType.BOOL):
        raise Declined(f"reduction '{reduction}' of {x.dtype.numpy} is not supported")

    def body(*index: Expr) -> Scatter:
        own = tuple(v for v in index if isinstance(v, Var))
        combined = "" if reduction == "none" else reduction
        return Scatter(own, x.at(*own), tuple(u), tuple(at), updates.at(*u), combined)

    return [ctx.define(x.shape, body, x.dtype)]


def _variables(extents: Sequence[Expr]) -> list[Var]:
    return [Var(INDEX, f"u{d}", n) for d, n in enumerate(extents)]


def _place(given: Expr, length: Expr) -> Expr:
    """An index into an axis."""
    return bounded(cast(given, INDEX), length)


def lower_scatter_elements(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """y[indices[i, j], j] = updates[i, j] and the like: along one axis the index is read."""
    x, indices, updates = (required(inputs, n) for n in range(3))
    axis = normalize_axis(attribute_int(node, "axis", 0), x.rank)
    if indices.rank != x.rank or updates.rank != x.rank or not x.rank:
        raise Declined("the indices and updates have another rank than the data")
    for a, b in zip(indices.shape, updates.shape, strict=True):
        ctx.require_equal(a, b)
    ctx.require_some(x.shape[axis], indices.shape)
    for d in range(x.rank):
        if d != axis:
            fits = binary("le", indices.shape[d], x.shape[d])
            ctx.require(fits, "indices that are no longer than the data on other axes")
    u = _variables(indices.shape)
    at: list[Expr] = list(u)
    at[axis] = _place(indices.at(*u), x.shape[axis])
    return _scattered(ctx, node, x, updates, at, u)


def lower_scatter_nd(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Slices of the updates at positions that the last dimension of the indices lists."""
    x, indices, updates = (required(inputs, n) for n in range(3))
    depth = constant_int(indices.shape[-1]) if indices.rank else None
    if depth is None or depth > x.rank or not x.rank:
        raise Declined("the last dimension of the indices is not a constant within the rank of the data")
    listed = indices.rank - 1
    expected = [*indices.shape[:-1], *x.shape[depth:]]
    if updates.rank != len(expected):
        raise Declined(f"the updates have rank {updates.rank}, not {len(expected)}")
    for a, b in zip(updates.shape, expected, strict=True):
        ctx.require_equal(a, b)
    for n in x.shape[:depth]:
        ctx.require_some(n, updates.shape)
    u = _variables(expected)
    at = [_place(indices.at(*u[:listed], const(k)), x.shape[k]) for k in range(depth)]
    return _scattered(ctx, node, x, updates, [*at, *u[listed:]], u)


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
