"""`hasten compile`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hasten.api import PADDING, PRECISIONS, STORAGE, CompileOptions, compile_payload
from hasten.backends.native import Payload
from hasten.cli.console import Steps, check_apart, check_place, echo_json, names, number, size, stderr
from hasten.cli.options import database_option, json_option, model_argument, threads_option
from hasten.cli.quantization import quantization_of, quantization_options
from hasten.cli.sources import is_artifact
from hasten.errors import OptionError
from hasten.runtime.artifact import write_artifact
from hasten.runtime.manifest import all_steps
from hasten.search.measure_inputs import parse_shapes
from hasten.search.tune import TIME_LIMITS, Tune
from hasten.search.tune_options import Tuning

_EXAMPLES = """\b
Examples:
  hasten compile model.onnx -o model.hasten
  hasten compile model.onnx --tune quick --shape input_ids=1x128
  hasten compile model.onnx --precision int8 --data examples.npz
  hasten compile model.onnx --precision int8 --data examples.npz --rounding gptq --rest bf16
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
    "--precision",
    type=click.Choice(PRECISIONS),
    default="f32",
    show_default=True,
    help="bf16 stores weights and what products read in 16 bits: half the size, twice as fast on processors "
    "with AVX512-BF16. Sums stay f32. int8 computes products in 8 bits, with scales found on --data, or "
    "in the run without it. int8-weights and int4-weights store weights of matrix products in 8 or 4 bits.",
)
@click.option(
    "--data",
    metavar="D",
    type=click.Path(path_type=Path),
    help="For int8, int8-weights and int4-weights: what the model will see, in an .npz file, a folder of "
    "such, Parquet or JSON lines.",
)
@quantization_options
@click.option(
    "--padding",
    type=click.Choice(PADDING),
    default="skip",
    show_default=True,
    help="Positions that an attention mask hides: skip them (outputs are 0 there), or compute them too.",
)
@threads_option
@click.option(
    "--tune",
    "effort",
    type=click.Choice([t.value for t in Tune]),
    default=Tune.OFF.value,
    show_default=True,
    help="How to choose tile shapes and the like: 0 from the model alone, stored from earlier measurements "
    "on this processor, quick or full by measuring now what was not measured before.",
)
@click.option(
    "--tune-seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Time limit for measuring and verifying, all targets together. [default: 60 if quick, 600 if full]",
)
@click.option(
    "--shape",
    "shapes",
    metavar="NAME=SIZES",
    multiple=True,
    help="Likely shape of an input, such as input_ids=1x128, to choose for; may be repeated.",
)
@click.option(
    "--keep-graph", is_flag=True, help="Keep the graph's weights in the artifact, for hasten export."
)
@click.option(
    "--no-winograd",
    is_flag=True,
    help="Sum convolutions as their definition says: slower, with smaller rounding errors.",
)
@click.option(
    "--storage",
    type=click.Choice(STORAGE),
    default=STORAGE[0],
    show_default=True,
    help="sparse stores zero weights in a bit each, where that makes the file smaller; it opens more slowly.",
)
@database_option
@json_option
def compile_(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path,
    output: Path | None,
    targets: tuple[str, ...],
    precision: str,
    data: Path | None,
    choices: Mapping[str, str],
    padding: str,
    threads: int | None,
    effort: str,
    tune_seconds: float | None,
    shapes: tuple[str, ...],
    keep_graph: bool,
    storage: str,
    no_winograd: bool,
    database: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL, an ONNX file or a Hugging Face folder, to one file."""
    if tune_seconds is not None and effort not in TIME_LIMITS:
        raise OptionError("--tune-seconds is for measuring: give --tune quick or --tune full too")
    tuning = Tuning(effort, tune_seconds, parse_shapes(shapes), database)
    if is_artifact(model):
        raise OptionError(f"{model} is compiled already: give the ONNX file or folder that it came from")
    path = output or Path(f"{(model.stem if model.is_file() else model.resolve().name) or 'model'}.hasten")
    check_apart({"-o": path}, (model, data))
    check_place(path)
    options = CompileOptions(
        target=targets,
        precision=precision,
        data=data,
        quantization=quantization_of(precision, data, choices),
        padding=padding,
        threads=threads,
        tune=tuning,
        keep_graph=keep_graph,
        storage=storage,
        winograd=not no_winograd,
    )
    with Steps(stderr()).shown() as steps:
        payload = compile_payload(str(model), options, progress=steps)
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
    for said in summary["warnings"]:
        click.echo(f"hasten: warning: {said}", err=True)
    for target, about in summary["tuning"].items():
        _show_tuning(target, about)
    click.echo(
        f"{path}: {size(summary['bytes'])}, {summary['kernels']} kernels "
        f"for {', '.join(summary['targets'])}, in {number(seconds)} s"
    )


def _show_tuning(target: str, about: Mapping[str, Any]) -> None:
    for note in about.get("notes", ()):
        click.echo(f"hasten: warning: {note}", err=True)
    if "skipped" in about:
        click.echo(f"tuning for {target}: none, {about['skipped']}; its kernels are as by default")
    elif about["effort"] == Tune.STORED:
        click.echo(f"tuning for {target}: {about['used']} of {about['kernels']} kernels use a result")
    if "measured" not in about:
        return
    kept = {
        "left for lack of time": about["left"],
        "not measured for the reasons above": about["refused"],
        "not measured (their sizes come from data, or no run has the likely ones: see --shape)": about[
            "unknown"
        ],
    }
    click.echo(
        f"tuning for {target}: {about['measured']} kernels measured, {about['improved']} of them faster than "
        f"by default, {about['stored']} known from before"
        + "".join(f", {count} {why}" for why, count in kept.items() if count)
    )


def _summary(payload: Payload) -> dict[str, Any]:
    manifest = payload.manifest
    return {
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "targets": [name[5:-3] for name in payload.members if name.startswith("code/")],
        "kernels": sum(len(step.get("kernels", ())) for step in all_steps(manifest["steps"])),
        "host": dict(manifest["report"]["host"]),
        "warnings": manifest["report"]["warnings"],
        "quantization": manifest["report"].get("quantization"),
        "tuning": {
            target: {**about, **_products(payload, target)} if about["effort"] != Tune.OFF else about
            for target, about in manifest["report"]["tuning"].items()
        },
    }


def _products(payload: Payload, target: str) -> dict[str, int]:
    """The kernels of products for a target, equal ones counted once, and those that are as was measured."""
    found: dict[str, bool] = {}
    for step in all_steps(payload.manifest["steps"]):
        for product in step.get("products", {}).get(target, ()):
            found[product["shape"]] = found.get(product["shape"], False) or product["measured"]
    return {"kernels": len(found), "used": sum(found.values())}
