"""The suite's picture: ratios to the best peer, and shares of the machine's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from benchmarks.report import CaseReport, Verdict

# Blue and orange that people with any kind of colour blindness tell apart (Okabe and Ito's palette).
_COLOURS = {"f32": "#0072B2", "bf16": "#E69F00", "int8": "#009E73"}
_RATIOS = (0.4, 5.0)  # the axis; what lies beyond is cut there and has its figure beside it
_TICKS = (0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4)
_LEFTMOST = 2.2  # of ratios whose label has no room on the right
_MOST_SHARE = 1.2  # Winograd and skipped padding do less than the operations that are counted
_BAR = 0.36


@dataclass(frozen=True)
class _Bar:
    """A verdict and the height at which it is drawn."""

    y: float
    verdict: Verdict


def draw(cases: Sequence[CaseReport], machine: str, path: Path) -> None:
    """Draws the figures of the cases to a PNG file.

    On the left, for each case and precision, the best peer's time divided by hasten's, with quartiles, the
    ratio that was asked for as a mark, and a line at 1; on the right the share of peak.
    """
    bars = _bars(cases)
    figure = Figure(figsize=(11, 1.9 + 0.52 * len(cases)), layout="constrained")
    ratios, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_ratios(ratios, bars)
    _draw_shares(shares, bars)
    ratios.set_yticks(range(len(cases)), [case.name for case in cases])
    ratios.set_ylim(len(cases) - 0.45, -0.55)
    for axes in (ratios, shares):
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    used = dict.fromkeys(bar.verdict.precision for bar in bars)
    handles: list[Any] = [
        Patch(color=_COLOURS[precision], label=f"hasten, {precision}") for precision in used
    ]
    handles.append(Line2D([], [], color="black", linewidth=2.2, linestyle="none", marker="|", markersize=12,
                          markeredgewidth=2.2, label="asked"))  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(machine, x=0.01, ha="left", fontsize="medium")
    figure.savefig(path, format="png", dpi=130)


def _bars(cases: Sequence[CaseReport]) -> list[_Bar]:
    bars = []
    for place, case in enumerate(cases):
        count = len(case.verdicts)
        for number, verdict in enumerate(case.verdicts):
            bars.append(_Bar(place + (number - (count - 1) / 2) * _BAR, verdict))
    return bars


def _draw_ratios(axes: Any, bars: Sequence[_Bar]) -> None:
    low, high = _RATIOS
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_title("best peer's time / hasten's (above 1: hasten is faster)", fontsize="medium")
    for bar in bars:
        verdict = bar.verdict
        if verdict.ratio is None:
            axes.text(1.02, bar.y, f"{verdict.precision}: not measured", va="center", fontsize="x-small")
            continue
        ratio = min(max(verdict.ratio.median, low), high)
        axes.barh(bar.y, ratio - 1, height=_BAR * 0.92, left=1, color=_COLOURS[verdict.precision])
        if low < verdict.ratio.low and verdict.ratio.high < high:
            ends = [verdict.ratio.low, verdict.ratio.high]
            axes.plot(ends, [bar.y] * 2, color="#444444", linewidth=1.2, solid_capstyle="butt")
        _mark(axes, bar.y, verdict.goal.ratio, high)
        _label(axes, bar.y, verdict, high)


def _label(axes: Any, y: float, verdict: Verdict, high: float) -> None:
    """The figure and the peer's name, clear of the bar and of the mark."""
    assert verdict.ratio is not None
    beyond = verdict.ratio.median >= high
    text = f"{verdict.ratio.median:.{0 if beyond else 2}f}  {verdict.peer}"
    if verdict.goal.ratio >= high:
        text += f"  (asked {verdict.goal.ratio:g})"
    right = max(1.0, verdict.ratio.high, verdict.goal.ratio if verdict.goal.ratio < high else 1.0)
    if beyond or right > _LEFTMOST:
        axes.text(0.97, y, text, ha="right", va="center", fontsize="x-small")
    else:
        axes.text(right * 1.03, y, text, va="center", fontsize="x-small")


def _draw_shares(axes: Any, bars: Sequence[_Bar]) -> None:
    axes.set_xlim(0, _MOST_SHARE)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_title("hasten's share of the machine's peak", fontsize="medium")
    for bar in bars:
        verdict = bar.verdict
        if verdict.share is None:
            continue
        share = min(verdict.share, _MOST_SHARE)
        axes.barh(bar.y, share, height=_BAR * 0.92, color=_COLOURS[verdict.precision])
        if verdict.goal.share is not None:
            _mark(axes, bar.y, verdict.goal.share, _MOST_SHARE)
        inside = share > 0.15
        axes.text(
            0.015 if inside else share + 0.01,
            bar.y,
            f"{verdict.share:.0%}",
            va="center",
            fontsize="x-small",
            color="white" if inside and verdict.precision == "f32" else "black",
        )


def _mark(axes: Any, y: float, value: float, most: float) -> None:
    """What was asked, where it is on the axis."""
    if value < most:
        axes.plot(
            [value] * 2, [y - _BAR / 2, y + _BAR / 2], color="black", linewidth=2.2, solid_capstyle="butt"
        )
