"""The picture of what was predicted: loss against latency, curves beside measured candidates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from hasten.passes.prune.layers import LAYERS
from hasten.search.record import CandidateRecord, SearchRecord
from hasten.search.report_chart import Axis, tone_of

Line = list[tuple[float, float]]
"""Milliseconds and loss, by rising time."""

_LEAST = 1e-9


def predicted(record: SearchRecord, width: int, height: int) -> str:
    """An `<svg>` element with logarithmic losses; empty where nothing was predicted or measured."""
    tried = [
        (number, c)
        for number, c in enumerate(record.candidates, 1)
        if c.latency_ms is not None and c.loss is not None and _LEAST < c.loss < math.inf
    ]
    lines = {kind: line for kind, line in (("int8", mixtures(record)), ("pruned", amounts(record))) if line}
    if not tried or not lines:
        return ""
    points = [
        (c.latency_ms.median, c.loss) for _, c in tried if c.latency_ms is not None and c.loss is not None
    ]
    everything = [*points, *(point for line in lines.values() for point in line)]
    x = Axis(0, max(ms for ms, _ in everything) * 1.08, 56, width - 16)
    low, high = (extreme(math.log10(loss) for _, loss in everything) for extreme in (min, max))
    y = Axis(math.floor(low), math.ceil(high + 0.1), height - 44, 26)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Loss against latency: predicted '
        f'curves and {len(tried)} candidates">',
        *_frame(x, y, width, height),
    ]
    for kind, line in lines.items():
        path = " ".join(f"{x(ms):.1f},{y(math.log10(loss)):.1f}" for ms, loss in line)
        parts.append(f'<polyline class="curve {kind}" points="{path}"/>')
    for (number, c), (ms, loss) in zip(tried, points, strict=True):
        at, level = x(ms), y(math.log10(loss))
        parts.append(
            f'<g class="{tone_of(c)}"><title>{escape(c.name)}: {ms:.3g} ms, loss {loss:.2g}</title>'
            f'<circle class="mark" cx="{at:.1f}" cy="{level:.1f}" r="4"/></g>'
            f'<text class="label {tone_of(c)}" x="{at + 8:.1f}" y="{level + 4:.1f}">{number}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def mixtures(record: SearchRecord) -> Line:
    """The curve of layers in int8."""
    return sorted((p.us / 1e3, p.loss) for p in record.curve if _LEAST < p.loss < math.inf)


def amounts(record: SearchRecord) -> Line:
    """The curve of pruning, in the losses that candidates were measured with.

    The criterion's own numbers are of another kind: they are multiplied by what makes them agree with the
    pruned candidates, in the median, and added to the loss of the candidate whose precision those have.
    """
    curve = sorted((p.us / 1e3, p.loss) for p in record.prune_curve)
    pruned = [c for c in record.candidates if _lost_units_alone(c) and c.latency_ms is not None]
    if not curve or not pruned:
        return []
    base = _unpruned(record, pruned[0]) or 0.0
    ms, losses = zip(*curve, strict=True)
    factors = []
    for c in pruned:
        assert c.latency_ms is not None
        expected = float(np.interp(c.latency_ms.median, ms, losses))
        if c.loss is not None and math.isfinite(c.loss) and c.loss > base and expected > 0:
            factors.append((c.loss - base) / expected)
    if not factors:
        return []
    factor = statistics.median(factors)
    return [(t, base + factor * loss) for t, loss in curve if base + factor * loss > _LEAST]


def _lost_units_alone(candidate: CandidateRecord) -> bool:
    """Whether a candidate is pruned and has all layers, as the curve supposes."""
    layers = [cut for cut in candidate.cuts if cut.unit == LAYERS]
    return candidate.flops is not None and all(cut.after for cut in layers)


def _unpruned(record: SearchRecord, pruned: CandidateRecord) -> float | None:
    """The loss of the candidate of the whole graph with the precisions of a pruned one."""
    for c in record.candidates:
        same = (c.engine, c.precision, c.quantized, c.calibration)
        of = (pruned.engine, pruned.precision, pruned.quantized, pruned.calibration)
        if c.flops is None and c.name != "original" and same == of:
            return c.loss
    return None


def _frame(x: Axis, y: Axis, width: int, height: int) -> Sequence[str]:
    parts = []
    for exponent in range(round(y.low), round(y.high) + 1):
        place, text = y(exponent), f"{10.0**exponent:g}"
        parts.append(
            f'<line class="grid" x1="{x.start:g}" x2="{x.stop:g}" y1="{place:.1f}" y2="{place:.1f}"/>'
            f'<text class="tick" x="{x.start - 8:g}" y="{place + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for value in x.marks(max(3, width // 110)):
        at = f"{x(value):.1f}"
        parts.append(
            f'<line class="grid" x1="{at}" x2="{at}" y1="{y.stop:g}" y2="{y.start:g}"/>'
            f'<text class="tick" x="{at}" y="{y.start + 18:g}" text-anchor="middle">{value:.3g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{x.stop:g}" y="{height - 6}" text-anchor="end">latency of one sample, '
        "ms</text>"
        '<text class="axis" x="4" y="14">loss</text>'
    )
    return parts
