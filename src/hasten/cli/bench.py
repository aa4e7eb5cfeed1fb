"""`hasten bench`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from hasten import target
from hasten.cli.console import (
    check_apart,
    check_new,
    number,
    row,
    status_only,
    stderr,
    stdout,
    table,
    write_json,
)
from hasten.cli.options import input_option, model_argument, overwrite_option, shape_option, threads_option
from hasten.cli.sources import artifact_inputs, as_artifact, is_artifact
from hasten.errors import OptionError
from hasten.search.busy import in_use, is_busy
from hasten.search.engines import ONNXRUNTIME, PEERS, Engine, peers_named
from hasten.search.measure import Plan, Spread
from hasten.search.measure_case import Case, files_of, measure_case

_EXAMPLES = """\b
Examples:
  hasten bench model.onnx --against onnxruntime,openvino --shape input_ids=1x128
  hasten bench model.hasten --source model.onnx --threads 2 --json figures.json
"""


@click.command(epilog=_EXAMPLES, short_help="Time MODEL against other engines.")
@model_argument
@click.option(
    "--against",
    metavar="NAMES",
    help=f"Engines to compare with: some of {', '.join(peer.name for peer in PEERS)}, with commas between. "
    "[default: onnxruntime if it is installed and the source is known]",
)
@click.option(
    "--source",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="If MODEL is an artifact: what it was compiled from, for the other engines.",
)
@input_option
@shape_option
@threads_option
@click.option("--rounds", metavar="N", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--json", "json_file", metavar="F", help="Write all figures to this file; - for stdout.")
@overwrite_option
def bench(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path,
    against: str | None,
    source: Path | None,
    input_file: Path | None,
    shapes: tuple[str, ...],
    threads: int | None,
    rounds: int,
    json_file: str | None,
    overwrite: bool,
) -> None:
    """Time MODEL (or OUT.hasten) against other engines.

    Each engine runs in a process of its own with as many threads and the same inputs, in turns; the figure
    is the median of the ratios within each round, with its quartiles. Load time and memory are those of
    fresh processes that open the model and run it once; the first answer is loading and that run together.
    """
    figures = None if json_file in (None, "-") else Path(str(json_file))
    check_apart({"--json": figures}, (model, source, input_file))
    check_new((figures,), overwrite=overwrite)
    if not is_artifact(model):
        if source is not None:
            raise OptionError(f"--source is for artifacts, and {model} is none: leave it out")
        source = model
    elif source is not None:
        _check_source(source)
    engines = _engines(against, source, model)
    plan = Plan(threads or target.cores(), rounds=rounds)
    with as_artifact(model, threads=threads) as (artifact, seconds):
        feeds = artifact_inputs(artifact, input_file, shapes)
        with status_only(stderr()) as steps:
            case = measure_case(
                model.name,
                artifact,
                [] if source is None else [source],
                engines,
                feeds,
                plan,
                compile_seconds=seconds,
                progress=steps,
            )
    if json_file != "-":
        show(case)
    if json_file is not None:
        write_json(json_file, dataclasses.asdict(case))


def _check_source(source: Path) -> None:
    """Refuses what no engine could read, before inputs are made.

    Raises:
        ModelError: it is no model.
        OptionError: it is an artifact.
    """
    if is_artifact(source):
        raise OptionError(f"--source {source} is an artifact: give the ONNX file or folder that it came from")
    files_of(source)


def _engines(against: str | None, source: Path | None, model: Path) -> tuple[Engine, ...]:
    if against is None:
        return (ONNXRUNTIME,) if source is not None and ONNXRUNTIME.version is not None else ()
    engines = peers_named(against)
    if engines and source is None:
        raise OptionError(
            f"{model} is an artifact, which {', '.join(e.name for e in engines)} cannot run: give what it "
            "was compiled from with --source"
        )
    return engines


def show(case: Case) -> None:
    """Prints the figures of a case."""
    found = case.measurement
    sizes = ", ".join(f"{name} {list(shape)}" for name, shape in case.shapes.items())
    shown = table(
        "engine", ">run ms", ">hasten's speedup", ">load ms", ">loads faster by", ">first answer ms",
        ">peak MB", ">files MB",
        title=f"{case.name}: {sizes}; {found.threads} threads, {found.rounds} rounds",
    )  # fmt: skip
    for result in found.results:
        row(
            shown,
            f"{result.engine} {result.version}",
            number(result.run_ms.median, 4),
            "" if result.ratio is None else _with_quartiles(result.ratio),
            number(result.load_ms, 3),
            "" if result.load_ratio is None else f"{result.load_ratio:.1f} x",
            number(result.load_ms + result.first_ms, 3),
            number(result.peak_mb, 3),
            number(result.file_mb, 3),
        )
    stdout().print(shown)
    if is_busy(case.busy_cores):
        click.echo(
            f"The machine was busy when this began ({in_use(case.busy_cores)}): the figures mean little",
            err=True,
        )
    for name, reason in found.failures.items():
        click.echo(f"{name}: not measured: {reason}")
    if case.gflops is not None:
        known = case.share_of_peak is not None
        share = f", {case.share_of_peak:.0%} of the peak in {case.peak_precision}" if known else ""
        click.echo(f"hasten: {case.gflops:.1f} GFLOP/s{share}")
    if case.peak_gflops is not None:
        peak = f"{case.peak_gflops.median:.0f} GFLOP/s in {case.peak_precision}"
        click.echo(f"peak of the machine, in the same rounds: {peak}")


def _with_quartiles(spread: Spread) -> str:
    return f"{spread.median:.2f} [{spread.low:.2f}, {spread.high:.2f}]"
