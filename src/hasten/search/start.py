"""A search from its arguments to what it found: poses the problem, runs it, packs the winner."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.backends.foreign import foreign_payload
from hasten.backends.graph_members import graph_members
from hasten.backends.native import io
from hasten.errors import DataError, OptionError
from hasten.runtime.artifact import WEIGHTS, read_artifact, write_artifact
from hasten.runtime.manifest import TensorInfo
from hasten.search.build import Build
from hasten.search.candidates import Candidate
from hasten.search.clock import Clock
from hasten.search.data import Samples, apart, load_samples, split
from hasten.search.lone_score import THRESHOLD, lone_score
from hasten.search.memory import Memory
from hasten.search.metrics import Metric, metric_named
from hasten.search.optimize import Search
from hasten.search.original import original_of
from hasten.search.pages import give_back
from hasten.search.prune.criteria import need_torch
from hasten.search.record import SearchRecord
from hasten.search.results import Results
from hasten.search.status import Watch
from hasten.search.summary import summarize
from hasten.search.trials import Problem, Trials
from hasten.target import TARGETS, processor_name, runs_here

PRECISIONS = ("auto", "f32", "bf16", "int8")


@dataclass(frozen=True)
class Asked:
    """What the user asks for; `hasten.optimize` says what the fields mean.

    Attributes:
        metric: what must not drop.
        named: whether it is one of hasten's metrics, which its name tells.
        max_drop: the budget.
        confidence: of the certificate.
        calibration: how many samples choices may look at, or data of their own for that; None for a share.
        precision: "auto", or the one that layers may have beside f32.
        engines: whether other engines are candidates.
        prune: whether units may be removed.
        padding: "skip" or "compute".
        threads: of a run.
        memory: bytes that a candidate's process may allocate.
        seed: of what is random.
        cache: folder of compiled objects.
        database: file of measurements.
    """

    metric: Metric
    named: bool
    max_drop: float
    confidence: float
    calibration: object
    precision: str
    engines: bool
    prune: bool
    padding: str
    threads: int
    memory: int | None
    seed: int
    cache: Path
    database: Path

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise OptionError(
                f"max_drop={self.max_drop}: give 0 or more, such as 0.01 for one point of accuracy"
            )
        if not 0.5 <= self.confidence < 1:
            raise OptionError(
                f"confidence={self.confidence}: give a number from 0.5 to below 1, such as 0.95"
            )
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision={self.precision!r}: give one of {', '.join(PRECISIONS)}")
        if self.padding not in ("skip", "compute"):
            raise OptionError(f"padding={self.padding!r}: give one of skip, compute")
        if self.threads < 1:
            raise OptionError(f"threads={self.threads}: give 1 or more")
        if self.memory is not None and self.memory <= 0:
            raise OptionError(f"memory_limit={self.memory}: give a number of bytes above 0")
        if self.prune:
            need_torch("prune=True")

    def precisions(self) -> frozenset[str]:
        """What layers may have: formats begin so. bf16 only where the processor multiplies it."""
        wanted = {"f32", "bf16", "int8", "int4"} if self.precision == "auto" else {"f32", self.precision}
        if not any("bf16" in t.factors and runs_here(t) for t in TARGETS):
            wanted.discard("bf16")
        return frozenset(wanted)


def pose(model: ir.Model, source: object, data: object, asked: Asked, folder: Path, version: str) -> Problem:
    """The problem that a search solves.

    Args:
        model: after `optimize_graph`.
        source: that it came from.
        data: the user's.
        asked: the user's wishes.
        folder: for files while the search runs.
        version: of hasten.

    Raises:
        DataError: the data cannot be read or do not fit the model.
    """
    inputs = [_info(v) for v in model.graph.inputs]
    outputs = tuple(v.name or "" for v in model.graph.outputs)
    if asked.metric.output is not None and asked.metric.output not in outputs:
        raise OptionError(f"output={asked.metric.output!r}: the model has {', '.join(outputs)}")
    given = Path(source) if isinstance(source, str | os.PathLike) else None
    folder_of_source = given if given is not None and given.is_dir() else None
    samples = load_samples(data, inputs, folder=folder_of_source)
    if asked.metric.needs_labels and samples.labels is None:
        raise DataError(
            f"the metric {asked.metric.name} needs a label for each sample, and the data have none: "
            "add them, or choose agreement, which compares with the original's answers"
        )
    if asked.calibration is None or isinstance(asked.calibration, int):
        calibration, held_out = split(samples, asked.seed, asked.calibration, confidence=asked.confidence)
    else:
        calibration, held_out = load_samples(asked.calibration, inputs, folder=folder_of_source), samples
    calibration, held_out = apart(calibration, held_out)
    metric, lone = asked.metric, lone_score(model, asked.metric.output)
    if asked.named and lone is not None:
        metric = metric_named(metric.name, output=metric.output, lone=lone)
        if metric.classes_alone or metric.zero_one:
            held_out = held_out.noted(f"the only score of an answer is taken as a {lone}: {THRESHOLD[lone]}")
    original = original_of(source, folder)
    looked_at = (asked.metric.output or outputs[0],) if asked.named else outputs
    return Problem(
        name=_name(source),
        graph=model,
        sha256=_graph_hash(model),
        original=None if isinstance(original, str) else original,
        calibration=calibration,
        held_out=held_out,
        data_sha256=_data_hash(calibration, held_out),
        metric=metric,
        reusable=asked.named,
        outputs=looked_at,
        max_drop=asked.max_drop,
        confidence=asked.confidence,
        seed=asked.seed,
        precisions=asked.precisions(),
        prune=asked.prune,
        foreign=asked.engines,
        build=Build(("native",), asked.threads, asked.padding, str(asked.cache), version),
        threads=asked.threads,
        memory=asked.memory,
        folder=folder,
        without_original=original if isinstance(original, str) else "",
    )


def search(
    problem: Problem,
    clock: Clock,
    database: Path,
    report: Mapping[str, Any],
    version: str,
    command: str,
    watch: Watch,
) -> tuple[SearchRecord, Path]:
    """Searches, and packs what it found.

    Args:
        problem: what is asked.
        clock: how much time there is.
        database: file of measurements.
        report: what earlier steps noted for people.
        version: of hasten.
        command: what repeats the search.
        watch: is told what happens.

    Returns:
        The record, and an artifact in the problem's folder.

    Raises:
        HastenError: the lossless compilation fails, or the artifact cannot be written.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = {
        "graph": problem.sha256,
        "data": problem.data_sha256,
        "outputs": problem.outputs,
        "processor": processor_name(),
        "threads": problem.threads,
        "padding": problem.build.padding,
        "hasten": version,
    }
    found = Search(Trials(problem, clock, Memory(Results(database), about, version), watch))
    found.run()
    record = summarize(found, version=version, command=command, started=started)
    found.trials.say("writing the artifact")
    path = pack(found.trials, found.trials.candidates[found.best], record, report, version)
    return record, path


def pack(
    trials: Trials, chosen: Candidate, record: SearchRecord, report: Mapping[str, Any], version: str
) -> Path:
    """The artifact of the candidate that was chosen, with its graph and the record of the search."""
    problem = trials.problem
    graph = ir.load(trials.graph(chosen))
    noted = {**report, "search": asdict(record)}
    path = problem.folder / "chosen.hasten"
    if not chosen.ours:
        payload = foreign_payload(
            graph,
            engine=chosen.engine.package,
            engine_version=chosen.engine.version or "unknown",
            precision=chosen.precision,
            threads=problem.threads,
            report=noted,
            version=version,
        )
        write_artifact(path, payload.manifest, payload.members)
        return path
    built = trials.model(chosen)
    with zipfile.ZipFile(built) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    del manifest["members"]
    manifest["report"] = {**manifest["report"], **noted}
    kept = read_artifact(built, verify="now").members
    image = np.frombuffer(kept[WEIGHTS], np.uint8)
    members = {**kept, **graph_members(graph, weights=True, image=image)}
    write_artifact(path, manifest, members)
    return path


def _info(value: ir.Value) -> TensorInfo:
    described = io(value)
    return TensorInfo(described["name"], described["dtype"], tuple(described["shape"]))


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return path.name or str(path.resolve().name)
    return type(source).__name__


def _graph_hash(model: ir.Model) -> str:
    digest = hashlib.sha256()
    graph = graph_members(model, weights=False)["graph.onnx"]
    assert isinstance(graph, bytes)
    digest.update(graph)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            digest.update(name.encode())
            digest.update(_content(value.const_value.numpy()))
    give_back(model)
    return digest.hexdigest()


def _content(array: np.ndarray) -> memoryview:
    """The bytes of an array, which are not copied if they lie in a row."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _data_hash(*parts: Samples) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"part")
        for array in _arrays(part):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(_content(array))
    return digest.hexdigest()


def _arrays(part: Samples) -> Iterator[np.ndarray]:
    for feeds in part.feeds:
        for name in sorted(feeds):
            yield np.asarray(feeds[name])
    if part.labels is not None:
        yield np.asarray(part.labels)
