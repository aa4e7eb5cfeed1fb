"""`hasten verify`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from hasten import target
from hasten.cli.console import echo_json, number, row, status_only, stderr, stdout, table
from hasten.cli.options import artifact_argument, input_option, json_option, model_argument, shape_option
from hasten.cli.sources import artifact_inputs, is_artifact, read_contents
from hasten.errors import OptionError
from hasten.runtime.session import open_session
from hasten.search.engines import REFERENCE, check_outputs
from hasten.search.hidden import unknown
from hasten.search.measure_answers import compare, source_answers, without_padding

_EXAMPLES = """\b
Example:
  hasten verify model.hasten model.onnx --input x.npz
"""


@click.command(epilog=_EXAMPLES, short_help="Compare the answers of an artifact and its model.")
@artifact_argument
@model_argument
@input_option
@shape_option
@click.option(
    "--tolerance",
    metavar="SHARE",
    type=click.FloatRange(min=0),
    default=1e-4,
    show_default=True,
    help="Largest difference that passes, as a share of the output's range. The default is for f32: bf16, "
    "int8 and smaller weights differ by more.",
)
@json_option
def verify(
    artifact: Path,
    model: Path,
    input_file: Path | None,
    shapes: tuple[str, ...],
    tolerance: float,
    as_json: bool,
) -> None:
    """Compare the answers of OUT.hasten with those of MODEL, which it was compiled from.

    MODEL is run by ONNX Runtime (by ONNX's reference evaluator where that is missing or cannot), a Hugging
    Face folder by PyTorch. Positions that a mask hides are not compared where the artifact leaves them out
    (see `hasten compile --padding`), nor are outputs that differ where the inputs do not tell these, nor
    those that are maps or sequences. The exit code is 1 if a difference is past the tolerance.
    """
    if is_artifact(model):
        raise OptionError(f"{model} is an artifact: give the ONNX file or folder that {artifact} came from")
    if not model.exists():
        raise OptionError(f"there is no file or folder {model}: check the path")
    feeds = artifact_inputs(artifact, input_file, shapes, batch=2)
    with open_session(artifact) as session:
        got = session.run(feeds)
    with status_only(stderr()) as steps:
        steps("running the source model")
        engine, why, wanted = source_answers(model, feeds, target.cores())
    contents = read_contents(artifact)
    maps = [name for name, value in got.items() if not isinstance(value, np.ndarray)]
    check_outputs(contents.manifest, [*wanted, *maps], engine)
    padding = contents.raw["report"].get("padding", ())
    arrays = {name: value for name, value in got.items() if name not in maps}
    found = compare(without_padding(padding, feeds, wanted), without_padding(padding, feeds, arrays))
    far = [item.output for item in found if item.relative > tolerance]
    apart = _apart(maps, far, padding)
    found = [item for item in found if item.output not in apart]
    reasons = [f"{name} ({reason})" for name, reason in apart.items()]
    if not found:
        raise OptionError(f"{artifact} has no output that can be compared: {'; '.join(reasons)}")
    passed = all(item.relative <= tolerance for item in found)
    if as_json:
        outputs = [dataclasses.asdict(item) for item in found]
        about = {"passed": passed, "tolerance": tolerance, "engine": engine.name, "version": engine.version}
        echo_json({**about, "outputs": outputs, "not_compared": list(apart)})
        sys.exit(0 if passed else 1)
    if engine is REFERENCE:
        click.echo(f"hasten: warning: {REFERENCE.name} ran the model, because {why}", err=True)
    shown = table("output", ">worst difference", ">range", ">share of range", "")
    for item in found:
        verdict = "ok" if item.relative <= tolerance else "TOO FAR"
        row(shown, item.output, number(item.absolute), number(item.range), number(item.relative), verdict)
    stdout().print(shown)
    for reason in reasons:
        click.echo(f"Not compared: {reason}")
    inputs = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    origin = input_file if input_file is not None else "made-up inputs"
    click.echo(
        f"{'Passed' if passed else 'FAILED'}: compared with {engine.name} {engine.version} on {origin}"
    )
    click.echo(f"({inputs}); {tolerance:g} of the range may differ")
    sys.exit(0 if passed else 1)


def _apart(maps: Sequence[str], far: Sequence[str], padding: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The outputs that cannot be compared, and why, and what to do; `far` are those that differ."""
    apart = dict.fromkeys(maps, "a map or sequence: export arrays, skl2onnx: zipmap=False")
    for name, masks in unknown(padding).items():
        if name not in far:
            continue
        hide = "hides" if len(masks) == 1 else "hide"
        apart[name] = (
            f"0 at the padding that {' and '.join(masks)} {hide}, in a way that does not tell where: "
            "compile with --padding compute"
        )
    return apart
