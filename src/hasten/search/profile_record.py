"""Runs an artifact whose code is built once more with marks, and reads what they logged."""

from __future__ import annotations

import ctypes
import importlib.resources
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.codegen.part import MOST_THREADS
from hasten.codegen.toolchain import Compiler, build, find_compiler
from hasten.errors import ArtifactError
from hasten.runtime.artifact import Artifact
from hasten.runtime.host import HostRunner
from hasten.runtime.library import Library, choose_code
from hasten.runtime.manifest import HostStep, NativeStep, nested
from hasten.runtime.session import Session, start_runners
from hasten.search.profile_timeline import HostRun, Log
from hasten.target import Target

Array = NDArray[Any]

_DEFINE = "#define HASTEN_PROFILE\n"
_MARK = b"HASTEN_MARK("
_LINE = 8  # marks that fill two cache lines, so that the rows of threads do not meet in one


@dataclass(frozen=True)
class Count:
    """What a kernel amounts to: floating-point operations, bytes, and bits of the factors it multiplies."""

    flops: int
    bytes: int
    bits: int


class _Log(ctypes.Structure):
    """`hasten_log` of runtime/csrc/profile.c."""

    _fields_ = (
        ("marks", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("counts", ctypes.c_void_p),
        ("kernels", ctypes.c_int64),
    )


class _TimedHost(HostRunner):
    """A host step that notes when it ran."""

    def __init__(self, step: HostStep, model: memoryview, number: int, recorder: Recorder) -> None:
        super().__init__(step, model)
        self._number, self._recorder = number, recorder

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        start = self._recorder.now()
        results = super().run(arrays)
        self._recorder.hosts.append(HostRun(self._number, start, self._recorder.now()))
        return results


class Recorder:
    """A session over an artifact that keeps a log. One run at a time.

    Attributes:
        hosts: runs of host steps in the run under way.
        target: instructions that the code uses; None if there is none.
        compiler: what built the code that is run; None if there is none.
        artifact_compiler: what built the artifact's; None if there is none, or the artifact does not say.
        now: the clock of everything that is logged, in nanoseconds.
    """

    def __init__(self, artifact: Artifact, threads: int, cache: Path | None) -> None:
        """Builds the code and opens the session.

        Raises:
            ArtifactError: the artifact has no code for this machine, or was made before there were marks.
            ToolchainError: there is no compiler.
        """
        steps = list(nested(artifact.manifest.steps))
        self.hosts: list[HostRun] = []
        self._native = [step for step in steps if isinstance(step, NativeStep)]
        target, library = None, None
        self.compiler: str | None = None
        self.artifact_compiler: str | None = None
        if self._native:
            target, _ = choose_code(artifact)
            compiler = find_compiler(target)
            self.compiler, self.artifact_compiler = compiler.version, compiler_of(artifact, target)
            library = Library(memoryview(profiled_code(artifact, target, compiler, cache)))
        counts = [len(step.kernels) for step in self._native]
        self._first_kernel = tuple(sum(counts[:part]) for part in range(len(counts)))
        # A kernel and a wait each, and the ends; one more, so that what is full is known to be too small.
        room = 2 + sum(2 * count + 3 for count in counts)
        self._marks = np.zeros((min(threads, MOST_THREADS), -(-room // _LINE) * _LINE, 2), np.int64)
        self._counts = np.zeros((len(counts), max(counts, default=0), 3), np.int64)
        self.now: Callable[[], int] = time.perf_counter_ns
        self._keep_log: Callable[[object], object] | None = None
        if library is not None:
            self.now = _function(library, "hasten_profile_clock", ctypes.c_int64)
            self._keep_log = _function(library, "hasten_profile", None)
            self._log()
        numbers = itertools.count()

        def timed(step: HostStep, model: memoryview) -> HostRunner:
            return _TimedHost(step, model, next(numbers), self)

        runners = start_runners(artifact, library, threads, host=timed)
        self.target = None if target is None else target.name
        self._session = Session(artifact, runners, target, threads)

    def _log(self) -> None:
        """Says where marks go."""
        if self._keep_log is not None:
            threads, room, _ = self._marks.shape
            marks, found = self._marks.ctypes.data, self._counts.ctypes.data
            self._keep_log(ctypes.byref(_Log(marks, threads, room, found, self._counts.shape[1])))

    def run(self, feeds: Mapping[str, Array]) -> Log:
        """Runs the model once, and keeps what was noted meanwhile.

        Kernels that take pictures one by one leave marks for each: where there is no room for all of them,
        the model is run again with more.

        Raises:
            InputError: the inputs do not fit.
            ArtifactError: the weights are damaged.
        """
        self._marks[:, 0, 0] = 0
        self.hosts.clear()
        start = self.now()
        results = self._session.run(feeds)
        end = self.now()
        del results  # freed after the run, not in its time
        threads, room, _ = self._marks.shape
        used = int(self._marks[:, 0, 0].max())
        if used >= room - 1:
            self._marks = np.zeros((threads, 2 * room, 2), np.int64)
            self._log()
            return self.run(feeds)
        return Log(start, end, self._marks[:, : 1 + used].copy(), self._first_kernel, tuple(self.hosts))

    def counts(self) -> list[Count]:
        """What each kernel amounted to in the last run."""
        return [
            Count(*map(int, row))
            for part, step in enumerate(self._native)
            for row in self._counts[part, : len(step.kernels)]
        ]


def compiler_of(artifact: Artifact, target: Target) -> str | None:
    """What built an artifact's code for a target; None if it does not say, as those of older versions."""
    noted = artifact.manifest.report.get("compilers")
    found = noted.get(target.name) if isinstance(noted, dict) else None
    return found if isinstance(found, str) else None


def profiled_code(artifact: Artifact, target: Target, compiler: Compiler, cache: Path | None) -> bytes:
    """An artifact's code for a target, built from its C with marks.

    Only the files that have marks are compiled: the objects of the others are in the cache, if the artifact
    was compiled on this machine, by the same compiler.

    Raises:
        ArtifactError: it was made before there were marks.
        ToolchainError: there is no compiler, or it failed.
    """
    prefix = f"c/{target.name}/"
    sources = {n.removeprefix(prefix): bytes(c) for n, c in artifact.members.items() if n.startswith(prefix)}
    marked = [name for name, text in sources.items() if _MARK in text]
    if not marked:
        raise ArtifactError(
            f"{artifact.path} was made by hasten {artifact.manifest.version}, which wrote no marks for a "
            "profile into its C: compile the model again"
        )
    texts = {name: (_DEFINE if name in marked else "") + text.decode() for name, text in sources.items()}
    runtime = importlib.resources.files("hasten") / "runtime" / "csrc"
    texts["profile.c"] = runtime.joinpath("profile.c").read_text("utf-8")
    return build(texts, target, compiler, cache=cache)


def _function(library: Library, name: str, result: type[ctypes.c_int64] | None) -> Any:
    function = library.function(name)
    function.restype = result
    return function
