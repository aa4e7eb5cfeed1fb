"""Adding nodes and constants to a graph, under names that are free, where no pattern is replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from hasten.passes.rule import free_name, names_of_values


class Insertion:
    """Adds to one graph, and knows the names that are taken in it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.taken = names_of_values(graph) | {n.name for n in graph}

    def name(self, wanted: str) -> str:
        """A free name: the wanted one, or that with a number."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(np.array(array, order="C", copy=None), name=self.name(name))
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        suffix: str,
        like: ir.Value,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Node:
        """A node, not yet in the graph, whose result has the shape of `like` and its name with a suffix."""
        node = ir.node(kind, inputs, name=self.name(f"{like.name}/{kind}"))
        output = node.outputs[0]
        output.name = self.name(f"{like.name}/{suffix}")
        output.type = ir.TensorType(dtype)
        output.shape = None if like.shape is None else like.shape.copy()
        return node

    def behind(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Puts nodes right behind what makes a value."""
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(producer, nodes)
