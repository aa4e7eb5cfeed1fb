"""Tuning: the fastest schedule of each product and convolution of a model, found by measuring here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hasten.codegen.alone import product_alone, symbolic_sizes
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.schedule import Product, ProductShape, Schedule, Schedules, candidate_schedules
from hasten.errors import InputError, ToolchainError
from hasten.loops.dtypes import DType
from hasten.loops.program import Program
from hasten.loops.sizes import bind_elements, size_names
from hasten.search.results import Effort, Machine, Result, Results
from hasten.search.tune_bench import TOLERANCE, Array, Bench, Task
from hasten.target import Target, processor_name

NOISE = 0.02
"""By how much a schedule must beat the default, in each half of the rounds, to be taken instead."""

SCREENING_ROUNDS = 5
"""Rounds in which all schedules are compared; those far behind are left out of the later ones."""

BEHIND = 1.1
"""Times the fastest so far beyond which a schedule is given up."""

CHALLENGERS = 3
"""Schedules that may challenge the default, the most promising first."""

HALF = 6
"""Rounds in each half of a challenge."""


class Tune(StrEnum):
    """How kernels get their schedules."""

    OFF = "0"
    """From their shapes alone: the same model gives the same artifact on every machine."""
    STORED = "stored"
    """From earlier measurements on this processor, where there are any."""
    QUICK = "quick"
    """Measured, where they have not been: the schedules that differ from the default in one choice."""
    FULL = "full"
    """Measured: all combinations, also where there was a quick measurement."""


TIME_LIMITS = {Tune.QUICK: 60.0, Tune.FULL: 600.0}
"""Seconds that tuning a model may take if nothing else is said."""


Stop = Callable[[], bool]
"""Says whether the time is over."""


def never() -> bool:
    """There is no time limit."""
    return False


@dataclass(frozen=True)
class Settings:
    """How to tune.

    Attributes:
        effort: how many schedules to try.
        threads: threads that the artifact will use.
        precision: of the operands of products.
        version: of the kernels (`codegen.sources`). Results of others, whose code may be another, are
            measured again.
        cache: folder of compiled objects, or None.
        winograd: whether convolutions may go by Winograd's algorithms; if not, those that could keep the
            default, and nothing is recorded for them.
        out_of_time: whether to end. What is under way then, a compiler or the interpreter, may end a little
            later.
    """

    effort: Effort
    threads: int
    precision: DType
    version: str
    cache: Path | None
    winograd: bool = True
    out_of_time: Stop = never


@dataclass(frozen=True)
class Report:
    """What tuning did.

    Attributes:
        measured: kernels that were measured.
        improved: those for which another schedule than the default was faster.
        stored: kernels that had been measured before.
        left: kernels that the time did not suffice for.
        refused: kernels that keep the default unmeasured, since they could not be built alone or their answer
            was not the interpreter's: a fault of hasten.
        unknown: kernels that keep it since only a run's data say how large they are, or no run has the sizes
            that were given.
        notes: what people should know: schedules that gave wrong answers.
    """

    measured: int
    improved: int
    stored: int
    left: int
    refused: int
    unknown: int
    notes: tuple[str, ...]


class Measured(Protocol):
    """A kernel in several schedules (`tune_bench.Bench`)."""

    def sample(self, index: int) -> float:
        """Seconds of a run in a schedule."""

    def difference(self, index: int, expected: Array) -> float:
        """How far its answer is from the expected one, as a share of the largest element."""

    def expected(self) -> Array:
        """What the interpreter says."""


Build = Callable[[Task, Sequence[Schedule], Target, int, Path | None, Stop], Measured]


@dataclass(frozen=True)
class Pick:
    """The outcome for one kernel.

    Attributes:
        index: of the chosen schedule.
        seconds: its time.
        default_seconds: the default's, in the same rounds.
    """

    index: int
    seconds: float
    default_seconds: float


def machine_for(target: Target, threads: int) -> Machine:
    """This machine, running code for a target."""
    return Machine(target.name, processor_name(), threads)


def stored_schedules(results: Results, machine: Machine, version: str) -> dict[str, Schedule]:
    """The schedules that were found for a machine, and verified on it, by kernel.

    Raises:
        TuningError: as `Results.rows`.
    """
    return {r.kernel: r.schedule for r in results.rows(machine, version, verified=True)}


def tune_programs(
    programs: Sequence[Program],
    target: Target,
    sizes: Mapping[str, int],
    results: Results,
    settings: Settings,
    *,
    build: Build = Bench,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measures the kernels that have no result yet, the most expensive first, and records what is found.

    A schedule enters the results only after its answer was compared with the interpreter's.

    Args:
        programs: of the parts of a model.
        target: instruction set; this machine must run it.
        sizes: likely values of the model's symbolic sizes.
        results: where results are and go.
        settings: effort, threads, time limit and so on.
        build: makes the kernels that are measured.
        progress: is told which kernel is being tuned.

    Raises:
        TuningError: the results cannot be read or written.
    """
    machine = machine_for(target, settings.threads)
    results.record([])  # says now, not after a minute, that it cannot be written
    known = {
        r.kernel
        for r in results.rows(machine, settings.version, verified=True)
        if _suffices(r.effort, settings.effort)
    }
    every = tasks_of(programs, target, sizes, settings.precision)
    wanted = [t for t in every if settings.winograd or not t.shape.allows_winograd]
    tasks = [t for t in wanted if t.known]
    todo = [t for t in tasks if str(t.shape) not in known]
    notes: list[str] = []
    measured = improved = refused = 0
    for number, task in enumerate(todo, 1):
        progress(f"tuning {number}/{len(todo)}: {task.shape}")
        candidates = candidates_for(task.shape, target, settings.effort)
        try:
            pick = _fastest(task, candidates, target, settings, build, notes)
        except TimeoutError:
            break
        if pick is None:
            refused += 1
            continue
        measured, improved = measured + 1, improved + (pick.index != 0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        results.record(
            [
                Result(
                    str(task.shape),
                    machine,
                    candidates[pick.index],
                    pick.seconds,
                    pick.default_seconds,
                    settings.effort,
                    settings.version,
                    now,
                )
            ]
        )
    stored, left = len(tasks) - len(todo), len(todo) - measured - refused
    unknown = len(wanted) - len(tasks)
    return Report(measured, improved, stored, left, refused, unknown, tuple(notes))


def _fastest(
    task: Task,
    candidates: Sequence[Schedule],
    target: Target,
    settings: Settings,
    build: Build,
    notes: list[str],
) -> Pick | None:
    """The fastest schedule of a kernel, or None where not even the default can be measured.

    Raises:
        TimeoutError: the time is over.
    """
    if settings.out_of_time():
        raise TimeoutError
    try:
        bench = build(task, candidates, target, settings.threads, settings.cache, settings.out_of_time)
    except ToolchainError as error:
        notes.append(f"{task.shape}: not measured, it cannot be built alone ({error}); please report this")
        return None
    right = right_ones(bench, candidates, task.shape, settings.out_of_time, notes)
    return pick_fastest(right, bench.sample, settings.out_of_time) if right else None


def _suffices(had: Effort, wanted: Effort) -> bool:
    return wanted in (had, "quick")


def tasks_of(
    programs: Iterable[Program], target: Target, sizes: Mapping[str, int], precision: DType = DType.F32
) -> list[Task]:
    """The distinct products of programs, those that will take the most time together first."""
    tasks: dict[str, Task] = {}
    work: dict[str, int] = {}
    for program in programs:
        schedules = Schedules(sizes=sizes)
        likely = schedules.likely_sizes(program)
        resident = sum(array.nbytes for array in program.constants.values())
        unknown = _unknown_sizes(program, sizes, likely)
        lowered = lower_program(program, target, schedules, precision)
        for product in (k.product for k in lowered.kernels):
            if not isinstance(product, Product):
                continue
            key = str(product.shape)
            work[key] = work.get(key, 0) + product.shape.products
            if key not in tasks or not tasks[key].known:
                alone = product_alone(product, lowered, program.constants)
                known = unknown.isdisjoint(symbolic_sizes(alone))
                tasks[key] = Task(product.shape, alone, likely, resident, known)
    return [tasks[key] for key in sorted(tasks, key=lambda k: -work[k])]


def _unknown_sizes(program: Program, sizes: Mapping[str, int], likely: Mapping[str, int]) -> set[str]:
    """Names of the sizes with which no kernel can be built alone.

    Those are elements of tensors or derived from such, no guess at which makes sense, and those that are 0 or
    are not what is derived for them; all, where a run with the given ones would be refused.
    """
    found = set(program.elements)
    for name, e in program.derived.items():
        if not found.isdisjoint(size_names(e)):
            found.add(name)
    exact = {n: v for n, v in sizes.items() if n not in program.derived and n not in found}
    try:
        bind_elements(program, exact, {})
    except InputError:
        return found | likely.keys()
    return found | {n for n, v in likely.items() if not exact.get(n, v) == v > 0}


def candidates_for(shape: ProductShape, target: Target, effort: Effort) -> list[Schedule]:
    """The schedules to measure, the default first: all, or those that differ from it in one choice."""
    every = candidate_schedules(shape, target)
    return every if effort == "full" else [s for s in every if _changes(s, every[0]) <= 1]


def _changes(one: Schedule, other: Schedule) -> int:
    return sum(getattr(one, f.name) != getattr(other, f.name) for f in fields(Schedule))


def right_ones(
    bench: Measured,
    candidates: Sequence[Schedule],
    shape: ProductShape,
    out_of_time: Stop,
    notes: list[str],
) -> list[int]:
    """The schedules, by number, whose answer is the interpreter's; none if that of the first is not.

    That is the default, and a bug. What is wrong is noted.

    Raises:
        TimeoutError: the time is over.
    """
    expected = bench.expected()
    right = []
    for index, schedule in enumerate(candidates):
        if out_of_time():
            raise TimeoutError
        difference = bench.difference(index, expected)
        if difference <= TOLERANCE:
            right.append(index)
        else:
            notes.append(
                f"{shape}: '{schedule}' differs from the interpreter by {difference:.1e} of the largest "
                "element and was refused; please report this"
            )
    return right if right[:1] == [0] else []


def pick_fastest(candidates: Sequence[int], sample: Callable[[int], float], out_of_time: Stop) -> Pick:
    """Finds the fastest schedule, which is the default unless another beats it by more than the noise.

    Schedules take turns, so that whatever else the machine does hits all alike; each counts with its fastest
    run, since nothing makes a run faster than it is.

    Args:
        candidates: numbers of schedules, the default's first.
        sample: seconds of a run in a schedule.
        out_of_time: whether to give up; asked before each sample.

    Raises:
        TimeoutError: the time is over.
    """

    def take(index: int) -> float:
        if out_of_time():
            raise TimeoutError
        return sample(index)

    default, *alive = candidates
    best = dict.fromkeys(candidates, math.inf)
    for turn in range(SCREENING_ROUNDS):
        for index in [default, *alive][:: 1 if turn % 2 == 0 else -1]:
            best[index] = min(best[index], take(index))
        if turn > 0:
            limit = BEHIND * min(best.values())
            alive = [index for index in alive if best[index] <= limit]
    for challenger in sorted(alive, key=lambda index: best[index])[:CHALLENGERS]:
        halves = [_duel(default, challenger, take) for _ in range(2)]
        default_seconds = min(best[default], *(d for d, _ in halves))
        if all(own * (1 + NOISE) <= d for d, own in halves):
            return Pick(challenger, min(best[challenger], *(own for _, own in halves)), default_seconds)
        best[default] = default_seconds
    return Pick(default, best[default], best[default])


def _duel(default: int, challenger: int, sample: Callable[[int], float]) -> tuple[float, float]:
    """The fastest samples of both, taken in turns, each as often first."""
    times = {default: math.inf, challenger: math.inf}
    for turn in range(HALF):
        for index in (default, challenger) if turn % 2 == 0 else (challenger, default):
            times[index] = min(times[index], sample(index))
    return times[default], times[challenger]
