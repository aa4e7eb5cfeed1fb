"""How many units of each group go, so that a target of arithmetic is met at the least loss."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.ops.pruning import HEADS
from hasten.passes.prune.units import Group
from hasten.search.prune.cost import Cost

Scores = Mapping[Group, NDArray[np.float64]]
TILE = 16
"""Features that stay come in multiples of this, so that kernels have no ragged tiles."""


@dataclass(frozen=True)
class Choice:
    """What goes.

    Attributes:
        removed: units of each group.
        flops: the arithmetic that is left, as a share of what it was.
        reached: whether that is no more than the target.
    """

    removed: Mapping[Group, NDArray[np.int64]]
    flops: float
    reached: bool


def tile_of(group: Group) -> int:
    """The multiples in which units of a group stay: 1 for heads; 16, or less in a group of few units."""
    if group.unit == HEADS:
        return 1
    return next(n for n in (TILE, TILE // 2, TILE // 4, TILE // 8, 1) if group.count >= 2 * n or n == 1)


def choose_amounts(scores: Scores, cost: Cost, target: float) -> Choice:
    """Choose what goes by one ranking over all groups, of loss for arithmetic saved.

    The loss of removing units is taken to be the sum of their scores, so within a group the lowest go first,
    and from step to step the group is chosen whose next units cost the least for what they save.

    Args:
        scores: how much each unit matters, comparable between groups.
        cost: the arithmetic of the graph; it is left as after the removal.
        target: the share of the arithmetic that may be left.

    Returns:
        The choice; if the target cannot be reached, all that can go without emptying a group.
    """
    order = {group: np.argsort(values, kind="stable") for group, values in scores.items()}
    gone = dict.fromkeys(scores, 0)
    queue: list[tuple[float, int, int, Group]] = []
    ranks = {group: rank for rank, group in enumerate(scores)}

    def rate(group: Group, step: int) -> float | None:
        saved = cost.now - cost.without(group, step)
        loss = float(scores[group][order[group][gone[group] : step]].sum())
        return loss / saved if saved > 0 else None

    def offer(group: Group) -> None:
        step = _step(group, gone[group])
        found = None if step is None else rate(group, step)
        if step is not None and found is not None:
            heapq.heappush(queue, (found, ranks[group], step, group))

    for group in scores:
        offer(group)
    while queue and cost.now > target * cost.total:
        old, _, step, group = heapq.heappop(queue)
        found = rate(group, step)
        if found is None or (queue and found > max(old, queue[0][0])):
            offer(group)  # what went elsewhere since makes it save less
            continue
        cost.remove(group, step)
        gone[group] = step
        offer(group)
    removed = {group: np.sort(order[group][:count]) for group, count in gone.items() if count}
    return Choice(removed, cost.now / cost.total, cost.now <= target * cost.total)


def _step(group: Group, gone: int) -> int | None:
    """How many units are gone after the next step; None if no more can go."""
    tile = tile_of(group)
    left = (group.count - gone - 1) // tile * tile
    return group.count - left if left >= tile else None
