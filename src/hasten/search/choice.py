"""Which layers to quantize, and to which format: a curve of time against loss.

Losses of layers add up (they are small and nearly independent), and so do times. For each layer the formats
that are worth it are the corners of the lower convex hull of loss over gain; each is a step from the one
before. Steps are taken in order of loss for time. Each choice on the way is the best of all that lose no
more: the solution of the relaxed knapsack with several choices for each thing, which is whole at these points
(Sinha and Zoltners 1979, "The Multiple-Choice Knapsack Problem").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hasten.search.formats import Format


@dataclass(frozen=True)
class LayerCost:
    """What a format of one layer changes.

    Attributes:
        name: of the layer.
        format: which.
        loss: that it adds.
        gain: microseconds that a run gets shorter; below zero if it gets longer.
    """

    name: str
    format: Format
    loss: float
    gain: float


@dataclass(frozen=True)
class Choice:
    """Formats of layers.

    Attributes:
        formats: of those that are quantized, by name, in the order of the graph.
        loss: predicted.
        gain: predicted microseconds.
    """

    formats: Mapping[str, Format]
    loss: float
    gain: float


def curve(costs: Sequence[LayerCost]) -> list[Choice]:
    """The choices on the way from the fastest formats of all layers to none, by falling loss."""
    names = list(dict.fromkeys(c.name for c in costs))
    steps = [s for name in names for s in _steps([c for c in costs if c.name == name])]
    steps.sort(key=lambda step: step[0])  # stable: steps of one layer stay in order
    taken: dict[str, LayerCost] = {}
    found = [Choice({}, 0.0, 0.0)]
    for _, cost in steps:
        taken[cost.name] = cost
        chosen = [taken[name] for name in names if name in taken]
        loss, gain = sum(c.loss for c in chosen), sum(c.gain for c in chosen)
        if loss <= found[-1].loss:
            found.pop()  # faster and no worse
        found.append(Choice({c.name: c.format for c in chosen}, loss, gain))
    return found[::-1]


def _steps(options: Sequence[LayerCost]) -> Iterator[tuple[float, LayerCost]]:
    """The formats of a layer that are worth it, by rising gain, with their loss for time beyond the last."""
    loss = gain = 0.0
    left = [o for o in options if o.gain > 0]
    while left:
        best = min(left, key=lambda o: ((o.loss - loss) / (o.gain - gain), -o.gain))
        yield (best.loss - loss) / (best.gain - gain), best
        loss, gain = best.loss, best.gain
        left = [o for o in left if o.gain > gain]
