"""Normalizations: layer, RMS, batch, instance, group, Lp, local response, mean and variance.

Variances are means of squared deviations from the mean (two passes), which does not cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hasten.loops.expr import Expr, binary, cast, const, reduce, select, unary, var
from hasten.ops.attributes import attribute_float, attribute_int, attribute_ints
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, normalize_axis, optional, required
from hasten.ops.broadcasting import spread
from hasten.ops.pruning import (
    Kept,
    Operands,
    PruningFacts,
    Shrunk,
    Tie,
    except_axes,
    grouped,
    input_,
    output,
    same,
)
from hasten.ops.reductions import Element, axis_vars, count_of, reduce_axes, reduce_over


def _float(node: ir.Node, x: Tensor) -> None:
    if not x.dtype.is_float:
        raise Declined(f"{node.op_type} of {x.dtype.numpy.name} is only defined for floats")


def _deviation(x: Tensor, axes: Sequence[int]) -> tuple[Element, Element, Element]:
    """The mean over axes, the deviation from it and its mean square, each by the full index."""
    count = count_of(x, axes, x.dtype)
    total = reduce_axes("sum", x, axes, lambda i: x.at(*i), "m")

    def mean(index: Sequence[Expr]) -> Expr:
        return binary("div", total(index), count)

    def centered(index: Sequence[Expr]) -> Expr:
        return binary("sub", x.at(*index), mean(index))

    squares = reduce_axes("sum", x, axes, lambda i: _square(centered(i)), "v")
    return mean, centered, lambda i: binary("div", squares(i), count)


def _square(e: Expr) -> Expr:
    return binary("mul", e, e)


def _reciprocal_root(e: Expr, epsilon: float) -> Expr:
    root = unary("sqrt", binary("add", e, const(epsilon, e.dtype)))
    return binary("div", const(1, e.dtype), root)


def lower_layer_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes from `axis` on."""
    x, scale, bias = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    _float(node, x)
    axis = normalize_axis(attribute_int(node, "axis", -1), x.rank)
    epsilon = attribute_float(node, "epsilon", 1e-5)
    mean, centered, variance = _deviation(x, range(axis, x.rank))
    scale_at, bias_at = (None if t is None else spread(ctx, t, x.shape) for t in (scale, bias))

    def body(*index: Expr) -> Expr:
        y = binary("mul", centered(index), _reciprocal_root(variance(index), epsilon))
        y = y if scale_at is None else binary("mul", y, scale_at(*index))
        return y if bias_at is None else binary("add", y, bias_at(*index))

    outputs = [ctx.define(x.shape, body, x.dtype)]
    shape = [*x.shape[:axis], *(const(1) for _ in x.shape[axis:])]
    if any(v.name for v in node.outputs[1:]):
        outputs.append(ctx.define(shape, lambda *i: mean(i), x.dtype))
        inverse = ctx.define(shape, lambda *i: _reciprocal_root(variance(i), epsilon), x.dtype)
        outputs.append(inverse)
    return outputs[: len(node.outputs)]


def lower_rms_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on."""
    x, scale = required(inputs, 0), required(inputs, 1)
    _float(node, x)
    axes = range(normalize_axis(attribute_int(node, "axis", -1), x.rank), x.rank)
    epsilon = attribute_float(node, "epsilon", 1e-5)
    squares = reduce_axes("sum", x, axes, lambda i: _square(x.at(*i)))
    count = count_of(x, axes, x.dtype)
    scale_at = spread(ctx, scale, x.shape)

    def body(*index: Expr) -> Expr:
        inverse = _reciprocal_root(binary("div", squares(index), count), epsilon)
        return binary("mul", binary("mul", x.at(*index), inverse), scale_at(*index))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_batch_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X * factor + shift for each channel; both are computed now where the statistics are constants."""
    x, scale, bias, mean, variance = (required(inputs, k) for k in range(5))
    _float(node, x)
    if attribute_int(node, "training_mode", 0):
        raise Declined("BatchNormalization in training mode updates its statistics")
    if any(t.dtype is not x.dtype for t in (scale, bias, mean, variance)):
        raise Declined("BatchNormalization with statistics of another element type than its input")
    epsilon = attribute_float(node, "epsilon", 1e-5)
    arrays = [ctx.constant_of(t) for t in (scale, bias, mean, variance)]
    if all(a is not None for a in arrays):
        s, b, m, v = (np.asarray(a, np.float64) for a in arrays)
        with np.errstate(all="ignore"):
            wide = s / np.sqrt(v + epsilon)
            narrow = x.dtype.numpy
            factor = ctx.constant(wide.astype(narrow), "factor")
            shift = ctx.constant((b - m * wide).astype(narrow), "shift")
    else:

        def scaled(c: Expr) -> Expr:
            return binary("mul", scale.at(c), _reciprocal_root(variance.at(c), epsilon))

        factor = ctx.temporary(scale.shape, scaled, x.dtype, "factor")
        shift = ctx.temporary(
            scale.shape,
            lambda c: binary("sub", bias.at(c), binary("mul", mean.at(c), factor.at(c))),
            x.dtype,
            "shift",
        )

    def body(*index: Expr) -> Expr:
        # A tensor of rank 1 is one channel.
        c = index[1] if x.rank > 1 else const(0)
        return binary("add", binary("mul", x.at(*index), factor.at(c)), shift.at(c))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_instance_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Normalization over the spatial axes of each image and channel."""
    x, scale, bias = (required(inputs, k) for k in range(3))
    _float(node, x)
    epsilon = attribute_float(node, "epsilon", 1e-5)
    _, centered, variance = _deviation(x, range(2, x.rank))

    def body(*index: Expr) -> Expr:
        y = binary("mul", centered(index), _reciprocal_root(variance(index), epsilon))
        return binary("add", binary("mul", y, scale.at(index[1])), bias.at(index[1]))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_group_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Normalization over groups of channels and all spatial axes; scale and bias for each channel."""
    x, scale, bias = (required(inputs, k) for k in range(3))
    _float(node, x)
    groups = attribute_int(node, "num_groups", 1)
    epsilon = attribute_float(node, "epsilon", 1e-5)
    size = x.shape[1] // groups
    ctx.require_equal(size * groups, x.shape[1])
    rest = list(axis_vars(x, range(2, x.rank)).values())
    channel = var("r1", size)
    count = binary("mul", count_of(x, range(2, x.rank), x.dtype), cast(size, x.dtype))

    def over_group(element: Element, name: str) -> Element:
        """Sums each channel first, which goes along memory whether pictures or channels are innermost."""

        def one_channel(*index: Expr) -> Expr:
            here = element([*index, *rest])
            return reduce_over("sum", rest, here) if rest else here

        sums = ctx.temporary(x.shape[:2], one_channel, x.dtype, name, vars=("n", "c"))
        return lambda i: reduce_over("sum", [channel], sums.at(i[0], i[1] * size + channel))

    plain = over_group(lambda i: x.at(*i), "sums")
    mean = ctx.temporary(
        [x.shape[0], groups], lambda *i: binary("div", plain(i), count), x.dtype, "mean", vars=("n", "g")
    )

    def centered(index: Sequence[Expr]) -> Expr:
        return binary("sub", x.at(*index), mean.at(index[0], index[1] // size))

    squares = over_group(lambda i: _square(centered(i)), "squares")
    inverse = ctx.temporary(
        [x.shape[0], groups],
        lambda *i: _reciprocal_root(binary("div", squares(i), count), epsilon),
        x.dtype,
        "inverse",
        vars=("n", "g"),
    )

    def body(*index: Expr) -> Expr:
        y = binary("mul", centered(index), inverse.at(index[0], index[1] // size))
        return binary("add", binary("mul", y, scale.at(index[1])), bias.at(index[1]))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_lp_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X / norm along an axis, 0 where the norm is 0."""
    x = required(inputs, 0)
    _float(node, x)
    axis = normalize_axis(attribute_int(node, "axis", -1), x.rank)
    p = attribute_int(node, "p", 2)
    if p not in (1, 2):
        raise Declined(f"LpNormalization with p = {p}; 1 and 2 are defined")

    def term(index: Sequence[Expr]) -> Expr:
        return unary("abs", x.at(*index)) if p == 1 else _square(x.at(*index))

    total = reduce_axes("sum", x, [axis], term)

    def body(*index: Expr) -> Expr:
        norm = total(index) if p == 1 else unary("sqrt", total(index))
        zero = const(0, x.dtype)
        return select(binary("eq", norm, zero), zero, binary("div", x.at(*index), norm))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_lrn(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X / (bias + alpha / size * sum of squares over neighbouring channels) ^ beta."""
    x = required(inputs, 0)
    _float(node, x)
    size = attribute_int(node, "size", 1)
    alpha = const(attribute_float(node, "alpha", 1e-4) / size, x.dtype)
    beta = const(attribute_float(node, "beta", 0.75), x.dtype)
    bias = const(attribute_float(node, "bias", 1.0), x.dtype)
    zero = const(0, x.dtype)

    def body(*index: Expr) -> Expr:
        k = var("k", size)
        c = index[1] + k - (size - 1) // 2
        inside = binary("and", binary("le", 0, c), binary("lt", c, x.shape[1]))
        neighbour = x.at(index[0], c, *index[2:])
        squares = reduce("sum", (k,), select(inside, _square(neighbour), zero))
        base = binary("add", bias, binary("mul", alpha, squares))
        return binary("div", x.at(*index), binary("pow", base, beta))

    return [ctx.define(x.shape, body, x.dtype)]


def lower_mean_variance_normalization(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """(x - mean) / (standard deviation + 1e-9) over axes, by default all but the channels."""
    x = required(inputs, 0)
    _float(node, x)
    axes = sorted({normalize_axis(a, x.rank) for a in attribute_ints(node, "axes", (0, 2, 3))})
    _, centered, variance = _deviation(x, axes)

    def body(*index: Expr) -> Expr:
        spread = binary("add", unary("sqrt", variance(index)), const(1e-9, x.dtype))
        return binary("div", centered(index), spread)

    return [ctx.define(x.shape, body, x.dtype)]


def _normalized(node: Operands) -> range | None:
    dims = node.dims(input_(0))
    if dims is None or len([v for v in node.node.outputs if v.name and v.uses()]) > 1:
        return None
    return range(node.attribute("axis", -1) % len(dims), len(dims))


_BEHIND_AXIS = except_axes(_normalized)


def _channel_ties(node: Operands) -> list[Tie | None]:
    rank = len(node.dims(input_(0)) or ())
    parameters = [(input_(i), 0) for i in range(1, len(node.inputs))]
    whole = range(2, rank) if node.node.op_type == "InstanceNormalization" else ()
    ties = [same(node, (input_(0), d), (output(0), d)) for d in range(rank) if d != 1 and d not in whole]
    return [*ties, same(node, (input_(0), 1), *parameters, (output(0), 1))]


_BY_CHANNEL = PruningFacts(_channel_ties)


def _group_ties(node: Operands) -> list[Tie | None]:
    """Whole groups of channels."""
    x, y, groups = input_(0), output(0), node.attribute("num_groups", 1)
    channels = node.length(x, 1)
    if channels is None or channels % groups:
        return []
    run = channels // groups
    by_group = grouped(node, (x, 1, run), (input_(1), 0, run), (input_(2), 0, run), (y, 1, run))
    return [same(node, (x, 0), (y, 0)), by_group]


def _shrink_groups(node: Operands, kept: Kept) -> Shrunk:
    channels, stays = node.length(input_(0), 1), kept(input_(0), 1)
    if channels is None or stays is None:
        return Shrunk()
    return Shrunk({"num_groups": node.attribute("num_groups", 1) * len(stays) // channels})


_BY_GROUP = PruningFacts(_group_ties, _shrink_groups)


def _along(node: Operands) -> list[int]:
    return [node.attribute("axis", -1)]


def _neighbours(node: Operands) -> list[int]:
    return [1]


def _mean_variance_axes(node: Operands) -> list[int]:
    axes = node.node.attributes.get("axes")
    return [0, 2, 3] if axes is None else [int(a) for a in axes.as_ints()]


OPS = (
    Op(name="LayerNormalization", lower=lower_layer_normalization, pruning=_BEHIND_AXIS),
    Op(name="RMSNormalization", lower=lower_rms_normalization, pruning=_BEHIND_AXIS),
    Op(name="BatchNormalization", lower=lower_batch_normalization, pruning=_BY_CHANNEL),
    Op(name="InstanceNormalization", lower=lower_instance_normalization, pruning=_BY_CHANNEL),
    Op(name="GroupNormalization", lower=lower_group_normalization, pruning=_BY_GROUP),
    Op(name="LpNormalization", lower=lower_lp_normalization, pruning=except_axes(_along)),
    Op(name="LRN", lower=lower_lrn, pruning=except_axes(_neighbours)),
    Op(
        name="MeanVarianceNormalization",
        lower=lower_mean_variance_normalization,
        pruning=except_axes(_mean_variance_axes),
    ),
)
