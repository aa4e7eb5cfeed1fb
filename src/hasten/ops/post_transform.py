"""Scores and labels of classical models, as the domain ai.onnx.ml specifies them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, binary, cast, const, reduce, select, unary, var
from hasten.ops.base import Declined, Lowering, Tensor
from hasten.ops.indices import clamp


def post_transform(ctx: Lowering, scores: Tensor, kind: str, suffix: str = "scores") -> Tensor:
    """Scores of rank 2, one row for each sample, after a post transform.

    Args:
        ctx: the program being built.
        scores: what the model says.
        kind: NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO (zeros stay zeros) or PROBIT.
        suffix: of the name of the result, which is no output of the node.

    Raises:
        Declined: the kind is none of these.
    """
    if kind == "NONE":
        return scores
    functions = {"LOGISTIC": lambda x: unary("sigmoid", x), "PROBIT": _probit}
    if kind in functions:
        function = functions[kind]
        return ctx.temporary(
            scores.shape, lambda i, k: function(scores.at(i, k)), scores.dtype, f"{suffix}_transformed"
        )
    if kind not in ("SOFTMAX", "SOFTMAX_ZERO"):
        raise Declined(f"the post transform {kind} is not known")
    zero, small = const(0.0, scores.dtype), const(1e-7, scores.dtype)

    def weight(i: Expr, k: Expr) -> Expr:
        other = var("m", scores.shape[1])
        shifted = binary("sub", scores.at(i, k), reduce("max", (other,), scores.at(i, other)))
        power = unary("exp", shifted)
        if kind == "SOFTMAX":
            return power
        return select(binary("lt", small, unary("abs", scores.at(i, k))), power, zero)

    weights = ctx.temporary(scores.shape, weight, scores.dtype, f"{suffix}_weights")

    def share(i: Expr, k: Expr) -> Expr:
        each = var("n", scores.shape[1])
        return binary("div", weights.at(i, k), reduce("sum", (each,), weights.at(i, each)))

    return ctx.temporary(scores.shape, share, scores.dtype, f"{suffix}_transformed")


def _probit(p: Expr) -> Expr:
    """The inverse of the normal distribution, by Winitzki's approximation of the inverse of erf.

    Source: S. Winitzki, A handy approximation for the error function and its inverse (2008), a = 0.147.
    """

    def k(value: float) -> Expr:
        return const(value, p.dtype)

    x = binary("sub", binary("mul", p, k(2.0)), k(1.0))
    log = unary("log", binary("mul", binary("sub", k(1.0), x), binary("add", k(1.0), x)))
    a = binary("add", k(2.0 / (math.pi * 0.147)), binary("mul", k(0.5), log))
    inner = binary("sub", binary("mul", a, a), binary("mul", k(1.0 / 0.147), log))
    root = unary("sqrt", binary("sub", unary("sqrt", inner), a))
    return binary("mul", k(1.41421356), select(binary("lt", x, k(0.0)), unary("neg", root), root))


def best_class(ctx: Lowering, scores: Tensor) -> Tensor:
    """For each row the first class of the highest score, as an index."""
    classes = scores.shape[1]

    def body(i: Expr) -> Expr:
        k, other = var("k", classes), var("m", classes)
        peak = reduce("max", (other,), scores.at(i, other))
        here = select(binary("eq", scores.at(i, k), peak), k, classes - 1)
        return clamp(reduce("min", (k,), here), const(0), classes - 1)

    return ctx.temporary(scores.shape[:1], body, INDEX, "class")


def both_classes(ctx: Lowering, raw: Tensor, kind: str, *, complement: bool) -> Tensor:
    """Scores [row, 2] of two classes from one score, that of the second class.

    Args:
        ctx: the program being built.
        raw: the score, [row, 1].
        kind: the post transform.
        complement: without a transform the first class has 1 - score instead of -score.

    Raises:
        Declined: the transform makes no sense of one score.
    """
    dtype = raw.dtype
    one = const(1.0, dtype)
    if kind in ("SOFTMAX", "SOFTMAX_ZERO"):
        pair = ctx.temporary(
            [raw.shape[0], 2],
            lambda i, k: select(binary("eq", k, 0), unary("neg", raw.at(i, 0)), raw.at(i, 0)),
            dtype,
            "pair",
        )
        return as_f32(ctx, post_transform(ctx, pair, kind))
    if kind not in ("NONE", "LOGISTIC"):
        raise Declined(f"one score for two classes with the post transform {kind}")

    def both(i: Expr, k: Expr) -> Expr:
        score = raw.at(i, const(0))
        other = unary("neg", score)
        if kind == "LOGISTIC":
            other, score = unary("sigmoid", other), unary("sigmoid", score)
        elif complement:
            other = binary("sub", one, score)
        return cast(select(binary("eq", k, 0), other, score), DType.F32)

    return ctx.temporary([raw.shape[0], 2], both, DType.F32, "both")


def labelled(ctx: Lowering, labels: Sequence[int], chosen: Tensor, scores: Tensor) -> list[Tensor]:
    """The two outputs of a classifier; labels that are the indices need no table."""
    table = ctx.constant(np.array(labels, np.int64), "labels")

    def label(i: Expr) -> Expr:
        return chosen.at(i) if list(labels) == list(range(len(labels))) else table.at(chosen.at(i))

    return [
        ctx.define(chosen.shape, label, INDEX),
        ctx.define(scores.shape, scores.at, scores.dtype),
    ]


def as_f32(ctx: Lowering, t: Tensor) -> Tensor:
    """A matrix of floats in float32."""
    if t.dtype is DType.F32:
        return t
    return ctx.temporary(t.shape, lambda i, k: cast(t.at(i, k), DType.F32), DType.F32, "narrow")
