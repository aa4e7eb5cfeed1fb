"""What is known of a graph's values while it is lowered, and how a body sees those around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hasten.graph.bodies import captured
from hasten.loops.dtypes import DType
from hasten.loops.expr import Const, Expr, Size, size
from hasten.loops.program import Program, TensorInfo
from hasten.ops.base import Lowering, Tensor
from hasten.ops.element_types import COMPUTED, element_type

Dims = Sequence[Expr | None]
"""A shape; None for a length that is not known before the run."""


@dataclass
class GraphState:
    """What is known while a graph is walked.

    Attributes:
        ctx: the program being built.
        opsets: the operator sets of the model.
        around: of the graph that has this one as the body of a node.
        tensors: the tensor of each value that compiled code can read.
        opaque: why compiled code cannot read the others.
        constants: values that are known now, whether or not compiled code can read them.
        sizes: names of sizes that are taken.
        inner: of a body, its own size for each length around it.
    """

    ctx: Lowering
    opsets: Mapping[str, int]
    around: GraphState | None = None
    tensors: dict[ir.Value, Tensor] = field(default_factory=dict)
    opaque: dict[ir.Value, str] = field(default_factory=dict)
    constants: set[ir.Value] = field(default_factory=set)
    sizes: set[str] = field(default_factory=set)
    inner: dict[Expr, Expr] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: ir.Graph, opsets: Mapping[str, int], around: GraphState | None = None) -> GraphState:
        """The state before the first node of a graph."""
        values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
        values += captured(graph)
        names = frozenset(v.name for v in values if v.name)
        return cls(Lowering(Program(), reserved=names), opsets, around)

    def enter(self, value: ir.Value, dims: Dims | None, dtype: DType | None = None) -> None:
        """Makes a value from outside an input of the program, or notes why it cannot be one.

        Args:
            value: an input of the graph, or the output of a node beside the program.
            dims: its shape, where a length that is None becomes a size of its own; None where not even
                the rank is known.
            dtype: its element type, if the value does not say.
        """
        assert value.name is not None
        if dtype is None and value.dtype is not None and dims is not None:
            dtype = element_type(value.dtype)
            if dtype is None or not isinstance(value.type, ir.TensorType):
                self.opaque[value] = unreadable(value.name, value.dtype)
                return
        if dims is None or dtype is None:
            self.opaque[value] = f"type or rank of '{value.name}' is not known before the run"
            return
        shape = tuple(
            n if n is not None else size(self.new_size(value.name or "", axis)) for axis, n in enumerate(dims)
        )
        self.ctx.program.inputs[value.name] = TensorInfo(value.name, dtype, shape)
        self.tensors[value] = self.ctx.tensor(value.name)

    def add_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """Notes a value that is known now."""
        assert value.name is not None
        self.constants.add(value)
        dtype = element_type(tensor.dtype)
        if dtype is None:
            self.opaque[value] = unreadable(value.name, tensor.dtype)
            return
        array = tensor.numpy()
        self._keep(value, array.astype(dtype.numpy) if tensor.dtype in COMPUTED else array)

    def _keep(self, value: ir.Value, array: np.ndarray) -> None:
        assert value.name is not None
        self.ctx.program.constants[value.name] = array
        self.tensors[value] = self.ctx.tensor(value.name)

    def capture(self, value: ir.Value) -> None:
        """Lets a body read a value of the graph around it."""
        assert self.around is not None and value.name is not None
        outer = self.around
        if value in outer.constants:
            self.constants.add(value)
        tensor = outer.tensors.get(value)
        if tensor is None:
            self.opaque[value] = outer.opaque.get(value, f"'{value.name}' is not known")
            return
        known = outer.ctx.constant_of(tensor)
        if known is not None:
            self._keep(value, known)
            return
        shape = [self.size_of(n, value.name, axis) for axis, n in enumerate(tensor.shape)]
        self.enter(value, shape, tensor.dtype)

    def size_of(self, length: Expr, value: str, axis: int) -> Expr:
        """A body's own size for a length around it; the same one wherever that length stands."""
        if isinstance(length, Const):
            return length
        known = self.inner.get(length)
        if known is None:
            named = isinstance(length, Size) and not length.signed and length.name not in self.sizes
            name = length.name if isinstance(length, Size) and named else self.new_size(value, axis)
            self.sizes.add(name)
            known = self.inner[length] = size(name)
        return known

    def length_around(self, own: Expr) -> Expr | None:
        """The length around a body that one of its own is; None where that is not known before the run."""
        if isinstance(own, Const):
            return own
        assert self.around is not None
        shown = {n for info in self.around.ctx.program.inputs.values() for n in info.shape}
        found = (outer for outer, inner in self.inner.items() if inner == own)
        return next((n for n in found if n in shown), None)

    def new_size(self, value: str, axis: int) -> str:
        """A name that no size has yet."""
        stem = re.sub(r"\W+", "_", value, flags=re.ASCII).strip("_")
        name = wanted = f"{stem if stem and not stem[0].isdigit() else f'v{stem}'}_dim{axis}"
        number = 1
        while name in self.sizes:
            number += 1
            name = f"{wanted}_{number}"
        self.sizes.add(name)
        return name


def unreadable(name: str, dtype: ir.DataType) -> str:
    """The reason where compiled code lacks an element type."""
    return f"'{name}' has element type {dtype.name.lower()}, which is not compiled"
