"""Products with constant weights, as linear equations: what they read and give as rows of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from hasten.graph.constants import constant_value

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_SYSTEM = 4096
"""Unknowns of one output, beyond which equations are not solved."""


@dataclass(frozen=True)
class Product:
    """How a product's operands become rows of equations.

    Attributes:
        rows: [positions, unknowns] from what the node reads; with groups, [groups, positions, unknowns].
        outputs: [positions, outputs] from what it gives.
        matrix: [unknowns, outputs] from its weights, an array or a tensor.
        weights: its weights from such a matrix.
        taps: unknowns of each channel that is read, which lie next to one another.
    """

    rows: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]
    matrix: Callable[[Any], Any]
    weights: Callable[[Any], Any]
    taps: int = 1


def product_of(node: ir.Node, shape: tuple[int, ...]) -> Product | None:
    """The equations of a node with weights of a shape; None for a form that is not solved for."""
    if node.op_type == "MatMul" and len(shape) == 2:

        def flat(x: Tensor) -> Tensor:
            return x.reshape(-1, x.shape[-1])

        return Product(flat, flat, lambda w: w, lambda m: m)
    if node.op_type == "Gemm":
        numbers = {name: a.value for name, a in node.attributes.items()}
        if numbers.get("transA", 0) or numbers.get("alpha", 1.0) != 1.0 or numbers.get("beta", 1.0) != 1.0:
            return None
        turned = bool(numbers.get("transB", 0))

        def turn(w: Any) -> Any:
            return w.T if turned else w

        return Product(lambda x: x, lambda y: y, turn, turn)
    if node.op_type == "Conv" and len(shape) == 4 and _groups(node) == 1:
        return Product(
            lambda x: _patches(node, shape, x).transpose(1, 2).reshape(-1, shape[1] * shape[2] * shape[3]),
            lambda y: y.movedim(1, -1).reshape(-1, y.shape[1]),
            lambda w: w.reshape(shape[0], -1).T,
            lambda m: m.T.reshape(shape),
            taps=shape[2] * shape[3],
        )
    return None


def grouped_product_of(node: ir.Node, shape: tuple[int, ...]) -> Product | None:
    """The equations of a convolution in groups, a system for each: groups are the first axis."""
    groups = _groups(node)
    if node.op_type != "Conv" or len(shape) != 4 or groups == 1:
        return None

    def rows(x: Tensor) -> Tensor:
        patches = _patches(node, shape, x)  # [samples, groups x unknowns, positions]
        apart = patches.reshape(len(x), groups, -1, patches.shape[2])
        return apart.permute(1, 0, 3, 2).reshape(groups, -1, apart.shape[2])

    def outputs(y: Tensor) -> Tensor:
        apart = y.reshape(len(y), groups, y.shape[1] // groups, -1)
        return apart.permute(1, 0, 3, 2).reshape(groups, -1, apart.shape[2])

    def matrix(w: Any) -> Any:
        return w.reshape(groups, shape[0] // groups, -1).swapaxes(1, 2)

    return Product(rows, outputs, matrix, lambda m: m.swapaxes(1, 2).reshape(shape), shape[2] * shape[3])


def _patches(node: ir.Node, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """What a convolution reads for each position, [samples, channels x taps, positions]."""
    import torch  # what has no data needs no PyTorch

    from hasten.backends.torch_windows import conv_padded

    padded, strides, dilations = conv_padded(node, x, shape[2:])
    if shape[2:] == (1, 1):  # no copy
        return padded[:, :, :: strides[0], :: strides[1]].flatten(2)
    kernel = tuple(shape[2:])
    return torch.nn.functional.unfold(padded, kernel, tuple(dilations), stride=tuple(strides))


def _groups(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else found.as_int()


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that add a constant to each output of a product: itself, or the Add behind it."""
    if node.op_type in ("Conv", "Gemm"):
        constant = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
        return (node, 2) if constant is not None and constant.ndim == 1 else None
    reader = _only_reader(node)
    if reader is None or reader.op_type != "Add":
        return None
    for position, value in enumerate(reader.inputs):
        constant = constant_value(value)
        if constant is not None and constant.ndim == 1:
            return reader, position
    return None


def shortcut_of(node: ir.Node) -> str | None:
    """The other operand of the addition that alone reads a node's result."""
    reader = _only_reader(node)
    if reader is None or reader.op_type != "Add":
        return None
    others = [v for v in reader.inputs if v is not None and v.producer() is not node]
    return others[0].name if len(others) == 1 and not others[0].is_initializer() else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
