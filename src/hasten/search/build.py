"""Compiling candidates, each in a process of its own: a crash or a hang loses one of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.errors import EngineError
from hasten.search.engines import Limits, explained


@dataclass(frozen=True)
class Build:
    """How candidates are compiled; `backends.native.Options` says what the fields mean.

    Attributes:
        targets: names of instruction sets.
        threads: of a run; None for all cores.
        padding: "skip" or "compute".
        cache: folder of compiled objects.
        version: of hasten.
    """

    targets: tuple[str, ...]
    threads: int | None
    padding: str
    cache: str
    version: str


def build(
    graph: Path, output: Path, how: Build, precision: str, limits: Limits, report: Mapping[str, Any]
) -> None:
    """Compiles an optimized graph.

    Args:
        graph: an ONNX file.
        output: the artifact to write.
        how: for all candidates.
        precision: of products that are not quantized.
        limits: of the process and all that it starts.
        report: what earlier steps noted for people; goes into the manifest.

    Raises:
        EngineError: it failed, or took too long or too much memory.
    """
    script = Path(__file__).with_name("build_worker.py")
    job = {
        **asdict(how),
        "graph": str(graph),
        "output": str(output),
        "precision": precision,
        "memory": limits.memory,
        "report": report,
        "path": str(Path(__file__).parents[2]),
    }
    # Its temporary files are in a folder of ours: they are deleted even if it is killed.
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory(prefix="hasten-") as scratch:
        # A session of its own, so that the compiler that it starts ends with it.
        process = subprocess.Popen(
            [sys.executable, "-P", str(script), json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        )
        try:
            status = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            raise EngineError(f"compiling took longer than {limits.seconds:.0f} s, and was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            errors.seek(0)
            said = explained(errors.read().decode("utf-8", "replace"), status, limits)
            raise EngineError(f"hasten cannot compile it: {said}")
