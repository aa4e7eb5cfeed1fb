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
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import EngineError
from hasten.search.engines import NO_LIMITS, Engine, Limits, Opened, Precision, Worker, save_feeds

Array = NDArray[Any]

_SHORTEST_TURN = 2  # runs
_LONGEST_TURN = 20_000
_UNTIMED_SHARE = 0.2  # of a turn's runs, at its start
_FEWEST_ROUNDS = 3
_SLOW_OPENING = 8.0  # seconds; an engine that takes longer to open and run once is opened once only
_HOPELESS = 2.0  # a peer this many times slower than the fastest takes part in the fewest rounds only
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        threads: threads of each engine.
        rounds: turns of each engine.
        turn: about how many seconds a turn takes.
        openings: processes in which each engine opens the model, for load time and memory; in the last one
            it is timed.
        pause: seconds between stopping an engine and starting the next one.
        limit: about how many seconds all rounds may take: there are fewer of them, but three at least, if
            they would take longer, and peers that take more than twice as long as the fastest peer of their
            precision sit out all but the first three. None for no limit.
        limits: what each engine's process may take.
        ends: a time by `time.monotonic` after which no round begins but the first three; None for none.
    """

    threads: int
    rounds: int = 15
    turn: float = 0.2
    openings: int = 3
    pause: float = 0.01
    limit: float | None = None
    limits: Limits = NO_LIMITS
    ends: float | None = None


@dataclass(frozen=True)
class Contestant:
    """An engine and the model that it takes.

    Attributes:
        engine: the engine.
        model: what it takes, see `Engine.runs`.
        files: all files that the model is made of.
        label: what tells it from others of the same engine; the engine's name if empty.
    """

    engine: Engine
    model: Path | str
    files: Sequence[Path]
    label: str = ""

    @property
    def name(self) -> str:
        """What figures are listed by."""
        return self.label or self.engine.name


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
    """Figures of one contestant.

    Attributes:
        engine: its name (`Contestant.name`).
        version: its version.
        precision: of its arithmetic.
        run_ms: milliseconds of a run.
        ratio: its time divided by the first engine's in the same round; above 1, the first is faster.
            None for the first itself, and if that failed.
        rounds_ms: the median milliseconds of a run in each round that it took part in, by round.
        runs: timed runs.
        load_ms: milliseconds from the file to something that can run, in a fresh process; median.
        first_ms: milliseconds of the first run there; median.
        load_ratio: its load time divided by the first engine's. None where `ratio` is.
        loads_ms: milliseconds of each opening.
        peak_mb: the most memory (MB = 10**6 bytes) of a process that opens the model and runs it once;
            the median of the processes.
        base_mb: memory of that process before it opened the model; None where the system does not say.
        file_mb: size of the model's files.
    """

    engine: str
    version: str
    precision: Precision
    run_ms: Spread
    ratio: Spread | None
    rounds_ms: Mapping[int, float]
    runs: int
    load_ms: float
    first_ms: float
    load_ratio: float | None
    loads_ms: tuple[float, ...]
    peak_mb: float | None
    base_mb: float | None
    file_mb: float

    def ratio_to(self, other: Result) -> Spread:
        """This engine's time divided by another's in the rounds that both took part in."""
        return Spread.of(
            [ms / other.rounds_ms[n] for n, ms in self.rounds_ms.items() if n in other.rounds_ms]
        )

    def load_ratio_to(self, other: Result) -> Spread:
        """This engine's load time divided by another's, opening by opening."""
        return Spread.of([own / its for own, its in zip(self.loads_ms, other.loads_ms, strict=False)])


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        threads: threads of each engine.
        rounds: how many rounds.
        results: figures of each contestant, those that failed left out.
        failures: why those could not be measured, by name.
        beside: what the function `beside` returned, by round.
    """

    threads: int
    rounds: int
    results: tuple[Result, ...]
    failures: Mapping[str, str]
    beside: tuple[Mapping[str, float], ...] = ()

    def beside_named(self, name: str) -> Spread | None:
        """The quartiles of one of those figures; None if there is none."""
        values = [figures[name] for figures in self.beside if name in figures]
        return Spread.of(values) if values else None


@dataclass(eq=False)
class _Entry:
    contestant: Contestant
    opened: list[Opened] = field(default_factory=list)
    rounds: dict[int, float] = field(default_factory=dict)  # median seconds of a run in each turn
    runs: int = 0
    turn: int = _SHORTEST_TURN
    typical: float = 0.0  # seconds of a run


def measure(
    contestants: Sequence[Contestant],
    feeds: Mapping[str, Array],
    plan: Plan,
    *,
    progress: Callable[[str], None] = lambda _: None,
    beside: Callable[[], Mapping[str, float]] | None = None,
) -> Measurement:
    """Times contestants in turns.

    Args:
        contestants: the first is what the others are compared with.
        feeds: an array for each input of the model.
        plan: how much to measure.
        progress: is told what begins.
        beside: something else to measure once in each round while all engines are stopped.

    Returns:
        The figures. A contestant that fails at any point is among the failures only, the first one too.

    Raises:
        ValueError: two contestants have the same name.
    """
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names):
        raise ValueError(f"contestants of the same name among {', '.join(names)}: give them labels")
    entries = [_Entry(contestant) for contestant in contestants]
    failures: dict[str, str] = {}
    for contestant in contestants:
        _warm(contestant.files)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder, contextlib.ExitStack() as stack:
        path = save_feeds(feeds, Path(folder))
        progress("opening the model in fresh processes")
        for _ in range(plan.openings - 1):
            _attempt(entries, failures, lambda entry: _open_once(entry, path, plan))
        workers: dict[str, Worker] = {}

        def start(entry: _Entry) -> None:
            contestant = entry.contestant
            progress(f"starting {contestant.name}")
            worker = Worker(contestant.engine, contestant.model, path, plan.threads, plan.limits)
            workers[contestant.name] = stack.enter_context(worker)
            entry.opened.append(worker.opened)
            _calibrate(entry, worker, plan)
            worker.stop()

        _attempt(entries, failures, start)
        noted = []
        running = _without(entries, failures)
        most, rounds = _rounds(running, plan), 0
        for number in range(most):
            if plan.ends is not None and number >= _FEWEST_ROUNDS and time.monotonic() >= plan.ends:
                break
            progress(f"timing, round {number + 1} of {most}")
            rounds += 1
            turns = _without(_taking_part(running, plan, number), failures)
            first = number % max(1, len(turns))
            take = functools.partial(_take_turn, number=number, workers=workers, pause=plan.pause)
            _attempt(turns[first:] + turns[:first], failures, take)
            if beside is not None:
                noted.append(beside())
    left = _without(entries, failures)
    compared = entries[0] if entries[0] in left else None
    results = tuple(_result(entry, compared) for entry in left)
    return Measurement(plan.threads, rounds, results, failures, tuple(noted))


def _attempt(entries: Sequence[_Entry], failures: dict[str, str], do: Callable[[_Entry], None]) -> None:
    """Does something with each entry that has not failed so far; notes those that fail now."""
    for entry in _without(entries, failures):
        try:
            do(entry)
        except EngineError as error:
            failures[entry.contestant.name] = str(error)


def _without(entries: Sequence[_Entry], failures: Mapping[str, str]) -> list[_Entry]:
    return [entry for entry in entries if entry.contestant.name not in failures]


def _open_once(entry: _Entry, feeds: Path, plan: Plan) -> None:
    if any(opened.load + opened.first > _SLOW_OPENING for opened in entry.opened):
        return
    with Worker(entry.contestant.engine, entry.contestant.model, feeds, plan.threads, plan.limits) as worker:
        entry.opened.append(worker.opened)


def _calibrate(entry: _Entry, worker: Worker, plan: Plan) -> None:
    worker.times(1)
    entry.typical = min(worker.times(_SHORTEST_TURN))
    fitting = int(plan.turn / max(entry.typical, 1e-9))
    entry.turn = min(max(fitting, _SHORTEST_TURN), _LONGEST_TURN)


def _rounds(entries: Sequence[_Entry], plan: Plan) -> int:
    """How many rounds the limit allows."""
    if plan.limit is None:
        return plan.rounds
    left, rounds = plan.limit, 0
    while rounds < plan.rounds and (rounds < _FEWEST_ROUNDS or left > 0):
        left -= sum(entry.turn * entry.typical + plan.pause for entry in _taking_part(entries, plan, rounds))
        rounds += 1
    return rounds


def _taking_part(entries: Sequence[_Entry], plan: Plan, number: int) -> list[_Entry]:
    if plan.limit is None or number < _FEWEST_ROUNDS:
        return list(entries)
    return [entry for entry in entries if not _is_hopeless(entry, entries)]


def _is_hopeless(entry: _Entry, entries: Sequence[_Entry]) -> bool:
    """Whether it is much slower than another peer of its precision; an artifact never is."""
    engine = entry.contestant.engine
    peers = [e for e in entries if e.contestant.engine.runs != "artifact"]
    rivals = [e.typical for e in peers if e.contestant.engine.precision == engine.precision]
    return entry in peers and entry.typical > _HOPELESS * min(rivals)


def _take_turn(entry: _Entry, *, number: int, workers: Mapping[str, Worker], pause: float) -> None:
    worker = workers[entry.contestant.name]
    time.sleep(pause)
    worker.go_on()
    seconds = worker.times(entry.turn)
    worker.stop()
    timed = seconds[int(len(seconds) * _UNTIMED_SHARE) or 1 :]
    entry.runs += len(timed)
    entry.rounds[number] = statistics.median(timed)


def _result(entry: _Entry, first: _Entry | None) -> Result:
    found = Result(
        engine=entry.contestant.name,
        version=entry.contestant.engine.version or "unknown",
        precision=entry.contestant.engine.precision,
        run_ms=Spread.of(list(entry.rounds.values())).scaled(1e3),
        ratio=None,
        rounds_ms={number: seconds * 1e3 for number, seconds in entry.rounds.items()},
        runs=entry.runs,
        load_ms=statistics.median(opened.load for opened in entry.opened) * 1e3,
        first_ms=statistics.median(opened.first for opened in entry.opened) * 1e3,
        load_ratio=None,
        loads_ms=tuple(opened.load * 1e3 for opened in entry.opened),
        peak_mb=_megabytes([opened.peak for opened in entry.opened]),
        base_mb=_megabytes([opened.base for opened in entry.opened]),
        file_mb=sum(file.stat().st_size for file in entry.contestant.files) / 1e6,
    )
    if first is None or first is entry:
        return found
    other = _result(first, None)
    return replace(found, ratio=found.ratio_to(other), load_ratio=found.load_ms / other.load_ms)


def _megabytes(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) / 1e6 if known else None


def _warm(files: Sequence[Path]) -> None:
    """Reads files once, so that they are in the system's cache for everyone."""
    for path in files:
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass
