"""The tensor program: named tensors, each defined by what its element at an index is.

A definition's body is an expression, or a description (`loops.descriptions`) that helps to pick a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hasten.loops.descriptions import Description, Forest, Greedy, Recurrence, Scatter, expression, operands
from hasten.loops.dtypes import DType
from hasten.loops.expr import (
    Expr,
    Load,
    Var,
    const,
    walk,
)


@dataclass(frozen=True)
class Definition:
    """One tensor: out[vars] = body, for every variable in its range.

    Attributes:
        name: unique name of the tensor.
        dtype: element type.
        vars: one variable for each dimension; their extents are the shape.
        body: the element as an expression of `vars`, or a description over them.
        origin: the graph operator it came from, as a person names it.
    """

    name: str
    dtype: DType
    vars: tuple[Var, ...]
    body: Expr | Description
    origin: str = ""

    @property
    def shape(self) -> tuple[Expr, ...]:
        """The extents of the variables."""
        return tuple(v.extent for v in self.vars if v.extent is not None)

    def expressions(self) -> tuple[Expr, ...]:
        """Everything that the definition evaluates: its body, or the operands of what its body describes."""
        return (self.body,) if isinstance(self.body, Expr) else tuple(operands(self.body).values())

    def reads(self) -> set[str]:
        """Names of the tensors that it loads from."""
        found = {n.buffer for e in self.expressions() for n in walk(e) if isinstance(n, Load)}
        return found - self.body.local if isinstance(self.body, Recurrence) else found

    def meaning(self) -> tuple[Expr, ...]:
        """What the definition computes with all its loops, so that every size in it shows."""
        if isinstance(self.body, Recurrence):
            return (*self.expressions(), self.body.step)
        if isinstance(self.body, Forest | Greedy | Scatter):
            return self.expressions()
        return (self.expr,)

    @property
    def expr(self) -> Expr:
        """The body as an expression, whatever it is but one that none can say."""
        return self.body if isinstance(self.body, Expr) else expression(self.body)


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and symbolic shape of a tensor that the program does not define."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]


@dataclass(frozen=True)
class Guard:
    """What the sizes of a call must satisfy, and the operator that needs it.

    Attributes:
        left, right: two sizes.
        origin: the operator.
        kind: "equal", or "some" where `left` must not be 0 unless `right` is: something is read.
        says: the condition in words, where the sizes are not the clearest.
    """

    left: Expr
    right: Expr
    origin: str
    kind: Literal["equal", "some"] = "equal"
    says: str = ""

    def holds(self, left: int, right: int) -> bool:
        """Whether values of both sides are as they must be."""
        return left == right if self.kind == "equal" else left != 0 or right == 0


@dataclass(frozen=True)
class Measured:
    """A size that is known only during a run: an element of a tensor that the run computes.

    Attributes:
        tensor: a definition of integers (`INDEX`); its own shape has no measured size.
        index: where the value stands, in terms of the sizes that are known before.
        bound: the value is never more than this, in the same terms.
    """

    tensor: str
    index: tuple[Expr, ...]
    bound: Expr


@dataclass(frozen=True)
class Element:
    """A whole number that is an element of a tensor: an axis, a length, a count.

    What depends on it runs after the tensor is known: where a definition computes it, in a part of its own
    (`codegen.partition`). Unlike a measured size it needs no bound, and what it names is allocated exactly.

    Attributes:
        tensor: an input or definition of integers or booleans, of constant shape.
        index: where the number stands.
    """

    tensor: str
    index: tuple[int, ...]


@dataclass
class Program:
    """Definitions in an order in which each uses only earlier ones, constants and inputs.

    Attributes:
        inputs: tensors given at each call.
        constants: arrays known now.
        definitions: the computed tensors by name.
        outputs: names of the results, each an input, a constant or a definition.
        derived: sizes computed from others, in order; (name of the size, its value).
        guards: equalities checked at each call.
        measured: sizes that a definition counts, by name; definitions behind it may have them in their
            shapes, outputs may not.
        elements: sizes that are elements of tensors, by name; signed where expressions use them.
    """

    inputs: dict[str, TensorInfo] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    derived: dict[str, Expr] = field(default_factory=dict)
    guards: list[Guard] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    elements: dict[str, Element] = field(default_factory=dict)

    def info(self, name: str) -> TensorInfo:
        """Name, type and shape of any tensor of the program.

        Raises:
            KeyError: there is no such tensor.
        """
        if name in self.definitions:
            d = self.definitions[name]
            return TensorInfo(name, d.dtype, d.shape)
        if name in self.inputs:
            return self.inputs[name]
        array = self.constants[name]
        dtype = DType.stored(array.dtype)
        if dtype is None:
            raise KeyError(f"constant {name} has element type {array.dtype}, which the IR lacks")
        return TensorInfo(name, dtype, tuple(const(n) for n in array.shape))
