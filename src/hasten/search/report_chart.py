"""The picture of a search: drop against latency, as SVG with the colours of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hasten.search.measure import Spread
from hasten.search.record import CandidateRecord, Outcome

_HEIGHT_OF_TEXT = 13


@dataclass(frozen=True)
class Point:
    """A candidate in the picture; drops in the unit of the axis.

    Attributes:
        number: that stands for it in tables too.
        candidate: what it is.
        drop: measured on the held-out part, or else on the calibration part.
        upper: the bound; None if it was not tested.
    """

    number: int
    candidate: CandidateRecord
    drop: float
    upper: float | None


@dataclass(frozen=True)
class Axis:
    """A linear axis from values to pixels, and where it has marks."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Where a value is, in pixels."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def marks(self, most: int) -> list[float]:
        """Round values, at most so many."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(step * f for f in (1, 2, 2.5, 5, 10, 20) if (self.high - self.low) / (step * f) <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def pareto(points: Sequence[Point], budget: float, unit: str, width: int, height: int) -> str:
    """Drop against latency: a mark for each candidate, a line up to its bound, the budget.

    Args:
        points: those with a latency and a drop.
        budget: the drop allowed, in the unit of the axis.
        unit: of drops.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Returns:
        An `<svg>` element.
    """
    slowest = max([_latency(p).high for p in points], default=1.0)
    x = Axis(0, slowest * 1.08 or 1.0, 56, width - 16)
    y = Axis(*_drops(points, budget), height - 44, 26)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Drop against latency of {len(points)} '
        f'candidates; the budget is {budget:.3g} {escape(unit)}">'
    ]
    parts += _frame(x, y, unit, width, height)
    line = y(budget)
    parts.append(
        f'<rect class="over" x="{x.start:g}" y="{y.stop:g}" width="{x.stop - x.start:g}" '
        f'height="{line - y.stop:.1f}"/>'
    )
    parts.append(f'<line class="budget" x1="{x.start:g}" x2="{x.stop:g}" y1="{line:.1f}" y2="{line:.1f}"/>')
    parts.append(
        f'<text class="budget-label" x="{x.stop - 4:g}" y="{line - 6:.1f}" text-anchor="end">'
        f"budget {budget:.3g} {escape(unit)}</text>"
    )
    # The chosen one last, so that nothing covers it.
    ordered = sorted(points, key=lambda p: p.candidate.outcome is Outcome.CHOSEN)
    parts += [_mark(p, x, y) for p in ordered]
    parts += _labels(ordered, x, y)
    parts.append("</svg>")
    return "\n".join(parts)


def _latency(point: Point) -> Spread:
    assert point.candidate.latency_ms is not None
    return point.candidate.latency_ms


def _drops(points: Sequence[Point], budget: float) -> tuple[float, float]:
    """The range of the drops that are shown: what is far over the budget stands at the upper edge."""
    found = [
        value for p in points for value in (p.drop, p.upper) if value is not None and math.isfinite(value)
    ]
    scale = max(abs(budget), 1e-9)
    high = min(max([*found, budget * 1.5]), budget + 1.2 * scale)
    low = max(min([*found, 0.0]), -1.2 * scale)
    room = (high - low) * 0.08 or 1.0
    return low - room, high + room


def _frame(x: Axis, y: Axis, unit: str, width: int, height: int) -> list[str]:
    parts = []
    for value in y.marks(6):
        place = y(value)
        kind = "zero" if abs(value) < 1e-12 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{x.start:g}" x2="{x.stop:g}" y1="{place:.1f}" y2="{place:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x.start - 8:g}" y="{place + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value in x.marks(max(3, width // 110)):
        place = x(value)
        parts.append(
            f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{y.stop:g}" y2="{y.start:g}"/>'
        )
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{y.start + 18:g}" text-anchor="middle">{value:.3g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{x.stop:g}" y="{height - 6}" text-anchor="end">latency of one sample, '
        f"ms</text>"
    )
    parts.append(f'<text class="axis" x="4" y="14">drop, {escape(unit)}</text>')
    return parts


def _mark(point: Point, x: Axis, y: Axis) -> str:
    """A candidate: quartiles of its latency, the line up to its bound, and a mark."""
    spread, candidate = _latency(point), point.candidate
    at, level = x(spread.median), y(_shown(point.drop, y))
    tone = tone_of(candidate)
    parts = [f'<g class="{tone}"><title>{escape(_title(point))}</title>']
    parts.append(
        f'<line class="spread" x1="{x(spread.low):.1f}" x2="{x(spread.high):.1f}" y1="{level:.1f}" '
        f'y2="{level:.1f}"/>'
    )
    if point.upper is not None:
        top = y(_shown(point.upper, y))
        parts.append(f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{level:.1f}" y2="{top:.1f}"/>')
        if point.upper <= y.high:
            parts.append(
                f'<line class="bound" x1="{at - 5:.1f}" x2="{at + 5:.1f}" y1="{top:.1f}" y2="{top:.1f}"/>'
            )
        else:
            parts.append(_arrow(at, top))
    if point.drop > y.high:
        parts.append(_arrow(at, level))
    elif candidate.outcome is Outcome.BASELINE:
        parts.append(
            f'<rect class="mark" x="{at - 5:.1f}" y="{level - 5:.1f}" width="10" height="10" rx="2"/>'
        )
    else:
        sure = point.upper is not None or candidate.outcome is Outcome.CHOSEN
        tested = "mark" if sure else "mark hollow"
        radius = 7 if candidate.outcome is Outcome.CHOSEN else 5
        parts.append(f'<circle class="{tested}" cx="{at:.1f}" cy="{level:.1f}" r="{radius}"/>')
    return "".join([*parts, "</g>"])


def _arrow(at: float, top: float) -> str:
    left, right, foot = at - 6, at + 6, top + 8
    path = f"M{left:.1f} {foot:.1f}L{at:.1f} {top - 2:.1f}L{right:.1f} {foot:.1f}Z"
    return f'<path class="mark" d="{path}"/>'


def _shown(drop: float, y: Axis) -> float:
    room = (y.high - y.low) * 0.02
    return min(max(drop, y.low + room), y.high - room)


def _labels(points: Sequence[Point], x: Axis, y: Axis) -> list[str]:
    """Numbers beside the marks, moved down or up until none covers another; names for the important ones."""
    taken = [  # left, right, y: first the marks themselves
        (x(_latency(p).low) - 8, x(_latency(p).high) + 8, y(_shown(p.drop, y)) + 4) for p in points
    ]
    parts = []
    for p in reversed(points):  # the chosen one has the first choice of place
        important = p.candidate.outcome in (Outcome.CHOSEN, Outcome.BASELINE)
        text = f"{p.number} {p.candidate.name}" if important else str(p.number)
        if p.drop > y.high:
            text += f" ({p.drop:.3g})"
        level = y(_shown(p.drop, y))
        start, end = (x(v) + side for v, side in ((_latency(p).low, -10), (_latency(p).high, 10)))
        wide = 7 * len(text) + 6
        right_end = end + wide > x.stop
        left = start - wide if right_end else end
        place = level + 4
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4):
            place = level + 4 + step * _HEIGHT_OF_TEXT
            free = all(left > b or left + wide < a or abs(place - c) >= _HEIGHT_OF_TEXT for a, b, c in taken)
            if free and y.stop < place < y.start:
                break
        taken.append((left, left + wide, place))
        anchor, place_x = ("end", start) if right_end else ("start", end)
        parts.append(
            f'<text class="label {tone_of(p.candidate)}" x="{place_x:.1f}" y="{place:.1f}" '
            f'text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )
    return parts


def _title(point: Point) -> str:
    spread, c = _latency(point), point.candidate
    bound = "not tested on held-out samples" if point.upper is None else f"at most {point.upper:.3g}"
    time = f"{spread.median:.3g} ms ({spread.low:.3g} to {spread.high:.3g})"
    return f"{c.name}: {time}, drop {point.drop:.3g}, {bound}"


def tone_of(candidate: CandidateRecord) -> str:
    """The class of the style sheet for what became of a candidate."""
    return {
        Outcome.CHOSEN: "chosen",
        Outcome.CERTIFIED: "good",
        Outcome.BASELINE: "base",
        Outcome.NOT_CERTIFIED: "bad",
        Outcome.OVER_BUDGET: "bad",
        Outcome.FAILED: "bad",
    }.get(candidate.outcome, "idle")
