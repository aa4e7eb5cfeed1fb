"""Which sequence a tensor's positions are of: two tensors of equal lengths may be of different ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hasten.loops.descriptions import Attention, Gemm
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Load, Var, free_vars, substitute, walk
from hasten.loops.program import Program

Place = tuple[str, tuple[tuple[int, Expr], ...]]
"""A tensor, and what its indices that depend on the position are in terms of it, by their axes."""

_POSITION = Var(INDEX, "position")


@dataclass(frozen=True)
class Sequences:
    """Where values at a position come from, as far as that is one position of other tensors.

    These are inputs, and whatever does not say position by position what it is computed from. Constants are
    left out: places, learned queries, and tables that are looked up tell nothing of a sequence.

    Attributes:
        program: where they are computed.
        known: the same of definitions, by their name and the axis of the positions.
    """

    program: Program
    known: Mapping[tuple[str, int], frozenset[Place]]

    @classmethod
    def of(cls, program: Program) -> Sequences:
        """Those of a program."""
        known: dict[tuple[str, int], frozenset[Place]] = {}
        result = cls(program, known)
        for d in program.definitions.values():
            if isinstance(d.body, Expr | Gemm | Attention):
                for axis, v in enumerate(d.vars):
                    known[d.name, axis] = result.places(d.expressions(), v)
        return result

    def places(self, expressions: tuple[Expr, ...], position: Var) -> frozenset[Place]:
        """What expressions read at a position."""
        return frozenset(p for e in expressions for p in self._places(e, position))

    def _places(self, e: Expr, position: Var) -> Iterator[Place]:
        for node in walk(e):
            if not isinstance(node, Load) or node.buffer in self.program.constants:
                continue
            at = [(axis, i) for axis, i in enumerate(node.index) if position in free_vars(i)]
            inner = self.known.get((node.buffer, at[0][0])) if at else None
            if inner is not None and [i for _, i in at] == [position]:
                yield from inner
            elif at:
                yield node.buffer, tuple((axis, substitute(i, {position: _POSITION})) for axis, i in at)
