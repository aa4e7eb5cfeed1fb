"""Operators in PyTorch that read between elements: Resize and GridSample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_node import Inputs, Run, attribute, integers, maybe, operand
from hasten.graph.evaluate import evaluate_node


def _resize(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    where, policy = (
        attribute(node, "coordinate_transformation_mode", "half_pixel"),
        attribute(node, "keep_aspect_ratio_policy", "stretch"),
    )
    if where == "tf_crop_and_resize" or policy != "stretch" or not x.is_floating_point():
        raise NotImplementedError(f"Resize with {where}, {policy}, or of whole numbers")
    quick = _interpolated(node, inputs, where)
    if quick is not None:
        return quick
    scales, sizes = maybe(inputs, 2), integers(inputs, 3)
    axes = attribute(node, "axes", list(range(x.dim())))
    for k, axis in enumerate(axes):
        scale = None if scales is None or not scales.numel() else scales.detach().numpy()[k : k + 1]
        size = None if sizes is None or scale is not None else sizes[k]
        if (scale is not None and scale[0] != 1) or (size is not None and size != x.shape[axis]):
            x = _along(x, axis, _weights(node, x.shape[axis], scale, size))
    return x


def _interpolated(node: ir.Node, inputs: Inputs, where: str) -> Tensor | None:
    """The commonest ways, as PyTorch has them; None for others."""
    x, scales, sizes = operand(inputs), maybe(inputs, 2), integers(inputs, 3)
    mode, rounding = (
        attribute(node, "mode", "nearest"),
        attribute(node, "nearest_mode", "round_prefer_floor"),
    )
    if "axes" in node.attributes or attribute(node, "antialias", 0):
        return None
    factors = None
    if sizes is None:
        assert scales is not None
        factors = scales.tolist()[2:]
        sizes = [math.floor(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    size = sizes[2:]
    if sizes[:2] != list(x.shape[:2]):
        return None
    wanted = [n / m for n, m in zip(size, x.shape[2:], strict=True)] if factors is None else factors
    whole = all(f % 1 == 0 and f >= 1 for f in wanted)
    repeats = (where, rounding) == ("asymmetric", "floor") or (where == "half_pixel" and "round" in rounding)
    if mode == "nearest" and whole and repeats and x.dim() > 2:
        return F.interpolate(x, size)
    if factors is not None and where == "align_corners":
        where = "" if any(n * s % 1 for n, s in zip(x.shape[2:], factors, strict=True)) else where
    if mode == "linear" and where in ("half_pixel", "align_corners") and x.dim() == 4:
        given: Any = {"size": size} if factors is None else {"scale_factor": factors}
        return F.interpolate(x, mode="bilinear", align_corners=where == "align_corners", **given)
    return None


def _weights(node: ir.Node, length: int, scale: np.ndarray | None, size: int | None) -> Tensor:
    """What each element of an axis gives to each of the resized one: what ONNX makes of unit vectors."""
    kept = {name: a for name, a in node.attributes.items() if name != "axes"}
    values = [ir.Value(name=name) for name in ("units", "scale" if size is None else "size")]
    given = [values[0], None, values[1]] if size is None else [values[0], None, None, values[1]]
    alone = ir.Node("", "Resize", given, [*kept.values(), ir.AttrInt64s("axes", [1])], name=node.name)
    alone.outputs[0].name = "resized"
    values[0].dtype, values[0].shape = ir.DataType.FLOAT, ir.Shape([length, length])
    values[1].dtype = ir.DataType.FLOAT if size is None else ir.DataType.INT64
    values[1].shape = ir.Shape([1])
    last = scale if size is None else np.array([size])
    arrays = {values[0]: np.eye(length, dtype=np.float32), values[1]: last}
    (found,) = evaluate_node(alone, [None if value is None else arrays[value] for value in given])
    return torch.from_numpy(np.ascontiguousarray(found))


def _along(x: Tensor, axis: int, weights: Tensor) -> Tensor:
    """A tensor whose elements along an axis are sums of those there were, with weights [before, after]."""
    if bool(((weights == 0) | (weights == 1)).all() and (weights.sum(0) == 1).all()):
        return x.index_select(axis, weights.argmax(0))
    return torch.matmul(x.movedim(axis, -1), weights.to(x.dtype)).movedim(-1, axis)


def _grid_sample(node: ir.Node, inputs: Inputs) -> Tensor:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        attribute(node, "mode", "linear"), attribute(node, "mode", "linear")
    )
    x, grid = operand(inputs), operand(inputs, 1)
    if x.dim() not in (4, 5) or (mode == "cubic" and x.dim() == 5):
        raise NotImplementedError(f"GridSample of {x.dim()} axes in mode {mode}")
    return F.grid_sample(
        x,
        grid,
        mode={"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
        padding_mode=attribute(node, "padding_mode", "zeros"),
        align_corners=bool(attribute(node, "align_corners", 0)),
    )


SAMPLING: Mapping[str, Run] = {"Resize": _resize, "GridSample": _grid_sample}
