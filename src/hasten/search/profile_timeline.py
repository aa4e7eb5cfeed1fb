"""What each thread did at what time in a profiled run, and how the run's time divides among kernels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# `runtime/csrc/profile.h`
WAITS, ENDS, BEGINS = -1, -2, -3

Marks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """What one thread did for a time.

    Attributes:
        thread: its index in the team; 0 is the caller.
        kernel: number of the kernel, through all parts; None for waiting.
        start: nanoseconds of a clock that all threads share.
        end: the same.
    """

    thread: int
    kernel: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Call:
    """One run of a part by the shared object.

    Attributes:
        part: its number.
        start: nanoseconds.
        end: nanoseconds.
        threads: how many took part.
        spans: of all threads; on each they follow one another.
    """

    part: int
    start: int
    end: int
    threads: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class HostRun:
    """One run of a host step: its number among the host steps, and its time in nanoseconds."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """One run of a model: from when to when, in nanoseconds, and what happened in between."""

    start: int
    end: int
    calls: tuple[Call, ...]
    hosts: tuple[HostRun, ...]


@dataclass(frozen=True)
class Log:
    """One run of a model as it was noted: a tenth of the memory of what is read from it.

    Attributes:
        start: nanoseconds.
        end: nanoseconds.
        marks: of all threads (`read_calls`).
        first_kernel: number, through all parts, of each part's first kernel.
        hosts: runs of host steps.
    """

    start: int
    end: int
    marks: Marks
    first_kernel: tuple[int, ...]
    hosts: tuple[HostRun, ...]

    def read(self) -> Timeline:
        """What happened when."""
        return Timeline(self.start, self.end, read_calls(self.marks, self.first_kernel), self.hosts)


@dataclass(frozen=True)
class Division:
    """How the time of one run divides; all in nanoseconds. All but `waiting` sum up to the run.

    Attributes:
        kernels: of each kernel by number. Where threads were in different kernels, each has its part.
        waiting: for each kernel, the time that the team's threads waited meanwhile, by their number.
        hosts: of each host step by number.
        barriers: between kernels, when no thread computed.
        dispatch: the beginnings and ends of calls: gathering and dismissing the team.
        python: outside of calls and host steps.
    """

    kernels: Mapping[int, float]
    waiting: Mapping[int, float]
    hosts: Mapping[int, float]
    barriers: float
    dispatch: float
    python: float


def read_calls(log: Marks, first_kernel: Sequence[int]) -> tuple[Call, ...]:
    """The calls that a log has.

    Args:
        log: [threads, room, 2] of pairs (event, nanoseconds); the first pair of each row holds the number
            of those after it (`runtime/csrc/profile.c`).
        first_kernel: number, through all parts, of each part's first kernel.
    """
    rows: list[list[tuple[int, int]]] = [
        [(event, time) for event, time in row[1 : 1 + row[0, 0]].tolist()] for row in log
    ]
    times = [[time for _, time in row] for row in rows]  # in order, as the marks of a thread are
    calls = []
    for (event, start), end in _bounds(rows[0]):
        part = BEGINS - event
        spans: list[Span] = []
        team = 0
        for thread, (row, at) in enumerate(zip(rows, times, strict=True)):
            own = [mark for mark in row[bisect_left(at, start) : bisect_right(at, end)] if mark[0] >= WAITS]
            team += bool(own)
            spans += _spans(thread, own, end, first_kernel[part])
        calls.append(Call(part, start, end, team, tuple(spans)))
    return tuple(calls)


def _bounds(row: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], int]]:
    """The mark that begins each call, and the time of its end."""
    begins = [mark for mark in row if mark[0] <= BEGINS]
    return list(zip(begins, (time for event, time in row if event == ENDS), strict=False))


def _spans(thread: int, marks: Sequence[tuple[int, int]], end: int, first: int) -> list[Span]:
    spans: list[Span] = []
    for (event, start), (_, stop) in pairwise([*marks, (ENDS, end)]):
        kernel = None if event == WAITS else first + event
        goes_on = bool(spans) and kernel is None and spans[-1].kernel is None
        since = spans.pop().start if goes_on else start
        spans.append(Span(thread, kernel, since, stop))
    return spans


def divide(run: Timeline) -> Division:
    """Divides the time of a run among its kernels and what is between them."""
    kernels: defaultdict[int, float] = defaultdict(float)
    waiting: defaultdict[int, float] = defaultdict(float)
    hosts: defaultdict[int, float] = defaultdict(float)
    barriers = dispatch = 0.0
    python = float(run.end - run.start)
    for host in run.hosts:
        hosts[host.number] += host.end - host.start
        python -= host.end - host.start
    for call in run.calls:
        python -= call.end - call.start
        changes = sorted(
            (time, by, span.kernel)
            for span in call.spans
            if span.kernel is not None
            for time, by in ((span.start, 1), (span.end, -1))
        )
        if not changes:
            dispatch += call.end - call.start
            continue
        dispatch += changes[0][0] - call.start + call.end - changes[-1][0]
        active: dict[int, int] = {}
        for (time, by, kernel), (following, _, _) in pairwise([*changes, (changes[-1][0], 0, 0)]):
            active[kernel] = active.get(kernel, 0) + by
            if not active[kernel]:
                del active[kernel]  # else each step would go through all kernels so far
            elapsed, busy = following - time, sum(active.values())
            if busy == 0:
                barriers += elapsed
                continue
            for number, threads in active.items():
                kernels[number] += elapsed * threads / busy
                waiting[number] += elapsed * threads / busy * (call.threads - busy) / call.threads
    return Division(kernels, waiting, hosts, barriers, dispatch, python)


def trace_events(run: Timeline, name: str, titles: Sequence[str], hosts: Sequence[str]) -> dict[str, Any]:
    """A run as Chrome trace events, which Perfetto and chrome://tracing open; a row for each thread.

    The format is the "Trace Event Format" of Chromium: complete events ("X") with times in microseconds,
    here from the run's beginning; what lies within another event of its row is drawn below it.

    Args:
        run: what happened.
        name: of the model.
        titles: of the kernels by number.
        hosts: of the host steps by number.
    """

    def event(title: str, kind: str, thread: int, start: int, end: int, **more: object) -> dict[str, Any]:
        times = {"ts": (start - run.start) / 1e3, "dur": (end - start) / 1e3}
        return {"name": title, "cat": kind, "ph": "X", "pid": 1, "tid": thread, **times, "args": more}

    events = [event("run", "run", 0, run.start, run.end)]
    events += [event(hosts[h.number], "host", 0, h.start, h.end) for h in run.hosts]
    for call in run.calls:
        events.append(event(f"part {call.part}", "call", 0, call.start, call.end, threads=call.threads))
        for s in call.spans:
            if s.kernel is None:
                events.append(event("wait", "wait", s.thread, s.start, s.end))
            else:
                events.append(event(titles[s.kernel], "kernel", s.thread, s.start, s.end, kernel=s.kernel))
    threads = sorted({e["tid"] for e in events})
    named = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": name}}]
    for thread in threads:
        label = f"thread {thread}" + (" (the caller)" if thread == 0 else "")
        named.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": label}})
    return {"displayTimeUnit": "ns", "traceEvents": [*named, *events]}
