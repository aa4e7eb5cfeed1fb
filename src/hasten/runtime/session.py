"""Open an artifact and run it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import ArtifactError, HastenError, OptionError
from hasten.runtime.artifact import Artifact, Verify, read_artifact
from hasten.runtime.checks import bind_sizes, check_mapping, check_names, element, to_array, whole_threads
from hasten.runtime.foreign import ForeignRunner
from hasten.runtime.host import HostRunner
from hasten.runtime.library import Library, choose_code, shared_pool
from hasten.runtime.manifest import OBJECT, ForeignStep, HostStep, NativeStep, TensorInfo, nested
from hasten.runtime.native import STAGED_BYTES, NativeRunner
from hasten.runtime.steps import Runner, make_runners, run_steps
from hasten.target import Target, cores

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a session holds until it is closed, and a run until it ends."""

    artifact: Artifact
    runners: Sequence[Runner]
    whole: NativeRunner | None


class Session:
    """A model, ready to run. Several threads may call it at once.

    Attributes:
        inputs: What it takes.
        outputs: What it returns.
        threads: Threads that a run uses, the caller's included.
        target: The instructions that its code uses, or None if no part of it is compiled.
        report: What the compilation noted for people.
    """

    def __init__(self, artifact: Artifact, runners: list[Runner], target: Target | None, threads: int):
        manifest = artifact.manifest
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.threads = threads
        self.target = target
        self.report = manifest.report
        self._verified = False
        # Once the weights are verified: runs what is like the last run, if it can.
        self._quick: Callable[[Mapping[str, ArrayLike]], dict[str, Array] | None] | None = None
        self._names = [info.name for info in self.inputs]
        self._expected = [
            (info.name, None if info.dtype == OBJECT else element(info.dtype)) for info in self.inputs
        ]
        self._output_names = [info.name for info in self.outputs]
        self._opened: _Opened | None = _Opened(artifact, runners, self._whole(runners))

    def run(self, feeds: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Runs the model.

        Args:
            feeds: An array for each input, by name. Python numbers, strings and lists are taken too.

        Returns:
            A new array for each output, by name.

        Raises:
            InputError: Names, element types, shapes or values do not fit the model.
            ArtifactError: The session is closed, or the weights in its file are damaged.
        """
        quick = self._quick
        if quick is not None:
            try:
                made = quick(feeds)
            except (AttributeError, TypeError):  # what is asked below would cost more than all else here
                check_mapping(self.inputs, feeds)
                raise
            if made is not None:
                return made
        check_mapping(self.inputs, feeds)
        opened = self._opened
        if opened is None:
            raise _closed()
        arrays = []
        try:
            for name, dtype in self._expected:
                array = feeds[name]
                if type(array) is not np.ndarray or array.dtype is not dtype:
                    break
                arrays.append(array)
        except KeyError:
            pass
        if not len(arrays) == len(self._names) == len(feeds):
            check_names(self.inputs, feeds)
            arrays = [_taken(info, feeds[info.name]) for info in self.inputs]
        whole = opened.whole
        results = self._run_steps(opened.runners, arrays) if whole is None else whole.run(arrays)
        if not self._verified:
            opened.artifact.check_weights()
            self._verified = True
            self._quick = None if whole is None else whole.run_again
            if self._opened is None:  # closed by another thread since
                self._quick = None
        return dict(zip(self._output_names, results, strict=True))

    def __call__(self, **feeds: ArrayLike) -> dict[str, Array]:
        """`run`, with the inputs as keyword arguments."""
        return self.run(feeds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a file that `hasten.open` takes.

        Raises:
            ArtifactError: The file cannot be written, or the session is closed.
        """
        if self._opened is None:
            raise _closed()
        self._opened.artifact.save(path)

    def close(self) -> None:
        """Lets go of the file, the code and all memory; runs under way finish first."""
        if self._opened is not None:
            self._opened.artifact.close()
        self._opened = self._quick = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        takes, makes = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        target = self.target.name if self.target else "host"
        return f"<hasten.Session ({takes}) -> ({makes}); {target}, {self.threads} threads>"

    def _whole(self, runners: Sequence[Runner]) -> NativeRunner | None:
        """The runner that takes the model's inputs and makes its outputs, if there is such a one."""
        if len(runners) != 1 or not isinstance(runners[0], NativeRunner):
            return None
        step = runners[0].step
        made = [(name, dtype) for name, dtype in zip(step.outputs, step.output_dtypes, strict=True)]
        same = step.inputs == self.inputs and made == [(info.name, info.dtype) for info in self.outputs]
        return runners[0] if same else None

    def _run_steps(self, runners: Sequence[Runner], arrays: list[Array]) -> list[Array]:
        """Runs the steps one after the other."""
        bind_sizes(
            self.inputs,
            [
                np.shape(a) if info.dtype != OBJECT else ()
                for info, a in zip(self.inputs, arrays, strict=True)
            ],
        )
        values = dict(zip(self._names, arrays, strict=True))
        run_steps(runners, values)
        return [_given(info, values[info.name], arrays) for info in self.outputs]


def _taken(info: TensorInfo, value: Any) -> Any:
    """A value as the steps take it: an array, but for what is no tensor."""
    return value if info.dtype == OBJECT else to_array(info, value)


def _given(info: TensorInfo, value: Any, inputs: Sequence[Any]) -> Any:
    """An output, which must be nobody else's memory: not an input, not a view of one."""
    if info.dtype == OBJECT:
        return copy.deepcopy(value)
    result: Array = np.asarray(value).astype(element(info.dtype), copy=False)
    shared = any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in inputs)
    return result.copy() if shared else result


def _closed() -> ArtifactError:
    return ArtifactError("the session is closed: open the artifact again")


def open_session(
    path: str | os.PathLike[str], *, threads: int | None = None, verify: Verify = "background"
) -> Session:
    """Opens an artifact.

    Args:
        path: The file.
        threads: Threads that a run uses, the caller's included; None for what it was compiled for, within
            the cores that this process may use.
        verify: When the checksum of the weights is compared: "background" (beside the first run, which
            does not return before the verdict), "now" or "never". All else is verified before any code is
            loaded.

    Raises:
        ArtifactError: The file is missing, damaged, of a newer format or for other processors.
        MissingDependencyError: It has operators that run on the host, and the package onnx is missing; or
            another engine runs it, and that is missing.
        EngineError: The other engine cannot open it.
        OptionError: An argument makes no sense.
    """
    threads = whole_threads(threads)
    if verify not in ("background", "now", "never"):
        raise OptionError(f'verify={verify!r}: give "background", "now" or "never"')
    artifact = read_artifact(path, verify=verify)
    try:
        return Session(artifact, *start(artifact, threads))
    except HastenError:
        artifact.close()
        raise


def start(
    artifact: Artifact, threads: int | None, staged_bytes: int = STAGED_BYTES
) -> tuple[list[Runner], Target | None, int]:
    """What a session over an artifact needs beside it: runners of its steps, the target of its code, threads.

    Args:
        artifact: Where it is from.
        threads: Threads that a run uses, or None for what it was compiled for.
        staged_bytes: Arrays up to this size pass through buffers of the session. With -1 compiled code works
            on the callers' arrays, so that what it reads or writes beside them can be found.

    Raises:
        HastenError: as `open_session`.
    """
    manifest = artifact.manifest
    if threads is None:
        threads = min(manifest.threads or cores(), cores())
    target = library = None
    if any(isinstance(step, NativeStep) for step in nested(manifest.steps)):
        target, code = choose_code(artifact)
        try:
            library = Library(code)
        except ArtifactError as error:
            raise ArtifactError(f"cannot open {artifact.path}: {error}") from None
    return start_runners(artifact, library, threads, staged_bytes), target, threads


def start_runners(
    artifact: Artifact,
    library: Library | None,
    threads: int,
    staged_bytes: int = STAGED_BYTES,
    host: Callable[[HostStep, memoryview], HostRunner] = HostRunner,
) -> list[Runner]:
    """A runner for each step of an artifact.

    Args:
        artifact: The steps, their models and weights.
        library: The code of the native steps; None if there are none.
        threads: Threads that a run uses, the caller's included.
        staged_bytes: See `start`.
        host: Makes the runner of a host step from its model.

    Raises:
        ArtifactError: A member is missing.
        MissingDependencyError: There are operators that run on the host, and the package onnx is missing; or
            another engine runs it, and that is missing.
        EngineError: The other engine cannot open it.
    """
    pool = shared_pool(library) if library is not None and threads > 1 else None
    weights = np.frombuffer(artifact.weights, np.uint8)

    def make(step: NativeStep | HostStep | ForeignStep) -> Runner:
        if isinstance(step, NativeStep):
            assert library is not None
            guards = artifact.manifest.guards
            return NativeRunner(step, library, weights, pool, threads, guards, staged_bytes)
        if step.member not in artifact.members:
            raise ArtifactError(f"{artifact.path} has no member {step.member}: compile again")
        member = artifact.members[step.member]
        if isinstance(step, HostStep):
            return host(step, member)
        return ForeignRunner(step, member, threads)

    return make_runners(artifact.manifest.steps, make)
