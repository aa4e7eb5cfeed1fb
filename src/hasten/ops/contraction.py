"""Matrix products: MatMul, Gemm and Einsum, as contractions that a microkernel computes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.descriptions import Contraction, Gemm, expression
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Var, binary, const, reduce, var, walk
from hasten.loops.expr import Op as Op_
from hasten.ops.attributes import attribute_float, attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.broadcasting import joint_shape, spread
from hasten.ops.pruning import (
    HEADS,
    NEURONS,
    Operands,
    PruningFacts,
    Tie,
    broadcast_ties,
    input_,
    output,
    same,
)


def hinted(gemm: Gemm) -> Expr | Contraction:
    """The contraction, or its plain expression for element types that no microkernel takes.

    Sums of 32-bit integers may turn out to be of bytes (`codegen.quantized`).
    """
    return gemm if gemm.dtype.is_float or gemm.dtype is DType.I32 else expression(gemm)


def _same_type(node: ir.Node, *tensors: Tensor) -> None:
    if any(t.dtype is not tensors[0].dtype for t in tensors):
        raise Declined(f"{node.op_type} of different element types")


def lower_matmul(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """NumPy's matmul: a vector is a matrix with one row (left) or one column (right)."""
    a, b = required(inputs, 0), required(inputs, 1)
    _same_type(node, a, b)
    if not a.rank or not b.rank:
        raise Declined("MatMul of a scalar")
    a_shape = a.shape if a.rank > 1 else (const(1), *a.shape)
    b_shape = b.shape if b.rank > 1 else (*b.shape, const(1))
    depth = var("k", ctx.same_size(a_shape[-1], b_shape[-2]))
    shared = len(b_shape) == 2
    # A matrix on the right: every leading dim of the left is a row of one large product.
    leading = a_shape[:-2] if shared else joint_shape(ctx, a_shape[:-2], b_shape[:-2])
    shape = (*leading, a_shape[-2], b_shape[-1])
    left_at = spread(ctx, a, (*leading, *a_shape[-2:])) if a.rank > 1 else a.at
    right_at = spread(ctx, b, (*leading, *b_shape[-2:])) if b.rank > 1 else b.at

    def body(*index: Var) -> Expr | Contraction:
        *outer, row, column = index
        left = left_at(*outer, row, depth) if a.rank > 1 else left_at(depth)
        right = right_at(*outer, depth, column) if b.rank > 1 else right_at(depth)
        batch = () if shared else tuple(outer)
        rows = (*outer, row) if shared else (row,)
        return hinted(Gemm(batch, rows, column, (), depth, left, right))

    names = (*(f"b{d}" for d in range(len(shape) - 2)), "i", "j")
    if a.rank > 1 and b.rank > 1:
        return [ctx.define(shape, body, a.dtype, vars=names)]
    full = ctx.temporary(shape, body, a.dtype, "product", vars=names)
    outside = list(leading)
    if a.rank > 1:
        outside.append(a_shape[-2])
    if b.rank > 1:
        outside.append(b_shape[-1])

    def view(*index: Expr) -> Expr:
        inner = list(index)
        if b.rank == 1:
            inner.append(const(0))
        if a.rank == 1:
            inner.insert(len(inner) - 1, const(0))
        return full.at(*inner)

    return [ctx.define(outside, view, a.dtype)]


def lower_gemm(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Alpha * A' B' + beta * C; the product is a definition of its own, the rest its epilogue."""
    a, b, c = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    _same_type(node, a, b, *([c] if c else []))
    if a.rank != 2 or b.rank != 2:
        raise Declined(f"Gemm of ranks {a.rank} and {b.rank}; both must be 2")
    alpha, beta = attribute_float(node, "alpha", 1.0), attribute_float(node, "beta", 1.0)
    dtype = a.dtype
    if not dtype.is_float and (alpha != 1 or beta != 1):
        raise Declined("Gemm of integers with alpha or beta")
    turn_a, turn_b = attribute_int(node, "transA", 0) != 0, attribute_int(node, "transB", 0) != 0
    rows, depth_a = a.shape[::-1] if turn_a else a.shape
    depth_b, columns = b.shape[::-1] if turn_b else b.shape
    k = var("k", ctx.same_size(depth_a, depth_b))

    def body(i: Var, j: Var) -> Expr | Contraction:
        left = a.at(k, i) if turn_a else a.at(i, k)
        right = b.at(j, k) if turn_b else b.at(k, j)
        return hinted(Gemm((), (i,), j, (), k, left, right))

    if beta == 0:
        c = None
    if c is None and alpha == 1:
        return [ctx.define((rows, columns), body, dtype, vars=("i", "j"))]
    product = ctx.temporary((rows, columns), body, dtype, "product", vars=("i", "j"))
    bias_at = None if c is None else spread(ctx, c, (rows, columns))

    def epilogue(i: Expr, j: Expr) -> Expr:
        y = product.at(i, j)
        if alpha != 1:
            y = binary("mul", const(alpha, dtype), y)
        if bias_at is None:
            return y
        bias = bias_at(i, j)
        return binary("add", y, bias if beta == 1 else binary("mul", const(beta, dtype), bias))

    return [ctx.define((rows, columns), epilogue, dtype, vars=("i", "j"))]


def lower_einsum(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """A sum of products over labelled axes; a single contraction where its labels allow it."""
    operands = [required(inputs, k) for k in range(len(inputs))]
    _same_type(node, *operands)
    terms, result = _einsum_labels(attribute_str(node, "equation", ""), operands)
    extents: dict[str, Expr] = {}
    for labels in dict.fromkeys(c for term in terms for c in term):
        dims = [
            t.shape[d]
            for term, t in zip(terms, operands, strict=True)
            for d, c in enumerate(term)
            if c == labels
        ]
        (extents[labels],) = joint_shape(ctx, *((n,) for n in dims))
    summed = [c for c in extents if c not in result]
    inner = {c: var(f"r{n}", extents[c]) for n, c in enumerate(summed)}
    dtype = operands[0].dtype
    views = [spread(ctx, t, [extents[c] for c in term]) for term, t in zip(terms, operands, strict=True)]

    def body(*index: Var) -> Expr | Contraction:
        place: dict[str, Var] = {**inner, **dict(zip(result, index, strict=True))}
        factors = [view(*(place[c] for c in term)) for term, view in zip(terms, views, strict=True)]
        asked = any(isinstance(n, Op_) and n.op == "select" for f in factors for n in walk(f))
        gemm = _as_gemm(terms, result, summed, place, factors) if dtype.is_float and not asked else None
        if gemm is not None:
            return gemm
        element = factors[0]
        for f in factors[1:]:
            element = binary("mul", element, f)
        return reduce("sum", tuple(inner[c] for c in summed), element)

    return [ctx.define([extents[c] for c in result], body, dtype)]


def _as_gemm(
    terms: Sequence[str],
    result: str,
    summed: Sequence[str],
    place: dict[str, Var],
    factors: Sequence[Expr],
) -> Gemm | None:
    """The contraction of two operands whose labels are distinct, all sums shared, one column label."""
    if len(terms) != 2 or not summed or any(len(set(t)) != len(t) for t in terms):
        return None
    if any(c not in t for c in summed for t in terms):
        return None
    (left, right), (a, b) = terms, factors
    if len([c for c in right if c in result and c not in left]) != 1:
        left, right, a, b = right, left, b, a
    columns = [c for c in right if c in result and c not in left]
    rows = [c for c in result if c in left and c not in right]
    if len(columns) != 1 or not rows:
        return None
    return Gemm(
        tuple(place[c] for c in result if c in left and c in right),
        tuple(place[c] for c in rows),
        place[columns[0]],
        tuple(place[c] for c in summed[:-1]),
        place[summed[-1]],
        a,
        b,
    )


def _einsum_labels(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """One string of labels for each operand and the result; digits stand for an ellipsis's axes.

    Raises:
        Declined: the equation does not fit the operands.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise Declined(f"Einsum equation '{equation}' has {len(terms)} terms for {len(operands)} inputs")
    spans = [t.rank - len(term.replace("...", "")) for term, t in zip(terms, operands, strict=True)]
    if any(n < 0 or (n and "..." not in term) for n, term in zip(spans, terms, strict=True)):
        raise Declined(f"Einsum equation '{equation}' does not fit the ranks of its inputs")
    widest = max((n for n, term in zip(spans, terms, strict=True) if "..." in term), default=0)
    if widest > 10:
        raise Declined(f"Einsum equation '{equation}' has more than ten axes in an ellipsis")
    digits = "".join(str(n) for n in range(widest))
    expanded = [term.replace("...", digits[widest - n :]) for n, term in zip(spans, terms, strict=True)]
    if arrow:
        return expanded, right.replace("...", digits)
    every = "".join(expanded)
    once = sorted(c for c in set(every) if every.count(c) == 1 and not c.isdigit())
    return expanded, digits + "".join(once)


def _matmul_ties(node: Operands) -> list[Tie | None]:
    """Rows, columns and what is summed over; products of two variables are one head for each matrix."""
    a, b, y = input_(0), input_(1), output(0)
    left, right = node.dims(a), node.dims(b)
    if left is None or right is None:
        return []
    rows, columns = len(left) > 1, len(right) > 1
    ties = broadcast_ties(node, (0, 1), last=rows + columns) if max(len(left), len(right)) > 2 else []
    if not (node.is_constant(0) or node.is_constant(1)):
        ties = [None if t is None else Tie(t.members, HEADS) for t in ties]
    if rows:
        unit = NEURONS if node.is_constant(0) else None
        ties.append(same(node, (a, -2), (y, -2 if columns else -1), unit=unit))
    if columns:
        unit = NEURONS if node.is_constant(1) else None
        ties.append(same(node, (b, -1), (y, -1), unit=unit))
    ties.append(_summed(node, len(left) - 1, len(right) - 2 if columns else 0))
    return ties


def _summed(node: Operands, left: int, right: int) -> Tie | None:
    """The tie of what a product sums over; the constant operand stands behind the variable one."""
    axes = [(input_(0), left), (input_(1), right)]
    if node.is_constant(0):
        axes.reverse()
    return same(node, *axes, contracts=node.is_constant(0) != node.is_constant(1))


def _gemm_ties(node: Operands) -> list[Tie | None]:
    y, (a, b) = output(0), (node.attribute("transA", 0), node.attribute("transB", 0))
    c = node.dims(input_(2)) or ()
    rows, columns = [(input_(0), 1 if a else 0), (y, 0)], [(input_(1), 0 if b else 1), (y, 1)]
    if c and c[-1] != 1:
        columns.append((input_(2), len(c) - 1))
    if len(c) > 1 and c[-2] != 1:
        rows.append((input_(2), 0))
    return [
        same(node, *rows, unit=NEURONS if node.is_constant(0) else None),
        same(node, *columns, unit=NEURONS if node.is_constant(1) else None),
        _summed(node, 0 if a else 1, 1 if b else 0),
    ]


OPS = (
    Op(name="MatMul", lower=lower_matmul, pruning=PruningFacts(_matmul_ties)),
    Op(name="Gemm", lower=lower_gemm, pruning=PruningFacts(_gemm_ties)),
    Op(name="Einsum", lower=lower_einsum),
)
