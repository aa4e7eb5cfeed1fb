"""`hasten.optimize`: the fastest version of a model within an accuracy budget."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.api.sources import folder_of, plain
from hasten.codegen.toolchain import default_cache
from hasten.errors import OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.runtime.artifact import Artifact, read_artifact
from hasten.runtime.session import Session, start
from hasten.search.asked import Asked, share_of
from hasten.search.candidates import LOSSLESS
from hasten.search.clock import Clock
from hasten.search.interrupts import interrupts
from hasten.search.metrics import UserMetric, metric_named
from hasten.search.prune.plan import SEARCHED
from hasten.search.record import SearchRecord
from hasten.search.report import to_html, to_json
from hasten.search.results import default_database
from hasten.search.start import pose, read, search
from hasten.search.status import Status, Watch, nobody, tell
from hasten.target import cores


class SearchReport(Mapping[str, Any]):
    """What the compilation and the search noted for people: a mapping, as of any session, and the record.

    Attributes:
        record: everything that the search did and found.
    """

    def __init__(self, noted: Mapping[str, Any], record: SearchRecord) -> None:
        self.record = record
        self._noted = noted

    def __getitem__(self, key: str) -> Any:
        return self._noted[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._noted)

    def __len__(self) -> int:
        return len(self._noted)

    def __str__(self) -> str:
        return self.record.headline

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes it as one HTML file that needs nothing else.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(to_html(self.record), "utf-8")

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as JSON.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(to_json(self.record), "utf-8")


class Optimized(Session):
    """What `optimize` found, ready to run.

    Attributes:
        report: what was tried, what was kept, and why.
    """

    report: SearchReport

    def __init__(self, artifact: Artifact, record: SearchRecord, threads: int) -> None:
        """Opens it."""
        super().__init__(artifact, *start(artifact, threads))
        self.report = SearchReport(artifact.manifest.report, record)


def optimize(  # noqa: PLR0913 - choices, each with a default
    source: object,
    *,
    data: object,
    metric: str | UserMetric = "agreement",
    max_drop: float | str = 0.01,
    confidence: float | str = 0.95,
    calibration: object = None,
    larger_is_better: bool | None = None,
    output: str | None = None,
    precision: str = "auto",
    prune: bool | str | Sequence[str] = False,
    prune_criterion: str = "obs",
    engines: bool = True,
    padding: str = "skip",
    threads: int | None = None,
    time_limit: float | None = 600.0,
    memory_limit: int | None = None,
    seed: int = 0,
    example: Example | None = None,
    dynamic: Dynamic | None = None,
    cache: str | os.PathLike[str] | None = None,
    database: str | os.PathLike[str] | None = None,
    command: str = "",
    watch: Watch = nobody,
) -> Optimized:
    """Finds the fastest version of a model whose drop in accuracy is certain to be within a budget.

    What is returned beat both the original engine and the lossless compilation in paired timing on this
    machine, and its drop on data like the user's is at most `max_drop` with the confidence asked for;
    otherwise it is the lossless compilation. The report says which, and why. Ctrl-C ends the search and
    keeps the best that is certified; once that is being written it has no effect, and a second one loses it.

    Args:
        source: as for `compile`.
        data: samples, as `search.data.load_samples` takes them.
        metric: a name (`search.metrics.metric_named`), or a function of outputs and labels.
        max_drop: the budget, in the metric's units: 0.01, or "1%", is one point of accuracy.
        confidence: of the certificate, from 0.5 to below 1: 0.95 or "95%".
        calibration: how many of the samples choices may look at, None for a share; the others are held
            out for certificates. Or data of their own for choices: all of `data` is then held out.
        larger_is_better: the direction of a metric that is a function.
        output: the output that a named metric looks at; None for the first.
        precision: "auto" for all formats; "int8" for those that begin so, "bf16" for that alone, beside f32;
            "f32" for none. bf16 is of all that other formats leave, or of nothing.
        prune: whether heads, neurons, channels and whole layers may be removed, as far as the budget allows;
            or which of these, such as ("layers", "heads"). Needs PyTorch.
        prune_criterion: by what units are ranked, as for `prune`; layers by fisher where that is obs.
        engines: whether other engines that are installed are candidates.
        padding: as for `compile`.
        threads: of a run; None for all cores.
        time_limit: seconds for everything; None for any time. Where it is too short for more, the
            lossless compilation is returned.
        memory_limit: bytes that each process which makes, runs or measures candidates may allocate, mapped
            files not counted; None for no limit. It says nothing of this process, which holds the data.
        seed: of the split into parts and of the bootstrap.
        example: as for `compile`.
        dynamic: as for `compile`.
        cache: folder of compiled objects; None for the user's cache folder.
        database: file of measurements, which later searches reuse; None for the user's.
        command: what repeats this search, for the report; the call in Python if it is empty.
        watch: is told what happens.

    Returns:
        An open session with `report`; `save` writes its artifact.

    Raises:
        ModelError: the source cannot be read, is quantized already, or has operators that nothing can run.
        DataError: the data cannot be read or do not fit the model.
        MetricError: the metric has no value on the original's answers.
        OptionError: an argument makes no sense.
        MissingDependencyError: `prune` is asked for and PyTorch is not installed.
        ToolchainError: no C compiler was found.
        TuningError: the measurements on disk cannot be read or written.
    """
    call = command or _call(locals())
    asked = Asked(
        metric=metric_named(metric, output=output, larger_is_better=larger_is_better),
        named=isinstance(metric, str),
        max_drop=_share("max_drop", max_drop),
        confidence=_share("confidence", confidence),
        calibration=calibration,
        precision=precision,
        engines=engines,
        prune=_units(prune),
        prune_criterion=prune_criterion,
        padding=padding,
        threads=cores() if threads is None else threads,
        seconds=time_limit,
        memory=memory_limit,
        seed=seed,
        cache=default_cache() if cache is None else Path(cache),
        database=default_database() if database is None else Path(database),
    )
    clock = Clock(asked.seconds)
    clock.phase("reading")
    with interrupts(), tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        place = Path(folder)
        tell(watch, Status("reading the model", "reading", (), LOSSLESS, 0.0, time_limit))
        given = plain(source)
        found = read(given, example, dynamic, place)
        tell(watch, Status("reading the data", "reading", (), LOSSLESS, clock.elapsed, time_limit))
        problem = pose(found, given, data, asked, place, __version__, raw=folder_of(source), example=example)
        report = {"passes": found.passes, "tuning": {}, "notes": ""}
        record, path = search(problem, clock, report, __version__, call, watch)
        return Optimized(read_artifact(path), record, asked.threads)


def _units(prune: bool | str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of units that are meant."""
    if isinstance(prune, bool):
        return SEARCHED if prune else ()
    return (prune,) if isinstance(prune, str) else tuple(prune)


def _share(name: str, given: object) -> float:
    share = share_of(given)
    if share is None:
        raise OptionError(f"{name}={given!r}: give a share, such as 0.01 or '1%'")
    return share


def _call(given: Mapping[str, Any]) -> str:
    """The call that repeats a search: paths as they are, names for what has no text."""
    parameters = inspect.signature(optimize).parameters
    told = []
    for name, passed in given.items():
        default = parameters[name].default
        if name in ("command", "watch") or passed is default:
            continue
        value = os.fspath(passed) if isinstance(passed, os.PathLike) else passed
        parts = value if isinstance(value, list | tuple) else [value]
        simple = all(part is None or isinstance(part, str | int | float) for part in parts)
        if simple and value == default:
            continue
        named = getattr(value, "__name__", name) if name == "metric" else name
        text = repr(value) if simple else named
        told.append(text if name == "source" else f"{name}={text}")
    return f"hasten.optimize({', '.join(told)})"
