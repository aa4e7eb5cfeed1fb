"""`hasten compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hasten.api import PADDING
from hasten.backends.native import Payload
from hasten.cli.console import Steps, check_place, echo_json, names, number, size, stderr
from hasten.cli.options import json_option, model_argument, threads_option
from hasten.cli.sources import compile_source, is_artifact
from hasten.errors import OptionError
from hasten.runtime.artifact import write_artifact

_EXAMPLES = """\b
Examples:
  hasten compile model.onnx -o model.hasten
  hasten compile bert/ -o bert.hasten --target x86-64-v3 --target x86-64-v4
"""


@click.command("compile", epilog=_EXAMPLES, short_help="Compile MODEL to one file, an artifact.")
@model_argument
@click.option(
    "--output",
    "-o",
    metavar="OUT.hasten",
    type=click.Path(path_type=Path),
    help="Where the artifact goes. [default: MODEL's name with .hasten, in this folder]",
)
@click.option(
    "--target",
    "targets",
    metavar="NAME",
    multiple=True,
    default=("native",),
    show_default=True,
    help="Instruction set: native (this machine's), x86-64-v3, x86-64-v4 or aarch64. May be repeated: the "
    "artifact then has code for each and picks the best that the processor runs.",
)
@click.option(
    "--padding",
    type=click.Choice(PADDING),
    default="skip",
    show_default=True,
    help="Positions that an attention mask hides: skip them (outputs are 0 there), or compute them too.",
)
@threads_option
@json_option
def compile_(
    model: Path,
    output: Path | None,
    targets: tuple[str, ...],
    padding: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compile MODEL, an ONNX file or a Hugging Face folder, to one file."""
    if is_artifact(model):
        raise OptionError(f"{model} is compiled already: give the ONNX file or folder that it came from")
    path = output or Path(f"{(model.stem if model.is_file() else model.resolve().name) or 'model'}.hasten")
    if path.resolve() == model.resolve():
        raise OptionError(f"-o {path} is the model itself: give another name")
    check_place(path)
    with Steps(stderr()).shown() as steps:
        payload = compile_source(model, targets=targets, padding=padding, threads=threads, progress=steps)
        steps(f"writing {path}")
        write_artifact(path, payload.manifest, payload.members)
        seconds = steps.seconds
    summary = {**_summary(payload), "path": str(path), "bytes": path.stat().st_size, "seconds": seconds}
    if as_json:
        echo_json(summary)
        return
    hosted = summary["host"]
    if hosted:
        click.echo(
            f"hasten: warning: {len(hosted)} nodes run on the host, correct but slow: "
            f"{names([f'{node} ({reason})' for node, reason in hosted.items()])}",
            err=True,
        )
    click.echo(
        f"{path}: {size(summary['bytes'])}, {summary['kernels']} kernels "
        f"for {', '.join(summary['targets'])}, in {number(seconds)} s"
    )


def _summary(payload: Payload) -> dict[str, Any]:
    manifest = payload.manifest
    return {
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "targets": [name[5:-3] for name in payload.members if name.startswith("code/")],
        "kernels": sum(len(step.get("kernels", ())) for step in manifest["steps"]),
        "host": dict(manifest["report"]["host"]),
    }
