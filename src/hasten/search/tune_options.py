"""What a user says about tuning, and the schedules that follow from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hasten.codegen.schedule import Schedules
from hasten.codegen.sources import kernels_version
from hasten.errors import OptionError
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Size, constant_int
from hasten.loops.program import Program
from hasten.loops.simplify import infix
from hasten.runtime.manifest import TensorInfo
from hasten.search.measure_inputs import likely_sizes
from hasten.search.results import Results, default_database
from hasten.search.tune import (
    TIME_LIMITS,
    Build,
    Settings,
    Tune,
    machine_for,
    stored_schedules,
    tune_programs,
)
from hasten.search.tune_bench import Bench
from hasten.search.tune_verify import verify_stored
from hasten.target import Target, best_here, cores, runs_here


@dataclass(frozen=True)
class Tuning:
    """How the schedules of products and convolutions are chosen.

    Attributes:
        effort: "0": from their shapes alone, so that the same model gives the same artifact anywhere;
            "stored": from earlier measurements on this processor, where there are any; "quick" and "full":
            measured now where they were not before, and remembered.
        seconds: time limit for measuring and for verifying before it, of all targets together; None for a
            minute ("quick") or ten ("full"). "stored" has none.
        shapes: shapes that inputs will likely have, by name. Sizes that nothing says are guessed by name.
        database: file of the measurements; None for the one in the user's data folder.
    """

    effort: str = Tune.OFF
    seconds: float | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    database: str | Path | None = None

    def __post_init__(self) -> None:
        if self.effort not in list(Tune):
            raise OptionError(f"tune={self.effort!r}: give one of {', '.join(Tune)}")
        if self.seconds is not None and not self.seconds > 0:
            raise OptionError(f"seconds={self.seconds}: give a number above 0, or None")

    @property
    def results(self) -> Results:
        """The measurements."""
        return Results(default_database() if self.database is None else Path(self.database))


@dataclass(frozen=True)
class Chosen:
    """The schedules for a target.

    Attributes:
        schedules: for the parts of a model.
        noted: what to note about them: the effort, what tuning did, or why it was skipped.
    """

    schedules: Schedules
    noted: Mapping[str, Any]


def choose_schedules(  # noqa: PLR0913 - choices
    tuning: Tuning,
    programs: Sequence[Program],
    targets: Sequence[Target],
    *,
    threads: int | None,
    precision: DType,
    version: str,
    cache: Path | None,
    winograd: bool = True,
    progress: Callable[[str], None],
    build: Build = Bench,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Target, Chosen]:
    """The schedules for the parts of a model, by target.

    Kernels are measured for targets that this machine runs; code for others has default schedules.
    What was measured elsewhere is verified before it is used. The time limit is for all targets together, and
    the one whose code will run here comes first.

    Raises:
        TuningError: the measurements cannot be read or written.
        InputError: the shapes do not fit the model's inputs.
    """
    inputs = {name: i for p in programs for name, i in p.inputs.items()}
    described = [TensorInfo(i.name, i.dtype.numpy.name, tuple(map(_dim, i.shape))) for i in inputs.values()]
    given = {name: shape for name, shape in tuning.shapes.items() if name in inputs}
    sizes = likely_sizes(described, given)
    effort = Tune(tuning.effort)
    defaults = Chosen(Schedules(sizes=sizes, winograd=winograd), {"effort": effort.value})
    chosen = dict.fromkeys(targets, defaults)
    if effort is Tune.OFF:
        return chosen
    here = [t for t in targets if runs_here(t)]
    abroad = replace(defaults, noted={**defaults.noted, "skipped": "this machine does not run it"})
    chosen |= {t: abroad for t in targets if t not in here}
    measures = effort is not Tune.STORED
    limit = tuning.seconds if measures else None
    end = clock() + (TIME_LIMITS.get(effort, math.inf) if limit is None else limit)
    settings = Settings(
        "full" if effort is Tune.FULL else "quick",
        cores() if threads is None else threads,
        precision,
        kernels_version(version),
        cache,
        winograd,
        lambda: clock() >= end,
    )
    best = best_here(here)
    for target in sorted(here, key=lambda t: t is not best):
        where = (programs, target, sizes, tuning.results, settings)
        noted = dict(defaults.noted)
        verified = verify_stored(*where, build=build, progress=progress)
        notes = verified.notes
        if measures:
            report = tune_programs(*where, build=build, progress=progress)
            noted |= asdict(report)
            notes += report.notes
        if notes:
            noted["notes"] = notes
        found = stored_schedules(tuning.results, machine_for(target, settings.threads), settings.version)
        chosen[target] = Chosen(replace(defaults.schedules, chosen={**verified.right, **found}), noted)
    return chosen


def _dim(n: Expr) -> int | str:
    value = constant_int(n)
    if value is not None:
        return value
    return n.name if isinstance(n, Size) else infix(n)
