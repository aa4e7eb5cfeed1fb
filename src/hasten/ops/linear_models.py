"""Linear models and support vector machines of the domain ai.onnx.ml: products, kernels, decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hasten.graph.classical import ML
from hasten.loops.descriptions import Contraction, Gemm
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, cast, const, constant_int, reduce, select, unary, var
from hasten.ops.attributes import attribute_int, attribute_ints, attribute_str, attribute_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required
from hasten.ops.contraction import hinted
from hasten.ops.post_transform import as_f32, best_class, both_classes, labelled, post_transform

LARGEST_POWER = 16
"""Highest degree of a polynomial kernel that is computed by multiplications."""


def lower_linear_classifier(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Label of the highest score, and scores. Two classes may share one score, that of the second one."""
    x = features(ctx, required(inputs, 0))
    labels = attribute_ints(node, "classlabels_ints", [])
    kind = attribute_str(node, "post_transform", "NONE")
    raw = _linear(ctx, node, x, None)
    rows = constant_int(raw.shape[1])
    if rows == 1 and len(labels) == 2:
        return labelled(ctx, labels, _above(ctx, raw), both_classes(ctx, raw, kind, complement=True))
    if rows != len(labels) or len(labels) < 2:
        raise Declined(f"{node.op_type} with {rows} rows of coefficients for {len(labels)} integer labels")
    raw = as_f32(ctx, raw)
    return labelled(ctx, labels, best_class(ctx, raw), post_transform(ctx, raw, kind))


def lower_linear_regressor(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """One number for each target."""
    x = features(ctx, required(inputs, 0))
    raw = as_f32(ctx, _linear(ctx, node, x, attribute_int(node, "targets", 1)))
    result = post_transform(ctx, raw, attribute_str(node, "post_transform", "NONE"))
    return [ctx.define(result.shape, result.at, DType.F32)]


def features(ctx: Lowering, x: Tensor) -> Tensor:
    """Features as floats [row, feature]; a vector is one row."""
    if x.rank not in (1, 2):
        raise Declined(f"features of rank {x.rank}, not 1 or 2")
    dtype = x.dtype if x.dtype is DType.F64 else DType.F32
    if x.rank == 2 and x.dtype is dtype:
        return x
    shape = x.shape if x.rank == 2 else (const(1), *x.shape)
    return ctx.temporary(shape, lambda i, k: cast(x.at(*(i, k)[2 - x.rank :]), dtype), dtype, "features")


def _linear(ctx: Lowering, node: ir.Node, x: Tensor, targets: int | None) -> Tensor:
    """Products with rows of coefficients, and intercepts."""
    weights, bias = attribute_values(node, "coefficients"), attribute_values(node, "intercepts")
    if weights is None or not weights.size:
        raise Declined(f"{node.op_type} without coefficients")
    width = constant_int(x.shape[1])
    count = targets
    if count is None:
        count = len(bias) if bias is not None and bias.size else weights.size // width if width else 0
    if count < 1 or weights.size % count:
        raise Declined(f"{weights.size} coefficients of {node.op_type} for {count} results")
    if bias is not None and bias.size not in (0, count):
        raise Declined(f"{bias.size} intercepts of {node.op_type} for {count} results")
    product = _product(ctx, x, weights.reshape(count, -1).T, "product")
    return product if bias is None or not bias.size else _shifted(ctx, product, bias, "scores")


def _product(ctx: Lowering, x: Tensor, weights: np.ndarray, suffix: str) -> Tensor:
    """The matrix product of features with a constant [feature, column]."""
    w = ctx.constant(np.ascontiguousarray(weights.astype(x.dtype.numpy)), f"{suffix}_weights")
    depth = var("k", ctx.same_size(x.shape[1], w.shape[0]))

    def body(i: Var, j: Var) -> Expr | Contraction:
        return hinted(Gemm((), (i,), j, (), depth, x.at(i, depth), w.at(depth, j)))

    return ctx.temporary([x.shape[0], w.shape[1]], body, x.dtype, suffix, vars=("i", "j"))


def _shifted(ctx: Lowering, x: Tensor, offset: np.ndarray, suffix: str) -> Tensor:
    """A matrix plus a row."""
    row = ctx.constant(offset.astype(x.dtype.numpy), f"{suffix}_offset")
    return ctx.temporary(x.shape, lambda i, k: binary("add", x.at(i, k), row.at(k)), x.dtype, suffix)


def _above(ctx: Lowering, raw: Tensor) -> Tensor:
    """1 where the one score is above 0, else 0."""
    zero = const(0.0, raw.dtype)
    return ctx.temporary(
        raw.shape[:1], lambda i: cast(binary("lt", zero, raw.at(i, const(0))), INDEX), INDEX, "class"
    )


@dataclass(frozen=True)
class _Machine:
    """What both support vector machines have.

    Attributes:
        kind: LINEAR, POLY, RBF or SIGMOID.
        gamma, shift, degree: parameters of the kernel.
        vectors: [vector, feature].
        rho: added to decisions.
    """

    kind: str
    gamma: float
    shift: float
    degree: float
    vectors: np.ndarray
    rho: np.ndarray


def _machine(node: ir.Node, count: int) -> _Machine:
    vectors, rho = attribute_values(node, "support_vectors"), attribute_values(node, "rho")
    if count < 1 or vectors is None or not vectors.size or vectors.size % count:
        raise Declined(f"{node.op_type} without support vectors, or with parts of one")
    parameters = attribute_values(node, "kernel_params")
    if parameters is not None and parameters.size != 3:
        raise Declined(f"{parameters.size} parameters of the kernel of {node.op_type}, not 3")
    gamma, shift, degree = [0.0] * 3 if parameters is None else [float(v) for v in parameters]
    kind = attribute_str(node, "kernel_type", "LINEAR")
    if kind not in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        raise Declined(f"the kernel {kind} is not known")
    return _Machine(
        kind, gamma, shift, degree, vectors.reshape(count, -1), np.zeros(1) if rho is None else rho
    )


def _kernel(ctx: Lowering, x: Tensor, m: _Machine) -> Tensor:
    """The kernel of each row with each support vector."""
    if m.kind == "RBF":
        return _rbf(ctx, x, m)
    dot = _product(ctx, x, m.vectors.T, "dot")
    if m.kind == "LINEAR":
        return dot

    def body(i: Expr, k: Expr) -> Expr:
        y = binary("mul", dot.at(i, k), const(m.gamma, dot.dtype))
        y = binary("add", y, const(m.shift, dot.dtype))
        return unary("tanh", y) if m.kind == "SIGMOID" else _power(y, m.degree)

    return ctx.temporary(dot.shape, body, dot.dtype, "kernel")


def _power(y: Expr, degree: float) -> Expr:
    if degree != int(degree) or not 0 < degree <= LARGEST_POWER:
        return binary("pow", y, const(degree, y.dtype))
    result = y
    for _ in range(int(degree) - 1):
        result = binary("mul", result, y)
    return result


def _rbf(ctx: Lowering, x: Tensor, m: _Machine) -> Tensor:
    """exp(-gamma |x - s|^2), as |x|^2 + |s|^2 - 2 x s about the vectors' mean, where little cancels."""
    centre = m.vectors.astype(np.float64).mean(axis=0)
    near = _shifted(ctx, x, -centre, "centred")
    vectors = m.vectors.astype(np.float64) + (-centre).astype(x.dtype.numpy).astype(np.float64)
    dot = _product(ctx, near, vectors.T, "dot")
    lengths = ctx.constant(np.square(vectors).sum(axis=1).astype(x.dtype.numpy), "lengths")
    zero, two, factor = (const(v, x.dtype) for v in (0.0, 2.0, -m.gamma))

    def length(i: Expr) -> Expr:
        f = var("f", near.shape[1])
        return reduce("sum", (f,), binary("mul", near.at(i, f), near.at(i, f)))

    own = ctx.temporary(near.shape[:1], length, x.dtype, "own_lengths")

    def body(i: Expr, k: Expr) -> Expr:
        both = binary("add", own.at(i), lengths.at(k))
        square = binary("max", binary("sub", both, binary("mul", two, dot.at(i, k))), zero)
        return unary("exp", binary("mul", square, factor))

    return ctx.temporary(dot.shape, body, x.dtype, "kernel")


def lower_svm_regressor(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The decision for each row, or its sign as 1 or -1; without support vectors it is linear."""
    x = features(ctx, required(inputs, 0))
    kind = attribute_str(node, "post_transform", "NONE")
    if kind != "NONE":
        raise Declined(f"{node.op_type} with the post transform {kind}")
    weights, rho = attribute_values(node, "coefficients"), attribute_values(node, "rho")
    if weights is None or not weights.size:
        raise Declined(f"{node.op_type} without coefficients")
    count = attribute_int(node, "n_supports", 0)
    if count:
        if weights.size != count:
            raise Declined(f"{weights.size} coefficients of {node.op_type} for {count} support vectors")
        x = _kernel(ctx, x, _machine(node, count))
    raw = _product(ctx, x, weights.reshape(-1, 1), "decision")
    raw = _shifted(ctx, raw, np.zeros(1) if rho is None or not rho.size else rho[:1], "shifted")
    if not attribute_int(node, "one_class", 0):
        return [ctx.define(raw.shape, lambda i, k: cast(raw.at(i, k), DType.F32), DType.F32)]
    zero, one = const(0.0, raw.dtype), const(1.0, DType.F32)

    def side(i: Expr, k: Expr) -> Expr:
        return select(binary("lt", zero, raw.at(i, k)), one, unary("neg", one))

    return [ctx.define(raw.shape, side, DType.F32)]


def lower_svm_classifier(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The class with most votes of pairs, and what pairs say."""
    x = features(ctx, required(inputs, 0))
    labels = attribute_ints(node, "classlabels_ints", [])
    sizes = attribute_ints(node, "vectors_per_class", [])
    kind = attribute_str(node, "post_transform", "NONE")
    classes = len(labels)
    if attribute_values(node, "prob_a") is not None:
        raise Declined(f"probabilities of {node.op_type} that do not fit its classes")
    if classes < 2 or len(sizes) != classes or min(sizes) < 0:
        raise Declined(f"{node.op_type} with {len(sizes)} groups of vectors for {classes} integer labels")
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    machine = _machine(node, sum(sizes))
    weights = attribute_values(node, "coefficients")
    if weights is None or weights.size != (classes - 1) * sum(sizes) or machine.rho.size < len(pairs):
        raise Declined(f"coefficients or rho of {node.op_type} do not fit {sum(sizes)} vectors")
    between = _between(weights.reshape(classes - 1, -1), sizes, pairs)
    raw = _product(ctx, _kernel(ctx, x, machine), between, "decision")
    raw = _shifted(ctx, raw, machine.rho[: len(pairs)], "pairs")
    chosen = best_class(ctx, _votes(ctx, raw, pairs, classes))
    if classes == 2:
        result = both_classes(ctx, raw, kind, complement=False)
    else:
        result = post_transform(ctx, raw, kind)
    return labelled(ctx, labels, chosen, as_f32(ctx, result))


def _between(weights: np.ndarray, sizes: Sequence[int], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Weights [vector, pair] of the decision between two classes; other classes' vectors have none."""
    ends = np.cumsum([0, *sizes])
    result = np.zeros((int(ends[-1]), len(pairs)))
    for e, (i, j) in enumerate(pairs):
        one, other = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        result[one, e], result[other, e] = weights[j - 1, one], weights[i, other]
    return result


def _votes(ctx: Lowering, raw: Tensor, pairs: Sequence[tuple[int, int]], classes: int) -> Tensor:
    """How many decisions each class wins: the first of a pair where it is positive, else the second."""
    won = np.zeros((2, classes, len(pairs)), np.float32)
    for e, (i, j) in enumerate(pairs):
        won[0, i, e] = won[1, j, e] = 1
    yes, no = ctx.constant(won[0], "first"), ctx.constant(won[1], "second")
    zero = const(0.0, raw.dtype)

    def body(i: Expr, c: Expr) -> Expr:
        e = var("e", len(pairs))
        return reduce("sum", (e,), select(binary("lt", zero, raw.at(i, e)), yes.at(c, e), no.at(c, e)))

    return ctx.temporary([raw.shape[0], classes], body, DType.F32, "votes")


OPS: tuple[Op, ...] = (
    Op(name="LinearClassifier", domain=ML, lower=lower_linear_classifier),
    Op(name="LinearRegressor", domain=ML, lower=lower_linear_regressor),
    Op(name="SVMClassifier", domain=ML, lower=lower_svm_classifier),
    Op(name="SVMRegressor", domain=ML, lower=lower_svm_regressor),
)
