"""`hasten prune`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hasten.api import prune
from hasten.cli.console import (
    Steps,
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
)
from hasten.cli.options import json_option, model_argument, overwrite_option
from hasten.cli.sources import is_artifact
from hasten.errors import OptionError
from hasten.search.prune.criteria import CRITERIA
from hasten.search.prune.plan import ALL_UNITS, AMOUNTS, REPAIRS
from hasten.search.prune.report import PruneReport
from hasten.search.prune.training import Training
from hasten.search.report_pruning import pruned_page

_WIDE = 24  # characters of a bar
_EXAMPLES = """\b
Examples:
  hasten prune model.onnx --flops 70% -o small.onnx
  hasten prune bert/ --data texts.npz --unit heads,neurons --criterion fisher --flops 60% -o small.onnx
  hasten prune model.onnx --data x.npz --unit layers --criterion activation --flops 0.5 -o small.onnx
  hasten prune bert/ --data texts.npz --unit rows --unseen 100 --sparsity 2:4 -o small.onnx
"""


@click.command("prune", epilog=_EXAMPLES, short_help="Remove the parts of MODEL that matter least.")
@model_argument
@click.option(
    "--output",
    "-o",
    metavar="SMALL.onnx",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the smaller model goes.",
)
@overwrite_option
@click.option(
    "--flops",
    metavar="SHARE",
    help="How much of the arithmetic to keep, such as 60% or 0.6, at the median shape of the data.",
)
@click.option(
    "--sparsity",
    metavar="HOW",
    help="Single weights that become zero: their share, such as 50%, or N:M, such as 2:4 for 2 of 4 that "
    "stay. Nothing gets faster by that; hasten compile --storage sparse makes a smaller file of it.",
)
@click.option(
    "--data",
    metavar="D",
    type=click.Path(path_type=Path),
    help="Examples of what the model will see, with or without labels: an .npz, .jsonl or Parquet file, or a "
    "folder. Some hundred are enough.",
)
@click.option(
    "--unit",
    "units",
    metavar="KINDS",
    default="heads,neurons,channels",
    show_default=True,
    help=f"What to remove, separated by commas: {', '.join(ALL_UNITS)}.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help=f"By what to rank: {', '.join(CRITERIA)}. [default: obs with --data (fisher where layers go "
    "or nothing is repaired), magnitude without]",
)
@click.option(
    "--repair",
    metavar="HOW",
    help=f"What to do afterwards: {', '.join(REPAIRS)}. [default: least-squares with --data]",
)
@click.option("--epochs", metavar="N", type=int, help="For distill: passes over the data. [default: 3]")
@click.option(
    "--unseen",
    metavar="ID",
    type=int,
    help="For rows: the id whose row those get that have none any more. [default: the mean of what went]",
)
@click.option(
    "--amounts",
    metavar="HOW",
    default=AMOUNTS[0],
    show_default=True,
    help=f"How much goes where: {', '.join(AMOUNTS)} (one ranking over all, or the same share of each).",
)
@click.option(
    "--seconds",
    metavar="S",
    type=float,
    help="Time limit of everything. [default: none; 300 for a training]",
)
@click.option(
    "--checkpoint",
    metavar="F",
    type=click.Path(path_type=Path),
    help="For distill: a file from which the same command goes on when it was cut off.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of random numbers."
)
@click.option(
    "--report",
    metavar="F",
    type=click.Path(path_type=Path),
    help="Write what was removed where, as .html (a bar for each layer) or .json.",
)
@json_option
def prune_(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path,
    output: Path,
    overwrite: bool,
    flops: str | None,
    sparsity: str | None,
    data: Path | None,
    units: str,
    criterion: str | None,
    repair: str | None,
    epochs: int | None,
    unseen: int | None,
    amounts: str,
    seconds: float | None,
    checkpoint: Path | None,
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Remove whole heads, neurons, channels or layers of MODEL, an ONNX file or a Hugging Face folder.

    What is left is plain ONNX with fewer weights, which every engine runs faster. Rows of embeddings that the
    data never ask for (--unit rows) and single weights (--sparsity) save space only.
    """
    share = None if flops is None else parse_share(flops)
    zeros = sparsity if sparsity is None or ":" in sparsity else parse_share(sparsity, "--sparsity")
    training = _training(repair, epochs, seconds, checkpoint)
    if is_artifact(model):
        raise OptionError(f"{model} is compiled already: give the ONNX file or folder that it came from")
    beside = output.with_name(f"{output.name}.data")  # where weights of more than 2 GB go
    written = {"-o": output, "-o (large weights)": beside, "--report": report, "--checkpoint": checkpoint}
    check_apart(written, (model, data))
    page = is_page(report)
    check_new((output, beside, report), overwrite=overwrite)
    with Steps(stderr()).shown() as steps:
        small = prune(
            str(model),
            flops=share,
            sparsity=zeros,
            data=data,
            unit=[unit.strip() for unit in units.split(",")],
            criterion=criterion,
            repair=repair,
            training=training,
            unseen=unseen,
            amounts=amounts,
            seconds=seconds,
            seed=seed,
            progress=steps,
        )
        steps(f"writing {output}")
        count = small.save(output, overwrite=overwrite)
    if report is not None:
        told = pruned_page(small.report, model.name) if page else json.dumps(small.report.data(), indent=2)
        write_file(report, told.encode())
    if as_json:
        echo_json({**small.report.data(), "path": str(output), "bytes": count})
        return
    _show(small.report)
    click.echo(
        f"{output}: {size(count)}, {small.report.flops:.1%} of the FLOPs, "
        f"{small.report.parameters_after / max(1, small.report.parameters_before):.1%} of the parameters"
    )


def _training(
    repair: str | None, epochs: int | None, seconds: float | None, checkpoint: Path | None
) -> Training | None:
    """How to train, if that is wanted; the time limit of everything is that of training too.

    Raises:
        OptionError: nothing is trained, or these are no numbers for it.
    """
    if repair == "distill":
        limit = Training.seconds if seconds is None else None
        return Training(Training.epochs if epochs is None else epochs, limit, checkpoint=checkpoint)
    for option, given in (("--epochs", epochs), ("--checkpoint", checkpoint)):
        if given is not None:
            raise OptionError(f"{option} {given} is for training: give --repair distill too, or leave it out")
    return None


def _show(report: PruneReport) -> None:
    for note in report.notes:
        click.echo(f"hasten: note: {note}", err=True)
    shown = table("layer", "unit", ">before", ">after", "left")
    for cut in report.cuts:
        row(shown, cut.name, cut.unit, number(cut.before), number(cut.after), bar(cut.after / cut.before))
    stdout().print(shown)
    if report.left_alone:
        alone = table("left alone", "unit", ">units", "why")
        for left in report.left_alone:
            row(alone, left.name, left.unit, number(left.count), "; ".join(left.reasons[:2]))
        stdout().print(alone)


def bar(share: float) -> str:
    """A share as a picture of one line, full where something is left."""
    full = round(_WIDE * share)
    return "█" * full + "░" * (_WIDE - full)


def parse_share(text: str, option: str = "--flops") -> float:
    """A share as people write it: 60% or 0.6.

    Raises:
        OptionError: it is no such number.
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise OptionError(f"{option} {text}: give a share, such as 60% or 0.6") from None
