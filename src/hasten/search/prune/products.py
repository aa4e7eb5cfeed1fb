"""Products with constant weights, as linear equations: what they read and give as rows of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.prune.units import Consumer, Group

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_SYSTEM = 4608
"""Unknowns of one output, beyond which equations are not solved: 3 x 3 taps of 512 channels.

Those take 31 s of processor time and 1.8 GB to solve for; twice as many would take eight times the time and
four times the memory."""
LARGEST_RANKED = 4096
"""The same for `obs`, which inverts a dozen such systems: 37 s of processor time for 2,304 unknowns."""


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
    if node.op_type == "Conv" and _groups(node) == 1:
        return Product(
            lambda x: _patches(node, shape, x).transpose(1, 2).reshape(-1, math.prod(shape[1:])),
            lambda y: y.movedim(1, -1).reshape(-1, y.shape[1]),
            lambda w: w.reshape(shape[0], -1).T,
            lambda m: m.T.reshape(shape),
            taps=math.prod(shape[2:]),
        )
    return None


def readings(nodes: Sequence[ir.Node], group: Group) -> list[tuple[Consumer, Product]] | str:
    """The products that read a group, as equations; the reason if one of them is none that is solved for.

    Args:
        nodes: of the graph that was analysed.
        group: of the analysis.
    """
    found = []
    for consumer in group.consumers:
        node = nodes[consumer.node]
        source, weight = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        constant = None if weight is None else weight.const_value
        shape = () if constant is None else tuple(constant.shape.numpy())
        product = None if constant is None else product_of(node, shape)
        name = f"'{node.name or node.outputs[0].name}'"
        if product is None or source is None or source.name != consumer.value[0].value:
            return f"{name} is a {node.op_type} of a form whose weights are not solved for"
        unknowns = len(product.matrix(np.broadcast_to(np.False_, shape)))
        if unknowns > LARGEST_RANKED:
            return f"{name} reads {unknowns} values for each result, more than {LARGEST_RANKED}"
        found.append((consumer, product))
    return found or "no product with constant weights reads them"


def grouped_product_of(node: ir.Node, shape: tuple[int, ...]) -> Product | None:
    """The equations of a convolution in groups, a system for each: groups are the first axis."""
    groups = _groups(node)
    if node.op_type != "Conv" or groups == 1:
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

    return Product(rows, outputs, matrix, lambda m: m.swapaxes(1, 2).reshape(shape), math.prod(shape[2:]))


def _patches(node: ir.Node, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """What a convolution reads for each position, [samples, channels x taps, positions]."""
    import torch  # what has no data needs no PyTorch

    from hasten.backends.torch_windows import conv_padded

    padded, strides, dilations = conv_padded(node, x, shape[2:])
    if shape[2:] == (1, 1):  # no copy
        return padded[:, :, :: strides[0], :: strides[1]].flatten(2)
    kernel = tuple(shape[2:])
    if len(kernel) != 2:
        for axis, (taps, stride, step) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
            padded = padded.unfold(axis, (taps - 1) * step + 1, stride)[..., ::step]
        rank = len(kernel)  # [samples, channels, positions of each axis, taps of each axis]
        order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        return padded.permute(order).reshape(len(x), shape[1] * _groups(node) * math.prod(kernel), -1)
    return torch.nn.functional.unfold(padded, kernel, tuple(dilations), stride=tuple(strides))


def _groups(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else found.as_int()


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that add a constant to the outputs of a product: itself, or the Add behind it.

    One number for each output, or one for all of them; not what differs from position to position.
    """
    outputs = _outputs_of(node)
    if outputs is None:
        return None
    if node.op_type in ("Conv", "Gemm"):
        beta = node.attributes.get("beta")
        whole = len(node.inputs) > 2 and (beta is None or beta.as_float() == 1)
        return (node, 2) if whole and _adds_alike(node.inputs[2], outputs) else None
    reader = _only_reader(node)
    if reader is None or reader.op_type != "Add":
        return None
    places = [at for at, value in enumerate(reader.inputs) if _adds_alike(value, outputs)]
    return (reader, places[0]) if places else None


def _outputs_of(node: ir.Node) -> int | None:
    """How many outputs a product with constant weights has at each position; None if it is none."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    weight = None if value is None else value.const_value
    if weight is None or len(weight.shape) < 2 or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    turned = node.attributes.get("transB")
    first = node.op_type == "Conv" or (turned is not None and turned.as_int() != 0)
    return int(weight.shape.numpy()[0 if first else -1])


def _adds_alike(value: ir.Value | None, outputs: int) -> bool:
    """Whether a value is a constant that adds the same to the outputs at all positions."""
    constant = constant_value(value)
    if constant is None:
        return False
    return constant.size == 1 or (constant.size == outputs and constant.shape[-1] == outputs)


def added_by(node: ir.Node) -> str | None:
    """What a Gemm adds to its product that is no bias: a variable, or a constant of different rows."""
    value = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    return None if value is None or bias_of(node) is not None else value.name


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
