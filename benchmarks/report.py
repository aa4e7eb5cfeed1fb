"""Figures of the suite: who the best peer was, what was reached of what was asked, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import Figure, Goal
from benchmarks.losses import Losses, told
from hasten.search.engines import HASTEN, HASTEN_BF16, HASTEN_INT8, Precision
from hasten.search.measure import Measurement, Result, Spread

OWN = {"f32": HASTEN.name, "bf16": HASTEN_BF16.name, "int8": HASTEN_INT8.name}


@dataclass(frozen=True)
class Verdict:
    """hasten against its peers in one case and one precision.

    Attributes:
        precision: of hasten's arithmetic.
        goal: what was asked.
        problem: why hasten has no figures; None if it has.
        peer: the best peer's name, of those that compute in this precision or a wider one. None if no peer
            ran.
        ratio: that peer's time divided by hasten's, of a run or of opening.
        gflops: 10**9 operations per second that hasten achieved; None if they could not be counted.
        share: of the machine's peak in this precision, in the same rounds; None if either is unknown.
    """

    precision: Precision
    goal: Goal
    problem: str | None
    peer: str | None = None
    ratio: Spread | None = None
    gflops: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class CaseReport:
    """All figures of a case.

    Attributes:
        name: of the case.
        figure: what the ratios are about: a run, or opening the model.
        shapes: of the inputs.
        gflop: 10**9 operations of a run, padding counted; None if they could not be counted.
        peaks: the machine's peak in 10**9 operations per second, by precision.
        busy_cores: cores that other programs used just before; figures of a busy machine mean
            little.
        compile_seconds: by engine, hasten's with an empty cache.
        verdicts: by precision.
        measurement: the engines' figures.
        losses: where hasten's time goes beyond the peak, by precision.
    """

    name: str
    figure: Figure
    shapes: Mapping[str, tuple[int, ...]]
    gflop: float | None
    peaks: Mapping[str, Spread]
    busy_cores: float
    compile_seconds: Mapping[str, float]
    verdicts: tuple[Verdict, ...]
    measurement: Measurement
    losses: Mapping[str, Losses] = field(default_factory=dict)


def judge(
    found: Measurement,
    goals: Mapping[Precision, Goal],
    figure: Figure,
    gflop: float | None,
    peaks: Mapping[str, Spread],
) -> tuple[Verdict, ...]:
    """Compares hasten with the best peer in each precision that was asked for."""
    return tuple(_judge(found, precision, goal, figure, gflop, peaks) for precision, goal in goals.items())


def _judge(
    found: Measurement,
    precision: Precision,
    goal: Goal,
    figure: Figure,
    gflop: float | None,
    peaks: Mapping[str, Spread],
) -> Verdict:
    own = next((result for result in found.results if result.engine == OWN[precision]), None)
    if own is None:
        return Verdict(precision, goal, found.failures.get(OWN[precision], "it was not asked for"))
    peer = best_peer(found.results, own, figure)
    gflops = None if gflop is None else gflop / own.run_ms.median * 1e3
    peak = peaks.get(precision)
    return Verdict(
        precision,
        goal,
        None,
        peer=None if peer is None else peer.engine,
        ratio=None if peer is None else _ratio(peer, own, figure),
        gflops=gflops,
        share=None if gflops is None or peak is None else gflops / peak.median,
    )


def best_peer(results: Iterable[Result], own: Result, figure: Figure) -> Result | None:
    """The peer with the least time compared with hasten's, of those in its precision or a wider one."""
    widest_first = list(OWN)
    allowed = widest_first[: widest_first.index(own.precision) + 1]
    rivals = [r for r in results if r.engine not in OWN.values() and r.precision in allowed]
    return min(rivals, key=lambda peer: _ratio(peer, own, figure).median, default=None)


def _ratio(peer: Result, own: Result, figure: Figure) -> Spread:
    return peer.load_ratio_to(own) if figure == "load" else peer.ratio_to(own)


def _ms(result: Result, figure: Figure) -> float:
    return result.load_ms if figure == "load" else result.run_ms.median


def outcome(verdict: Verdict) -> str:
    """Whether what was asked was reached, or by how much it was missed."""
    if verdict.ratio is None:
        return ""
    parts = [_compared(verdict.ratio.median, verdict.goal.ratio)]
    if verdict.goal.share is not None and verdict.share is not None:
        parts.append(f"share {_compared(verdict.share, verdict.goal.share)}")
    return "; ".join(dict.fromkeys(parts))


def _compared(value: float, wanted: float) -> str:
    return "reached" if value >= wanted else f"missed by {1 - value / wanted:.1%}"


def summary(cases: Sequence[CaseReport]) -> str:
    """A line for each case and precision: hasten, its best peer, and what was asked."""
    header = (
        "case", "precision", "hasten ms", "best peer", "its ms", "ratio [quartiles]", "asked", "outcome",
        "GFLOP/s", "of peak", "peer of peak", "load ms", "first answer ms", "peak MB", "file MB", "compile s",
        "where the rest goes, of a run",
    )  # fmt: skip
    return _markdown(header, [_summary_cells(case, v) for case in cases for v in case.verdicts], text=4)


def _summary_cells(case: CaseReport, verdict: Verdict) -> list[str]:
    results = {result.engine: result for result in case.measurement.results}
    name = OWN[verdict.precision]
    goal = f"{verdict.goal.ratio:g}" + (f", {verdict.goal.share:.0%} of peak" if verdict.goal.share else "")
    start = [case.name, verdict.precision]
    if verdict.problem is not None:
        return [*start, f"not measured: {verdict.problem}", "", "", "", goal, *[""] * 10]
    own, lost = results[name], case.losses.get(verdict.precision)
    peer = None if verdict.peer is None else results[verdict.peer]
    return [
        *start,
        f"{_ms(own, case.figure):.4g}",
        "" if peer is None else peer.engine,
        "" if peer is None else f"{_ms(peer, case.figure):.4g}",
        "" if verdict.ratio is None else with_quartiles(verdict.ratio),
        goal,
        outcome(verdict),
        "" if verdict.gflops is None else f"{verdict.gflops:.3g}",
        "" if verdict.share is None else f"{verdict.share:.1%}",
        "" if (rest := peer and _share(case, peer, verdict.precision)) is None else f"{rest:.1%}",
        *_costs(own),
        "" if name not in case.compile_seconds else f"{case.compile_seconds[name]:.1f}",
        "" if lost is None else told(lost, own.run_ms.median),
    ]


def engines(cases: Sequence[CaseReport]) -> str:
    """Two tables with a line for each case and a column for each engine, and why figures are missing.

    The first has an engine's time divided by hasten's in the engine's own precision, and its share of the
    peak; the second the milliseconds from opening to the first answer, and the memory of such a process.
    """
    versions = {r.engine: r.version for case in cases for r in case.measurement.results}
    tables = [_by_engine(cases, versions, cell) for cell in (_speed, _first_answer)]
    reasons = [
        f"- {case.name}, {name}: {reason}"
        for case in cases
        for name, reason in case.measurement.failures.items()
    ]
    return "\n\n".join([*tables, *(["Not measured:\n\n" + "\n".join(reasons)] if reasons else [])])


def _by_engine(
    cases: Sequence[CaseReport], versions: Mapping[str, str], cell: Callable[[CaseReport, Result], str]
) -> str:
    lines = []
    for case in cases:
        results = {result.engine: result for result in case.measurement.results}
        lines.append([case.name, *(cell(case, results[n]) if n in results else "" for n in versions)])
    return _markdown(["case", *(f"{n} {v}" for n, v in versions.items())], lines, text=1)


def _speed(case: CaseReport, result: Result) -> str:
    own = next((r for r in case.measurement.results if r.engine == OWN[result.precision]), None)
    if own is None or own is result:
        time = f"{_ms(result, case.figure):.4g} ms"
    else:
        time = _ratio_text(_ratio(result, own, case.figure).median)
    share = _share(case, result, result.precision)
    return time if share is None else f"{time}, {share:.0%}"


def _share(case: CaseReport, result: Result, precision: Precision) -> float | None:
    """What an engine reaches of the peak in a precision: no ratio to it can be above the reciprocal."""
    peak = case.peaks.get(precision)
    if case.gflop is None or peak is None:
        return None
    return case.gflop / result.run_ms.median * 1e3 / peak.median


def _first_answer(_case: CaseReport, result: Result) -> str:
    time = f"{result.load_ms + result.first_ms:.4g} ms"
    return time if result.peak_mb is None else f"{time}, {result.peak_mb:.0f} MB"


def _costs(result: Result) -> list[str]:
    return [
        f"{result.load_ms:.3g}",
        f"{result.load_ms + result.first_ms:.3g}",
        "" if result.peak_mb is None else f"{result.peak_mb:.0f}",
        f"{result.file_mb:.3g}" if result.file_mb else "",
    ]


def with_quartiles(spread: Spread) -> str:
    """The median and the quartiles, three digits at least."""
    middle, low, high = (_ratio_text(n, spread.median) for n in (spread.median, spread.low, spread.high))
    return f"{middle} [{low}, {high}]"


def _ratio_text(ratio: float, beside: float = 0.0) -> str:
    """Two digits behind the point, or none where it, or what stands beside it, is 100 or more."""
    return f"{ratio:.{2 if max(ratio, beside) < 100 else 0}f}"


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, text: int) -> str:
    """A table; the first columns are text, the others numbers. A bar within a cell would end it."""
    ruler = f"|{'---|' * text}{'---:|' * (len(header) - text)}"
    shown = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(header)} |", ruler, *shown])
