"""Which layers to quantize: a curve of time against loss.

Losses of layers add up (they are small and nearly independent), and so do times. Layers are taken in order
of loss for the time that they save. Each set on the way is the best of all sets that lose no more: the
relaxed knapsack's solution, which is whole at these points (Dantzig 1957, "Discrete-Variable Extremum
Problems").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    """The choices on the way from all layers that get faster to none, by falling loss."""
    ranked = sorted((c for c in costs if c.gain > 0), key=lambda c: c.loss / c.gain)
    found: list[Choice] = []
    for count in range(len(ranked), -1, -1):
        names = {c.name for c in ranked[:count]}
        chosen = [c for c in costs if c.name in names]
        loss = sum(c.loss for c in chosen)
        if not found or loss < found[-1].loss:
            found.append(Choice(tuple(c.name for c in chosen), loss, sum(c.gain for c in chosen)))
    return found
