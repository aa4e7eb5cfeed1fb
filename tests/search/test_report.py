"""A report says everything that the record has, in one file that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from tests.search.records import found, pruned, refused

from hasten.search.record import CurvePoint, Outcome, SearchRecord
from hasten.search.report import to_html, to_json
from hasten.search.report_chart import Axis, Point, pareto
from hasten.search.report_curve import amounts, predicted

_VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in order; gathers text and what a page could load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


@pytest.mark.parametrize("record", [found(), pruned(), refused()], ids=["found", "pruned", "refused"])
def test_a_page_has_everything_and_loads_nothing(record: SearchRecord) -> None:
    html = to_html(record)
    page = Page(html)
    assert not page.loads
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"@import|url\(", html)
    said = " ".join(page.text.split()).lower()
    for text in (record.headline, record.model, record.command, record.data.sha256, record.machine.processor):
        assert " ".join(text.split()).lower() in said
    for candidate in record.candidates:
        assert all(t.lower() in said for t in (candidate.name, candidate.reason, candidate.outcome.value))
    for text in (*record.notes, *(layer.name for layer in record.layers), *(p.name for p in record.phases)):
        assert text.lower() in said
    assert f"{record.data.held_out:,}" in said


def test_what_is_not_known_is_left_open() -> None:
    html = to_html(refused())
    assert "at most unbounded" in html
    assert "about 597 held-out samples would certify this budget" in html
    assert "cut short" in html
    bare = dataclasses.replace(found(), candidates=(), layers=(), chosen="lossless", phases=())
    Page(to_html(bare))


def test_figures_of_layers_are_written_out() -> None:
    layer = dataclasses.replace(found().layers[0], macs=2_012_345_678, us={"f32": 1234.5, "int8": 0.123456})
    said = Page(to_html(dataclasses.replace(found(), layers=(layer,)))).text
    assert all(f" {text} " in f" {said} " for text in ("2,012", "1,234", "0.123"))
    assert "e+0" not in said


def test_a_layer_that_breaks_has_a_whole_bar_and_leaves_others_theirs() -> None:
    layers = [dataclasses.replace(found().layers[0], sensitivity={"int8": v}) for v in (1e-4, 1e-2, math.inf)]
    html = to_html(dataclasses.replace(found(), layers=tuple(layers)))
    assert "nan" not in html
    widths = [float(w) for w in re.findall(r"width:([0-9.]+)%", html.split("<h2>Layers</h2>")[1])]
    assert 0 < widths[0] < widths[1] <= widths[2] == 100


def test_layers_of_other_precisions_keep_their_columns() -> None:
    first, second, *_ = found().layers
    some = (first, dataclasses.replace(second, sensitivity={"int8": 0.1}, us={"f32": 3.0}))
    html = to_html(dataclasses.replace(found(), layers=some))
    rows = re.findall(r"<tr.*?</tr>", html[html.index("<h2>Layers") :], re.S)[:3]
    assert [row.count("<td") + row.count("<th ") for row in rows] == [8, 8, 8]


def test_many_layers_are_folded_away() -> None:
    record = found()
    assert "<details>" not in to_html(record)
    assert "<summary>All 48 layers</summary>" in to_html(
        dataclasses.replace(record, layers=record.layers * 2)
    )


def test_what_was_removed_has_a_bar_for_each_group_and_candidate() -> None:
    record = pruned()
    html = to_html(record)
    section = html[html.index("What was removed where") : html.index("<h2>Layers")]
    assert section.count('class="bar"') == 3 * 12
    assert section.count('td class="is-chosen"') == 12
    assert [int(p) for p in re.findall(r"<small>(\d+)% of FLOPs", section)] == [74, 62, 50]
    assert record.left_alone[0].split(":")[0] in section
    assert "What was removed where" not in to_html(found())


def test_predicted_curves_are_in_the_units_of_what_was_measured() -> None:
    record = pruned()
    line = amounts(record)
    assert [ms for ms, _ in line] == sorted(ms for ms, _ in line)
    base = record.candidates[3].loss
    assert base is not None
    assert line[-1][1] == pytest.approx(base)  # nothing removed
    svg = ET.fromstring(predicted(record, 800, 300))
    assert [x.attrib["class"] for x in svg.iter("polyline")] == ["curve int8", "curve pruned"]
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 800
        assert 0 <= float(circle.attrib["cy"]) <= 300
    assert predicted(dataclasses.replace(found(), curve=()), 800, 300) == ""
    broken = dataclasses.replace(record, curve=(CurvePoint(math.inf, 100.0, 3), *record.curve))
    assert predicted(broken, 800, 300) == predicted(record, 800, 300)


def test_the_name_of_a_metric_is_text() -> None:
    assert "<lambda>()" in Page(to_html(dataclasses.replace(found(), metric="<lambda>()"))).text


def picture(record: SearchRecord, budget: float) -> ET.Element:
    points = [
        Point(i, c, 100 * c.bound.measured, 100 * c.bound.upper)
        if c.bound is not None
        else Point(i, c, 100 * (c.drop or 0.0), None)
        for i, c in enumerate(record.candidates, 1)
        if c.latency_ms is not None
    ]
    return ET.fromstring(pareto(points, budget, "points", 800, 400))


def marks(svg: ET.Element) -> dict[str, tuple[float, float]]:
    """The places of the marks that are circles, by the candidate's name."""
    found_ = {}
    for group in svg.iter("g"):
        circle, title = group.find("circle"), group.find("title")
        if circle is not None and title is not None and title.text:
            found_[title.text.split(": ")[0]] = float(circle.attrib["cx"]), float(circle.attrib["cy"])
    return found_


def test_the_picture_puts_faster_left_and_worse_up() -> None:
    svg = picture(found(), 0.5)
    places = marks(svg)
    chosen, refused_ = places["int8 (percentile), 23 layers"], places["int8 (percentile)"]
    assert refused_[0] < chosen[0] < places["bf16"][0]
    assert refused_[1] < chosen[1] < places["bf16"][1]
    line = next(x for x in svg.iter("line") if x.attrib["class"] == "budget")
    assert refused_[1] < float(line.attrib["y1"]) < chosen[1]
    # 6.1 points are far beyond: an arrow at the edge instead of a mark.
    assert "int8 (minmax)" not in places
    assert any(text.text == "6 (6.1)" for text in svg.iter("text"))


@pytest.mark.parametrize("budget", [0.0, 1e-6, 0.5, 50.0])
def test_the_picture_stays_inside_for_any_budget(budget: float) -> None:
    for x, y in marks(picture(found(), budget)).values():
        assert 0 <= x <= 800
        assert 0 <= y <= 400


def test_labels_do_not_cover_each_other() -> None:
    record = found()
    same = [
        dataclasses.replace(record.candidates[3], name=f"c{i}", outcome=Outcome.CERTIFIED) for i in range(5)
    ]
    svg = picture(dataclasses.replace(record, candidates=tuple(same)), 0.5)
    places = [(x.attrib["x"], x.attrib["y"]) for x in svg.iter("text") if "label " in x.attrib["class"]]
    assert len(set(places)) == 5


@pytest.mark.parametrize(("low", "high"), [(0, 10.7), (-0.08, 1.2), (0, 3e-7), (-5, 800)])
def test_marks_of_an_axis_are_few_and_inside(low: float, high: float) -> None:
    axis = Axis(low, high, 10, 500)
    values = axis.marks(6)
    assert 2 <= len(values) <= 7
    assert all(low - 1e-12 <= v <= high + 1e-12 for v in values)
    assert axis(low) == 10
    assert math.isclose(axis(high), 500)


def test_json_has_the_fields_of_the_record() -> None:
    data = json.loads(to_json(found()))
    assert data["candidates"][3]["bound"]["upper"] == 0.0046
    assert data["layers"][0]["us"]["f32"] == 150
    assert "Infinity" not in to_json(refused())  # which JSON does not have
    assert set(data) == {field.name for field in dataclasses.fields(SearchRecord)}
