"""Operators in PyTorch that move elements, and those that say where to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_node import Inputs, Run, attribute, integers, maybe, operand
from hasten.backends.torch_windows import pad_spatial


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    x, target = operand(inputs), integers(inputs, 1) or []
    if not attribute(node, "allowzero", 0):
        target = [x.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    return x.reshape(target)


def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    axis = attribute(node, "axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis]), -1)


def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    return x.permute(attribute(node, "perm", list(reversed(range(x.dim())))))


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = operand(inputs), integers(inputs, 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = operand(inputs), integers(inputs, 1) or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(node: ir.Node, inputs: Inputs) -> Tensor:
    x, target = operand(inputs), integers(inputs, 1) or []
    before = [1] * (len(target) - x.dim()) + list(x.shape)
    target = [1] * (len(before) - len(target)) + target
    return x.expand([m if n == 1 else n for n, m in zip(before, target, strict=True)])


def _concat(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.cat([v for v in inputs if v is not None], attribute(node, "axis", 0))


def _split(node: ir.Node, inputs: Inputs) -> Sequence[Tensor]:
    x, axis, sizes = operand(inputs), attribute(node, "axis", 0), integers(inputs, 1)
    if sizes is None:
        part = -(-x.shape[axis] // len(node.outputs))
        return torch.split(x, part, axis)
    return torch.split(x, sizes, axis)


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x, starts, ends = operand(inputs), integers(inputs, 1) or [], integers(inputs, 2) or []
    axes, steps = integers(inputs, 3) or list(range(len(starts))), integers(inputs, 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end, step)]
        if step > 0:
            x = (
                x.narrow(axis, taken.start, max(0, taken.stop - taken.start))
                if len(taken)
                else x.narrow(axis, 0, 0)
            )
            x = x if step == 1 else x.index_select(axis, torch.arange(0, x.shape[axis], step))
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices, axis = operand(inputs), operand(inputs, 1).long(), attribute(node, "axis", 0)
    axis %= x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if axis == 0:
        return F.embedding(indices, x) if x.dim() == 2 else x[indices]
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices = operand(inputs), operand(inputs, 1)
    if attribute(node, "batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(indices.unbind(-1))]


def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    dims = operand(inputs).shape
    return torch.tensor(list(dims[slice(attribute(node, "start", 0), attribute(node, "end", len(dims)))]))


def _range(node: ir.Node, inputs: Inputs) -> Tensor:
    start, limit, delta = (operand(inputs, i) for i in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _pad(node: ir.Node, inputs: Inputs) -> Tensor:
    x, given, fill, axes = operand(inputs), integers(inputs, 1) or [], maybe(inputs, 2), integers(inputs, 3)
    mode = attribute(node, "mode", "constant")
    half = len(given) // 2
    pads = [0] * (2 * x.dim())
    for k, axis in enumerate(range(half) if axes is None else axes):
        pads[axis % x.dim()], pads[axis % x.dim() + x.dim()] = given[k], given[k + half]
    if mode != "constant":
        for axis, length in enumerate(x.shape):
            places = torch.arange(-pads[axis], length + pads[axis + x.dim()])
            if len(places) != length or pads[axis]:
                x = x.index_select(axis, _inside(places, length, mode))
        return x
    return pad_spatial(x, pads, 0.0 if fill is None else fill.item())


def _inside(places: Tensor, length: int, mode: str) -> Tensor:
    """Where what lies outside an axis is read by a Pad in mode reflect, edge or wrap."""
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    turn = max(1, length - 1)
    return turn - (places % (2 * turn) - turn).abs() if length > 1 else places * 0


def _reverse_sequence(node: ir.Node, inputs: Inputs) -> Tensor:
    x, lengths = operand(inputs), operand(inputs, 1)
    time, batch = attribute(node, "time_axis", 0), attribute(node, "batch_axis", 1)
    lanes = x.movedim((time, batch), (0, 1))
    places = torch.arange(len(lanes))[:, None]
    read = torch.where(places < lengths, lengths - 1 - places, places)
    turned = lanes[read, torch.arange(lanes.shape[1])]
    return turned.movedim((0, 1), (time, batch))


def _depth_to_space(node: ir.Node, inputs: Inputs) -> Tensor:
    x, block = operand(inputs), attribute(node, "blocksize", 1)
    if attribute(node, "mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // block**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: ir.Node, inputs: Inputs) -> Tensor:
    x, block = operand(inputs), attribute(node, "blocksize", 1)
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if attribute(node, "mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return split.permute(order).reshape(n, c * block**2, h // block, w // block)


def _positive(indices: Tensor, length: int) -> Tensor:
    """Indices counted from the front."""
    return torch.where(indices < 0, indices + length, indices).long()


def _gather_elements(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = operand(inputs), attribute(node, "axis", 0)
    return torch.gather(x, axis, _positive(operand(inputs, 1), x.shape[axis]))


def _scatter_elements(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis, updates = operand(inputs), attribute(node, "axis", 0), operand(inputs, 2)
    indices = _positive(operand(inputs, 1), x.shape[axis])
    reduction = attribute(node, "reduction", "none")
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, indices, updates, kind)


def _scatter_nd(node: ir.Node, inputs: Inputs) -> Tensor:
    x, places, updates = operand(inputs), operand(inputs, 1).unbind(-1), operand(inputs, 2)
    reduction = attribute(node, "reduction", "none")
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"ScatterND that keeps {reduction}")
    return torch.index_put(x, places, updates, accumulate=reduction == "add")


def _tile(node: ir.Node, inputs: Inputs) -> Tensor:
    return operand(inputs).repeat(integers(inputs, 1) or [])


def _top_k(node: ir.Node, inputs: Inputs) -> Sequence[Tensor]:
    """Of equal values the first; the result may be in any order where the node asks for none."""
    x, (count,), axis = operand(inputs), integers(inputs, 1) or [0], attribute(node, "axis", -1)
    found = torch.sort(x, dim=axis, descending=bool(attribute(node, "largest", 1)), stable=True)
    return found.values.narrow(axis, 0, count), found.indices.narrow(axis, 0, count)


def _trilu(node: ir.Node, inputs: Inputs) -> Tensor:
    x, (diagonal,) = operand(inputs), integers(inputs, 1) or [0]
    return x.triu(diagonal) if attribute(node, "upper", 1) else x.tril(diagonal)


MOVEMENT: Mapping[str, Run] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Shape": _shape,
    "Range": _range,
    "Pad": _pad,
    "ReverseSequence": _reverse_sequence,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Trilu": _trilu,
}
