"""Det: the determinants of small matrices, by elimination."""

from __future__ import annotations

import onnx_ir as ir

from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, binary, bounded, const, constant_int, reduce, select, unary, var
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required

LARGEST = 16
"""Rows of the largest matrix; each column that is eliminated is a kernel of its own."""


def lower_det(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The determinant of each matrix: Gauss's elimination, the largest of a column as its pivot."""
    a = required(inputs, 0)
    n = constant_int(a.shape[-1]) if a.rank >= 2 else None
    if n is None or not a.dtype.is_float or not 0 < n <= LARGEST:
        raise Declined(f"Det of matrices of floats with up to {LARGEST} rows, known beforehand, is compiled")
    ctx.require_equal(a.shape[-1], a.shape[-2])
    lead = a.shape[:-2]
    result: Tensor | None = None
    for k in range(n):
        pivot = _pivot(ctx, a, n, k)
        result = _product(ctx, a, pivot, result, k)
        a = _eliminated(ctx, a, pivot, k) if k + 1 < n else a
    assert result is not None
    return [ctx.define(lead, result.at, result.dtype)]


def _pivot(ctx: Lowering, a: Tensor, n: int, k: int) -> Tensor:
    """The row, from k on, whose element in column k is the largest."""

    def body(*lead: Expr) -> Expr:
        i, j = var("i", n), var("j", n)

        def size(row: Expr) -> Expr:
            return select(binary("le", const(k), row), unary("abs", a.at(*lead, row, k)), const(-1, a.dtype))

        largest = reduce("max", (j,), size(j))
        return reduce("min", (i,), select(binary("le", largest, size(i)), i, const(n - 1)))

    return ctx.temporary(a.shape[:-2], body, INDEX, f"pivot{k}")


def _product(ctx: Lowering, a: Tensor, pivot: Tensor, before: Tensor | None, k: int) -> Tensor:
    """The product of the pivots so far; two rows that change places change its sign."""

    def body(*lead: Expr) -> Expr:
        p = pivot.at(*lead)
        value = a.at(*lead, bounded(p, a.shape[-2]), k)
        signed = select(binary("eq", p, const(k)), value, unary("neg", value))
        return signed if before is None else binary("mul", before.at(*lead), signed)

    return ctx.temporary(a.shape[:-2], body, a.dtype, f"product{k}")


def _eliminated(ctx: Lowering, a: Tensor, pivot: Tensor, k: int) -> Tensor:
    """The matrix with the pivot's row at k, and that row subtracted from those below."""

    def body(*index: Expr) -> Expr:
        *lead, i, j = index
        p = bounded(pivot.at(*lead), a.shape[-2])
        row = select(binary("eq", i, const(k)), p, select(binary("eq", i, p), const(k), i))
        row = bounded(row, a.shape[-2])
        peak = a.at(*lead, p, k)
        flat = binary("eq", peak, const(0, a.dtype))
        factor = binary("div", a.at(*lead, row, k), select(flat, const(1, a.dtype), peak))
        part = binary("mul", factor, a.at(*lead, p, j))
        value = a.at(*lead, row, j)
        return select(binary("lt", const(k), i), binary("sub", value, part), value)

    return ctx.temporary(a.shape, body, a.dtype, f"below{k}")


OPS: tuple[Op, ...] = (Op(name="Det", lower=lower_det),)
