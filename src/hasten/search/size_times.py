"""How long nodes take at the sizes that pruning leaves, from kernels that were measured at some of them.

The whole graph and two with half and a quarter of the units of each group are compiled in the precision that
matters and their kernels timed inside a run. A kernel's time is divided among its nodes by their arithmetic;
between the sizes measured, time is a straight line over a node's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hasten.graph.describe import describe_node
from hasten.passes.prune.remove import remove_units
from hasten.passes.prune.units import Analysis, Group
from hasten.search.data import Feeds
from hasten.search.layer_times import times_by_title
from hasten.search.prune.amounts import tile_of
from hasten.search.prune.cost import Price, flops_by_node, name_of

SHARES = (0.5, 0.25)
"""Of the units of each group that the smaller graphs have."""


@dataclass(frozen=True)
class Point:
    """A node at one size: its arithmetic in floating-point operations, and microseconds."""

    flops: int
    us: float


Points = Mapping[str, Sequence[Point]]


def thinned(model: ir.Model, analysis: Analysis, groups: Sequence[Group], share: float) -> ir.Model:
    """A graph with about a share of the units of each group, whichever: for timing alone."""

    def left(group: Group) -> int:
        tile = tile_of(group)
        return max(tile, round(group.count * share / tile) * tile)

    return remove_units(model, analysis, {g: range(min(g.count, left(g)), g.count) for g in groups})


def node_times(
    artifact: Path, model: ir.Model, sizes: Mapping[str, int], feeds: Feeds, threads: int, cache: Path
) -> dict[str, Point]:
    """The arithmetic and time of the nodes of a graph, by name; without those whose kernel is not known.

    Args:
        artifact: the compiled graph.
        model: the graph before it was quantized.
        sizes: the symbolic sizes that arithmetic is counted at.
        feeds: one sample.
        threads: of a run.
        cache: folder of compiled objects.

    Raises:
        HastenError: as `profile.record`.
    """
    flops = flops_by_node(model, sizes)
    titles = {describe_node(node): name_of(node) for node in model.graph if name_of(node) in flops}
    work = {title: float(flops[name]) for title, name in titles.items()}
    found = times_by_title(artifact, work, feeds, threads, cache)
    return {titles[title]: Point(flops[titles[title]], us) for title, us in found.items()}


def price_from(measured: Sequence[Mapping[str, Point]]) -> Price:
    """Microseconds of a node from its arithmetic.

    A node that was not measured costs what the measured ones of the whole graph cost for their arithmetic.

    Args:
        measured: the nodes of the whole graph, and of thinned ones.
    """
    lines = {name: _line([nodes[name] for nodes in measured if name in nodes]) for name in measured[0]}
    us, flops = (sum(getattr(p, field) for p in measured[0].values()) for field in ("us", "flops"))
    rate = us / flops if flops else 1.0

    def price(name: str, operations: int) -> float:
        line = lines.get(name)
        return rate * operations if line is None else line(operations)

    return price


def _line(points: Sequence[Point]) -> Callable[[int], float]:
    """Time over arithmetic: straight between points, and below the least as between the last two.

    It never falls. Sizes that take longer than larger ones count as long as those.
    """
    ordered = sorted(points, key=lambda p: p.flops)
    x = np.array([float(p.flops) for p in ordered])
    y = np.minimum.accumulate(np.array([p.us for p in ordered])[::-1])[::-1]
    start = 0.0
    if len(x) > 1 and x[1] > x[0]:
        start = max(0.0, y[0] - (y[1] - y[0]) / (x[1] - x[0]) * x[0])
    x, y = np.append(0.0, x), np.append(start, y)
    return lambda flops: float(np.interp(flops, x, y)) if flops else 0.0
