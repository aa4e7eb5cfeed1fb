"""Which layers to quantize: the fastest choice for each loss, by an integer program.

Losses of layers add up (they are small and nearly independent), and so do times. For a limit on the loss the
fastest set of layers is a knapsack; its solutions for falling limits are a curve of time against loss.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.errors import MissingDependencyError

_STEPS = 24  # limits that are tried
_FINEST = 1e-4  # the least limit, as a share of the loss of all layers


@dataclass(frozen=True)
class LayerCost:
    """What quantizing one layer changes.

    Attributes:
        name: of the layer.
        loss: that it adds.
        gain: microseconds that a run gets shorter; below zero if it gets longer.
    """

    name: str
    loss: float
    gain: float


@dataclass(frozen=True)
class Choice:
    """Layers to quantize.

    Attributes:
        layers: their names, in the order of the graph.
        loss: predicted.
        gain: predicted microseconds.
    """

    layers: tuple[str, ...]
    loss: float
    gain: float


def curve(costs: Sequence[LayerCost]) -> list[Choice]:
    """The choices that no other beats in both loss and time, by falling loss; the empty one is the last.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    useful = [c for c in costs if c.gain > 0]
    found = {choice.layers: choice for choice in (best_within(useful, limit) for limit in _limits(useful))}
    found[()] = Choice((), 0.0, 0.0)
    ordered = sorted(found.values(), key=lambda choice: (-choice.gain, choice.loss))
    kept: list[Choice] = []
    for choice in ordered:
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def best_within(costs: Sequence[LayerCost], limit: float) -> Choice:
    """The layers that gain the most while their losses add up to a limit at most.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    try:
        optimize: Any = importlib.import_module("scipy.optimize")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the search chooses layers by scipy, which is not installed: pip install 'hasten[compile]'"
        ) from error
    fitting = [c for c in costs if c.gain > 0 and c.loss <= limit]
    if not fitting:
        return Choice((), 0.0, 0.0)
    # In units of the limit and of the greatest gain: the solver's tolerances are absolute.
    losses = np.array([c.loss for c in fitting]) / (limit or 1.0)
    gains = np.array([c.gain for c in fitting])
    solution = optimize.milp(
        -gains / gains.max(),
        constraints=optimize.LinearConstraint(losses[None, :], ub=1.0),
        integrality=np.ones(len(fitting)),
        bounds=optimize.Bounds(0, 1),
    )
    taken = [c for c, x in zip(fitting, solution.x, strict=True) if x > 0.5]
    return Choice(tuple(c.name for c in taken), sum(c.loss for c in taken), sum(c.gain for c in taken))


def _limits(costs: Sequence[LayerCost]) -> list[float]:
    total = sum(c.loss for c in costs)
    return [total, *(total * np.geomspace(1.0, _FINEST, _STEPS)[1:]), 0.0]
