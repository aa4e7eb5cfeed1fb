"""What people see: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hasten.errors import HastenError, OptionError
from hasten.runtime.manifest import TensorInfo
from hasten.search.finite import finite

_WIDTH_OF_FILES = 200  # output that goes to a file or pipe is not cut at the width of a terminal


def stdout() -> Console:
    """The console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_FILES
    return Console(stderr=stderr, highlight=False, width=width, soft_wrap=not stream.isatty())


class Steps:
    """Prints what is being done, and how long each step took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._text: str | None = None
        self._start = self.began = time.perf_counter()

    def __call__(self, text: str) -> None:
        """Ends the step before and begins one."""
        self._finish()
        self._text, self._start = text, time.perf_counter()
        self._status.update(f"[cyan]{escape(text)}[/]")

    def _finish(self) -> None:
        if self._text is not None:
            seconds = time.perf_counter() - self._start
            self._console.print(f"  {self._text:<58} {seconds:7.2f} s", markup=False)
        self._text = None

    @property
    def seconds(self) -> float:
        """Seconds since the first step."""
        return time.perf_counter() - self.began

    @contextlib.contextmanager
    def shown(self) -> Iterator[Steps]:
        """Shows steps while the block runs."""
        with self._status:
            yield self
            self._finish()


@contextlib.contextmanager
def status_only(console: Console) -> Iterator[Steps]:
    """Progress of which only the step under way is shown, on a terminal alone."""

    class Fleeting(Steps):
        def _finish(self) -> None:
            self._text = None

    with Fleeting(console).shown() as steps:
        yield steps


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns that begin with ">" are aligned to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return made


def row(to: Table, *cells: object) -> None:
    """Adds a row of plain text."""
    to.add_row(*(escape(str(cell)) for cell in cells))


def tensor(info: TensorInfo) -> str:
    """An input or output on one line."""
    return f"{info.dtype}[{', '.join(map(str, info.shape))}]"


def size(count: float) -> str:
    """Bytes for people: MB of 10**6."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, or "-"."""
    return "-" if value is None else f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def echo_json(data: Mapping[str, Any]) -> None:
    """Prints JSON."""
    click.echo(_json(data))


def write_json(path: str, data: Mapping[str, Any]) -> None:
    """Writes JSON to a file, or to stdout for "-"."""
    if path == "-":
        echo_json(data)
    else:
        write_file(Path(path), (_json(data) + "\n").encode())


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(finite(data), indent=2, default=str, allow_nan=False)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file at once: to a temporary name, which is then renamed.

    Raises:
        OptionError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OptionError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from None


def check_place(path: Path) -> None:
    """Refuses an output that could not be written, before long work.

    Raises:
        OptionError: its folder does not exist or takes no files, or it is a folder itself.
    """
    if path.is_dir():
        raise OptionError(f"cannot write {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OptionError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise OptionError(
            f"cannot write {path}: {path.parent} takes no files ({error.strerror or error}); "
            "choose another place"
        ) from None


def check_new(places: Iterable[Path | None], *, overwrite: bool) -> None:
    """Refuses outputs that could not be written, or that are there and may not be replaced, before long work.

    Args:
        places: of outputs; None where one is not written.
        overwrite: whether what is there may be replaced.

    Raises:
        OptionError: as `check_place`, or one is there.
    """
    for place in places:
        if place is None:
            continue
        check_place(place)
        if place.exists() and not overwrite:
            raise OptionError(f"{place} exists: give another name, or --overwrite")


def is_page(report: Path | None) -> bool:
    """Whether a report is to be a page of HTML, by its name; otherwise it is JSON.

    Raises:
        OptionError: it is neither.
    """
    suffix = ".html" if report is None else report.suffix.lower()
    if suffix not in (".html", ".htm", ".json"):
        raise OptionError(f"--report {report}: reports are .html or .json; give a name that ends so")
    return suffix != ".json"


def check_apart(written: Mapping[str, Path | None], read: Iterable[Path | None]) -> None:
    """Refuses places that would be written over what is read, or over each other.

    Args:
        written: places by the option that names them; None where it was not given.
        read: what must stay as it is.

    Raises:
        OptionError: one would be.
    """
    taken = {path.resolve(): "is what is read" for path in read if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise OptionError(f"{option} {path} {taken[path.resolve()]}: give another name")
        taken[path.resolve()] = f"is the place of {option} too"


def write_or_keep(path: Path, write: Callable[[Path], None]) -> str | None:
    """Writes what took long to make; in a temporary folder if it cannot be written where it should be.

    Args:
        path: where it should be.
        write: writes it to a path.

    Returns:
        None, or why it is not there and where it is.
    """
    try:
        write(path)
    except (HastenError, OSError) as error:
        kept = Path(tempfile.mkdtemp(prefix="hasten-kept-")) / path.name
        try:
            write(kept)
        except (HastenError, OSError) as again:
            return f"{error}; it could not be kept elsewhere either: {again}"
        return f"{error}; what was found is kept in {kept}"
    return None


def names(items: Sequence[str], most: int = 4) -> str:
    """The first few of some names."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
