"""Results that were measured elsewhere: their schedules are verified here before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hasten.codegen.schedule import Schedule
from hasten.errors import ToolchainError, TuningError
from hasten.loops.program import Program
from hasten.search.results import Results
from hasten.search.tune import Build, Settings, machine_for, right_ones, tasks_of
from hasten.search.tune_bench import Bench
from hasten.target import Target


@dataclass(frozen=True)
class Verified:
    """What verifying found.

    Attributes:
        right: the schedules that gave the interpreter's answers, by kernel.
        notes: what people should know: schedules that gave wrong answers or could not be built.
    """

    right: Mapping[str, Schedule]
    notes: tuple[str, ...]


def verify_stored(
    programs: Sequence[Program],
    target: Target,
    sizes: Mapping[str, int],
    results: Results,
    settings: Settings,
    *,
    build: Build = Bench,
    progress: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Compares the answers of schedules that came from elsewhere with the interpreter's.

    Only those for kernels of these programs; the results of wrong ones are deleted, those that cannot be
    built stay as they are. It takes about a second each, once.

    Args:
        programs: of the parts of a model.
        target: instruction set; this machine must run it.
        sizes: likely values of the model's symbolic sizes.
        results: where results are. Where they cannot be written, what is found holds for this time.
        settings: threads, precision, version, cache and time limit.
        build: makes the kernels that are compared.
        progress: is told which kernel is being compared.

    Raises:
        TuningError: the results cannot be read.
    """
    stop = settings.out_of_time
    machine = machine_for(target, settings.threads)
    found = {r.kernel: r for r in results.rows(machine, settings.version, verified=False)}
    right: dict[str, Schedule] = {}
    notes: list[str] = []
    written = True
    for task in tasks_of(programs, target, sizes, settings.precision) if found else ():
        result = found.get(str(task.shape))
        if result is None or not task.known:
            continue
        progress(f"verifying: {task.shape}")
        try:
            bench = build(task, [result.schedule], target, settings.threads, settings.cache, stop)
            is_right = bool(right_ones(bench, [result.schedule], task.shape, stop, notes))
        except TimeoutError:
            break
        except ToolchainError as error:
            # A failing compiler says nothing of the schedule: the result stays for another time.
            notes.append(f"{task.shape}: '{result.schedule}' cannot be built here and is not used ({error})")
            continue
        if is_right:
            right[result.kernel] = result.schedule
        try:
            if written:
                results.judge(result, right=is_right)
        except TuningError as error:
            written = False
            notes.append(f"what was verified now will be verified again next time: {error}")
    return Verified(right, tuple(notes))
