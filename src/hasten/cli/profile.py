"""`hasten profile`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import click
from rich.text import Text

from hasten.cli.console import (
    check_apart,
    check_new,
    echo_json,
    number,
    status_only,
    stderr,
    stdout,
    table,
    write_json,
)
from hasten.cli.options import input_option, json_option, overwrite_option, shape_option, threads_option
from hasten.cli.sources import artifact_inputs, as_artifact
from hasten.errors import OptionError
from hasten.search.busy import busy_cores, in_use, is_busy
from hasten.search.profile import KernelProfile, Profile, measure_peaks, merge, record, summarize
from hasten.search.profile_timeline import trace_events

_BUSY = 1.1  # a run that takes so many times the sum of its parts was interrupted
_EXAMPLES = """\b
Examples:
  hasten profile model.hasten --shape input_ids=1x128
  hasten profile model.hasten --input x.npz --trace run.json     # open in https://ui.perfetto.dev
"""


@click.command(epilog=_EXAMPLES, short_help="Time each kernel of a model.")
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@input_option
@shape_option
@threads_option
@click.option(
    "--runs", metavar="N", type=click.IntRange(min=1), help="Runs to measure. [default: two seconds of them]"
)
@click.option("--all", "each", is_flag=True, help="Show equal kernels one by one.")
@click.option(
    "--trace", metavar="F", type=click.Path(path_type=Path), help="Write a typical run as a Chrome trace."
)
@overwrite_option
@json_option
def profile(  # noqa: PLR0913, PLR0917 - one for each option
    model: Path,
    input_file: Path | None,
    shapes: tuple[str, ...],
    threads: int | None,
    runs: int | None,
    each: bool,
    trace: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Time each kernel of MODEL (or OUT.hasten) as it runs inside the model.

    The artifact's C is built once more with clock readings around every kernel and barrier; the artifact
    itself has none and stays as it is. Shown are medians over the runs, and how near each kernel comes to
    what this machine can do: the peak of its arithmetic or of its memory, whichever binds the kernel.
    """
    if trace == Path("-"):
        raise OptionError("--trace -: stdout has the figures; give the name of a file")
    check_apart({"--trace": trace}, (model, input_file))
    check_new((trace,), overwrite=overwrite)
    load = busy_cores()
    with as_artifact(model, threads=threads) as (path, _), status_only(stderr()) as steps:
        feeds = artifact_inputs(path, input_file, shapes)
        steps("building the code with marks, and running it")
        recording = record(path, feeds, runs=runs, threads=threads)
        steps("measuring the machine's peaks")
        peaks = measure_peaks(recording.threads)
    found = summarize(model.name, recording, {key: array.shape for key, array in feeds.items()}, peaks)
    if as_json:
        ranked = sorted(found.kernels, key=lambda k: -k.us)
        figures = dataclasses.asdict(dataclasses.replace(found, kernels=tuple(ranked)))
        echo_json({**figures, "busy_cores": load})
    else:
        show(found, each=each)
    _warn(found, load)
    if trace is not None:
        titles = [title for _, _, title in recording.kernels]
        hosts = [", ".join(operators) for operators in recording.hosts]
        write_json(str(trace), trace_events(recording.typical, model.name, titles, hosts))


def show(found: Profile, *, each: bool) -> None:
    """Prints a profile: kernels by their time, and what lies between them."""
    sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.shapes.items())
    click.echo(f"{found.name}: {sizes}")
    team = "" if found.team == found.threads else f"{found.team:.0f} of "
    click.echo(
        f"{found.target or 'on the host'}, {team}{_threads(found)}; "
        f"{number(found.run_us.median, 4)} us a run, median of {found.runs}"
    )
    groups: dict[object, list[KernelProfile]] = {}
    for k in found.kernels:
        groups.setdefault(k.number if each else k.function, []).append(k)
    columns = [">us", ">%", ">n", ">GFLOP/s", ">GB/s", ">% peak", ">wait", ">#"]
    left_out = {">n"} if each else set()
    left_out |= {">wait"} if found.team <= 1 else set()
    used = [column for column in columns if column not in left_out]
    shown = table(*used, "computes")
    for column in shown.columns[:-1]:
        column.no_wrap = True  # so that a narrow terminal cuts what follows them
    lines = [(merge(kernels).us, _cells(kernels)) for kernels in groups.values()]
    for host in found.hosts:
        cells = {">us": _us(host.us), ">%": f"{host.share:.1%}"[:-1]}
        lines.append((host.us, {**cells, "computes": f"{', '.join(host.operators)}, on the host"}))
    for _, cells in sorted(lines, key=lambda line: -line[0]):
        title = Text(cells["computes"], no_wrap=True, overflow="ellipsis")
        shown.add_row(*(cells.get(column, "") for column in used), title)
    stdout().print(shown)
    _show_rest(found)


def _cells(kernels: Sequence[KernelProfile]) -> dict[str, str]:
    """A row of the table, by column, for kernels with the same code."""
    k = merge(kernels)
    return {
        ">us": _us(k.us),
        ">%": f"{k.share:.1%}"[:-1],
        ">n": str(len(kernels)),
        ">GFLOP/s": f"{k.gflops:,.0f}" if k.flops else "-",
        ">GB/s": f"{k.gigabytes_per_second:,.1f}",
        ">% peak": f"{k.peak_share:.0%} {'C' if k.bound == 'compute' else 'M'}".replace("%", ""),
        ">wait": f"{k.waiting:.0%}",
        ">#": str(k.number),
        "computes": common_title([short_title(one.title) for one in kernels]),
    }


def short_title(title: str) -> str:
    """A kernel's operators, and the name of the first one."""
    operators = re.findall(r"(\w+) '([^']*)'", title)
    if not operators or ", ".join(f"{kind} '{name}'" for kind, name in operators) != title:
        return title
    return f"{' + '.join(kind for kind, _ in operators)}  {operators[0][1]}"


def common_title(titles: Sequence[str]) -> str:
    """One title for several: `*` stands for the numbers, or else the one stretch, in which they differ."""
    pieces = [re.split(r"(\d+)", title) for title in titles]
    if len({tuple(found[::2]) for found in pieces}) == 1:
        return "".join(at[0] if len(set(at)) == 1 else "*" for at in zip(*pieces, strict=True))
    start = _common_start(titles)
    end = _common_start([title[len(start) :][::-1] for title in titles])[::-1]
    return f"{start}*{end}" if "  " in start else titles[0]


def _common_start(texts: Sequence[str]) -> str:
    alike = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*texts, strict=False))
    return "".join(at[0] for at in alike)


def _us(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}"


def _threads(found: Profile) -> str:
    return f"{found.threads} thread{'s' if found.threads > 1 else ''}"


def _show_rest(found: Profile) -> None:
    def part(name: str, us: float) -> str:
        return f"{name} {number(us)} us ({us / found.sum_us:.1%})"

    peaks = found.peaks
    if found.kernels_us > 0:
        rate = found.flops / found.kernels_us / 1e3
        waited = f"; waited {found.waiting:.1%} of it" if found.team > 1 else ""
        share = f"{found.peak_share:.0%} of peak"
        click.echo(f"{part('kernels', found.kernels_us)}: {number(rate)} GFLOP/s, {share}{waited}")
    rates = ", ".join(f"{number(gflops)} in {precision}" for precision, gflops in peaks.gflops.items())
    click.echo(
        f"peaks of {_threads(found)}: C {rates} (GFLOP/s); "
        f"M {number(peaks.gigabytes_per_second)} GB/s (memory; caches give more)"
    )
    lost = (
        part("barriers", found.barriers_us),
        part("dispatch", found.dispatch_us),
        part("Python", found.python_us),
    )
    click.echo(f"lost: {', '.join(lost)}")


def _warn(found: Profile, load: float) -> None:
    """Says so if the code is not the artifact's, and if other programs ran meanwhile."""
    if found.artifact_compiler not in (None, found.compiler):
        click.echo(
            f"The artifact was compiled by {found.artifact_compiler}, and what ran here by {found.compiler}: "
            "the artifact's own kernels may take other times",
            err=True,
        )
    if found.run_us.median > _BUSY * found.sum_us:
        told = f"a run took {number(found.run_us.median, 4)} us, its parts {number(found.sum_us, 4)}"
    elif is_busy(load) and found.team > 1:
        told = "barriers wait for threads that have no core"
    else:
        return
    click.echo(f"The machine was busy ({in_use(load)}): {told}", err=True)
