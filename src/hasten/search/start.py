"""A search from its arguments to what it found: poses the problem, runs it, packs the winner."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten import frontends
from hasten.backends.foreign import foreign_payload
from hasten.backends.graph_members import graph_members
from hasten.backends.native import io
from hasten.codegen.sources import SEARCHED, kernels_version
from hasten.errors import DataError, ModelError, OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.graph.constants import raw_bytes
from hasten.graph.pages import give_back
from hasten.passes.facts import is_quantized
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import WEIGHTS, read_artifact, write_artifact
from hasten.runtime.manifest import OBJECT, TensorInfo
from hasten.search.asked import Asked, Problem
from hasten.search.build import Build
from hasten.search.candidates import Candidate
from hasten.search.clock import Clock
from hasten.search.data import Samples, apart, load_samples, split
from hasten.search.data_labels import check_labels
from hasten.search.isolated import isolated
from hasten.search.lone_score import THRESHOLD, class_count, lone_score
from hasten.search.memory import Memory
from hasten.search.metrics import metric_named
from hasten.search.optimize import Search
from hasten.search.original import original_of
from hasten.search.record import SearchRecord
from hasten.search.results import Results
from hasten.search.samples import shuffled, told_apart
from hasten.search.status import Watch
from hasten.search.summary import summarize
from hasten.search.transfer import mapped
from hasten.search.trials import Trials
from hasten.target import processor_name


@dataclass(frozen=True)
class Read:
    """A model that was read and optimized.

    Attributes:
        graph: its weights are mapped from a file: a search holds several graphs, and few of them at a time.
        sha256: of the graph with its weights.
        passes: what optimizing it did.
    """

    graph: ir.Model
    sha256: str
    passes: Mapping[str, Any]


def read(source: object, example: Example | None, dynamic: Dynamic | None, folder: Path) -> Read:
    """Reads and optimizes a model, in a process of its own if it is in files.

    Raises:
        ModelError: it cannot be read, or is quantized already.
    """
    if not isinstance(source, str | os.PathLike):
        return _read(source, example, dynamic, folder)
    frontends.check_downloaded(source)
    place = Path(source).absolute()
    found: Read = isolated(_read, place, example, dynamic, folder, doing="reading the model", folder=folder)
    return found


def _read(source: object, example: Example | None, dynamic: Dynamic | None, folder: Path) -> Read:
    model = frontends.load(source, example=example, dynamic=dynamic)
    if is_quantized(model):
        raise ModelError("the model is quantized already: compile it, or give what it was made from")
    passes = asdict(optimize_graph(model))
    graph = mapped(model, folder / "whole.onnx")
    return Read(graph, _graph_hash(graph), passes)


def pose(
    found: Read,
    source: object,
    data: object,
    asked: Asked,
    folder: Path,
    version: str,
    *,
    raw: Path | None = None,
    example: Example | None = None,
) -> Problem:
    """The problem that a search solves.

    Args:
        found: the model.
        source: that it came from.
        data: the user's.
        asked: the user's wishes.
        folder: for files while the search runs.
        version: of hasten.
        raw: the Hugging Face folder that reads raw texts and pictures, if there is one.
        example: inputs that the source was traced with.

    Raises:
        DataError: the data cannot be read or do not fit the model.
    """
    model = found.graph
    inputs = [_info(v) for v in model.graph.inputs]
    outputs = tuple(v.name or "" for v in model.graph.outputs)
    arrays = tuple(v.name or "" for v in model.graph.outputs if _info(v).dtype != OBJECT)
    if asked.metric.output is not None and asked.metric.output not in outputs:
        raise OptionError(f"output={asked.metric.output!r}: the model has {', '.join(outputs)}")
    named = asked.metric.output or outputs[0]
    if named not in arrays and (asked.named or not arrays):
        raise OptionError(
            f"the output {named!r} is a sequence or a map, and metrics look at arrays: "
            + (f"name another output ({', '.join(arrays)})" if arrays else "export the model to give some")
        )
    texts = [v.name or "" for v in model.graph.outputs if _info(v).dtype == "object"]
    if asked.named and named in texts:
        others = ", ".join(name for name in arrays if name not in texts)
        raise OptionError(
            f"the output {named!r} is texts, and metrics look at numbers: "
            + (f"name another output ({others})" if others else "give a function as metric")
        )
    samples = load_samples(data, inputs, folder=raw)
    if asked.metric.needs_labels and samples.labels is None:
        raise DataError(
            f"the metric {asked.metric.name} needs a label for each sample, and the data have none: "
            "add them, or choose agreement, which compares with the original's answers"
        )
    if asked.calibration is None or isinstance(asked.calibration, int):
        calibration, held_out = split(samples, asked.seed, asked.calibration, confidence=asked.confidence)
    else:
        given = load_samples(asked.calibration, inputs, folder=raw)
        # What looks at a part of them takes the first, which must not be those of one class.
        calibration, held_out = shuffled(given, asked.seed), samples
    for part in (samples, calibration):
        if asked.metric.of_classes and part.labels is not None:
            check_labels(part.labels, class_count(model, asked.metric.output))
    calibration, held_out = apart(calibration, held_out)
    metric, lone = asked.metric, lone_score(model, asked.metric.output)
    if asked.named and lone is not None:
        metric = metric_named(metric.name, output=metric.output, lone=lone)
        if metric.classes_alone or metric.zero_one:
            held_out = held_out.noted(f"the only score of an answer is taken as a {lone}: {THRESHOLD[lone]}")
    original = original_of(source, folder, example, inputs)
    looked_at = (named,) if asked.named else arrays
    return Problem(
        asked=replace(asked, metric=metric),
        name=_name(source),
        graph=model,
        sha256=found.sha256,
        original=None if isinstance(original, str) else original,
        calibration=calibration,
        held_out=held_out,
        data_sha256=data_hash(calibration, held_out),
        outputs=looked_at,
        build=Build(("native",), asked.threads, asked.padding, str(asked.cache), version),
        folder=folder,
        without_original=original if isinstance(original, str) else "",
    )


def search(
    problem: Problem,
    clock: Clock,
    report: Mapping[str, Any],
    version: str,
    command: str,
    watch: Watch,
) -> tuple[SearchRecord, Path]:
    """Searches, and packs what it found.

    Args:
        problem: what is asked.
        clock: how much time there is.
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
        "threads": problem.asked.threads,
        "padding": problem.build.padding,
        "hasten": kernels_version(version, SEARCHED),
    }
    found = Search(Trials(problem, clock, Memory(Results(problem.asked.database), about, version), watch))
    found.run()
    record = summarize(found, version=version, command=command, started=started)
    found.trials.say("writing the artifact, which Ctrl-C waits for")
    chosen = found.trials.candidates[found.best]
    path = problem.folder / "chosen.hasten"
    graph, built = found.trials.graph(chosen), found.trials.model(chosen)
    job = (chosen, graph, built, record, report, version, problem.asked.threads, path)
    isolated(pack, *job, doing="writing the artifact", folder=problem.folder)
    return record, path


def pack(
    chosen: Candidate,
    graph: Path,
    built: Path,
    record: SearchRecord,
    report: Mapping[str, Any],
    version: str,
    threads: int,
    path: Path,
) -> None:
    """Writes the artifact of the candidate that was chosen, with its graph and the record of the search.

    Args:
        chosen: the candidate.
        graph: its graph.
        built: what its engine takes.
        record: of the search.
        report: what earlier steps noted for people.
        version: of hasten.
        threads: of a run.
        path: the file to write.
    """
    model = ir.load(graph)
    noted = {**report, "search": asdict(record)}
    if not chosen.ours:
        payload = foreign_payload(
            model,
            engine=chosen.engine.package,
            engine_version=chosen.engine.version or "unknown",
            precision=chosen.precision,
            threads=threads,
            report=noted,
            version=version,
        )
        write_artifact(path, payload.manifest, payload.members)
        return
    with zipfile.ZipFile(built) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    del manifest["members"]
    manifest["report"] = {**manifest["report"], **noted}
    _texts_to_nodes(model)
    kept = read_artifact(built, verify="now").members
    image = np.frombuffer(kept[WEIGHTS], np.uint8)
    members = {**kept, **graph_members(model, weights=True, image=image)}
    write_artifact(path, manifest, members)


def _texts_to_nodes(model: ir.Model) -> None:
    """Makes constants in the graph of weights that are texts: an artifact keeps weights as bytes."""
    for value in list(model.graph.initializers.values()):
        if value.dtype is not ir.DataType.STRING or value.const_value is None:
            continue
        made = ir.Value(name=value.name, type=value.type, shape=value.shape)
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], outputs=[made])
        value.replace_all_uses_with(made, replace_graph_outputs=True)
        del model.graph.initializers[value.name or ""]
        model.graph.insert_before(model.graph[0], node)


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
            digest.update(raw_bytes(value.const_value.numpy()).data)
    give_back(model)
    return digest.hexdigest()


def data_hash(*parts: Samples) -> str:
    """What tells samples and their labels from others, part by part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"part")
        for array in map(told_apart, _arrays(part)):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(raw_bytes(array).data)
    return digest.hexdigest()


def _arrays(part: Samples) -> Iterator[np.ndarray]:
    for feeds in part.feeds:
        for name in sorted(feeds):
            yield np.asarray(feeds[name])
    if part.labels is not None:
        labels = np.asarray(part.labels)
        if labels.dtype == object:  # of different lengths, an array each
            yield from map(np.asarray, labels)
        else:
            yield labels
