"""All cases of issue 3 against every engine that can be had: tables in Markdown, JSON and a picture.

    python benchmarks/suite.py [--cases minilm] [--rounds 9] [--precision f32,bf16] [--engines openvino,torch]
                               [--json F] [--markdown F] [--picture F]

How engines are timed is described in `hasten.search.measure`. Compile seconds are those of an empty cache.

The best peer of a case is the fastest of the engines that compute in its precision or a wider one. In int8
all layers are quantized, by each engine's own tools (`quantized_peers.py`), on the same inputs.
All engines of a case are open at once: a case of BERT-base takes about 10 GB of memory with all of them.

Where the rest goes is told by a profile, of runs of its own after the rounds; where they took more than 5%
more or less, the cell says so. It goes by the roofline: a kernel at the peak of memory (or above it, with
data from caches) or of a wider type loses nothing there, though it is below that of the case's precision.

Some figures do not compare: torch loads a module that is not a Hugging Face folder by building it, and the
operations of padding are counted, though an engine may leave them out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import models, picture, quantized_peers, report
from benchmarks.cases import Entry, entries_named
from benchmarks.losses import Losses, measured_losses
from hasten.api import CompileOptions, compile_payload
from hasten.cli.console import check_apart, check_place
from hasten.errors import HastenError, OptionError, ToolchainError
from hasten.runtime.artifact import write_artifact
from hasten.search.busy import busy_cores, is_busy
from hasten.search.engines import HASTEN, HASTEN_BF16, HASTEN_INT8, PEERS, Engine, Precision, peers_named
from hasten.search.measure import Contestant, Plan, Spread, measure
from hasten.search.measure_case import files_of
from hasten.search.measure_flops import count_flops
from hasten.search.peak import Peak
from hasten.search.quantization import Quantization
from hasten.target import cores, describe_machine, processor_features

_OPENINGS = 5  # at most, of each engine where opening is what is measured


@dataclass(frozen=True)
class Compiled:
    """An artifact, and how many seconds it took to compile with an empty cache; or why there is none."""

    path: Path
    seconds: float
    problem: str | None = None


@dataclass(frozen=True)
class Setup:
    """What is the same for all cases; artifacts are compiled once and kept in a folder."""

    plan: Plan
    precisions: Sequence[Precision]
    peers: Sequence[Engine]
    peak: Peak | None
    folder: Path
    artifacts: dict[tuple[Path, Precision], Compiled] = dataclasses.field(default_factory=dict)


def compiled(model: Path, precision: Precision, entry: Entry, setup: Setup) -> Compiled:
    """The artifact of a model, compiled when it is first asked for."""
    key = (model, precision)
    if key not in setup.artifacts:
        path = setup.folder / f"{model.stem}-{precision}.hasten"
        problem = None
        data = entry.calibration() if precision == "int8" and entry.calibration else None
        with tempfile.TemporaryDirectory(prefix="hasten-") as cache:
            start = time.perf_counter()
            try:
                threads = setup.plan.threads
                rest = Quantization(rest="bf16" if HASTEN_BF16.precision in precisions_here() else "f32")
                options = CompileOptions(
                    precision=precision,
                    data=data,
                    quantization=None if data is None else rest,
                    threads=threads,
                    cache=cache,
                )
                payload = compile_payload(model, options)
                write_artifact(path, payload.manifest, payload.members)
            except HastenError as error:
                problem = str(error)
            setup.artifacts[key] = Compiled(path, time.perf_counter() - start, problem)
    return setup.artifacts[key]


def run_case(entry: Entry, setup: Setup) -> report.CaseReport:
    """Compiles the model of a case, and times all engines on it."""
    used = busy_cores()
    say(f"{entry.name}: making the model and compiling it")
    model, feeds = entry.onnx(), entry.inputs()
    goals = {precision: goal for precision, goal in entry.goals.items() if precision in setup.precisions}
    contestants, failures, seconds = [], {}, {}
    for engine in (HASTEN, HASTEN_BF16, HASTEN_INT8):
        if engine.precision in goals:
            artifact = compiled(model, engine.precision, entry, setup)
            if artifact.problem is not None:
                failures[engine.name] = artifact.problem
            else:
                contestants.append(Contestant(engine, artifact.path, [artifact.path]))
                seconds[engine.name] = artifact.seconds
    for engine in peers_of(entry, setup):
        source = model if engine.runs == "onnx" else entry.torch and entry.torch()
        if source is None:
            failures[engine.name] = "there is no torch module of this model"
        else:
            files = files_of(source) if isinstance(source, Path) else []
            contestants.append(Contestant(engine, source, files))
    if "int8" in goals and entry.calibration is not None:
        made, missing = quantized_peers.contestants(model, entry.calibration(), feeds, setup.folder)
        contestants += made
        failures |= missing
    plan = setup.plan
    if entry.figure == "load":
        plan = dataclasses.replace(plan, rounds=1, openings=min(plan.rounds, _OPENINGS))
    beside = None if setup.peak is None else setup.peak.by_precision
    found = measure(
        contestants, feeds, plan, progress=lambda text: say(f"{entry.name}: {text}"), beside=beside
    )
    found = dataclasses.replace(found, failures={**failures, **found.failures})
    gflop = None if entry.figure == "load" else gflop_of(model, {n: a.shape for n, a in feeds.items()})
    peaks: dict[str, Spread] = {
        p: spread for p in setup.precisions if (spread := found.beside_named(p)) is not None
    }
    return report.CaseReport(
        name=entry.name,
        figure=entry.figure,
        shapes={name: array.shape for name, array in feeds.items()},
        gflop=gflop,
        peaks=peaks,
        busy_cores=used,
        compile_seconds=seconds,
        verdicts=report.judge(found, goals, entry.figure, gflop, peaks),
        measurement=found,
        losses=losses_of(entry, model, feeds, list(goals), setup) if entry.figure == "run" else {},
    )


def losses_of(
    entry: Entry, model: Path, feeds: models.Inputs, precisions: Sequence[Precision], setup: Setup
) -> dict[str, Losses]:
    """Where the time of hasten's artifacts goes, by precision, once all engines are closed."""
    found: dict[str, Losses] = {}
    for precision in precisions:
        artifact = compiled(model, precision, entry, setup)
        if artifact.problem is None:
            say(f"{entry.name}: profiling {precision}")
            try:
                found[precision] = measured_losses(artifact.path, feeds, setup.plan.threads)
            except HastenError as error:
                say(f"{entry.name}: no profile of {precision}: {error}")
    return found


def peers_of(entry: Entry, setup: Setup) -> list[Engine]:
    """Engines that take part: those in f32 always, for they may be faster.

    A module for torch.compile is opened like any other, and compiled in its first run.
    """
    wanted = {"f32", *(precision for precision in entry.goals if precision in setup.precisions)}
    peers = [peer for peer in setup.peers if peer.precision in wanted]
    return [peer for peer in peers if entry.figure == "run" or peer.mode != "compile"]


def gflop_of(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """10**9 operations of a run of an ONNX file on inputs of these shapes; None if they cannot be counted."""
    proto = onnx.load(str(model), load_external_data=False)
    sizes: dict[str, int] = {}
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                sizes[dim.dim_param] = size
            dim.dim_value = size
    # What exporters noted of values in between, with the names of sizes, is kept where inference stops.
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    flops = count_flops(graph, sizes)
    return None if flops is None else flops / 1e9


def markdown(cases: Sequence[report.CaseReport], plan: Plan) -> str:
    """All tables, with the machine above."""
    counts = sorted({case.measurement.rounds for case in cases if case.figure == "run"})
    rounds = " to ".join(str(count) for count in dict.fromkeys([*counts[:1], *counts[-1:]])) or "1"
    busy = [case.name for case in cases if is_busy(case.busy_cores)]
    note = f"\n\nThe machine was busy before: {', '.join(busy)}. Those figures mean little." if busy else ""
    head = f"{describe_machine()}; threads: {plan.threads}, rounds: {rounds}{note}"
    return f"{head}\n\n{report.summary(cases)}\n\n{report.engines(cases)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time hasten against other engines on the cases of issue 3.")
    parser.add_argument("--cases", default="", help="only those whose name contains this, in any case")
    installed = ",".join(peer.name for peer in PEERS if peer.version is not None)
    parser.add_argument("--engines", default=installed, help="peers, with commas between [all: %(default)s]")
    parser.add_argument(
        "--precision", default=precisions_here(), help="f32, bf16, int8 [default: %(default)s]"
    )
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=60, help="seconds that the rounds of a case may take")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--picture", type=Path, help="draw ratios and shares of peak to this PNG file")
    options = parser.parse_args()
    chosen = entries_named(options.cases)
    if not chosen:
        parser.error(f"no case's name contains {options.cases!r}")
    try:
        precisions = precisions_named(options.precision)
        peers = peers_named(options.engines)
        check_outputs(options)
    except HastenError as error:
        parser.error(str(error))
    plan = Plan(options.threads, rounds=options.rounds, openings=1, limit=options.limit)
    cases: list[report.CaseReport] = []
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        setup = Setup(plan, precisions, peers, peak_of(options.threads), Path(folder))
        for entry in chosen:
            cases.append(run_case(entry, setup))
            # After each case: what was measured shall outlive what happens to the rest.
            write(cases, plan, options)
    print(markdown(cases, plan))


def check_outputs(options: argparse.Namespace) -> None:
    """Refuses places that could not be written, before minutes of work.

    Raises:
        OptionError: there is one, or two files are to be the same.
    """
    places = {f"--{kind}": getattr(options, kind) for kind in ("json", "markdown", "picture")}
    check_apart(places, ())
    for place in places.values():
        if place is not None:
            check_place(place)


def precisions_named(text: str) -> tuple[Precision, ...]:
    """Those that a list with commas names, the widest first.

    Raises:
        OptionError: there is no such precision.
    """
    known: tuple[Precision, ...] = ("f32", "bf16", "int8")
    asked = [word.strip() for word in text.split(",")]
    unknown = [word for word in asked if word not in known]
    if unknown:
        raise OptionError(
            f"--precision {text!r}: there is no {', '.join(map(repr, unknown))}; give some of "
            f"{', '.join(known)}, with commas between"
        )
    return tuple(precision for precision in known if precision in asked)


def precisions_here() -> str:
    """Those that are measured unless others are asked for."""
    return "f32,bf16,int8" if {"avx512_bf16", "bf16"} & processor_features() else "f32,int8"


def peak_of(threads: int) -> Peak | None:
    """The measurement of the machine's peak; None without a compiler, and nothing has a share of it."""
    try:
        return Peak(threads)
    except ToolchainError as error:
        say(f"peak of the machine: {error}")
        return None


def write(cases: Sequence[report.CaseReport], plan: Plan, options: argparse.Namespace) -> None:
    """Writes the files that were asked for."""
    if options.json is not None:
        figures = {"machine": describe_machine(), "cases": [dataclasses.asdict(case) for case in cases]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(markdown(cases, plan), encoding="utf-8")
    if options.picture is not None:
        picture.draw(cases, describe_machine(), options.picture)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
