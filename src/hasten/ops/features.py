"""Features of the domain ai.onnx.ml: scaling, normalizing, filling in, choosing and joining columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.classical import ML
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, cast, const, reduce, select, unary, var
from hasten.ops.attributes import (
    attribute_float,
    attribute_int,
    attribute_ints,
    attribute_str,
    attribute_values,
)
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required
from hasten.ops.broadcasting import View, spread
from hasten.ops.indexing import gathered
from hasten.ops.indices import product, split_index
from hasten.ops.linear_models import features


def lower_scaler(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """(x - offset) * scale by column, in float32."""
    x = required(inputs, 0)
    dtype = x.dtype if x.dtype is DType.F64 else DType.F32
    rows = [_row(ctx, x, attribute_values(node, name), dtype, name) for name in ("offset", "scale")]
    offset, scale = rows

    def body(*index: Expr) -> Expr:
        y = cast(x.at(*index), dtype)
        y = y if offset is None else binary("sub", y, offset(*index))
        y = y if scale is None else binary("mul", y, scale(*index))
        return cast(y, DType.F32)

    return [ctx.define(x.shape, body, DType.F32)]


def _row(ctx: Lowering, x: Tensor, values: np.ndarray | None, dtype: DType, name: str) -> View | None:
    """Constants by the index of `x`: one for all columns, or one for each."""
    if values is None or not values.size:
        return None
    if not x.rank:
        raise Declined(f"{name} of a scalar")
    return spread(ctx, ctx.constant(values.astype(dtype.numpy), name), x.shape)


def lower_normalizer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Rows divided by their greatest magnitude, sum of magnitudes or length; rows of zeros stay."""
    given = required(inputs, 0)
    x = features(ctx, given)
    kind = attribute_str(node, "norm", "MAX")
    if kind not in ("MAX", "L1", "L2"):
        raise Declined(f"the norm {kind} is not known")

    def size(i: Expr) -> Expr:
        k = var("k", x.shape[1])
        v = x.at(i, k)
        term = binary("mul", v, v) if kind == "L2" else unary("abs", v)
        total = reduce("max" if kind == "MAX" else "sum", (k,), term)
        return unary("sqrt", total) if kind == "L2" else total

    norm = ctx.temporary(x.shape[:1], size, x.dtype, "norm")
    zero = const(0.0, x.dtype)

    def body(*index: Expr) -> Expr:
        i, k = index if given.rank == 2 else (const(0), *index)
        v, n = x.at(i, k), norm.at(i)
        return cast(select(binary("eq", n, zero), v, binary("div", v, n)), DType.F32)

    return [ctx.define(given.shape, body, DType.F32)]


def lower_binarizer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """1 for what is above the threshold, else 0."""
    x = required(inputs, 0)
    wide = x.dtype if x.dtype.is_float else DType.F64
    limit = const(attribute_float(node, "threshold", 0.0), wide)
    return [ctx.define(x.shape, lambda *i: cast(binary("lt", limit, cast(x.at(*i), wide)), x.dtype), x.dtype)]


def lower_imputer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """One value, which may be NaN, replaced by a constant for each column."""
    x = required(inputs, 0)
    kind = "float" if x.dtype.is_float else "int64"
    values = _row(ctx, x, attribute_values(node, f"imputed_value_{kind}s"), x.dtype, "imputed")
    if values is None:
        raise Declined(f"Imputer without imputed_value_{kind}s")
    if x.dtype.is_float:
        old: float | int = attribute_float(node, "replaced_value_float", 0.0)
    else:
        old = attribute_int(node, "replaced_value_int64", 0)

    def body(*index: Expr) -> Expr:
        v = x.at(*index)
        missing = binary("ne", v, v) if np.isnan(old) else binary("eq", v, const(old, x.dtype))
        return select(missing, values(*index), v)

    return [ctx.define(x.shape, body, x.dtype)]


def lower_array_feature_extractor(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Columns by number; a vector gives a matrix of one row."""
    x, numbers = required(inputs, 0), required(inputs, 1)
    if not x.rank:
        raise Declined("columns of a scalar")
    known = ctx.constant_of(numbers)
    if known is not None:
        flat = ctx.constant(np.asarray(known).reshape(-1), "columns")
    elif numbers.rank == 1:
        flat = numbers
    else:
        flat = ctx.temporary(
            [product(numbers.shape)],
            lambda i: numbers.at(*split_index(i, numbers.shape)),
            numbers.dtype,
            "columns",
        )
    if x.rank == 1:
        x = ctx.temporary([1, *x.shape], lambda i, k: x.at(k), x.dtype, "row")
    return gathered(ctx, x, flat, x.rank - 1)


def lower_feature_vectorizer(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Columns of all inputs side by side, each cut or filled with zeros to its width; a vector is a row."""
    widths = attribute_ints(node, "inputdimensions", [])
    parts = [features(ctx, required(inputs, n)) for n in range(len(inputs))]
    if len(widths) != len(parts) or not parts or min(widths) < 1:
        raise Declined(f"{node.op_type} with {len(widths)} widths for {len(parts)} inputs")
    for part in parts[1:]:
        ctx.require_equal(parts[0].shape[0], part.shape[0])
    ends = np.cumsum(widths)
    zero = const(0.0, DType.F32)

    def body(i: Expr, k: Expr) -> Expr:
        result: Expr = zero
        for part, width, end in reversed(list(zip(parts, widths, ends.tolist(), strict=True))):
            at = k - (end - width)
            there = binary("lt", at, part.shape[1])
            value = select(there, cast(part.at(i, at), DType.F32), zero)
            result = select(binary("lt", k, end), value, result)
        return result

    return [ctx.define([parts[0].shape[0], int(ends[-1])], body, DType.F32)]


OPS: tuple[Op, ...] = (
    Op(name="Scaler", domain=ML, lower=lower_scaler),
    Op(name="Normalizer", domain=ML, lower=lower_normalizer),
    Op(name="Binarizer", domain=ML, lower=lower_binarizer),
    Op(name="Imputer", domain=ML, lower=lower_imputer),
    Op(name="ArrayFeatureExtractor", domain=ML, lower=lower_array_feature_extractor),
    Op(name="FeatureVectorizer", domain=ML, lower=lower_feature_vectorizer),
)
