"""`hasten run`."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from hasten.cli.console import check_apart, check_place, echo_json, number, row, stdout, table, write_file
from hasten.cli.options import artifact_argument, input_option, json_option, shape_option, threads_option
from hasten.cli.sources import Array, artifact_inputs, as_artifact
from hasten.errors import OptionError
from hasten.runtime.session import open_session
from hasten.search.engines_worker import save_npz

_EXAMPLES = """\b
Example:
  hasten run model.hasten --input x.npz -o y.npz
"""


@click.command(epilog=_EXAMPLES, short_help="Run an artifact once.")
@artifact_argument
@input_option
@click.option(
    "--output", "-o", metavar="Y.npz", type=click.Path(path_type=Path), help="Where the outputs go, by name."
)
@shape_option
@threads_option
@json_option
def run(
    artifact: Path,
    input_file: Path | None,
    output: Path | None,
    shapes: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Run OUT.hasten once and show, or write, what comes out."""
    if output is not None:
        check_apart({"-o": output}, (artifact, input_file))
        check_place(output)
    with as_artifact(artifact, threads=threads) as (path, _), open_session(path, threads=threads) as session:
        feeds = artifact_inputs(path, input_file, shapes)
        start = time.perf_counter()
        found = session.run(feeds)
        seconds = time.perf_counter() - start
    results = {name: _as_array(value) for name, value in found.items()}
    if output is not None:
        content = io.BytesIO()
        _check_storable(results)
        save_npz(content, results)
        write_file(output, content.getvalue())
    if as_json:
        outputs = {name: {"dtype": str(array.dtype), "shape": array.shape} for name, array in results.items()}
        echo_json({"seconds": seconds, "outputs": outputs, "path": output})
        return
    shown = table("output", "type", "shape", ">least", ">mean", ">most")
    for name, array in results.items():
        row(shown, name, array.dtype, list(array.shape), *_figures(array))
    stdout().print(shown)
    where = f", written to {output}" if output is not None else ""
    click.echo(f"{seconds * 1e3:.3f} ms for this first run{where}")


def _as_array(value: object) -> Array:
    """An output as an array: a sequence or a map is an array of one object."""
    if isinstance(value, np.ndarray):
        return value
    single = np.empty((), object)
    single[()] = value
    return single


def _check_storable(results: Mapping[str, Array]) -> None:
    """Raises OptionError for a sequence or a map."""
    for name, array in results.items():
        if array.dtype == object and not all(isinstance(text, str) for text in array.flat):
            raise OptionError(f"-o: the output {name!r} is no array, which .npz cannot hold: leave -o out")


def _figures(array: Array) -> tuple[str, str, str]:
    if array.size == 0 or array.dtype.kind not in "biuf":
        return "-", "-", "-"
    with np.errstate(all="ignore"):
        values = array.astype(np.float64)
        return number(values.min(), 5), number(values.mean(), 5), number(values.max(), 5)
