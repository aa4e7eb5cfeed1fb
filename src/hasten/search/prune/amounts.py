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
_SHARES = 96  # steps in which uniform amounts grow
TILE = 16
"""Features that stay come in multiples of this, so that kernels have no ragged tiles."""


@dataclass(frozen=True)
class Choice:
    """What goes.

    Attributes:
        removed: units of each group.
        loss: the sum of their scores.
        cost: of what is left.
        reached: whether that is no more than the target.
    """

    removed: Mapping[Group, NDArray[np.int64]]
    loss: float
    cost: float
    reached: bool


def tile_of(group: Group) -> int:
    """The multiples in which units of a group stay: 1 for heads; 16, or less in a group of few units."""
    if group.unit == HEADS:
        return 1
    return next(n for n in (TILE, TILE // 2, TILE // 4, TILE // 8, 1) if group.count >= 2 * n or n == 1)


def choose_amounts(scores: Scores, cost: Cost, target: float, *, uniform: bool = False) -> Choice:
    """Choose what goes by one ranking over all groups, of loss for cost saved.

    The loss of removing units is taken to be the sum of their scores, so within a group the lowest go first,
    and from step to step the group is chosen whose next units cost the least for what they save.

    Args:
        scores: how much each unit matters, comparable between groups.
        cost: of the graph; it is left as after the removal.
        target: the cost that may be left.
        uniform: whether all groups lose the same share, as far as whole tiles allow.

    Returns:
        The choice; if the target cannot be reached, all that can go without emptying a group.
    """
    order = {group: np.argsort(values, kind="stable") for group, values in scores.items()}
    gone = _uniform(scores, cost, target) if uniform else _ranked(scores, order, cost, target)
    removed = {group: np.sort(order[group][:count]) for group, count in gone.items() if count}
    loss = sum(float(scores[group][units].sum()) for group, units in removed.items())
    return Choice(removed, loss, cost.now, cost.now <= target)


def _uniform(scores: Scores, cost: Cost, target: float) -> dict[Group, int]:
    """How many units of each group go, the same share of all."""
    gone = dict.fromkeys(scores, 0)
    for share in np.arange(1, _SHARES) / _SHARES:
        for group in scores:
            tile = tile_of(group)
            left = max(tile, round(group.count * (1 - share) / tile) * tile)
            if left < group.count - gone[group] and cost.now > target:
                gone[group] = group.count - left
                cost.remove(group, gone[group])
    return gone


def _ranked(
    scores: Scores, order: Mapping[Group, NDArray[np.int64]], cost: Cost, target: float
) -> dict[Group, int]:
    """How many units of each group go, by one ranking over all."""
    gone = dict.fromkeys(scores, 0)
    queue: list[tuple[float, int, int, Group]] = []
    ranks = {group: rank for rank, group in enumerate(scores)}
    taken: list[tuple[float, Group, int, int]] = []

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
    while queue and cost.now > target:
        old, _, step, group = heapq.heappop(queue)
        found = rate(group, step)
        if found is None or (queue and found > max(old, queue[0][0])):
            offer(group)  # what went elsewhere since makes it save less
            continue
        cost.remove(group, step)
        taken.append((found, group, gone[group], step))
        gone[group] = step
        offer(group)
    for _, group, before, step in sorted(taken, key=lambda each: -each[0]):
        # The last step went beyond the target, so that a dearer one may not have been needed.
        if gone[group] == step and cost.without(group, before) <= target:
            cost.remove(group, before)
            gone[group] = before
    return gone


def _step(group: Group, gone: int) -> int | None:
    """How many units are gone after the next step; None if no more can go."""
    tile = tile_of(group)
    left = (group.count - gone - 1) // tile * tile
    return group.count - left if left >= tile else None
