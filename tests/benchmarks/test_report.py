"""Best peers, verdicts and tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.cases import ENTRIES, Figure, Goal, entries_named

from benchmarks import picture, report
from hasten.search.engines import PEERS, Precision
from hasten.search.measure import Measurement, Result, Spread


def result(engine: str, ms: float, precision: Precision = "f32", load: float = 100.0) -> Result:
    return Result(
        engine=engine,
        version="1",
        precision=precision,
        run_ms=Spread(ms, ms, ms),
        ratio=None,
        rounds_ms={0: ms * 0.9, 1: ms, 2: ms * 1.1},
        runs=3,
        load_ms=load,
        first_ms=1.0,
        load_ratio=None,
        loads_ms=(load, load * 2),
        peak_mb=50.0,
        base_mb=40.0,
        file_mb=2.0,
    )


RESULTS = (
    result("hasten", 10, load=2),
    result("hasten-bf16", 5, "bf16"),
    result("onnxruntime", 12, load=30),
    result("openvino", 15, load=20),
    result("openvino-bf16", 8, "bf16", load=10),
    result("torch-bf16", 20, "bf16"),
)
GOALS: dict[Precision, Goal] = {"f32": Goal(1.2, 0.92), "bf16": Goal(2.0)}
PEAKS = {"f32": Spread(90, 100, 110), "bf16": Spread(200, 200, 200)}


def case(
    results: tuple[Result, ...] = RESULTS, failures: dict[str, str] | None = None, figure: Figure = "run"
) -> report.CaseReport:
    found = Measurement(2, 3, results, failures or {})
    verdicts = report.judge(found, GOALS, figure, 0.9, PEAKS)
    return report.CaseReport("A | B", figure, {}, 0.9, PEAKS, 0.0, {"hasten": 3.0}, verdicts, found)


def test_a_peer_in_bf16_does_not_compete_with_f32() -> None:
    f32, bf16 = case().verdicts
    assert (f32.peer, bf16.peer) == ("onnxruntime", "openvino-bf16")
    assert f32.ratio is not None
    assert bf16.ratio is not None
    assert (f32.ratio.median, bf16.ratio.median) == (pytest.approx(1.2), pytest.approx(1.6))
    assert (f32.gflops, f32.share) == (pytest.approx(90), pytest.approx(0.9))
    assert bf16.share == pytest.approx(0.9)


def test_a_peer_in_f32_competes_with_bf16() -> None:
    slow = result("openvino-bf16", 30, "bf16")
    assert case((*RESULTS[:4], slow)).verdicts[1].peer == "onnxruntime"


def test_opening_is_compared_where_that_is_asked() -> None:
    f32, _ = case(figure="load").verdicts
    assert f32.peer == "openvino"
    assert f32.ratio == Spread(10, 10, 10)


def test_what_was_asked_is_reached_or_missed() -> None:
    f32, bf16 = case().verdicts
    assert report.outcome(f32) == "reached; share missed by 2.2%"
    assert report.outcome(bf16) == "missed by 20.0%"
    assert report.outcome(case(RESULTS[:1]).verdicts[0]) == ""  # no peer ran


def test_the_summary_has_a_line_for_each_precision() -> None:
    cases = [case(), case(RESULTS[:3:2], {"hasten-bf16": "give one of f32"})]
    summary = report.summary(cases).splitlines()
    assert len(summary) == 2 + 4
    assert len({line.count("|") for line in summary}) == 1
    assert "A / B | f32 | 10 | onnxruntime | 12 | 1.20 [1.20, 1.20] | 1.2, 92% of peak |" in summary[2]
    assert "| 90 | 90.0% | 75.0% |" in summary[2]
    assert "| 56.2% |" in summary[3]
    assert "not measured: give one of f32" in summary[-1]


def test_engines_have_a_column_each_and_failures_their_reasons() -> None:
    cases = [case(), case(RESULTS[:3:2], {"torch": "no memory"})]
    speed, first, missing = report.engines(cases).split("\n\n", 2)
    head = "| case | hasten 1 | hasten-bf16 1 | onnxruntime 1 | openvino 1 | openvino-bf16 1 | torch-bf16 1 |"
    assert speed.splitlines()[0] == first.splitlines()[0] == head
    assert speed.splitlines()[2:] == [
        "| A / B | 10 ms, 90% | 5 ms, 90% | 1.20, 75% | 1.50, 60% | 1.60, 56% | 4.00, 22% |",
        "| A / B | 10 ms, 90% |  | 1.20, 75% |  |  |  |",
    ]
    assert "| 3 ms, 50 MB | 101 ms, 50 MB | 31 ms, 50 MB |" in first
    assert missing == "Not measured:\n\n- A | B, torch: no memory"
    opening = report.engines([case(figure="load")]).split("\n\n")[0]
    assert "| A / B | 2 ms, 90% | 100 ms, 90% | 15.00, 75% | 10.00, 60% |" in opening


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    cases = [case(), case(figure="load"), case(RESULTS[:1], {"hasten-bf16": "no"})]
    picture.draw(cases, "a machine", tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_cases_are_named_once_and_found_by_a_part_of_their_name() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) == 16
    assert [entry.name for entry in entries_named("BATCH 256")] == ["MLP 64-128-64-1, batch 256"]
    assert len(entries_named("")) == len(ENTRIES)
    assert entries_named("no such") == []
    assert len({peer.name for peer in PEERS}) == len(PEERS)
