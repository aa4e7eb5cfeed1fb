"""`hasten optimize`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from hasten.api import optimize
from hasten.cli.amounts import parse_bytes, parse_seconds, parse_share
from hasten.cli.console import (
    check_apart,
    check_new,
    echo_json,
    is_page,
    number,
    row,
    size,
    stderr,
    stdout,
    table,
    write_file,
    write_or_keep,
)
from hasten.cli.options import database_option, json_option, model_argument, overwrite_option, threads_option
from hasten.cli.progress import live
from hasten.cli.sources import is_artifact
from hasten.errors import OptionError
from hasten.search.asked import PRECISIONS
from hasten.search.interrupts import interrupts
from hasten.search.logs import log_to
from hasten.search.measure import Spread
from hasten.search.prune.plan import SEARCHED
from hasten.search.record import CandidateRecord, SearchRecord
from hasten.search.report import to_html, to_json, unit_of
from hasten.search.status import Status, Watch

_EXAMPLES = """\b
Examples:
  hasten optimize model.onnx --data samples.npz -o fast.hasten
  hasten optimize bert/ --data reviews.jsonl --metric accuracy --max-drop 0.5% -o fast.hasten
"""


@click.command("optimize", epilog=_EXAMPLES, short_help="Find the fastest version of MODEL within a budget.")
@model_argument
@click.option(
    "--data",
    metavar="D",
    required=True,
    type=click.Path(path_type=Path),
    help="Samples: an .npz of arrays by input name (first axis: samples; maybe labels), a folder of those, a "
    "Parquet or JSON-lines file with a column for each input; texts or pictures for a Hugging Face folder.",
)
@click.option(
    "--calibration",
    metavar="D|N",
    help="Samples that choices may look at: how many of --data, or a place with others. The rest is held out "
    "for the certificate. [default: a quarter of --data, 256 at the most]",
)
@click.option(
    "--output",
    "-o",
    metavar="OUT.hasten",
    required=True,
    type=click.Path(path_type=Path),
    help="Where the result goes.",
)
@overwrite_option
@click.option(
    "--metric",
    metavar="M",
    default="agreement",
    show_default=True,
    help="accuracy, top5, f1, mcc, spearman or mse against labels; agreement, cosine or kl against the "
    "original's own answers.",
)
@click.option("--metric-output", metavar="NAME", help="The output to look at. [default: the first]")
@click.option("--max-drop", metavar="SHARE", default="1%", show_default=True, help="The budget.")
@click.option(
    "--confidence",
    metavar="SHARE",
    default="95%",
    show_default=True,
    help="How certain it must be that the drop is within the budget.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="What layers may have beside f32: auto is everything; bf16 is of all that other formats leave, or "
    "of nothing.",
)
@click.option("--prune", is_flag=True, help="Remove units of the model too, as far as the budget allows.")
@click.option(
    "--prune-units",
    metavar="KINDS",
    help=f"Remove these alone, separated by commas. [default with --prune: {','.join(SEARCHED)}]",
)
@click.option(
    "--prune-criterion", metavar="NAME", default="obs", show_default=True, help="By what units are ranked."
)
@click.option(
    "--engines/--no-engines",
    default=True,
    show_default=True,
    help="Whether ONNX Runtime and OpenVINO are candidates, if they are installed.",
)
@click.option(
    "--time-limit", metavar="T", default="10m", show_default=True, help="Of the whole search: 90s or 10m."
)
@click.option(
    "--memory-limit",
    metavar="B",
    help="What each process that makes or runs candidates may allocate, such as 8G.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is held out, and of all that is drawn.",
)
@click.option(
    "--report", metavar="F", type=click.Path(path_type=Path), help="Write a report, as .html or .json."
)
@click.option(
    "--log",
    "logs",
    metavar="L",
    multiple=True,
    help="Record each candidate too: tensorboard:FOLDER, wandb or wandb:PROJECT. May be given twice.",
)
@threads_option
@database_option
@json_option
def optimize_(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path,
    data: Path,
    calibration: str | None,
    output: Path,
    overwrite: bool,
    metric: str,
    metric_output: str | None,
    max_drop: str,
    confidence: str,
    precision: str,
    prune: bool,
    prune_units: str | None,
    prune_criterion: str,
    engines: bool,
    time_limit: str,
    memory_limit: str | None,
    seed: int,
    report: Path | None,
    logs: tuple[str, ...],
    threads: int | None,
    database: Path | None,
    as_json: bool,
) -> None:
    """Find the fastest version of MODEL whose drop in accuracy is certain to be within a budget.

    The result beat the original engine and the lossless compilation on this machine, and its drop is at most
    --max-drop on data like D with the confidence given; otherwise it is the lossless compilation. Ctrl-C ends
    the search and keeps the best that is certified; the files are written even if it is pressed meanwhile.
    """
    if is_artifact(model):
        raise OptionError(f"{model} is compiled already: give the ONNX file or folder that it came from")
    kept_apart = (model, data, Path(calibration) if calibration is not None else None)
    check_apart({"-o": output, "--report": report}, kept_apart)
    page = is_page(report)
    check_new((output, report), overwrite=overwrite)
    budget = parse_share(max_drop, "--max-drop")
    if budget >= 1 and unit_of(metric).factor > 1:
        raise OptionError(
            f"--max-drop {max_drop} is {budget:.0%}, which any answers keep: write 1% for a hundredth"
        )
    limits = (
        budget,
        parse_share(confidence, "--confidence"),
        parse_seconds(time_limit, "--time-limit"),
        None if memory_limit is None else parse_bytes(memory_limit, "--memory-limit"),
    )
    written = [log_to(place) for place in logs]
    with interrupts(), live(stderr(), metric) as shown:
        watches: list[Watch] = [shown, *written]

        def watch(status: Status) -> None:
            for told in watches:
                told(status)

        found = optimize(
            str(model),
            data=data,
            metric=metric,
            output=metric_output,
            max_drop=limits[0],
            confidence=limits[1],
            calibration=_calibration(calibration),
            precision=precision,
            prune=prune if prune_units is None else [unit.strip() for unit in prune_units.split(",")],
            prune_criterion=prune_criterion,
            engines=engines,
            threads=threads,
            time_limit=limits[2],
            memory_limit=limits[3],
            seed=seed,
            database=database,
            command=_command(),
            watch=watch,
        )
        lost = [write_or_keep(output, found.save)]
        record = found.report.record
        if report is not None:
            text = to_html(record) if page else to_json(record)
            lost.append(write_or_keep(report, lambda path: write_file(path, text.encode())))
    if lost[0] is None:
        _tell(record, output, as_json=as_json)
    for log in written:
        try:
            log.close(record)
        except OptionError as error:
            lost.append(str(error))
    if any(lost):
        raise OptionError("; ".join(filter(None, lost)))


def _tell(record: SearchRecord, output: Path, *, as_json: bool) -> None:
    if as_json:
        told = json.loads(to_json(record))
        echo_json({**told, "path": str(output), "bytes": output.stat().st_size})
        return
    _show(record)
    for note in record.notes:
        click.echo(f"note: {note}")
    click.echo(f"{output}: {size(output.stat().st_size)}, {record.headline}")


def _show(record: SearchRecord) -> None:
    unit = unit_of(record.metric)
    columns = (">ms", ">by the original", f">drop, {unit.name}", ">at most", ">size", "outcome", "why")
    shown = table("candidate", *columns)
    for c in record.candidates:
        bound = None if c.bound is None else c.bound.upper
        row(
            shown, c.name, number(_median(c)), _ratio(c.to_original), unit(c.drop), unit(bound),
            "-" if c.bytes is None else size(c.bytes), c.outcome.value, c.reason,
        )  # fmt: skip
    stdout().print(shown)


def _median(candidate: CandidateRecord) -> float | None:
    return None if candidate.latency_ms is None else candidate.latency_ms.median


def _ratio(ratio: Spread | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f} x"


def _calibration(text: str | None) -> object:
    if text is None:
        return None
    return int(text) if text.isdecimal() else Path(text)


def _command() -> str:
    return shlex.join(["hasten", *sys.argv[1:]])
