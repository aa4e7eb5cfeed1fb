"""How logs are read and how the time of a run divides, on logs made by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hasten.search.profile_timeline import (
    BEGINS,
    ENDS,
    WAITS,
    Call,
    Division,
    HostRun,
    Marks,
    Span,
    Timeline,
    divide,
    read_calls,
    trace_events,
)


def log_of(*rows: Sequence[tuple[int, int]], room: int = 16) -> Marks:
    """A log as profile.c writes it, from pairs (event, time)."""
    log = np.full((len(rows), room, 2), 77, np.int64)
    for thread, row in enumerate(rows):
        log[thread, 0] = len(row), 0
        log[thread, 1 : 1 + len(row)] = np.array(row, np.int64).reshape(-1, 2)
    return log


# Two kernels on two threads, then one that the caller runs alone; a second part on the caller alone.
TWO_PARTS = log_of(
    [
        *((BEGINS, 100), (0, 110), (WAITS, 150), (1, 165), (WAITS, 180), (2, 200), (WAITS, 230), (ENDS, 235)),
        *((BEGINS - 1, 300), (0, 301), (WAITS, 309), (ENDS, 310)),
    ],
    [(0, 120), (WAITS, 160), (1, 165), (WAITS, 200), (WAITS, 201)],
)


def run() -> Timeline:
    return Timeline(90, 330, read_calls(TWO_PARTS, [0, 3]), (HostRun(0, 240, 290),))


def test_reading_a_log() -> None:
    first, second = run().calls
    assert (first.part, first.start, first.end, first.threads) == (0, 100, 235, 2)
    assert (second.part, second.start, second.end, second.threads) == (1, 300, 310, 1)
    assert [(s.kernel, s.start, s.end) for s in first.spans if s.thread == 1] == [
        (0, 120, 160), (None, 160, 165), (1, 165, 200), (None, 200, 235),
    ]  # fmt: skip
    assert [(s.kernel, s.start, s.end) for s in second.spans] == [(3, 301, 309), (None, 309, 310)]


def test_calls_have_the_marks_of_their_time() -> None:
    """Those of a thousand calls, some of which begin at the very nanosecond of another mark."""
    rng = np.random.default_rng(0)
    caller: list[tuple[int, int]] = []
    time = 0
    for part in rng.integers(0, 2, 1000).tolist():
        start, kernel, wait, end = (time + rng.integers(1, 5, 4).cumsum()).tolist()
        caller += [(BEGINS - part, start), (0, kernel), (WAITS, wait), (ENDS, end)]
        time = end
    helper = [(0 if i % 2 else WAITS, t) for i, t in enumerate(np.sort(rng.integers(0, time, 3000)).tolist())]
    calls = read_calls(log_of(caller, helper, room=4001), [0, 10])
    assert len(calls) == 1000
    for call in calls:
        inside = [t for _, t in helper if call.start <= t <= call.end]
        spans = [s for s in call.spans if s.thread == 1]
        assert call.threads == 1 + bool(inside)
        if inside:
            assert (spans[0].start, spans[-1].end) == (inside[0], call.end)
        (kernel,) = [s for s in call.spans if s.thread == 0 and s.kernel is not None]
        assert kernel.kernel == 10 * call.part


def test_division_of_a_run() -> None:
    assert divide(run()) == Division(
        # 1 and 2 follow one another at 200, without time between them
        kernels={0: 50, 1: 35, 2: 30, 3: 8},
        waiting={0: (10 + 10) / 2, 1: 20 / 2, 2: 30 / 2, 3: 0},
        hosts={0: 50},
        barriers=165 - 160,
        dispatch=10 + 5 + 1 + 1,
        python=10 + 5 + 10 + 20,
    )


def test_threads_in_different_kernels_share_the_time() -> None:
    log = log_of([(BEGINS, 0), (0, 0), (1, 10), (WAITS, 20), (ENDS, 40)], [(0, 0), (WAITS, 30)])
    found = divide(Timeline(0, 40, read_calls(log, [0]), ()))
    assert found.kernels == {0: 10 + 5 + 10, 1: 5}
    assert found.waiting == {0: 5, 1: 0}
    assert found.dispatch == 10


def test_a_run_of_many_kernels_is_divided_in_time_that_grows_as_they_do() -> None:
    spans = tuple(Span(0, n, 10 * n, 10 * n + 9) for n in range(5000))
    begin = time.process_time()
    found = divide(Timeline(0, 50_000, (Call(0, 0, 50_000, 1, spans),), ()))
    assert time.process_time() - begin < 1  # going through all before each takes 10 s
    assert found.kernels == dict.fromkeys(range(5000), 9)


def test_a_call_without_kernels_is_dispatch() -> None:
    log = log_of([(BEGINS, 5), (WAITS, 6), (ENDS, 9)])
    found = divide(Timeline(0, 10, read_calls(log, [0]), ()))
    assert (found.kernels, found.dispatch, found.python) == ({}, 4, 6)


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_sum_up_to_the_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows: list[list[tuple[int, int]]] = []
    for thread in range(3):
        times = np.sort(rng.integers(10, 1000, 12)).tolist()
        marks = list(zip(rng.integers(-1, 4, 12).tolist(), times, strict=True))
        rows.append([(BEGINS, 10), *marks, (ENDS, 1000)] if thread == 0 else marks)
    found = divide(Timeline(3, 1010, read_calls(log_of(*rows), [0]), ()))
    parts = [*found.kernels.values(), found.barriers, found.dispatch, found.python]
    assert sum(parts) == pytest.approx(1007)
    assert min(parts) >= 0


def check_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Holds a trace to the rules of the Trace Event Format, and returns its complete events."""
    events = trace["traceEvents"]
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["args"], dict)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
    complete = [event for event in events if event["ph"] == "X"]
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert {event["tid"] for event in complete} == named
    for event in complete:
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    for thread in named:  # those of a row contain one another, or do not meet
        bounds = [(e["ts"], e["ts"] + e["dur"]) for e in complete if e["tid"] == thread]
        for (a, b), (c, d) in itertools.combinations(bounds, 2):
            within = (a <= c and d <= b + 1e-6) or (c <= a and b <= d + 1e-6)
            assert within or b <= c + 1e-6 or d <= a + 1e-6
    return complete


def test_trace() -> None:
    events = check_trace(trace_events(run(), "m.hasten", ["a", "b", "c", "d"], ["NonZero"]))
    rows = {thread: [e for e in events if e["tid"] == thread] for thread in (0, 1)}
    assert [e["name"] for e in rows[1]] == ["a", "wait", "b", "wait"]
    assert {e["name"] for e in rows[0]} == {"run", "NonZero", "part 0", "part 1", *"abcd", "wait"}
    (whole,) = (e for e in events if e["name"] == "run")
    assert (whole["ts"], whole["dur"]) == (0, 0.24)
    (host,) = (e for e in events if e["cat"] == "host")
    assert (host["ts"], host["dur"]) == (0.15, 0.05)
