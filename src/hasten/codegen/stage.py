"""Stages: what is computed into memory, one kernel each, after fusion by substitution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hasten.loops.descriptions import Description, Recurrence, operands
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Load, Var, walk

ACCUMULATOR = "accumulator"
"""Name of the load, without index, that stands for a contraction's result in its epilogue."""


@dataclass(frozen=True)
class Stage:
    """One tensor that is written to memory.

    Attributes:
        name: the tensor.
        dtype: its element type.
        vars: its index variables; their extents are its shape.
        body: the element, with everything that is not in memory substituted; or a description.
        epilogue: for a contraction, what is done to each element before it is written, in terms of
            `accumulator`; None writes it as it is.
        origins: the graph operators that it computes, first to last.
    """

    name: str
    dtype: DType
    vars: tuple[Var, ...]
    body: Expr | Description
    epilogue: Expr | None = None
    origins: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[Expr, ...]:
        """The extents of the variables."""
        return tuple(v.extent for v in self.vars if v.extent is not None)

    def expressions(self) -> Iterator[Expr]:
        """Everything that the stage evaluates."""
        if isinstance(self.body, Expr):
            yield self.body
        else:
            yield from operands(self.body).values()
        if self.epilogue is not None:
            yield self.epilogue

    def reads(self) -> dict[str, None]:
        """Names of the tensors that it loads from, in order."""
        found: dict[str, None] = {}
        own = {ACCUMULATOR, *(self.body.local if isinstance(self.body, Recurrence) else ())}
        for e in self.expressions():
            for node in walk(e):
                if isinstance(node, Load) and node.buffer not in own:
                    found.setdefault(node.buffer)
        return found
