"""Categories that are numbers, of the domain ai.onnx.ml: one-hot codes, and tables of numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.classical import ML
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, binary, bounded, cast, const, reduce, select, var
from hasten.ops.attributes import attribute_float, attribute_int, attribute_ints, attribute_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required

LONGEST_TABLE = 4096
"""Entries of a table that is indexed by the key itself."""
SPARSEST_TABLE = 8
"""Entries of such a table for each key at the most."""


def lower_one_hot_encoder(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """1 at the place of the category along a new last axis; an unknown one is zeros, or an error."""
    x = required(inputs, 0)
    categories = attribute_ints(node, "cats_int64s", [])
    if not categories:
        raise Declined("OneHotEncoder without categories that are integers")
    count = len(categories)
    place = _places(ctx, x, np.array(categories, np.int64))
    strict = not attribute_int(node, "zeros", 1)

    def body(*index: Expr) -> Expr:
        *outer, k = index
        at = place.at(*outer)
        return cast(binary("eq", bounded(at, count) if strict else at, k), DType.F32)

    return [ctx.define([*x.shape, count], body, DType.F32)]


def lower_label_encoder(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The value for a key; the last of equal keys counts, and what is no key has the default."""
    x = required(inputs, 0)
    keys, values = _given(node, "keys"), _given(node, "values")
    if keys is None or values is None or keys.size != values.size or not keys.size:
        raise Declined("LabelEncoder without as many values as keys that are both numbers")
    if DType.of(keys.dtype) is not x.dtype:
        raise Declined(f"LabelEncoder of {x.dtype} with keys of {keys.dtype}")
    table = ctx.constant(np.append(values, _default(node, values)), "values")
    place = _places(ctx, x, keys)
    return [ctx.define(x.shape, lambda *i: table.at(place.at(*i)), table.dtype)]


def _given(node: ir.Node, side: str) -> np.ndarray | None:
    found = attribute_values(node, f"{side}_int64s")
    for name in (f"{side}_floats", f"{side}_tensor"):
        found = attribute_values(node, name) if found is None else found
    return found if found is not None and found.dtype.kind in "if" else None


def _default(node: ir.Node, values: np.ndarray) -> np.ndarray:
    given = attribute_values(node, "default_tensor")
    if given is not None and given.size:
        return given.reshape(-1)[:1].astype(values.dtype)
    if values.dtype.kind == "f":
        return np.array([attribute_float(node, "default_float", -0.0)], values.dtype)
    return np.array([attribute_int(node, "default_int64", -1)], values.dtype)


def _places(ctx: Lowering, x: Tensor, keys: np.ndarray) -> Tensor:
    """For each number the place of the last key that it equals; how many keys there are where it is none."""
    count = len(keys)
    whole = keys.dtype.kind == "i"
    low, high = (int(keys.min()), int(keys.max())) if whole else (0, -1)
    length = high - low + 1
    if whole and length <= min(LONGEST_TABLE, SPARSEST_TABLE * count):
        table = np.full(length, count, np.int64)
        table[keys - low] = np.arange(count)  # the last of equal ones stays
        entries = ctx.constant(table, "places")

        def direct(*index: Expr) -> Expr:
            v = _whole(x, index)
            inside = binary("and", binary("le", const(low), v), binary("le", v, const(high)))
            inside = binary("and", inside, _is_number(x, index))
            at = select(inside, v - low, const(0))
            return select(inside, entries.at(bounded(at, length)), const(count))

        return ctx.temporary(x.shape, direct, INDEX, "place")
    known = ctx.constant(keys, "keys")
    missing = np.flatnonzero(np.isnan(keys)) if not whole else np.array([], np.int64)

    def compared(*index: Expr) -> Expr:
        k = var("k", count)
        v = _whole(x, index) if whole else x.at(*index)
        same = binary("and", binary("eq", v, known.at(k)), _is_number(x, index))
        found = reduce("max", (k,), select(same, k + 1, const(0)))
        place = select(binary("eq", found, 0), const(count), found - 1)
        return select(_is_number(x, index), place, const(int(missing[-1]))) if missing.size else place

    return ctx.temporary(x.shape, compared, INDEX, "place")


def _whole(x: Tensor, index: tuple[Expr, ...]) -> Expr:
    return cast(x.at(*index), INDEX)


def _is_number(x: Tensor, index: tuple[Expr, ...]) -> Expr:
    """False for NaN, whose conversion to an integer differs between processors."""
    v = x.at(*index)
    return binary("eq", v, v) if x.dtype.is_float else const(True, DType.BOOL)


OPS: tuple[Op, ...] = (
    Op(name="OneHotEncoder", domain=ML, lower=lower_one_hot_encoder),
    Op(name="LabelEncoder", domain=ML, lower=lower_label_encoder),
)
