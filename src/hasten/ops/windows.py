"""Sliding windows over spatial axes, shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, const, constant_int, select
from hasten.ops.attributes import attribute_ints, attribute_str
from hasten.ops.base import Declined, Lowering, Tensor

SPATIAL_NAMES = ("od", "oh", "ow")
TAP_NAMES = ("kd", "kh", "kw")


@dataclass(frozen=True)
class Window:
    """A window that slides along one axis.

    Attributes:
        extent: size of the input along the axis.
        kernel: number of elements in the window.
        stride: step between windows.
        dilation: distance between elements of a window.
        before: padding in front, possibly symbolic.
        after: padding behind.
        ceil: the last window may begin inside and end beyond the padding.
    """

    extent: Expr
    kernel: int
    stride: int
    dilation: int
    before: Expr
    after: Expr
    ceil: bool = False

    @property
    def reach(self) -> int:
        """Elements from the window's first to its last, both included."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def out(self) -> Expr:
        """The number of windows."""
        space = self.extent + self.before + self.after - self.reach
        if not self.ceil:
            return space // self.stride + 1
        # The last window must begin on an element or on the padding in front.
        begins = ceil_div(self.extent + self.before, self.stride)
        return binary("min", ceil_div(space, self.stride) + 1, begins)

    @property
    def stays_inside(self) -> bool:
        """True where no window reaches beyond the input."""
        return self._none_before and self._none_after

    @property
    def _none_before(self) -> bool:
        pad = constant_int(self.before)
        return pad is not None and pad <= 0

    @property
    def _none_after(self) -> bool:
        pad = constant_int(self.after)
        return pad is not None and pad <= 0 and not self.ceil

    def position(self, o: Expr, t: Expr) -> Expr:
        """Index into the input of element `t` of window `o`; may lie in the padding."""
        return o * self.stride + t * self.dilation - self.before

    def inside(self, o: Expr, t: Expr) -> Expr:
        """True where that element is in the input; the literal where it always is."""
        at = self.position(o, t)
        true = const(True, DType.BOOL)
        low = true if self._none_before else binary("le", 0, at)
        high = true if self._none_after else binary("lt", at, self.extent)
        return binary("and", low, high)

    def count(self, o: Expr, with_padding: bool) -> Expr:
        """The number of elements of window `o` in the input, or also in its padding."""
        if self.stays_inside or (with_padding and not self.ceil):
            return const(self.kernel)
        start = o * self.stride - self.before
        low = const(0) - self.before if with_padding else const(0)
        high = self.extent + self.after if with_padding else self.extent
        first = binary("max", ceil_div(low - start, self.dilation), 0)
        end = binary("min", ceil_div(high - start, self.dilation), self.kernel)
        return end - first


def ceil_div(a: Expr, b: int) -> Expr:
    """A / b rounded up."""
    return (a + (b - 1)) // b


def windows(
    ctx: Lowering, node: ir.Node, extents: Sequence[Expr], kernel: Sequence[int], ceil: bool = False
) -> list[Window]:
    """The windows of a node for each spatial axis, from strides, dilations, pads and auto_pad.

    That a picture is large enough for them is checked at each call where its size is not known now.

    Raises:
        Declined: the attributes do not fit the number of axes, or a picture is too small.
    """
    rank = len(extents)
    strides = attribute_ints(node, "strides", [1] * rank)
    dilations = attribute_ints(node, "dilations", [1] * rank)
    pads = attribute_ints(node, "pads", [0] * (2 * rank))
    auto = attribute_str(node, "auto_pad", "NOTSET")
    if len(kernel) != rank or len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise Declined(f"{node.op_type}: kernel, strides, dilations and pads must fit {rank} spatial axes")
    result = []
    for d, extent in enumerate(extents):
        before, after = const(pads[d]), const(pads[rank + d])
        w = Window(extent, kernel[d], strides[d], dilations[d], before, after, ceil)
        if auto == "VALID":
            w = Window(extent, kernel[d], strides[d], dilations[d], const(0), const(0), ceil)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            total = (ceil_div(extent, w.stride) - 1) * w.stride + w.reach - extent
            total = binary("max", total, 0)
            less = total // 2
            pair = (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
            w = Window(extent, kernel[d], strides[d], dilations[d], *pair)
        # With less there would be fewer than no windows; never where padding follows from the extent.
        least = constant_int(const(w.reach - w.stride) - w.before - w.after)
        if least is not None and least > 0:
            ctx.require(binary("le", least, extent), f"{least} or more elements along a spatial axis")
        result.append(w)
    return result


def padded(
    x: Tensor,
    lead: Sequence[Expr],
    sliding: Sequence[Window],
    o: Sequence[Expr],
    t: Sequence[Expr],
    fill: Expr,
) -> Expr:
    """Element (o, t) of x's windows at the leading index `lead`; `fill` outside the input."""
    inside: Expr = const(True, DType.BOOL)
    for w, oo, tt in zip(sliding, o, t, strict=True):
        inside = binary("and", inside, w.inside(oo, tt))
    at = [w.position(oo, tt) for w, oo, tt in zip(sliding, o, t, strict=True)]
    return select(inside, x.at(*lead, *at), fill)


def names(rank: int, of: Sequence[str]) -> list[str]:
    """Names of `rank` spatial variables, the innermost last."""
    return list(of[len(of) - rank :]) if rank <= len(of) else [f"{of[-1][0]}{d}" for d in range(rank)]
