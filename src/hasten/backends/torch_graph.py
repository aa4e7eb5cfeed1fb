"""Runs a graph in PyTorch, operator by operator, with gradients.

An operator that is not in `torch_operators` runs as ONNX defines it in terms of others, if it does; else by
ONNX's reference evaluator, if no gradient has to pass.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from hasten.backends.torch_operators import OPERATORS, to_array, to_tensor
from hasten.errors import DataError, UnsupportedModelError
from hasten.graph.constants import constant_tensor
from hasten.graph.describe import describe_node
from hasten.graph.evaluate import captured_values, evaluate_node
from hasten.graph.functions import function_body
from hasten.graph.opset import IR_VERSION, OPSET

Feeds = Mapping[str, Any]
Tap = Callable[[Tensor], Tensor]
Taps = Mapping[tuple[int, int], Sequence[Tap]]
"""By node and input: functions of that input, one after the other, whose result the node gets instead."""


class TorchGraph:
    """A model whose operators run in PyTorch.

    Attributes:
        nodes: of the graph, in order.
        weights: tensors by name of initializer; what is put here is computed with.
    """

    def __init__(self, model: ir.Model) -> None:
        """Takes a model at the internal opset; it is not changed, and its tensors are copied."""
        self.nodes = list(model.graph)
        self.inputs = [v.name or "" for v in model.graph.inputs]
        self.outputs = [v.name or "" for v in model.graph.outputs]
        self.weights: dict[str, Tensor] = {
            name: to_tensor(v.const_value.numpy())
            for name, v in model.graph.initializers.items()
            if v.const_value is not None and v.const_value.dtype != ir.DataType.STRING
        }
        self._captured = {node: captured for node in self.nodes if (captured := _captured(node))}
        self._uses = Counter(name for node in self.nodes for name in self._reads(node))
        self._definitions: dict[ir.Node, TorchGraph | None] = {}

    def without(self, given: Collection[str]) -> TorchGraph:
        """What is left of the graph once some of its values are given: those become inputs.

        Args:
            given: names; all outputs of a node or none.
        """
        part = copy.copy(self)
        part.nodes = [n for n in self.nodes if not any(v.name in given for v in n.outputs if v.name)]
        part._uses = Counter(name for node in part.nodes for name in self._reads(node))
        part.inputs = [name for name in (*self.inputs, *given) if name in part._uses]
        part.outputs = [name for name in self.outputs if name not in given]
        return part

    def start(self, feeds: Feeds) -> dict[str, Tensor]:
        """The values before the first node.

        Args:
            feeds: arrays or tensors by name of input.
        """
        known: dict[str, Tensor] = dict(self.weights)
        for name in self.inputs:
            value = feeds[name]
            known[name] = value if isinstance(value, Tensor) else to_tensor(np.asarray(value))
        return known

    def step(self, index: int, known: dict[str, Tensor], taps: Taps | None = None) -> None:
        """Runs one node on the values that are known and adds its outputs to them.

        Raises:
            UnsupportedModelError: nothing can run the node, or it would have to pass a gradient and cannot.
            DataError: the node cannot take these inputs, such as an id outside a table.
        """
        node = self.nodes[index]
        inputs = [None if v is None or not v.name else known[v.name] for v in node.inputs]
        for position in range(len(inputs) if taps else 0):
            for tap in (taps or {}).get((index, position), ()):
                value = inputs[position]
                inputs[position] = None if value is None else tap(value)
        run = OPERATORS.get(node.op_type) if node.domain == "" else None
        made: Any = None
        if run is not None:
            try:
                made = run(node, inputs)
            except NotImplementedError:
                made = None
            except (IndexError, RuntimeError) as error:
                raise _not_fitting(node, inputs, error) from error
        around = {name: known[name] for name in self._captured.get(node, ())}
        if made is None:
            made = self._by_body(node, inputs, around)
        if made is None:
            made = self._by_definition(node, inputs)
        if made is None:
            made = self._by_reference(node, inputs, around)
        results = list(made) if isinstance(made, list | tuple) else [made]
        for output, result in zip(node.outputs, results, strict=False):  # outputs behind may be left out
            if output.name:
                known[output.name] = result

    def _by_body(
        self, node: ir.Node, inputs: list[Tensor | None], around: Mapping[str, Tensor]
    ) -> list[Tensor] | None:
        """What the branch of an If gives that is taken; None for other nodes."""
        if (node.domain, node.op_type) != ("", "If") or inputs[0] is None:
            return None
        branch = node.attributes["then_branch" if bool(inputs[0]) else "else_branch"].as_graph()
        body = TorchGraph(ir.Model(branch, ir_version=IR_VERSION))
        body.weights = self.weights | body.weights
        condition = node.inputs[0]
        found = body.run({}, around={**around, (condition.name if condition else "") or "": inputs[0]})
        return [found[output.name or ""] for output in branch.outputs]

    def _by_definition(self, node: ir.Node, inputs: list[Tensor | None]) -> list[Tensor] | None:
        """What ONNX's definition of a node in terms of other operators gives; None if that cannot be had."""
        if node not in self._definitions:
            self._definitions[node] = _definition(node)
        body = self._definitions[node]
        if body is None:
            return None
        given = {f"{_DEFINED}in{k}": value for k, value in enumerate(inputs) if value is not None}
        try:
            found = body.run(given)
        except UnsupportedModelError:
            return None
        made = (found[name] for name in body.outputs)
        return [next(made) if output.name else torch.empty(0) for output in node.outputs]

    def _by_reference(
        self, node: ir.Node, inputs: list[Tensor | None], around: Mapping[str, Tensor]
    ) -> list[Tensor]:
        constant = constant_tensor(node)
        if constant is not None:
            return [to_tensor(constant.numpy())]
        arrays = [None if t is None else to_array(t) for t in inputs]
        outer = {name: to_array(t) for name, t in around.items()}
        found = [to_tensor(a) for a in evaluate_node(node, arrays, outer)]
        passes = any(t.is_floating_point() for t in found)  # no gradient goes through whole numbers
        if passes and any(t is not None and t.requires_grad for t in [*inputs, *around.values()]):
            raise UnsupportedModelError(
                f"{describe_node(node)} has no gradient here: choose a criterion without gradients, such as "
                "magnitude, and repair without training"
            )
        return found

    def run(
        self,
        feeds: Feeds,
        *,
        taps: Taps | None = None,
        keep: Collection[str] = (),
        around: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the model.

        Args:
            feeds: arrays or tensors by name of input.
            taps: what nodes get instead of an input.
            keep: names of further values to return.
            around: of the body of an If, values that it reads around it.

        Returns:
            The outputs, and the values asked for, by name.

        Raises:
            UnsupportedModelError: nothing can run an operator, or a gradient cannot pass through one.
            DataError: an operator cannot take what these feeds come to there.
        """
        wanted = {*self.outputs, *keep}
        known = {**(around or {}), **self.start(feeds)}
        left = Counter(self._uses)
        for index, node in enumerate(self.nodes):
            self.step(index, known, taps)
            if not torch.is_grad_enabled():
                self.forget(node, known, left, wanted)
        return {name: known[name] for name in wanted}

    def forget(
        self, node: ir.Node, known: dict[str, Tensor], left: Counter[str], wanted: Collection[str]
    ) -> None:
        """Drops values that no later node reads; `left` counts the readers to come."""
        for name in self._reads(node):
            left[name] -= 1
            if left[name] == 0 and name not in wanted:
                known.pop(name, None)

    def readers(self) -> Counter[str]:
        """How many inputs, and bodies, read each value."""
        return Counter(self._uses)

    def readers_of(self, name: str) -> list[tuple[int, int]]:
        """The nodes, by index, and inputs that read a value."""
        return [
            (index, position)
            for index, node in enumerate(self.nodes)
            for position, value in enumerate(node.inputs)
            if value is not None and value.name == name
        ]

    def _reads(self, node: ir.Node) -> list[str]:
        """What a node reads, once for each input, and what its bodies do."""
        return [v.name for v in node.inputs if v is not None and v.name] + list(self._captured.get(node, ()))


def _not_fitting(node: ir.Node, inputs: Sequence[Tensor | None], error: Exception) -> DataError | MemoryError:
    """What is to be said where PyTorch refuses the inputs of a node."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "allocate memory" in reason:
        return MemoryError(reason)
    given = ", ".join("none" if t is None else f"{list(t.shape)}" for t in inputs)
    return DataError(
        f"the data do not fit the model: {describe_node(node)} cannot take inputs of shapes {given} "
        f"({reason}): check the sizes of samples, such as the number of tokens, and that ids have rows"
    )


_DEFINED = "defined/"


def _definition(node: ir.Node) -> TorchGraph | None:
    """A node in terms of other operators, as far as ONNX defines it so."""
    opsets = {"": OPSET} if node.graph is None else node.graph.opset_imports
    body = function_body(node, opsets, _DEFINED)
    if body is None or len(body.outputs) != sum(bool(output.name) for output in node.outputs):
        return None
    return TorchGraph(ir.Model(body, ir_version=IR_VERSION))


def _captured(node: ir.Node) -> tuple[str, ...]:
    """Names of what the bodies of a node read around them."""
    return tuple(value.name for value in captured_values(node) if value.name)
