"""Timing engines against each other so that the ratios mean something.

Absolute times move by 10 to 15 percent within minutes, on shared machines by more; ratios of times taken
within the same second hold. So engines take turns in short rounds, each in a process of its own, with
the same inputs and number of threads, and the figure is the median of the ratios within each round, with
its quartiles.

Between its turns an engine is stopped (SIGSTOP), for most pools keep their threads spinning for some
milliseconds after a run, where they would take time from the next engine. The first runs of a turn find
the caches full of another engine's data and are left out.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError
from hasten.search.engines import Engine, Opened, Worker, save_feeds

Array = NDArray[Any]

_SHORTEST_TURN = 3  # runs
_LONGEST_TURN = 20_000
_UNTIMED_SHARE = 0.2  # of a turn's runs, at its start
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        threads: threads of each engine.
        rounds: turns of each engine.
        turn: about how many seconds a turn takes.
        openings: fresh processes in which each engine opens the model, for load time and memory.
        pause: seconds between stopping an engine and starting the next one.
    """

    threads: int
    rounds: int = 15
    turn: float = 0.2
    openings: int = 3
    pause: float = 0.01


@dataclass(frozen=True)
class Contestant:
    """An engine and the model that it takes.

    Attributes:
        engine: the engine.
        model: an artifact, an ONNX file or a Hugging Face folder.
        files: all files that the model is made of.
    """

    engine: Engine
    model: Path
    files: Sequence[Path]


@dataclass(frozen=True)
class Spread:
    """Quartiles of repeated measurements."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The quartiles of some values, at least one."""
        low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75])
        return Spread(float(low), float(median), float(high))

    def scaled(self, factor: float) -> Spread:
        """Each multiplied by a factor above zero."""
        return Spread(self.low * factor, self.median * factor, self.high * factor)


@dataclass(frozen=True)
class Result:
    """Figures of one engine.

    Attributes:
        engine: its name.
        version: its version.
        run_ms: milliseconds of a run.
        ratio: its time divided by the first engine's in the same round; above 1, the first is faster.
            None for the first itself.
        runs: timed runs.
        load_ms: milliseconds from the file to something that can run, in a fresh process; median.
        first_ms: milliseconds of the first run there; median.
        load_ratio: its load time divided by the first engine's. None for the first itself.
        peak_mb: the most memory (MB = 10**6 bytes) of a process that opens the model and runs it once;
            the median of the processes.
        base_mb: memory of that process before it opened the model; None where the system does not say.
        file_mb: size of the model's files.
    """

    engine: str
    version: str
    run_ms: Spread
    ratio: Spread | None
    runs: int
    load_ms: float
    first_ms: float
    load_ratio: float | None
    peak_mb: float | None
    base_mb: float | None
    file_mb: float


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        threads: threads of each engine.
        rounds: how many rounds.
        results: figures by engine, the first being what the others are compared with.
        failures: why others could not be measured, by engine.
        beside: what the function `beside` returned, by round.
    """

    threads: int
    rounds: int
    results: tuple[Result, ...]
    failures: Mapping[str, str]
    beside: tuple[float, ...] = ()


@dataclass
class _Entry:
    contestant: Contestant
    opened: list[Opened] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)  # median seconds of a run in each turn
    runs: int = 0
    turn: int = _SHORTEST_TURN


def measure(
    contestants: Sequence[Contestant],
    feeds: Mapping[str, Array],
    plan: Plan,
    *,
    progress: Callable[[str], None] = lambda _: None,
    beside: Callable[[], float] | None = None,
) -> Measurement:
    """Times engines in turns.

    Args:
        contestants: the first is what the others are compared with.
        feeds: an array for each input of the model.
        plan: how much to measure.
        progress: is told what begins.
        beside: something else to measure once in each round while all engines are stopped.

    Raises:
        EngineError: the first engine cannot run the model. Others are left out, with the reason noted.
    """
    entries = [_Entry(contestant) for contestant in contestants]
    failures: dict[str, str] = {}
    for contestant in contestants:
        _warm(contestant.files)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder, contextlib.ExitStack() as stack:
        path = save_feeds(feeds, Path(folder))
        progress("opening the model in fresh processes")
        for _ in range(plan.openings):
            _attempt(entries, failures, lambda entry: _open_once(entry, path, plan.threads))
        workers: dict[str, Worker] = {}

        def start(entry: _Entry) -> None:
            engine = entry.contestant.engine
            worker = Worker(engine, entry.contestant.model, path, plan.threads)
            workers[engine.name] = stack.enter_context(worker)
            entry.opened = entry.opened or [worker.opened]
            _calibrate(entry, worker, plan)
            worker.stop()

        progress("starting the engines")
        _attempt(entries, failures, start)
        noted = []
        for number in range(plan.rounds):
            progress(f"timing, round {number + 1} of {plan.rounds}")
            first = number % len(entries)
            for entry in entries[first:] + entries[:first]:
                _take_turn(entry, workers[entry.contestant.engine.name], plan)
            if beside is not None:
                noted.append(beside())
    results = tuple(_result(entry, entries[0]) for entry in entries)
    return Measurement(plan.threads, plan.rounds, results, failures, tuple(noted))


def _attempt(entries: list[_Entry], failures: dict[str, str], do: Callable[[_Entry], None]) -> None:
    """Does something with each entry; removes those that fail, unless it is the first."""
    for entry in list(entries):
        try:
            do(entry)
        except EngineError as error:
            if entry is entries[0]:
                raise
            failures[entry.contestant.engine.name] = str(error)
            entries.remove(entry)


def _open_once(entry: _Entry, feeds: Path, threads: int) -> None:
    with Worker(entry.contestant.engine, entry.contestant.model, feeds, threads) as worker:
        entry.opened.append(worker.opened)


def _calibrate(entry: _Entry, worker: Worker, plan: Plan) -> None:
    worker.times(2)
    typical = statistics.median(worker.times(_SHORTEST_TURN))
    fitting = int(plan.turn / max(typical, 1e-9))
    entry.turn = min(max(fitting, _SHORTEST_TURN), _LONGEST_TURN)


def _take_turn(entry: _Entry, worker: Worker, plan: Plan) -> None:
    time.sleep(plan.pause)
    worker.go_on()
    seconds = worker.times(entry.turn)
    worker.stop()
    timed = seconds[int(len(seconds) * _UNTIMED_SHARE) or 1 :]
    entry.runs += len(timed)
    entry.rounds.append(statistics.median(timed))


def _result(entry: _Entry, first: _Entry) -> Result:
    itself = entry is first
    load = statistics.median(opened.load for opened in entry.opened)
    first_load = statistics.median(opened.load for opened in first.opened)
    ratios = [own / other for own, other in zip(entry.rounds, first.rounds, strict=True)]
    engine = entry.contestant.engine
    return Result(
        engine=engine.name,
        version=engine.version or "unknown",
        run_ms=Spread.of(entry.rounds).scaled(1e3),
        ratio=None if itself else Spread.of(ratios),
        runs=entry.runs,
        load_ms=load * 1e3,
        first_ms=statistics.median(opened.first for opened in entry.opened) * 1e3,
        load_ratio=None if itself else load / first_load,
        peak_mb=_megabytes([opened.peak for opened in entry.opened]),
        base_mb=_megabytes([opened.base for opened in entry.opened]),
        file_mb=sum(file.stat().st_size for file in entry.contestant.files) / 1e6,
    )


def _megabytes(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) / 1e6 if known else None


def _warm(files: Sequence[Path]) -> None:
    """Reads files once, so that they are in the system's cache for everyone."""
    for path in files:
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass
