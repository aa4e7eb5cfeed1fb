"""Which kernels take a batch picture by picture, so that what they pass on stays in the cache.

A tensor between the first layers of a network for pictures has some megabytes for each of them: a batch of
eight leaves every cache before the next kernel reads it. Where a batch has any number of pictures, kernels
are called with a number: so a run of neighbouring kernels is called for one picture, then for the next, at
the same place in memory. What is lost is that weights are read again for each picture, which later layers,
with many weights and small pictures, have more of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from hasten.codegen.domain import OUTPUT
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layout, Layouts
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.loops.expr import Expr, Load, Size, Var, const, constant_int, free_vars, walk

LEAST_BYTES = 1 << 20
"""Bytes that a run must save for each picture: less stays in the cache for some pictures anyway."""

DIMENSIONS = 4
"""Of a picture's tensor: batch, channels, height, width."""


@dataclass(frozen=True)
class Run:
    """Neighbouring kernels that take one picture at a time.

    Attributes:
        first: the first of them.
        end: behind the last of them.
        size: the symbolic size that counts the pictures.
    """

    first: int
    end: int
    size: Size


def find_runs(
    kernels: Sequence[tuple[Stage, ...]], layouts: Layouts, constants: Collection[str]
) -> tuple[Run, ...]:
    """The runs that pay, in order.

    Args:
        kernels: of each kernel the stages that it computes.
        layouts: of all tensors.
        constants: names of those that are known when compiling.
    """
    counted = [_counted_by(stages, layouts, constants) for stages in kernels]
    runs: list[Run] = []
    first = 0
    while first < len(kernels):
        end = first + 1
        while end < len(kernels) and counted[end] == counted[first]:
            end += 1
        size = counted[first]
        if size is not None:
            savings = [_saved(stages, layouts, constants) for stages in kernels[first:end]]
            low, high = _most(savings)
            if high - low > 1 and sum(savings[low:high]) >= LEAST_BYTES:
                runs.append(Run(first + low, first + high, size))
        first = end
    return tuple(runs)


def picture_elements(layout: Layout) -> Expr:
    """Elements of one picture's part of a tensor."""
    return replace(layout, shape=(const(1), *layout.shape[1:])).elements


def run_tensors(kernels: Sequence[Kernel], run: Run) -> frozenset[str]:
    """Tensors that only kernels of a run write and read: one picture's part is all that is kept of them."""
    written = {t for k in kernels[run.first : run.end] for t in k.writes}
    others = (*kernels[: run.first], *kernels[run.end :])
    read_later = {tensor for k in others for _, tensor in k.buffers}
    read = {tensor for k in kernels for p, tensor in k.buffers if p != OUTPUT}
    return frozenset((written & read) - read_later)


def _counted_by(stages: Sequence[Stage], layouts: Layouts, constants: Collection[str]) -> Size | None:
    """The size that counts a kernel's pictures, if it can be called for any number of them."""
    found: set[Size] = set()
    for s in stages:
        if len(s.vars) != DIMENSIONS or layouts[s.name].order[0] != 0 or not isinstance(s.shape[0], Size):
            return None
        (picture, *inside), size = s.vars, s.shape[0]
        if any(constant_int(v.extent) is None for v in inside):
            return None
        found.add(size)
        for e in s.expressions():
            if any(isinstance(n, Size) for n in walk(e)):
                return None
            loads = [n for n in walk(e) if isinstance(n, Load) and n.buffer != ACCUMULATOR]
            if not all(_follows(n, picture, layouts, constants) for n in loads):
                return None
    return found.pop() if len(found) == 1 else None


def _follows(load: Load, picture: Var, layouts: Layouts, constants: Collection[str]) -> bool:
    """Whether a load reads what is the same for all pictures, or belongs to the picture that it is for."""
    if load.buffer in constants:
        return not any(picture in free_vars(i) for i in load.index)
    layout = layouts[load.buffer]
    if not load.index or layout.order[0] != 0 or layout.shape[0] != picture.extent:
        return False
    return load.index[0] == picture and not any(picture in free_vars(i) for i in load.index[1:])


def _saved(stages: Sequence[Stage], layouts: Layouts, constants: Collection[str]) -> int:
    """Bytes of a picture that a kernel reads and writes, less those of its constants."""
    own = {s.name for s in stages[:-1]}
    total = 0
    for name in {stages[-1].name}.union(*(s.reads() for s in stages)) - own:
        layout, bytes_ = layouts[name], layouts[name].dtype.bytes
        inside = layout.shape if name in constants else layout.shape[1:]
        for n in inside:
            bytes_ *= constant_int(n) or 1
        total += -bytes_ if name in constants else bytes_
    return total


def _most(values: Sequence[int]) -> tuple[int, int]:
    """First and last (exclusive) of the neighbours whose sum is largest."""
    best, result = 0, (0, 0)
    total, start = 0, 0
    for at, value in enumerate(values):
        if total <= 0:
            total, start = 0, at
        total += value
        if total > best:
            best, result = total, (start, at + 1)
    return result
