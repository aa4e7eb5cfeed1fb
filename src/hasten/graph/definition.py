"""Writing a node in other operators: what definitions of operators of other domains are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


@dataclass
class Rewrite:
    """A node that is being written in other operators.

    Attributes:
        node: the node.
        tape: collects the new nodes and constants.
    """

    node: ir.Node
    tape: Tape = field(default_factory=Tape)

    def input(self, position: int) -> ir.Value | None:
        """An input, or None where it is left out."""
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def wants(self, position: int) -> bool:
        """Whether an output is used."""
        outputs = self.node.outputs
        return position < len(outputs) and is_used(outputs[position])

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute."""
        a = self.node.attributes.get(name)
        return default if a is None else a.value

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The output of a new node of ONNX."""
        return self.tape.op(kind, inputs, attributes)

    def ops(self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """The outputs of a new node of ONNX."""
        return self.tape.op_multi_out(kind, inputs, attributes, num_outputs=outputs)

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> ir.Value:
        """A new constant."""
        return self.op("Constant", value=ir.tensor(np.array(value, dtype)))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """A scalar of the element type of another value."""
        found = self.constant(value, np.float32)
        return found if like.dtype is ir.DataType.FLOAT else self.op("CastLike", found, like)

    def added(self, value: ir.Value, *others: ir.Value | None) -> ir.Value:
        """The sum with those that are there."""
        for other in others:
            value = value if other is None else self.op("Add", value, other)
        return value


def is_used(value: ir.Value) -> bool:
    """Whether a node or the graph reads a value."""
    return bool(value.uses()) or value.is_graph_output()


Definition = Callable[[Rewrite], Sequence[ir.Value | None] | None]
"""Gives the outputs of a node; None where it cannot be said."""


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions of a value, if it is known."""
    return None if value is None or value.shape is None else value.shape.rank()
