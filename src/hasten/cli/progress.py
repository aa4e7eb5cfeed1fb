"""A search while it runs, as a live table on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hasten.cli.console import row, table
from hasten.search.record import CandidateRecord, Outcome
from hasten.search.report import Unit, unit_of
from hasten.search.status import Status, Watch, nobody

_ROWS = 12  # candidates that are shown at once: the latest, and the best
_STYLES = {
    Outcome.CHOSEN: "bold green",
    Outcome.CERTIFIED: "green",
    Outcome.NOT_CERTIFIED: "red",
    Outcome.OVER_BUDGET: "red",
    Outcome.FAILED: "red",
    Outcome.BASELINE: "bold",
}


@contextlib.contextmanager
def live(console: Console, metric: str) -> Iterator[Watch]:
    """Shows what a search tells, while the block runs; nothing where the console is no terminal.

    Args:
        console: where to.
        metric: the name of the search's metric, for the unit of drops.

    Yields:
        What is to be told.
    """
    if not console.is_terminal:
        yield nobody
        return
    view = _View(unit_of(metric))
    with Live(get_renderable=view.render, console=console, refresh_per_second=4, transient=True):
        yield view


class _View:
    """The latest status, and how to draw it."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._status: Status | None = None
        self._told = time.monotonic()
        self._spinner = Spinner("dots")

    def __call__(self, status: Status) -> None:
        self._status, self._told = status, time.monotonic()

    def render(self) -> RenderableType:
        if self._status is None:
            return self._spinner
        since = time.monotonic() - self._told
        return picture(self._status, self._unit, self._spinner, since)


def picture(status: Status, unit: Unit, spinner: Spinner, since: float = 0.0) -> RenderableType:
    """A status as it is drawn.

    Args:
        status: what to draw.
        unit: of drops.
        spinner: turns in front of what is being done.
        since: seconds since the status was told.
    """
    spinner.update(text=Text.assemble((status.phase, "bold cyan"), "  ", (status.doing, "cyan")))
    shown = table("", "candidate", ">ms", ">speed", f">drop, {unit.name}", ">at most", "outcome")
    hidden = max(0, len(status.candidates) - _ROWS)
    for number, candidate in enumerate(status.candidates, 1):
        if number > hidden or candidate.name == status.best:
            _row(shown, number, candidate, unit, candidate.name == status.best)
    clock = f"{_minutes(status.elapsed + since)} gone"
    if status.left is not None:
        clock += f", {_minutes(max(0.0, status.left - since))} left"
    count = f"{len(status.candidates)} candidates"
    foot = Group(_best(status, unit), Text(f"{count}, {clock}", "dim"))
    return Group(spinner, shown, foot) if status.candidates else Group(spinner, foot)


def _row(to: Table, number: int, c: CandidateRecord, unit: Unit, best: bool) -> None:
    bound = c.bound
    drop = unit(c.drop) if bound is None else unit(bound.measured)
    cells = (
        str(number),
        c.name,
        "-" if c.latency_ms is None else f"{c.latency_ms.median:.3g}",
        _speed(c),
        drop,
        "-" if bound is None else unit(bound.upper),
        "best so far" if best else c.outcome.value,
    )
    row(to, *cells)
    to.rows[-1].style = "bold green" if best else _STYLES.get(c.outcome, "dim")


def _best(status: Status, unit: Unit) -> Text:
    found = next((c for c in status.candidates if c.name == status.best), None)
    if found is None:
        return Text("nothing certified yet", "dim")
    said = f"best: {found.name}"
    if _speed(found) != "-":
        said += f", {_speed(found)}"
    if found.bound is not None:
        said += f", drop {unit(found.bound.measured)}, at most {unit(found.bound.upper)} {unit.name}"
    return Text(said, "green")


def _speed(candidate: CandidateRecord) -> str:
    ratio = candidate.to_original or candidate.to_lossless
    return "-" if ratio is None else f"{ratio.median:.2f} x"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
