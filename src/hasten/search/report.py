"""A search's record as one HTML file that needs nothing else, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from hasten.search.finite import finite
from hasten.search.formats import FORMATS
from hasten.search.measure import Spread
from hasten.search.record import CandidateRecord, LayerRecord, Outcome, SearchRecord
from hasten.search.report_chart import Point, pareto, tone_of
from hasten.search.report_curve import amounts, predicted
from hasten.search.report_page import in_a_row, notes_section, page, tile
from hasten.search.report_pruning import removed

_MANY = 40  # layers: more are folded away at first
_IN_POINTS = frozenset({"accuracy", "top5", "f1", "mcc", "spearman", "agreement"})


@dataclasses.dataclass(frozen=True)
class Unit:
    """How drops are said.

    Attributes:
        name: of the unit.
        factor: units in a drop of 1.
    """

    name: str
    factor: float

    def of(self, metric: str) -> str:
        """What drops are in."""
        return metric if self.factor == 1 else f"{self.name} of {metric}"

    def __call__(self, drop: float | None) -> str:
        """A drop without its unit."""
        return "-" if drop is None else f"{drop * self.factor:.3g}" if math.isfinite(drop) else "unbounded"


def unit_of(metric: str) -> Unit:
    """Points, which are hundredths, for a metric that is a share or a coefficient; else the metric itself."""
    return Unit("points", 100) if metric in _IN_POINTS else Unit(metric, 1)


def to_json(record: SearchRecord) -> str:
    """The record as JSON, with the field names of `SearchRecord`; null for what is not finite."""
    return json.dumps(finite(dataclasses.asdict(record)), indent=2, allow_nan=False) + "\n"


def to_html(record: SearchRecord) -> str:
    """The record as a page: the picture, what was tried and why it was refused, layers, and how to repeat it.

    It is one file without scripts that opens from disk, in light and dark, on wide and narrow screens.
    """
    unit = unit_of(record.metric)
    sections = (
        _header(record),
        _tiles(record, unit),
        _picture(record, unit),
        _predicted(record),
        _notes(record),
        _candidates(record, unit),
        removed(record),
        _layers(record),
        _origin(record, unit),
    )
    return page(f"hasten: {record.model}", sections)


def _header(record: SearchRecord) -> str:
    headline, began = record.headline, record.started[:16].replace("T", " ")
    if not headline.startswith(record.chosen):  # a candidate's name stays as it is
        headline = headline[:1].upper() + headline[1:]
    return (
        f"<header><b>hasten</b><span>{escape(record.model)}</span><span>{escape(began)} "
        f"UTC</span></header>\n<h1>{escape(headline)}</h1>"
    )


def _tiles(record: SearchRecord, unit: Unit) -> str:
    chosen, before = _find(record, record.chosen), _find(record, "original") or _find(record, "lossless")
    if chosen is None:
        return ""
    tiles = []
    if chosen.to_original is not None:
        against = "the original" + (f" ({record.original})" if record.original else "")
        tiles.append(_speed(chosen.to_original, against))
    elif chosen.to_lossless is not None:
        tiles.append(_speed(chosen.to_lossless, "the lossless compilation"))
    if chosen.latency_ms is not None:
        earlier = (
            "" if before is None or before.latency_ms is None else f"from {before.latency_ms.median:.3g}; "
        )
        value = f"{chosen.latency_ms.median:.3g} <small>ms</small>"
        tiles.append(tile("Latency, one sample", value, f"{earlier}quartiles {_range(chosen.latency_ms)}"))
    budget = f"budget {unit(record.max_drop)}"
    if chosen.bound is not None:
        stated = chosen.bound.upper if record.stated is None else record.stated
        value = f"{unit(chosen.bound.measured)} <small>{escape(unit.name)}</small>"
        certain = f"at most {unit(stated)} at {record.confidence:.0%}; {budget}"
    elif chosen.drop:
        value = f"{unit(chosen.drop)} <small>{escape(unit.name)}</small>"
        certain = f"on the calibration samples, not certified; {budget}"
    else:
        value, certain = "none", f"the same answers; {budget} {unit.name}"
    tiles.append(tile(f"Drop in {record.metric}", value, certain))
    for name, count, earlier_count in (
        ("Size", chosen.bytes, before.bytes if before else None),
        ("Memory, opened and run", chosen.memory, before.memory if before else None),
    ):
        if count is not None:
            number, suffix = _bytes(count).split()
            more = "" if earlier_count is None else f"from {_bytes(earlier_count)}"
            tiles.append(tile(name, f"{number} <small>{suffix}</small>", more))
    return in_a_row(tiles)


def _speed(ratio: Spread, against: str) -> str:
    return tile("Speed", f"{ratio.median:.2f} <small>×</small>", f"{against}; quartiles {_range(ratio)}")


def _picture(record: SearchRecord, unit: Unit) -> str:
    points = []
    for number, c in enumerate(record.candidates, 1):
        exact = 0.0 if c.outcome is Outcome.BASELINE or c.name == "lossless" else None
        drop = c.bound.measured if c.bound is not None else c.drop if c.drop is not None else exact
        if c.latency_ms is not None and drop is not None:
            upper = None if c.bound is None else c.bound.upper * unit.factor
            points.append(Point(number, c, drop * unit.factor, upper))
    if not points:
        return ""
    budget = record.max_drop * unit.factor
    wide = pareto(points, budget, unit.name, 1060, 430).replace("<svg", '<svg class="wide"', 1)
    narrow = pareto(points, budget, unit.name, 390, 340).replace("<svg", '<svg class="narrow"', 1)
    key = (
        ("chosen", "●", "returned"),
        ("good", "●", "certified within the budget"),
        ("bad", "●", "refused"),
        ("idle", "○", "measured on calibration samples alone"),
        ("base", "■", "baseline"),
    )
    return (
        "<section><h2>What was found</h2>"
        f'<p class="lead">Each mark is a version of the model: the lower, the closer to the original; the '
        f"further left, the "
        f"faster. A line upward ends at the most that the drop can be with {record.confidence:.0%} "
        f"confidence; a line "
        "across spans the quartiles of the latency. Numbers are those of the table below.</p>"
        f"{wide}{narrow}"
        '<ul class="key">'
        + "".join(f'<li><i class="{tone}">{sign}</i>{text}</li>' for tone, sign, text in key)
        + "</ul>"
        "</section>"
    )


def _predicted(record: SearchRecord) -> str:
    wide, narrow = predicted(record, 1060, 300), predicted(record, 390, 280)
    if not wide:
        return ""
    wide, narrow = (
        svg.replace("<svg", f'<svg class="{kind}"', 1) for svg, kind in ((wide, "wide"), (narrow, "narrow"))
    )
    keys = [("good", "formats of layers, chosen by loss for time")]
    if amounts(record):
        keys.append(("chosen", "units removed, in losses that fit the measured ones"))
    return (
        "<section><h2>What was predicted</h2>"
        '<p class="lead">Curves are what the search expected from the losses and times of single layers; '
        "marks are what was measured of whole candidates. Loss is the mean squared change of the outputs by "
        "their variance, on a logarithmic scale.</p>"
        f"{wide}{narrow}"
        '<ul class="key">'
        + "".join(f'<li><i class="{tone}">—</i>{text}</li>' for tone, text in keys)
        + "</ul></section>"
    )


def _notes(record: SearchRecord) -> str:
    notes = list(record.notes)
    if record.interrupted:
        notes.insert(
            0, "the search was cut short: what is returned is the best that was certified until then"
        )
    if record.samples_needed is not None:
        notes.append(
            f"about {record.samples_needed:,} held-out samples would certify this budget; there were "
            f"{record.data.held_out:,}"
        )
    return notes_section(dict.fromkeys(notes))


Cell = tuple[str, str, str]
"""Class, heading and content of a cell; the content is HTML."""


def _candidates(record: SearchRecord, unit: Unit) -> str:
    if not record.candidates:
        return ""
    slowest = max((c.latency_ms.median for c in record.candidates if c.latency_ms is not None), default=1.0)
    rows = [
        (_candidate(number, c, record, unit, slowest), "is-chosen" if c.name == record.chosen else "")
        for number, c in enumerate(record.candidates, 1)
    ]
    return (
        "<section><h2>What was tried</h2>"
        f'<p class="lead">Drops are in {escape(unit.of(record.metric))}, positive where the candidate is '
        "worse. The held-out samples were used for nothing but the last column of drops.</p>"
        f'<div class="scroll">{_table(rows, "cards")}</div></section>'
    )


def _candidate(
    number: int, c: CandidateRecord, record: SearchRecord, unit: Unit, slowest: float
) -> list[Cell]:
    counts = Counter(c.formats.get(name, "int8") for name in c.quantized)
    layers = ", ".join(f"{form}: {count} of {len(record.layers)}" for form, count in counts.items())
    layers = f"{layers} layers; rest {c.precision}" if counts else c.precision
    latency = "-"
    if c.latency_ms is not None:
        share = 100 * c.latency_ms.median / slowest
        latency = (
            f"<span>{c.latency_ms.median:.3g}<small>{_range(c.latency_ms)}</small></span>"
            f'<span class="bar"><i style="width:{share:.0f}%"></i></span>'
        )
    held_out = "-"
    if c.bound is not None:
        held_out = f"<span>{unit(c.bound.measured)}<small>at most {unit(c.bound.upper)}</small></span>"
    return [
        ("number n", "", str(number)),
        ("what", "candidate", f"<b>{escape(c.name)}</b><small>{escape(c.description)}</small>"),
        ("", "runs on", f"<span>{escape(c.engine)}<small>{escape(layers)}</small></span>"),
        ("n", "latency, ms", latency),
        ("n", "speed", _ratio(c.to_original)),
        ("n", "drop, calibration", unit(c.drop)),
        ("n", "drop, held out", held_out),
        ("n", "size", "-" if c.bytes is None else _bytes(c.bytes)),
        ("n", "memory", "-" if c.memory is None else _bytes(c.memory)),
        (
            "why",
            "outcome",
            f'<span class="pill '
            f'{tone_of(c)}">{escape(c.outcome.value)}</span><small>{escape(c.reason)}</small>',
        ),
    ]


def _layers(record: SearchRecord) -> str:
    if not record.layers:
        return ""
    known = (*FORMATS, "bf16", "f32")
    judged = [p for p in known if any(p in layer.sensitivity for layer in record.layers)]
    timed = [p for p in known if any(p in layer.us for layer in record.layers)]
    losses = [v for x in record.layers for v in x.sensitivity.values() if 0 < v < math.inf]
    rows = [(_layer(layer, judged, timed, losses), "") for layer in record.layers]
    table = f'<div class="scroll">{_table(rows, "dense")}</div>'
    if len(rows) > _MANY:
        table = f"<details><summary>All {len(rows)} layers</summary>{table}</details>"
    kept = sum(layer.precision in FORMATS for layer in record.layers)
    return (
        f'<section><h2>Layers</h2><p class="lead">{kept} of {len(record.layers)} are quantized in what is '
        f"returned. Sensitivity is the "
        "mean squared change of the outputs, by their variance, when the layer alone has that precision "
        "(bars are "
        "logarithmic); multiplications and time are those of the layer in a run of one sample.</p>"
        f"{table}</section>"
    )


def _layer(
    layer: LayerRecord, judged: Sequence[str], timed: Sequence[str], losses: Sequence[float]
) -> list[Cell]:
    tone = "chosen" if layer.precision in FORMATS else "good" if layer.precision == "bf16" else "base"
    cells: list[Cell] = [
        ("what", "layer", f"{escape(layer.name)} <small>{escape(layer.operator)}</small>"),
        ("", "precision", f'<span class="pill {tone}">{escape(layer.precision)}</span>'),
        ("n", "M multiplications", "-" if layer.macs is None else _figure(layer.macs / 1e6)),
    ]
    for precision in judged:
        loss = layer.sensitivity.get(precision)
        bar = f'<span class="bar"><i style="width:{_log_share(loss or 0.0, losses):.0f}%"></i></span>'
        cells.append(("n", f"sensitivity, {precision}", "-" if loss is None else f"{loss:.2g}{bar}"))
    for precision in timed:
        time = layer.us.get(precision)
        cells.append(("n", f"{precision}, µs", "-" if time is None else _figure(time)))
    return cells


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _log_share(value: float, values: Sequence[float]) -> float:
    """Percent of the way from the least to the greatest of some values, on a logarithmic scale."""
    if value <= 0 or not values:
        return 0.0
    if value > max(values):  # infinite
        return 100.0
    low, high = math.log(min(values)) - 0.5, math.log(max(values))
    return 100 * (math.log(value) - low) / (high - low)


def _origin(record: SearchRecord, unit: Unit) -> str:
    machine, data = record.machine, record.data
    memory = "" if machine.memory is None else f", {_bytes(machine.memory)} of memory"
    value = "-" if record.original_value is None else f"{record.original_value:.4g}"
    left = {
        "machine": f"{machine.processor}, {machine.cores} cores{memory}",
        "code for": f"{machine.target}, {machine.threads} threads",
        "system": machine.system,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "time": ", ".join(f"{p.name} {p.seconds:.3g} s" for p in record.phases) or "-",
    }
    labelled = ", labelled" if data.labelled else ""
    direction = "larger is better" if record.larger_is_better else "smaller is better"
    compared = "original" if record.reference == "original" else "lossless compilation"
    right = {
        "metric": f"{record.metric} ({direction}); the {compared} has {value} on the held-out samples",
        "budget": f"a drop of {unit(record.max_drop)} {unit.name} at {record.confidence:.0%} confidence",
        "data": f"{data.samples:,} samples{labelled}: {data.calibration:,} to calibrate, "
        f"{data.held_out:,} held out",
        "seed": str(record.seed),
        "data, SHA-256": data.sha256,
        "model, SHA-256": record.model_sha256,
    }
    return (
        '<section><h2>Where it comes from</h2><p class="lead">The same command on the same machine '
        "repeats it.</p>"
        f'<div class="two">{_list(left)}{_list(right)}</div><pre>{escape(record.command)}</pre></section>'
    )


def _list(terms: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in terms.items()) + "</dl>"


def _table(rows: Sequence[tuple[Sequence[Cell], str]], kind: str) -> str:
    """A table of rows, each with its class; the cells name their columns."""
    head = "".join(
        f'<th class="{"n" if "n" in c.split() else ""}">{escape(name)}</th>' for c, name, _ in rows[0][0]
    )
    body = []
    for cells, of_row in rows:
        tds = "".join(
            f'<td class="{c}{" none" if content in ("-", "") else ""}" '
            f'data-name="{escape(name)}">{content}</td>'
            for c, name, content in cells
        )
        body.append(f'<tr class="{of_row}">{tds}</tr>')
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _find(record: SearchRecord, name: str) -> CandidateRecord | None:
    return next((c for c in record.candidates if c.name == name), None)


def _range(spread: Spread) -> str:
    return f"{spread.low:.3g} to {spread.high:.3g}"


def _ratio(ratio: Spread | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f} ×"


def _bytes(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"
