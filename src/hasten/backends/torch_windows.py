"""Convolutions and pooling in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_node import Inputs, Run, attribute, maybe, operand


def _pads(node: ir.Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Padding before and behind each spatial axis, as ONNX writes it: all begins, then all ends."""
    kind, rank = attribute(node, "auto_pad", "NOTSET"), len(kernel)
    if kind in ("NOTSET", ""):
        return list(attribute(node, "pads", [0] * (2 * rank)))
    if kind == "VALID":
        return [0] * (2 * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    begins, ends = [], []
    for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        begins.append(small if kind == "SAME_UPPER" else large)
        ends.append(large if kind == "SAME_UPPER" else small)
    return begins + ends


def pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads the last axes; `pads` as ONNX writes them."""
    half = len(pads) // 2
    if not any(pads):
        return x
    pairs = [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])]
    return F.pad(x, pairs, value=value)


def conv_padded(node: ir.Node, x: Tensor, kernel: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
    """The padded input of a convolution, with its strides and dilations."""
    strides = attribute(node, "strides", [1] * len(kernel))
    dilations = attribute(node, "dilations", [1] * len(kernel))
    return pad_spatial(x, _pads(node, x, kernel, strides)), strides, dilations


def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    x, w = operand(inputs), operand(inputs, 1)
    run: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[w.dim()]
    rank = w.dim() - 2
    strides = attribute(node, "strides", [1] * rank)
    pads = _pads(node, x, w.shape[2:], strides)
    if rank == 2:  # the layout in which PyTorch is fastest, above all in groups of one channel
        x = x.contiguous(memory_format=torch.channels_last)
    if pads[:rank] == pads[rank:] and min(pads) >= 0:
        inside = pads[:rank]  # PyTorch pads the same before and behind
    else:
        x, inside = pad_spatial(x, pads), [0] * rank
    groups, dilations = attribute(node, "group", 1), attribute(node, "dilations", [1] * rank)
    result: Tensor = run(x, w, maybe(inputs, 2), strides, inside, dilations, groups)
    return result


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x, w = operand(inputs), operand(inputs, 1)
    rank = w.dim() - 2
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    result = run(
        x,
        w,
        stride=attribute(node, "strides", [1] * rank),
        groups=attribute(node, "group", 1),
        dilation=attribute(node, "dilations", [1] * rank),
    )
    extra = attribute(node, "output_padding", [0] * rank)
    pads = _cut_pads(node, x, result, extra)
    cut = [-p for p in pads[:rank]] + [e - p for p, e in zip(pads[rank:], extra, strict=True)]
    whole, bias = pad_spatial(result, cut), maybe(inputs, 2)  # what is added behind is bias too
    return whole if bias is None else whole + bias.reshape(-1, *[1] * rank)


def _cut_pads(node: ir.Node, x: Tensor, result: Tensor, extra: Sequence[int]) -> list[int]:
    """What a ConvTranspose takes away before and behind each axis of the whole result."""
    rank, kind = x.dim() - 2, attribute(node, "auto_pad", "NOTSET")
    wanted = attribute(node, "output_shape", None)
    if wanted is None and kind in ("NOTSET", "VALID"):
        return list(attribute(node, "pads", [0] * (2 * rank))) if kind == "NOTSET" else [0] * (2 * rank)
    if wanted is None:
        wanted = [n * s for n, s in zip(x.shape[2:], attribute(node, "strides", [1] * rank), strict=True)]
    total = [n + e - w for n, e, w in zip(result.shape[2:], extra, wanted[-rank:], strict=True)]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    return small + large if kind == "SAME_UPPER" else large + small


def _last(node: ir.Node, x: Tensor, pads: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Padding behind what is padded, so that the last window is whole; as ONNX writes it, maybe below zero.

    With ceil_mode there may be a window more than fits, if it begins before the padding behind.
    """
    rank = len(kernel)
    if not attribute(node, "ceil_mode", 0):
        return [0] * (2 * rank)
    more = []
    strides, dilations = attribute(node, "strides", [1] * rank), attribute(node, "dilations", [1] * rank)
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        length, span = x.shape[2 + axis] + pads[axis] + pads[axis + rank], (k - 1) * d + 1
        count = math.ceil((length - span) / s) + 1
        if (count - 1) * s >= x.shape[2 + axis] + pads[axis]:
            count -= 1
        more.append((count - 1) * s + span - length)
    return [0] * rank + more


def _max_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    x, kernel = operand(inputs), attribute(node, "kernel_shape", [])
    if len(node.outputs) > 1 or not x.is_floating_point():
        raise NotImplementedError("MaxPool with indices or of integers")
    strides = attribute(node, "strides", [1] * len(kernel))
    pads = _pads(node, x, kernel, strides)
    padded = pad_spatial(pad_spatial(x, pads, -math.inf), _last(node, x, pads, kernel), -math.inf)
    run = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return run(padded, kernel, stride=strides, dilation=attribute(node, "dilations", [1] * len(kernel)))


def _average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    x, kernel = operand(inputs), attribute(node, "kernel_shape", [])
    if any(d != 1 for d in attribute(node, "dilations", [1])):
        raise NotImplementedError("AveragePool with dilations")
    strides = attribute(node, "strides", [1] * len(kernel))
    pads = _pads(node, x, kernel, strides)
    run: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    last, counted = _last(node, x, pads, kernel), float(attribute(node, "count_include_pad", 0))
    total: Tensor = run(pad_spatial(pad_spatial(x, pads), last), kernel, stride=strides)
    if not any(last) and (counted or not any(pads)):
        return total
    ones = pad_spatial(torch.ones_like(x[:1, :1]), pads, counted)  # what ceil_mode adds never counts
    share: Tensor = run(pad_spatial(ones, last), kernel, stride=strides)
    return total / share


def _global_pool(reduce: Callable[[Tensor, list[int]], Tensor]) -> Run:
    return lambda node, inputs: reduce(operand(inputs), list(range(2, operand(inputs).dim())))


WINDOWS: Mapping[str, Run] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
}
