"""Convolution and transposed convolution over one to three spatial axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from hasten.loops.descriptions import Contraction, Gemm
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Var, binary, const, constant_int, select, var
from hasten.ops.attributes import attribute_int, attribute_ints, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.pruning import (
    CHANNELS,
    Kept,
    Operands,
    PruningFacts,
    Shrunk,
    Tie,
    grouped,
    input_,
    output,
    same,
)
from hasten.ops.reductions import reduce_over
from hasten.ops.windows import SPATIAL_NAMES, TAP_NAMES, Window, names, padded, windows

NARROWEST = 16
"""Columns of a product that take as long as fewer do."""


def _operands(node: ir.Node, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None, list[int], int]:
    """Input, weight, bias, kernel size and number of groups.

    Raises:
        Declined: no kernel of ours computes this form.
    """
    x, w, bias = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
    if not x.dtype.is_float or w.dtype is not x.dtype:
        raise Declined(f"{node.op_type} of {x.dtype.numpy.name} and {w.dtype.numpy.name}")
    if not 3 <= x.rank <= 5 or w.rank != x.rank:
        raise Declined(f"{node.op_type} of ranks {x.rank} and {w.rank}; 3 to 5, both equal, are compiled")
    kernel = [constant_int(n) for n in w.shape]
    sizes = [n for n in kernel if n is not None]
    if len(sizes) != w.rank:
        raise Declined(f"{node.op_type} whose weight has no constant shape")
    return x, w, bias, sizes[2:], attribute_int(node, "group", 1)


def _taps(kernel: Sequence[int]) -> list[Expr]:
    """A variable for each axis of the window; 0 where it has one element."""
    labels = names(len(kernel), TAP_NAMES)
    return [var(n, k) if k != 1 else const(0) for n, k in zip(labels, kernel, strict=True)]


def _variables(taps: Sequence[Expr]) -> tuple[Var, ...]:
    return tuple(t for t in taps if isinstance(t, Var))


def _biased(product: Tensor, bias: Tensor, n: Expr, c: Expr, *rest: Expr) -> Expr:
    return binary("add", product.at(n, c, *rest), bias.at(c))


def _biased_group(product: Tensor, bias: Tensor, per_group: int, *index: Expr) -> Expr:
    return binary("add", product.at(*index), bias.at(index[-2] * per_group + index[-1]))


def _joint(groups: int, per_group: int) -> int:
    """How many groups to compute as one: as many as fit a narrow panel, which takes as long anyway."""
    return max(j for j in range(1, groups + 1) if groups % j == 0 and (j == 1 or j * per_group <= NARROWEST))


def _side_by_side(w: np.ndarray, groups: int, joint: int) -> np.ndarray:
    """The weight of a convolution with fewer groups, in which channels of others meet zeros."""
    outputs, inputs, *window = w.shape
    per_group = outputs // groups
    wide = np.zeros((groups // joint, joint, per_group, joint, inputs, *window), w.dtype)
    own = w.reshape(groups // joint, joint, per_group, inputs, *window)
    for j in range(joint):
        wide[:, j, :, j] = own[:, j]
    return wide.reshape(outputs, joint * inputs, *window)


def lower_conv(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Sum over window and input channels."""
    x, w, bias, kernel, groups = _operands(node, inputs)
    return [convolved(ctx, x, w, bias, windows(ctx, node, x.shape[2:], kernel), groups)]


def convolved(
    ctx: Lowering,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    sliding: Sequence[Window],
    groups: int,
    *,
    suffix: str | None = None,
) -> Tensor:
    """A convolution; one product, or a plain reduction where it is depthwise.

    Args:
        ctx: what is lowered to.
        x: [n, channel, spatial...].
        w: [output channel, channel of a group, window...] of constant shape and the same element type.
        bias: [output channel], or None.
        sliding: the windows.
        groups: number of groups of channels.
        suffix: the result is a temporary of this name; None for the next output of the node.

    Raises:
        Declined: the channels do not divide into groups.
    """
    ctx.require_equal(x.shape[1], w.shape[1] * groups)
    channels, per_input = constant_int(w.shape[0]), constant_int(w.shape[1])
    assert channels is not None and per_input is not None  # the shape is constant
    if groups < 1 or channels % groups:
        raise Declined(f"Conv of {channels} output channels in {groups} groups")
    joint = _joint(groups, channels // groups) if per_input > 1 else 1
    known = ctx.program.constants.get(w.name) if joint > 1 else None
    if known is not None:
        wide = ctx.constant(_side_by_side(known, groups, joint), "joint")
        return convolved(ctx, x, wide, bias, sliding, groups // joint, suffix=suffix)
    kernel = [s.kernel for s in sliding]
    spatial = [ctx.dim(s.out) for s in sliding]
    zero, dtype = const(0, x.dtype), x.dtype
    taps = _taps(kernel)
    labels = names(len(kernel), SPATIAL_NAMES)
    plain = ("n", "oc", *labels)
    shape = [x.shape[0], w.shape[0], *spatial]
    depth = var("ic", per_input)
    per_group = channels // groups
    define = ctx.define if suffix is None else partial(ctx.temporary, suffix=suffix)

    def whole(n: Var, oc: Var, *o: Var) -> Contraction:
        a = padded(x, (n, depth), sliding, o, taps, zero)
        return Gemm((), (n, *o), oc, _variables(taps), depth, a, w.at(oc, depth, *taps))

    def grouped(n: Var, *rest: Var) -> Contraction:
        *o, g, oc = rest
        a = padded(x, (n, g * per_input + depth), sliding, o, taps, zero)
        b = w.at(g * per_group + oc, depth, *taps)
        return Gemm((g,), (n, *o), oc, _variables(taps), depth, a, b)

    def depthwise(n: Expr, oc: Expr, *o: Expr) -> Expr:
        a = padded(x, (n, oc // per_group), sliding, o, taps, zero)
        return reduce_over("sum", taps, binary("mul", a, w.at(oc, 0, *taps)))

    if groups > 1 and per_input > 1:
        # Groups before their channels, so that in memory they are channels side by side.
        apart, view = [x.shape[0], *spatial, const(groups), const(per_group)], ("n", *labels, "g", "oc")
        product = ctx.temporary(apart, grouped, dtype, "product", vars=view)
        if bias is not None:
            add = partial(_biased_group, product, bias, per_group)
            product = ctx.temporary(apart, add, dtype, "biased", vars=view)

        def joined(n: Expr, c: Expr, *o: Expr) -> Expr:
            return product.at(n, *o, c // per_group, c % per_group)

        return define(shape, joined, dtype, vars=plain)
    body = depthwise if groups > 1 else whole
    if bias is None:
        return define(shape, body, dtype, vars=plain)
    product = ctx.temporary(shape, body, dtype, "product", vars=plain)
    return define(shape, partial(_biased, product, bias), dtype, vars=plain)


@dataclass(frozen=True)
class _Spread:
    """One axis of a transposed convolution: input o contributes to o * stride + t * dilation - before.

    An output position plus `before` is a quotient and a remainder by the stride, its phase. All outputs of a
    phase see the input through the same taps, so each phase is a convolution of stride 1 over the input.
    """

    extent: Expr
    kernel: int
    stride: int
    dilation: int
    before: Expr
    out: Expr

    @property
    def window(self) -> Window:
        """The inputs that reach the outputs of one quotient, whatever their phase."""
        reach = (self.kernel - 1) * self.dilation + 1
        taps = self.kernel if self.stride == 1 else -(-reach // self.stride)
        step = self.dilation if self.stride == 1 else 1
        first = self.before // self.stride
        count = (self.before + self.out + (self.stride - 1)) // self.stride - first
        ahead = (taps - 1) * step
        before = const(ahead) - first
        return Window(self.extent, taps, 1, step, before, count + ahead - self.extent - before)

    def split(self, o: Expr) -> tuple[Expr, Expr]:
        """The number of the window that an output sees, and its phase."""
        at = o + self.before
        return at // self.stride - self.before // self.stride, at % self.stride

    def tap(self, phase: Expr, t: Expr) -> tuple[Expr, Expr]:
        """The tap through which element `t` of a window reaches a phase, and whether there is one."""
        exists: Expr = const(True, DType.BOOL)
        back = self.window.kernel - 1 - t
        if self.stride == 1:
            return back, exists
        at = phase + back * self.stride
        if self.dilation > 1:
            exists = binary("eq", at % self.dilation, 0)
        if self.window.kernel * self.stride > (self.kernel - 1) * self.dilation + 1:
            exists = binary("and", exists, binary("lt", at, (self.kernel - 1) * self.dilation + 1))
        return at // self.dilation, exists


def _spreads(node: ir.Node, extents: Sequence[Expr], kernel: Sequence[int]) -> list[_Spread]:
    rank = len(extents)
    strides = attribute_ints(node, "strides", [1] * rank)
    dilations = attribute_ints(node, "dilations", [1] * rank)
    extra = attribute_ints(node, "output_padding", [0] * rank)
    pads = attribute_ints(node, "pads", [0] * (2 * rank))
    wanted = attribute_ints(node, "output_shape", ())
    auto = attribute_str(node, "auto_pad", "NOTSET")
    if any(len(v) != n for v, n in ((strides, rank), (dilations, rank), (extra, rank), (pads, 2 * rank))):
        raise Declined(f"ConvTranspose: strides, dilations and pads must fit {rank} spatial axes")
    result = []
    for d, extent in enumerate(extents):
        s, k, dilation = strides[d], kernel[d], dilations[d]
        full = (extent - 1) * s + extra[d] + ((k - 1) * dilation + 1)
        if wanted or auto in ("SAME_UPPER", "SAME_LOWER"):
            # A list that also names batch and channels ends in the spatial sizes.
            out = const(wanted[len(wanted) - rank + d]) if wanted else extent * s
            total = full - out
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            explicit = auto != "VALID"
            before = const(pads[d] if explicit else 0)
            out = full - before - (pads[rank + d] if explicit else 0)
        result.append(_Spread(extent, k, s, dilation, before, out))
    return result


def lower_conv_transpose(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The transpose of a convolution: one convolution of stride 1, whose channels hold all phases."""
    x, w, bias, kernel, groups = _operands(node, inputs)
    ctx.require_equal(x.shape[1], w.shape[0])
    channels, per_group = constant_int(w.shape[0]), constant_int(w.shape[1])
    assert channels is not None and per_group is not None  # checked by _operands
    if groups < 1 or channels % groups:
        raise Declined(f"ConvTranspose of {channels} input channels in {groups} groups")
    spreads = _spreads(node, x.shape[2:], kernel)
    shape = [x.shape[0], const(groups * per_group), *(ctx.dim(s.out) for s in spreads)]
    view = ("n", "oc", *names(len(kernel), SPATIAL_NAMES))
    if groups == channels > 1:
        return [ctx.define(shape, _by_channel(x, w, bias, spreads, per_group), x.dtype, vars=view)]
    phases = math.prod(s.stride for s in spreads)
    turned = _turned(ctx, w, spreads, groups)
    bias = None if bias is None else _repeated(ctx, bias, phases, groups)
    sliding = [s.window for s in spreads]
    if phases == 1:
        return [convolved(ctx, x, turned, bias, sliding, groups)]
    product = convolved(ctx, x, turned, bias, sliding, groups, suffix="phases")

    def body(n: Expr, c: Expr, *o: Expr) -> Expr:
        phase: Expr = const(0)
        at = []
        for s, oo in zip(spreads, o, strict=True):
            quotient, remainder = s.split(oo)
            phase = phase * s.stride + remainder
            at.append(quotient)
        column = (c // per_group * phases + phase) * per_group + c % per_group
        return product.at(n, column, *at)

    return [ctx.define(shape, body, x.dtype, vars=view)]


def _turned(ctx: Lowering, w: Tensor, spreads: Sequence[_Spread], groups: int) -> Tensor:
    """The weight [(group, phase, output channel), input channel of the group, window...] of all phases."""
    inputs, per_group = w.shape[0] // groups, w.shape[1]
    phases = math.prod(s.stride for s in spreads)

    def body(j: Expr, ic: Expr, *t: Expr) -> Expr:
        phase, group = j // per_group % phases, j // (per_group * phases)
        exists: Expr = const(True, DType.BOOL)
        taps: list[Expr] = []
        for s, tt in zip(reversed(spreads), reversed(t), strict=True):
            tap, there = s.tap(phase % s.stride, tt)
            phase = phase // s.stride
            taps.insert(0, tap)
            exists = binary("and", exists, there)
        return select(exists, w.at(group * inputs + ic, j % per_group, *taps), const(0, w.dtype))

    shape = [per_group * (phases * groups), inputs, *(const(s.window.kernel) for s in spreads)]
    return ctx.temporary(shape, body, w.dtype, "turned")


def _repeated(ctx: Lowering, bias: Tensor, phases: int, groups: int) -> Tensor:
    """The bias of (group, phase, output channel)."""
    if phases == 1:
        return bias
    known = ctx.constant_of(bias)
    if known is not None:
        repeated = np.repeat(known.reshape(groups, 1, -1), phases, axis=1)
        return ctx.constant(repeated.reshape(-1), "repeated")
    per_group = bias.shape[0] // groups

    def body(j: Expr) -> Expr:
        return bias.at(j // (per_group * phases) * per_group + j % per_group)

    return ctx.temporary([bias.shape[0] * phases], body, bias.dtype, "repeated")


def _by_channel(
    x: Tensor, w: Tensor, bias: Tensor | None, spreads: Sequence[_Spread], per_group: int
) -> Callable[..., Expr]:
    """Element [n, channel, spatial...] where each input channel is a group."""
    sliding = [s.window for s in spreads]
    taps = _taps([s.kernel for s in sliding])

    def element(n: Expr, c: Expr, *o: Expr) -> Expr:
        exists: Expr = const(True, DType.BOOL)
        at, through = [], []
        for s, oo, t in zip(spreads, o, taps, strict=True):
            quotient, phase = s.split(oo)
            tap, there = s.tap(phase, t)
            exists = binary("and", exists, there)
            at.append(quotient)
            through.append(tap)
        value = padded(x, (n, c // per_group), sliding, at, taps, const(0, x.dtype))
        weight = select(exists, w.at(c // per_group, c % per_group, *through), const(0, w.dtype))
        total = reduce_over("sum", taps, binary("mul", value, weight))
        return total if bias is None else binary("add", total, bias.at(c))

    return element


def _conv_ties(node: Operands) -> list[Tie | None]:
    """Filters and channels; whole groups where there are several, each channel where each is a group."""
    x, w, bias, y = input_(0), input_(1), input_(2), output(0)
    batch, groups = same(node, (x, 0), (y, 0)), node.attribute("group", 1)
    channels, made = node.length(x, 1), node.length(y, 1)
    if channels is None or made is None or not node.is_constant(1):
        return [batch]
    filters, taken = (1, 0) if node.node.op_type == "ConvTranspose" else (0, 1)
    if groups == 1:
        makes = same(node, (w, filters), (bias, 0), (y, 1), unit=CHANNELS)
        return [batch, makes, same(node, (x, 1), (w, taken), contracts=True)]
    if channels % groups or made % groups:
        return [batch]
    of_x, of_y = channels // groups, made // groups
    by_group = of_x if node.node.op_type == "ConvTranspose" else of_y
    together = [(x, 1, of_x), (w, 0, by_group), (bias, 0, of_y), (y, 1, of_y)]
    return [batch, grouped(node, *together, unit=CHANNELS)]


def _shrink_conv(node: Operands, kept: Kept) -> Shrunk:
    groups, stays, made = node.attribute("group", 1), kept(output(0), 1), node.length(output(0), 1)
    if groups == 1 or stays is None or made is None:
        return Shrunk()
    return Shrunk({"group": groups * len(stays) // made})


_PRUNING = PruningFacts(_conv_ties, _shrink_conv)


OPS = (
    Op(name="Conv", lower=lower_conv, pruning=_PRUNING),
    Op(name="ConvTranspose", lower=lower_conv_transpose, pruning=_PRUNING),
)
