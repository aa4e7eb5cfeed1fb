"""The memory plan: tensors share slots of one arena, whose sizes are expressions of symbolic sizes.

Which tensors share is decided once, at compile time; how large the slots are, at each call. So one plan
serves all shapes, and evaluating it takes a few multiplications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Op, Size, const, constant_int, substitute, walk
from hasten.loops.simplify import add, to_poly

ALIGNMENT = 64
NOMINAL_SIZE = 64
"""What an unknown size is taken for when tensors are matched to slots; it does not affect results."""


@dataclass(frozen=True)
class Lifetime:
    """A tensor in the arena.

    Attributes:
        name: the tensor.
        bytes: its size.
        first: the step that writes it.
        last: the last step that reads it.
        over: a tensor of the same size in whose place that step can write it.
    """

    name: str
    bytes: Expr
    first: int
    last: int
    over: str | None = None

    def excludes(self, other: Lifetime) -> bool:
        """Whether two tensors must not have the same memory."""
        if self.last < other.first or other.last < self.first:
            return False
        earlier, later = (self, other) if self.first < other.first else (other, self)
        return later.over != earlier.name or earlier.last != later.first


@dataclass(frozen=True)
class Slot:
    """A piece of the arena and the tensors that live there one after the other."""

    bytes: Expr
    tensors: tuple[str, ...]


def plan_memory(lifetimes: Sequence[Lifetime]) -> tuple[Slot, ...]:
    """Assigns tensors to slots, the largest first, each to the slot that it wastes least of.

    What can be written over another tensor is, if it can: those lines are in the cache of who writes them.
    """
    slots: list[list[Lifetime]] = []
    for t in sorted(lifetimes, key=lambda t: (-nominal(t.bytes), t.first)):
        fitting = [s for s in slots if not any(t.excludes(o) for o in s)]
        over = [s for s in fitting if any(o.name == t.over for o in s)]
        # Sorted by size, so a slot is never too small for what comes later at nominal sizes.
        best = min(over or fitting, key=lambda s: nominal(s[0].bytes), default=None)
        if best is None:
            slots.append([t])
        else:
            best.append(t)
    return tuple(
        Slot(_maximum([t.bytes for t in s]), tuple(t.name for t in sorted(s, key=lambda t: t.first)))
        for s in slots
    )


def nominal(e: Expr) -> int:
    """The value of an expression of sizes with every size at its nominal value."""
    sizes: dict[Expr, Expr] = {n: const(NOMINAL_SIZE) for n in walk(e) if isinstance(n, Size)}
    value = constant_int(substitute(e, sizes))
    return value if value is not None else 0


def _maximum(sizes: Sequence[Expr]) -> Expr:
    """The largest at all sizes, zero included, which `simplify` takes to be at least 1."""
    result = sizes[0]
    for e in sizes[1:]:
        if _covers(e, result):
            result = e
        elif not _covers(result, e):
            result = Op(INDEX, "max", (result, e))
    return result


def _covers(a: Expr, b: Expr) -> bool:
    """Whether a - b is a sum of products that are never negative."""
    difference = add(to_poly(a), to_poly(b), -1)
    atoms = {atom for monomial in difference for atom in monomial}
    plain = all(isinstance(t, Size) or (isinstance(t, Op) and t.op == "floordiv") for t in atoms)
    return plain and all(c >= 0 for c in difference.values())


def slots_by_tensor(slots: Sequence[Slot]) -> Mapping[str, int]:
    """The index of the slot of each tensor."""
    return {name: i for i, s in enumerate(slots) for name in s.tensors}
