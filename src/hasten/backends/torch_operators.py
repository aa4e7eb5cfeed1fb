"""ONNX operators in PyTorch, differentiable: what `torch_graph` runs a graph with.

Needs PyTorch to be imported, so it is itself imported only where a graph is run there. An operator that is
not here runs through ONNX's reference evaluator, if no gradient has to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_attention import ATTENTION
from hasten.backends.torch_movement import MOVEMENT
from hasten.backends.torch_node import DTYPES, Inputs, Run, attribute, integers, maybe, operand
from hasten.backends.torch_recurrent import RECURRENT
from hasten.backends.torch_sampling import SAMPLING
from hasten.backends.torch_windows import WINDOWS
from hasten.errors import UnsupportedModelError


def _unary(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda node, inputs: function(operand(inputs))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda node, inputs: function(operand(inputs, 0), operand(inputs, 1))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run(node: ir.Node, inputs: Inputs) -> Tensor:
        result = operand(inputs)
        for position in range(1, len(inputs)):
            result = function(result, operand(inputs, position))
        return result

    return run


def _div(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = operand(inputs, 0), operand(inputs, 1)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    result = operand(inputs)
    low, high = maybe(inputs, 1), maybe(inputs, 2)
    if low is not None and high is not None and _fixed(low) and _fixed(high) and bool(low < high):
        return F.hardtanh(result, float(low), float(high))  # whose gradient is one pass over the values
    result = result if low is None else torch.maximum(result, low)
    return result if high is None else torch.minimum(result, high)


def _fixed(bound: Tensor) -> bool:
    """Whether a bound is one number of floats that no gradient is wanted of."""
    return bound.numel() == 1 and bound.is_floating_point() and not bound.requires_grad


def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.gelu(operand(inputs), approximate=attribute(node, "approximate", "none"))


def _prelu(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    return torch.where(x < 0, x * operand(inputs, 1), x)


def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Tensor:
    scaled: Tensor = operand(inputs) * attribute(node, "alpha", 0.2) + attribute(node, "beta", 0.5)
    return scaled.clamp(0, 1)


def _swish(node: ir.Node, inputs: Inputs) -> Tensor:
    return operand(inputs) * torch.sigmoid(attribute(node, "alpha", 1.0) * operand(inputs))


def _selu(node: ir.Node, inputs: Inputs) -> Tensor:
    scale = float(attribute(node, "gamma", 1.05070102214813232421875))
    return scale * F.elu(operand(inputs), attribute(node, "alpha", 1.67326319217681884765625))


def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    wanted = ir.DataType(attribute(node, "to", 1))
    if wanted not in DTYPES:
        raise NotImplementedError(f"Cast to {wanted.name}")
    return operand(inputs).to(DTYPES[wanted])


def _where(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.where(operand(inputs), operand(inputs, 1), operand(inputs, 2))


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b, c = operand(inputs), operand(inputs, 1), maybe(inputs, 2)
    a, b = (a.T if attribute(node, "transA", 0) else a), (b.T if attribute(node, "transB", 0) else b)
    result: Tensor = a @ b * attribute(node, "alpha", 1.0)
    return result if c is None else result.add(c * attribute(node, "beta", 1.0))


def _batch_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    _one_output(node)
    x, scale, bias, mean, variance = (operand(inputs, i) for i in range(5))
    epsilon = attribute(node, "epsilon", 1e-5)
    if not (mean.requires_grad or variance.requires_grad):  # for which PyTorch's has no gradient
        return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)
    shape = (1, -1, *[1] * (x.dim() - 2))
    factor = scale * torch.rsqrt(variance + epsilon)
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def _one_output(node: ir.Node) -> None:
    if len([v for v in node.outputs if v.name]) > 1:
        raise NotImplementedError(f"{node.op_type} with more than one output")


def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, bias = operand(inputs), operand(inputs, 1), maybe(inputs, 2)
    _one_output(node)
    axis = attribute(node, "axis", -1) % x.dim()
    y = F.layer_norm(x, x.shape[axis:], eps=attribute(node, "epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


def _rms_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    axes = list(range(attribute(node, "axis", -1) % x.dim(), x.dim()))
    squares = (x * x).mean(axes, keepdim=True)
    return x * torch.rsqrt(squares + attribute(node, "epsilon", 1e-5)) * operand(inputs, 1)


def _lrn(node: ir.Node, inputs: Inputs) -> Tensor:
    """Divides by the squares of neighbouring channels, those behind the middle first where they are even."""
    x, size = operand(inputs), attribute(node, "size", 1)
    padded = F.pad((x * x).movedim(1, -1), ((size - 1) // 2, size // 2))
    squares = padded.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    scaled = squares * (attribute(node, "alpha", 1e-4) / size) + attribute(node, "bias", 1.0)
    return x * torch.pow(scaled, -attribute(node, "beta", 0.75))


def _lp_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = operand(inputs), attribute(node, "axis", -1)
    size = x.abs().sum(axis, keepdim=True)
    if attribute(node, "p", 2) == 2:
        size = torch.linalg.vector_norm(x, dim=axis, keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _dropout(node: ir.Node, inputs: Inputs) -> Sequence[Tensor]:
    x, training = operand(inputs), maybe(inputs, 2)
    if training is not None and bool(training):
        raise NotImplementedError("Dropout in training")
    return [x, torch.ones_like(x, dtype=torch.bool)]


def _mod(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = operand(inputs), operand(inputs, 1)
    return a.fmod(b) if attribute(node, "fmod", 0) else a.remainder(b)


def _mean(node: ir.Node, inputs: Inputs) -> Tensor:
    total = _variadic(torch.add)(node, inputs)
    assert isinstance(total, Tensor)
    return total / len(inputs)


def _instance_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x = operand(inputs)
    parts = x.flatten(2)
    return _standardized(node, parts).reshape(x.shape) * _channels(x, 1, inputs) + _channels(x, 2, inputs)


def _group_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, groups = operand(inputs), attribute(node, "num_groups", 1)
    parts = x.reshape(x.shape[0], groups, -1)
    return _standardized(node, parts).reshape(x.shape) * _channels(x, 1, inputs) + _channels(x, 2, inputs)


def _standardized(node: ir.Node, parts: Tensor) -> Tensor:
    """With mean 0 and variance 1 along the last axis, which may be of one element: PyTorch refuses that."""
    apart = parts - parts.mean(-1, keepdim=True)
    spread = apart.square().mean(-1, keepdim=True)
    return apart * torch.rsqrt(spread + attribute(node, "epsilon", 1e-5))


def _channels(x: Tensor, position: int, inputs: Inputs) -> Tensor:
    """An operand of one number for each channel of `x`, to be multiplied with it."""
    return operand(inputs, position).reshape(1, -1, *[1] * (x.dim() - 2))


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Run:
    return lambda node, inputs: function(operand(inputs), attribute(node, "axis", -1))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Run:
    def run(node: ir.Node, inputs: Inputs) -> Tensor:
        x, axes = operand(inputs), integers(inputs, 1)
        if not axes:
            if attribute(node, "noop_with_empty_axes", 0):
                return x
            axes = list(range(x.dim()))
        if not x.numel():
            raise NotImplementedError(f"{node.op_type} of nothing")
        return function(x, axes, bool(attribute(node, "keepdims", 1)))

    return run


def _mean_along(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        raise NotImplementedError("a mean of integers")
    return x.mean(axes, keepdim=keep)


def _cumulative_sum(node: ir.Node, inputs: Inputs) -> Tensor:
    x, (axis,) = operand(inputs), integers(inputs, 1) or [0]
    x = x.flip(axis) if attribute(node, "reverse", 0) else x
    total = x.cumsum(axis) - (x if attribute(node, "exclusive", 0) else 0)
    return total.flip(axis) if attribute(node, "reverse", 0) else total


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keepdim=keep).sqrt()


def _in_floats(run: Run) -> Run:
    """Products of float16 in 32 bits: few processors have others, and they take 8 to 40 times as long."""

    def wider(node: ir.Node, inputs: Inputs) -> Tensor | Sequence[Tensor]:
        if all(value is None or value.dtype != torch.float16 for value in inputs):
            return run(node, inputs)
        found = run(node, [v.float() if v is not None and v.dtype == torch.float16 else v for v in inputs])
        return found.half() if isinstance(found, Tensor) else [each.half() for each in found]

    return wider


OPERATORS: Mapping[str, Run] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _div,
    "Pow": lambda node, inputs: torch.pow(operand(inputs), operand(inputs, 1)).to(operand(inputs).dtype),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mean": _mean,
    "Mod": _mod,
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Reciprocal": _unary(torch.reciprocal),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tan": _unary(torch.tan),
    "Asin": _unary(torch.asin),
    "Acos": _unary(torch.acos),
    "Atan": _unary(torch.atan),
    "Sinh": _unary(torch.sinh),
    "Cosh": _unary(torch.cosh),
    "Asinh": _unary(torch.asinh),
    "Acosh": _unary(torch.acosh),
    "Atanh": _unary(torch.atanh),
    "Tanh": _unary(torch.tanh),
    "Sign": _unary(torch.sign),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Relu": _unary(torch.relu),
    "Softplus": _unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": _unary(F.softsign),
    "Mish": _unary(F.mish),
    "HardSwish": _unary(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "HardSigmoid": _hard_sigmoid,
    "Swish": _swish,
    "LeakyRelu": lambda node, inputs: F.leaky_relu(operand(inputs), attribute(node, "alpha", 0.01)),
    "Celu": lambda node, inputs: F.celu(operand(inputs), attribute(node, "alpha", 1.0)),
    "Selu": _selu,
    "ThresholdedRelu": lambda node, inputs: F.threshold(operand(inputs), attribute(node, "alpha", 1.0), 0.0),
    "Elu": lambda node, inputs: F.elu(operand(inputs), attribute(node, "alpha", 1.0)),
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
    "MatMul": _in_floats(_binary(torch.matmul)),
    "Gemm": _in_floats(_gemm),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _in_floats(_rms_norm),
    "InstanceNormalization": _in_floats(_instance_norm),
    "LpNormalization": _lp_norm,
    "LRN": _lrn,
    "Dropout": _dropout,
    "GroupNormalization": _in_floats(_group_norm),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "ReduceMean": _reduction(_mean_along),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(_norm),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "Identity": _unary(lambda x: x),
    "CumSum": _cumulative_sum,
    "Einsum": lambda node, inputs: torch.einsum(
        attribute(node, "equation", ""), *(v for v in inputs if v is not None)
    ),
    **ATTENTION,
    "Attention": _in_floats(ATTENTION["Attention"]),
    **{name: _in_floats(run) for name, run in RECURRENT.items()},
    **WINDOWS,
    "Conv": _in_floats(WINDOWS["Conv"]),
    **MOVEMENT,
    **SAMPLING,
}
"""By operator type in ONNX's own domain. One that raises NotImplementedError runs as if it were not here."""


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of its own for an array.

    Raises:
        UnsupportedModelError: PyTorch has no such type.
    """
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise UnsupportedModelError(
            f"the model has values of type {array.dtype}, which PyTorch cannot compute with here: choose "
            "criterion='magnitude' and repair='none', which do without"
        ) from error


def to_array(tensor: Tensor) -> np.ndarray:
    """The array of a tensor, of the same type."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
