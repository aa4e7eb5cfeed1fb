"""ONNX operators in PyTorch, differentiable: what `torch_graph` runs a graph with.

Needs PyTorch to be imported, so it is itself imported only where a graph is run there. An operator that is
not here runs through ONNX's reference evaluator, if no gradient has to pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

Inputs = Sequence[Tensor | None]
Run = Callable[[ir.Node, Inputs], Tensor | Sequence[Tensor]]

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def _get(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute as a plain Python value."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, list | tuple) else value


def _x(inputs: Inputs, position: int = 0) -> Tensor:
    found = inputs[position]
    assert found is not None, "a required input is missing"
    return found


def _maybe(inputs: Inputs, position: int) -> Tensor | None:
    return inputs[position] if position < len(inputs) else None


def _ints(inputs: Inputs, position: int) -> list[int] | None:
    found = _maybe(inputs, position)
    return None if found is None else [int(v) for v in found.reshape(-1).tolist()]


def _unary(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda node, inputs: function(_x(inputs))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda node, inputs: function(_x(inputs, 0), _x(inputs, 1))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run(node: ir.Node, inputs: Inputs) -> Tensor:
        result = _x(inputs)
        for position in range(1, len(inputs)):
            result = function(result, _x(inputs, position))
        return result

    return run


def _div(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = _x(inputs, 0), _x(inputs, 1)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    result = _x(inputs)
    low, high = _maybe(inputs, 1), _maybe(inputs, 2)
    result = result if low is None else torch.maximum(result, low)
    return result if high is None else torch.minimum(result, high)


def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.gelu(_x(inputs), approximate=_get(node, "approximate", "none"))


def _prelu(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _x(inputs)
    return torch.where(x < 0, x * _x(inputs, 1), x)


def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Tensor:
    scaled: Tensor = _x(inputs) * _get(node, "alpha", 0.2) + _get(node, "beta", 0.5)
    return scaled.clamp(0, 1)


def _swish(node: ir.Node, inputs: Inputs) -> Tensor:
    return _x(inputs) * torch.sigmoid(_get(node, "alpha", 1.0) * _x(inputs))


def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    return _x(inputs).to(_DTYPES[ir.DataType(_get(node, "to", 1))])


def _where(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.where(_x(inputs), _x(inputs, 1), _x(inputs, 2))


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b, c = _x(inputs), _x(inputs, 1), _maybe(inputs, 2)
    a, b = (a.T if _get(node, "transA", 0) else a), (b.T if _get(node, "transB", 0) else b)
    result: Tensor = a @ b * _get(node, "alpha", 1.0)
    return result if c is None else result.add(c * _get(node, "beta", 1.0))


def _pads(node: ir.Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Padding before and behind each spatial axis, as ONNX writes it: all begins, then all ends."""
    kind, rank = _get(node, "auto_pad", "NOTSET"), len(kernel)
    if kind in ("NOTSET", ""):
        return list(_get(node, "pads", [0] * (2 * rank)))
    if kind == "VALID":
        return [0] * (2 * rank)
    dilations = _get(node, "dilations", [1] * rank)
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
    strides = _get(node, "strides", [1] * len(kernel))
    dilations = _get(node, "dilations", [1] * len(kernel))
    return pad_spatial(x, _pads(node, x, kernel, strides)), strides, dilations


def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    x, w = _x(inputs), _x(inputs, 1)
    run = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[w.dim()]
    padded, strides, dilations = conv_padded(node, x, w.shape[2:])
    groups = _get(node, "group", 1)
    return run(padded, w, _maybe(inputs, 2), stride=strides, dilation=dilations, groups=groups)


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x, w = _x(inputs), _x(inputs, 1)
    rank = w.dim() - 2
    if _get(node, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        raise NotImplementedError("ConvTranspose with auto_pad or output_shape")
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    result = run(
        x,
        w,
        _maybe(inputs, 2),
        stride=_get(node, "strides", [1] * rank),
        groups=_get(node, "group", 1),
        dilation=_get(node, "dilations", [1] * rank),
    )
    extra = _get(node, "output_padding", [0] * rank)
    pads = _get(node, "pads", [0] * (2 * rank))
    cut = [-p for p in pads[:rank]] + [e - p for p, e in zip(pads[rank:], extra, strict=True)]
    return pad_spatial(result, cut)


def _max_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    x, kernel = _x(inputs), _get(node, "kernel_shape", [])
    if _get(node, "ceil_mode", 0) or len(node.outputs) > 1 or not x.is_floating_point():
        raise NotImplementedError("MaxPool with ceil_mode, indices or integers")
    strides = _get(node, "strides", [1] * len(kernel))
    padded = pad_spatial(x, _pads(node, x, kernel, strides), -math.inf)
    run = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return run(padded, kernel, stride=strides, dilation=_get(node, "dilations", [1] * len(kernel)))


def _average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    x, kernel = _x(inputs), _get(node, "kernel_shape", [])
    if _get(node, "ceil_mode", 0) or any(d != 1 for d in _get(node, "dilations", [1])):
        raise NotImplementedError("AveragePool with ceil_mode or dilations")
    strides = _get(node, "strides", [1] * len(kernel))
    pads = _pads(node, x, kernel, strides)
    run: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    total: Tensor = run(pad_spatial(x, pads), kernel, stride=strides)
    if _get(node, "count_include_pad", 0) or not any(pads):
        return total
    share: Tensor = run(pad_spatial(torch.ones_like(x[:1, :1]), pads), kernel, stride=strides)
    return total / share


def _global_pool(reduce: Callable[[Tensor, list[int]], Tensor]) -> Run:
    return lambda node, inputs: reduce(_x(inputs), list(range(2, _x(inputs).dim())))


def _batch_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    _one_output(node)
    x, scale, bias, mean, variance = (_x(inputs, i) for i in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, eps=_get(node, "epsilon", 1e-5))


def _one_output(node: ir.Node) -> None:
    if len([v for v in node.outputs if v.name]) > 1:
        raise NotImplementedError(f"{node.op_type} with more than one output")


def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, bias = _x(inputs), _x(inputs, 1), _maybe(inputs, 2)
    _one_output(node)
    axis = _get(node, "axis", -1) % x.dim()
    y = F.layer_norm(x, x.shape[axis:], eps=_get(node, "epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


def _rms_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _x(inputs)
    axes = list(range(_get(node, "axis", -1) % x.dim(), x.dim()))
    squares = (x * x).mean(axes, keepdim=True)
    return x * torch.rsqrt(squares + _get(node, "epsilon", 1e-5)) * _x(inputs, 1)


def _instance_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.instance_norm(
        _x(inputs), weight=_x(inputs, 1), bias=_x(inputs, 2), eps=_get(node, "epsilon", 1e-5)
    )


def _group_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    groups, epsilon = _get(node, "num_groups", 1), _get(node, "epsilon", 1e-5)
    return F.group_norm(_x(inputs), groups, _x(inputs, 1), _x(inputs, 2), epsilon)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Run:
    return lambda node, inputs: function(_x(inputs), _get(node, "axis", -1))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Run:
    def run(node: ir.Node, inputs: Inputs) -> Tensor:
        x, axes = _x(inputs), _ints(inputs, 1)
        if not axes:
            if _get(node, "noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        if not x.numel():
            raise NotImplementedError(f"{node.op_type} of nothing")
        return function(x, axes, bool(_get(node, "keepdims", 1)))

    return run


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    x, target = _x(inputs), _ints(inputs, 1) or []
    if not _get(node, "allowzero", 0):
        target = [x.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    return x.reshape(target)


def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _x(inputs)
    axis = _get(node, "axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis]), -1)


def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x = _x(inputs)
    return x.permute(_get(node, "perm", list(reversed(range(x.dim())))))


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = _x(inputs), _ints(inputs, 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axes = _x(inputs), _ints(inputs, 1) or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(node: ir.Node, inputs: Inputs) -> Tensor:
    x, target = _x(inputs), _ints(inputs, 1) or []
    before = [1] * (len(target) - x.dim()) + list(x.shape)
    target = [1] * (len(before) - len(target)) + target
    return x.expand([m if n == 1 else n for n, m in zip(before, target, strict=True)])


def _concat(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.cat([v for v in inputs if v is not None], _get(node, "axis", 0))


def _split(node: ir.Node, inputs: Inputs) -> Sequence[Tensor]:
    x, axis, sizes = _x(inputs), _get(node, "axis", 0), _ints(inputs, 1)
    if sizes is None:
        part = -(-x.shape[axis] // len(node.outputs))
        return torch.split(x, part, axis)
    return torch.split(x, sizes, axis)


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x, starts, ends = _x(inputs), _ints(inputs, 1) or [], _ints(inputs, 2) or []
    axes, steps = _ints(inputs, 3) or list(range(len(starts))), _ints(inputs, 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
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
    x, indices, axis = _x(inputs), _x(inputs, 1).long(), _get(node, "axis", 0)
    axis %= x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if axis == 0:
        return F.embedding(indices, x) if x.dim() == 2 else x[indices]
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(node: ir.Node, inputs: Inputs) -> Tensor:
    x, indices = _x(inputs), _x(inputs, 1)
    if _get(node, "batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(indices.unbind(-1))]


def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    dims = _x(inputs).shape
    return torch.tensor(list(dims[slice(_get(node, "start", 0), _get(node, "end", len(dims)))]))


def _range(node: ir.Node, inputs: Inputs) -> Tensor:
    start, limit, delta = (_x(inputs, i) for i in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _pad(node: ir.Node, inputs: Inputs) -> Tensor:
    x, given, fill, axes = _x(inputs), _ints(inputs, 1) or [], _maybe(inputs, 2), _ints(inputs, 3)
    mode = _get(node, "mode", "constant")
    half = len(given) // 2
    pads = [0] * (2 * x.dim())
    for k, axis in enumerate(range(half) if axes is None else axes):
        pads[axis % x.dim()], pads[axis % x.dim() + x.dim()] = given[k], given[k + half]
    if mode != "constant" and any(pads):
        raise NotImplementedError(f"Pad in mode {mode}")
    return pad_spatial(x, pads, 0.0 if fill is None else fill.item())


def _resize(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scales, sizes = _x(inputs), _maybe(inputs, 2), _ints(inputs, 3)
    mode, where = _get(node, "mode", "nearest"), _get(node, "coordinate_transformation_mode", "half_pixel")
    if "axes" in node.attributes or _get(node, "antialias", 0):
        raise NotImplementedError("Resize of chosen axes, or against aliasing")
    factors = None
    if sizes is None:
        assert scales is not None
        factors = scales.tolist()[2:]
        sizes = [math.floor(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    size = sizes[2:]
    whole = all(n % m == 0 for n, m in zip(size, x.shape[2:], strict=True))
    if sizes[:2] != list(x.shape[:2]):
        raise NotImplementedError("Resize of the first two axes")
    rounding = _get(node, "nearest_mode", "round_prefer_floor")
    repeats = (where, rounding) == ("asymmetric", "floor") or (where == "half_pixel" and "round" in rounding)
    if mode == "nearest" and whole and repeats:
        return F.interpolate(x, size)
    if factors is not None and where == "align_corners":
        where = "" if any(n * s % 1 for n, s in zip(x.shape[2:], factors, strict=True)) else where
    if mode == "linear" and where in ("half_pixel", "align_corners") and x.dim() == 4:
        given: Any = {"size": size} if factors is None else {"scale_factor": factors}
        return F.interpolate(x, mode="bilinear", align_corners=where == "align_corners", **given)
    raise NotImplementedError(f"Resize in mode {mode} with {where}")


def _attention(node: ir.Node, inputs: Inputs) -> Tensor:
    q, k, v, mask = _x(inputs), _x(inputs, 1), _x(inputs, 2), _maybe(inputs, 3)
    if len(inputs) > 4 or _get(node, "softcap", 0.0) or len([o for o in node.outputs if o.name]) > 1:
        raise NotImplementedError("Attention with a cache, softcap or further outputs")
    if any(_get(node, side, -1) >= 0 for side in ("left_window_size", "right_window_size")):
        raise NotImplementedError("Attention with a window")
    flat = q.dim() == 3
    if flat:
        heads, shared = _get(node, "q_num_heads", 1), _get(node, "kv_num_heads", 1)
        q = q.reshape(*q.shape[:2], heads, -1).transpose(1, 2)
        k, v = (t.reshape(*t.shape[:2], shared, -1).transpose(1, 2) for t in (k, v))
    result = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=bool(_get(node, "is_causal", 0)),
        scale=_get(node, "scale", None),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return result.transpose(1, 2).flatten(2) if flat else result


def _depth_to_space(node: ir.Node, inputs: Inputs) -> Tensor:
    x, block = _x(inputs), _get(node, "blocksize", 1)
    if _get(node, "mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    split = x.reshape(n, block, block, c // block**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


def _norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keepdim=keep).sqrt()


OPERATORS: Mapping[str, Run] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _div,
    "Pow": lambda node, inputs: torch.pow(_x(inputs), _x(inputs, 1)).to(_x(inputs).dtype),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Reciprocal": _unary(torch.reciprocal),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tanh": _unary(torch.tanh),
    "Sigmoid": _unary(torch.sigmoid),
    "Relu": _unary(torch.relu),
    "Softplus": _unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": _unary(F.softsign),
    "Mish": _unary(F.mish),
    "HardSwish": _unary(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "HardSigmoid": _hard_sigmoid,
    "Swish": _swish,
    "LeakyRelu": lambda node, inputs: F.leaky_relu(_x(inputs), _get(node, "alpha", 0.01)),
    "Elu": lambda node, inputs: F.elu(_x(inputs), _get(node, "alpha", 1.0)),
    "PRelu": _prelu,
    "Gelu": _gelu,
    "Clip": _clip,
    "Cast": _cast,
    "Where": _where,
    "Equal": _binary(torch.eq),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Not": _unary(torch.logical_not),
    "IsNaN": _unary(torch.isnan),
    "MatMul": _binary(torch.matmul),
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduction(_norm),
    "Identity": _unary(lambda x: x),
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
    "Resize": _resize,
    "Attention": _attention,
    "DepthToSpace": _depth_to_space,
}
"""By operator type in ONNX's own domain. One that raises NotImplementedError runs as if it were not here."""


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of its own for an array."""
    return torch.from_numpy(np.array(array))
