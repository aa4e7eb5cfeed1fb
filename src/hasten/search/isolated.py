"""Functions in processes of their own.

What a function takes of memory ends with its process; a crash, a hang or a lack of memory loses that call
alone, and a deadline holds whatever it does. All of a search that reads weights or takes long goes this way,
or is a `Worker` (`engines.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hasten.errors import EngineError
from hasten.graph.pages import give_back
from hasten.search.engines import NO_LIMITS, Limits, explained
from hasten.search.transfer import read_value, write_value

_LOOK = 0.2  # seconds between looks at what a function tells


def isolated(
    function: Callable[..., Any],
    *args: Any,
    doing: str,
    folder: Path,
    limits: Limits = NO_LIMITS,
    progress: Callable[[str], None] | None = None,
    **named: Any,
) -> Any:
    """Calls a function in a process of its own.

    Args:
        function: of a module that can be imported.
        args: what it takes, as `transfer.write_value` can write it.
        doing: what it does, for error messages: "compiling".
        folder: for graphs that go there and back, which stay.
        limits: of the process and all that it starts.
        progress: is told what the function tells its argument of that name; None if it has none.
        named: further arguments.

    Returns:
        What it returns; arrays are mapped and read-only.

    Raises:
        EngineError: it failed, or took too long or too much memory.
        HastenError: what the function raises.
    """
    # Its temporary files are in a folder of ours: they are deleted even if it is killed.
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory(prefix="hasten-") as scratch:
        place = Path(scratch)
        told = place / "told"
        job = {
            "call": str(place / "call"),
            "result": str(place / "result"),
            "folder": str(folder),
            "told": None if progress is None else str(told),
            "memory": limits.memory,
            "path": str(Path(__file__).parents[2]),
        }
        write_value((function, args, named), place / "call", folder)
        give_back()  # before another process takes memory
        with _started(job, scratch, errors) as process:
            _wait(process, doing, limits, _Told(told, progress))
        if process.returncode:
            errors.seek(0)
            said = explained(errors.read().decode("utf-8", "replace"), process.returncode, limits)
            raise EngineError(f"{doing} failed: {said}")
        error, result = read_value(place / "result")
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def _started(job: Mapping[str, Any], scratch: str, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a session of its own, so that the compilers that it starts end with it."""
    script = Path(__file__).with_name("isolated_worker.py")
    process = subprocess.Popen(
        [sys.executable, "-P", str(script), json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        start_new_session=True,
        env={**os.environ, "TMPDIR": scratch},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Told:
    """Passes on what a process has written to a file since the last look."""

    def __init__(self, path: Path, progress: Callable[[str], None] | None) -> None:
        self._path, self._progress = path, progress
        self._read = 0

    def look(self) -> None:
        if self._progress is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    self._progress(line.decode("utf-8").rstrip())


def _wait(process: subprocess.Popen[bytes], doing: str, limits: Limits, told: _Told) -> None:
    """Until the process ends.

    Raises:
        EngineError: it took too long.
    """
    whole = limits.allowed()
    end = time.monotonic() + whole
    while True:
        left = end - time.monotonic()
        try:
            process.wait(max(0.0, min(_LOOK, left)))
        except subprocess.TimeoutExpired:
            told.look()
            if left <= 0:
                raise EngineError(f"{doing} took longer than {whole:.0f} s, and was ended") from None
        else:
            told.look()
            return
