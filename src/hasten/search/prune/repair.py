"""Repair without training: those who read pruned features get new weights, by least squares.

The original and the pruned graph run side by side, node by node, over all samples. At each product that has
lost features its weights W are chosen anew so that it gives what the original gave, from what now arrives:

    minimize |X W + b - Y|^2 + ridge * mean(diag X'X) * |W - W0|^2

with W0 the weights that were left. Products further down then see the repaired values, so errors do not add
up. Where the product is the end of a residual branch, Y also makes up for what its shortcut has lost. He et
al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1, does this for
convolutions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.backends.torch_graph import TorchGraph
from hasten.backends.torch_operators import conv_padded
from hasten.graph.constants import constant_value
from hasten.passes.prune.remove import set_constant
from hasten.search.prune.cost import Feeds

RIDGE = 1e-3
_LARGEST_SYSTEM = 4096  # unknowns of one output; beyond that the weights stay
_ROWS = 4096  # most positions of one sample that equations are made from


@dataclass
class _Equations:
    """Sums of the normal equations of x W + b = y, in double precision."""

    inner: Tensor
    cross: Tensor
    sum_x: Tensor
    sum_y: Tensor
    count: int = 0

    @staticmethod
    def of(unknowns: int, outputs: int) -> _Equations:
        """No equations yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return _Equations(
            zeros(unknowns, unknowns), zeros(unknowns, outputs), zeros(unknowns), zeros(outputs)
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes rows of x and y in."""
        every = -(-len(x) // _ROWS)
        x, y = x[::every].double(), y[::every].double()
        self.inner += x.T @ x
        self.cross += x.T @ y
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.count += len(x)

    def solve(self, before: Tensor, ridge: float, *, centered: bool) -> tuple[Tensor, Tensor]:
        """New weights and the bias that goes with them, drawn towards the weights before."""
        before = before.double()
        inner, cross = self.inner, self.cross
        if centered:
            inner = inner - torch.outer(self.sum_x, self.sum_x) / self.count
            cross = cross - torch.outer(self.sum_x, self.sum_y) / self.count
        strength = ridge * float(inner.diagonal().mean()) + 1e-12
        system = inner + strength * torch.eye(len(inner), dtype=torch.float64)
        weights = before + torch.linalg.solve(system, cross - inner @ before)
        return weights, (self.sum_y - self.sum_x @ weights) / self.count


@dataclass(frozen=True)
class _Product:
    """How a product's operands become rows of equations.

    Attributes:
        rows: [positions, unknowns] from what the node reads.
        outputs: [positions, outputs] from what it gives.
        matrix: [unknowns, outputs] from its weights.
        weights: its weights from such a matrix.
    """

    rows: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    weights: Callable[[Tensor], Tensor]


def reconstruct(
    original: ir.Model,
    pruned: ir.Model,
    consumers: Collection[str],
    samples: Sequence[Feeds],
    *,
    ridge: float = RIDGE,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Give products of a pruned graph new weights, in place.

    Args:
        original: the graph before.
        pruned: the graph after; values that both have are called alike.
        consumers: names of the outputs of the products that have lost features.
        samples: inputs by name.
        ridge: how strongly weights stay what they were, in units of the mean square of what is read.
        progress: is told which product is being repaired.

    Returns:
        The consumers that were left as they are, with reasons.
    """
    before, after = TorchGraph(original), TorchGraph(pruned)
    places = {node.outputs[0].name: index for index, node in enumerate(after.nodes)}
    old, new = [before.start(f) for f in samples], [after.start(f) for f in samples]
    left = [(Counter(before.readers()), Counter(after.readers())) for _ in samples]
    skipped = []
    with torch.no_grad():
        for index, node in enumerate(before.nodes):
            for known in old:
                before.step(index, known)
            name = node.outputs[0].name or ""
            place = places.get(name)
            if place is not None:
                if name in consumers:
                    progress(f"repairing {node.name or name}")
                    reason = _repair(pruned, after, place, old, new, ridge)
                    skipped += [f"'{node.name or name}' {reason}"] if reason else []
                for known in new:
                    after.step(place, known)
            for k in range(len(samples)):
                before.forget(node, old[k], left[k][0], before.outputs)
                if place is not None:
                    after.forget(after.nodes[place], new[k], left[k][1], after.outputs)
    return skipped


def _repair(
    model: ir.Model,
    graph: TorchGraph,
    place: int,
    old: Sequence[dict[str, Tensor]],
    new: Sequence[dict[str, Tensor]],
    ridge: float,
) -> str:
    """Repairs one product; the reason if it is left as it is."""
    node = graph.nodes[place]
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if source is None or weight is None or weight.name not in graph.weights:
        return "has no constant weights on its right"
    product = _product(node, graph.weights[weight.name])
    if product is None:
        return "is of a form whose weights are not solved for"
    matrix = product.matrix(graph.weights[weight.name])
    if len(matrix) > _LARGEST_SYSTEM:
        return f"reads more than {_LARGEST_SYSTEM} values for each result"
    bias = _bias(node)
    shortcut = _shortcut(node if bias is None else bias[0])
    equations = _Equations.of(*matrix.shape)
    for then, now in zip(old, new, strict=True):
        target = then[output.name or ""]
        if shortcut in then and shortcut in now and then[shortcut].shape == target.shape:
            target = target + (then[shortcut] - now[shortcut])
        equations.add(product.rows(now[source.name or ""]), product.outputs(target))
    weights, shift = equations.solve(matrix, ridge, centered=bias is not None)
    _put(model, graph, node, 1, product.weights(weights).float().numpy(), new)
    if bias is not None:
        holder, position = bias
        value = constant_value(holder.inputs[position])
        assert value is not None
        array = shift.float().numpy() + (0 if holder is node else value)  # a MatMul gives Y without bias
        _put(model, graph, holder, position, array.astype(value.dtype).reshape(value.shape), new)
    return ""


def _product(node: ir.Node, weight: Tensor) -> _Product | None:
    if node.op_type == "MatMul" and weight.dim() == 2:

        def flat(x: Tensor) -> Tensor:
            return x.reshape(-1, x.shape[-1])

        return _Product(flat, flat, lambda w: w, lambda m: m)
    if node.op_type == "Gemm":
        numbers = {name: a.value for name, a in node.attributes.items()}
        if numbers.get("transA", 0) or numbers.get("alpha", 1.0) != 1.0 or numbers.get("beta", 1.0) != 1.0:
            return None
        turned = bool(numbers.get("transB", 0))

        def turn(w: Tensor) -> Tensor:
            return w.T if turned else w

        return _Product(lambda x: x, lambda y: y, turn, turn)
    if node.op_type == "Conv" and weight.dim() == 4 and _groups(node) == 1:
        shape = weight.shape

        def patches(x: Tensor) -> Tensor:
            padded, strides, dilations = conv_padded(node, x, shape[2:])
            unfolded = torch.nn.functional.unfold(
                padded, tuple(shape[2:]), tuple(dilations), stride=tuple(strides)
            )
            return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])

        return _Product(
            patches,
            lambda y: y.movedim(1, -1).reshape(-1, y.shape[1]),
            lambda w: w.reshape(shape[0], -1).T,
            lambda m: m.T.reshape(shape),
        )
    return None


def _groups(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else found.as_int()


def _bias(node: ir.Node) -> tuple[ir.Node, int] | None:
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


def _shortcut(node: ir.Node) -> str | None:
    """The other operand of the addition that alone reads a node's result."""
    reader = _only_reader(node)
    if reader is None or reader.op_type != "Add":
        return None
    others = [v for v in reader.inputs if v is not None and v.producer() is not node]
    return others[0].name if len(others) == 1 and not others[0].is_initializer() else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _put(
    model: ir.Model,
    graph: TorchGraph,
    node: ir.Node,
    position: int,
    array: NDArray[np.generic],
    values: Sequence[dict[str, Tensor]],
) -> None:
    """Replaces a constant in the model and in what runs it."""
    title = node.name or node.outputs[0].name
    set_constant(model.graph, node, position, array, f"{title}_{position}_repaired")
    changed = node.inputs[position]
    assert changed is not None and changed.name is not None
    graph.weights[changed.name] = torch.from_numpy(np.array(array))
    for known in values:
        known[changed.name] = graph.weights[changed.name]
