"""`hasten tune`: what tuning found on this machine, and on others."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import click

from hasten import __version__
from hasten.cli.console import check_new, echo_json, number, row, stdout, table, write_file
from hasten.cli.options import database_option, json_option, overwrite_option
from hasten.codegen.sources import kernels_version
from hasten.errors import OptionError
from hasten.search.memory import forget
from hasten.search.results import Result, Results, default_database, export_lines, import_lines
from hasten.target import processor_name

_EXAMPLES = """\b
Examples:
  hasten compile model.onnx --tune quick      # measures, and remembers
  hasten tune list
  hasten tune export results.jsonl            # on one machine
  hasten tune import results.jsonl            # on another with the same processor
"""

_COLUMNS = ("kernel", "schedule", ">us", ">default us", ">gain", "effort", "hasten", "measured", "used")


@click.group(epilog=_EXAMPLES, short_help="Show, exchange or delete the results of tuning.")
def tune() -> None:
    """Show, exchange or delete the results of tuning.

    `hasten compile --tune quick` measures the kernels of a model in several schedules and keeps the
    fastest of each in a database, by kernel, instruction set, processor, threads and
    version of hasten.
    """


@tune.command("list", short_help="Show the results.")
@database_option
@json_option
def list_(database: Path | None, as_json: bool) -> None:
    """Show the results: for each kernel the fastest schedule, and by how much it beats the default.

    Those of another processor, another version of hasten or other kernels (the sources that generate them
    have changed since) are kept, and not used. Those that were measured
    elsewhere are used once this machine has verified their answers, when a model that has the kernel is
    compiled.
    """
    results = _results(database)
    rows, unverified = results.rows(), set(results.rows(verified=False))
    unknown, made_by = results.count() - len(rows), kernels_version(__version__)
    if as_json:
        used = [{**r.data(), "used": _used(r, unverified, made_by)} for r in rows]
        echo_json({"database": str(results.path), "results": used, "not_understood": unknown})
        return
    for machine in dict.fromkeys(r.machine for r in rows):
        title = f"{machine.processor}, {machine.target}, threads: {machine.threads}"
        shown = table(*_COLUMNS, title=title)
        for r in rows:
            if r.machine == machine:
                row(
                    shown,
                    r.kernel,
                    r.schedule,
                    *_times(r),
                    r.effort,
                    r.version,
                    r.measured[:16].replace("T", " "),
                    _used(r, unverified, made_by),
                )
        stdout().print(shown)
    more = f", and {_not_understood(unknown)}" if unknown else ""
    click.echo(f"{len(rows)} results in {results.path}{more}")


def _used(r: Result, unverified: Collection[Result], made_by: str) -> str:
    """Whether compiling here uses a result, and if not, why."""
    if r.machine.processor != processor_name():
        return "other processor"
    if r.version != made_by:
        return "other kernels" if r.version.partition("+")[0] == __version__ else "other hasten"
    return "when verified" if r in unverified else "yes"


def _not_understood(count: int) -> str:
    return f"{count} of another version of hasten, which this one does not understand"


def _times(r: Result) -> tuple[str, str, str]:
    gain = r.default_seconds / r.seconds - 1
    return number(r.seconds * 1e6), number(r.default_seconds * 1e6), f"{gain:.0%}" if gain > 0 else "-"


@tune.command("export", short_help="Write the results to a file.")
@click.argument("file", metavar="F", type=click.Path(path_type=Path))
@overwrite_option
@database_option
def export(file: Path, overwrite: bool, database: Path | None) -> None:
    """Write all results to the file F, one JSON object to a line; - for stdout."""
    results = _results(database)
    rows = results.rows()
    unknown = results.count() - len(rows)
    if unknown:
        click.echo(f"hasten: warning: left out: {_not_understood(unknown)}", err=True)
    if str(file) == "-":
        click.echo(export_lines(rows), nl=False)
        return
    check_new((file,), overwrite=overwrite)
    write_file(file, export_lines(rows).encode())
    click.echo(f"{file}: {len(rows)} results")


@tune.command("import", short_help="Add results from a file.")
@click.argument("file", metavar="F", type=click.Path(path_type=Path))
@database_option
def import_(file: Path, database: Path | None) -> None:
    """Add the results in the file F, which `hasten tune export` wrote; - for stdin.

    A result for a kernel, machine and version of hasten that is newer than what F has stays, and so does one
    that was verified here and measured with more effort. A schedule is used once this
    machine has verified its answer, when a model with that kernel is compiled. Lines that are no results are
    named and left out; the exit code is then 1.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except FileNotFoundError:
        raise OptionError(f"there is no file {file}: check the path") from None
    except UnicodeDecodeError:
        raise OptionError(f"{file} is no text: give what `hasten tune export` wrote") from None
    done = import_lines(text, _results(database))
    for line in done.refused:
        click.echo(f"hasten: warning: {file}, {line}", err=True)
    kept = (
        f", {done.kept} left out, since those that were there are newer or of more effort"
        if done.kept
        else ""
    )
    refused = f", {len(done.refused)} lines left out" if done.refused else ""
    click.echo(f"{done.written} results added{kept}{refused}")
    sys.exit(1 if done.refused else 0)


@tune.command("clear", short_help="Delete all results.")
@click.option("--keep-searches", is_flag=True, help="Keep what `hasten optimize` measured.")
@database_option
def clear(keep_searches: bool, database: Path | None) -> None:
    """Delete all results, and what `hasten optimize` measured, so that everything is measured again.

    Artifacts that were compiled with them stay as they are.
    """
    results = _results(database)
    deleted = f"{results.clear()} results"
    if not keep_searches:
        deleted += f" and {forget(results)} measurements of searches"
    click.echo(f"{deleted} deleted from {results.path}")


def _results(database: Path | None) -> Results:
    return Results(default_database() if database is None else database)
