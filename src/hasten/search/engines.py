"""The engines that models are timed and compared on, each in a process of its own.

What they do there is in `engines_worker.py`, which knows nothing of hasten's compile side.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from numpy.typing import NDArray

from hasten.errors import EngineError, MissingDependencyError, OptionError
from hasten.graph.pages import give_back
from hasten.runtime.manifest import Manifest
from hasten.search.engines_worker import read_npz, save_npz

Array = NDArray[Any]
Form = Literal["artifact", "onnx", "module"]
Precision = Literal["f32", "bf16", "int8"]
Mode = Literal["", "static", "compile", "autocast"]


_NO_MEMORY = ("MemoryError", "bad_alloc", "allocate")


@dataclass(frozen=True)
class Engine:
    """Something that runs models, with the settings that it runs them with.

    Attributes:
        name: on the command line and in tables; no two engines share one.
        package: what is imported, and the distribution that is installed.
        runs: the kind of model that it takes: an artifact, an ONNX file, or a torch module (a Hugging Face
            folder, or "path/to/file.py:function" of a function that makes the module).
        extra: the extra of hasten that installs it.
        precision: of products and convolutions. A compiled or quantized model has its own, and this names
            it only; what is not quantized an engine then computes in what it takes for fastest.
        mode: "static" fixes the shapes of the inputs before the engine compiles the model; "compile" is
            torch.compile; "autocast" leaves weights in f32 and lets torch convert at each product.
    """

    name: str
    package: str
    runs: Form
    extra: str
    precision: Precision = "f32"
    mode: Mode = ""

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        if importlib.util.find_spec(self.package) is None:
            return None
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


HASTEN = Engine("hasten", "hasten", "artifact", "")
HASTEN_BF16 = Engine("hasten-bf16", "hasten", "artifact", "", "bf16")
HASTEN_INT8 = Engine("hasten-int8", "hasten", "artifact", "", "int8")
ONNXRUNTIME = Engine("onnxruntime", "onnxruntime", "onnx", "bench")
OPENVINO = Engine("openvino", "openvino", "onnx", "bench")
OPENVINO_BF16 = replace(OPENVINO, name="openvino-bf16", precision="bf16")
TORCH = Engine("torch", "torch", "module", "huggingface")
REFERENCE = Engine("onnx.reference", "onnx", "onnx", "compile")
"""ONNX's own evaluator in NumPy: right, and far too slow to be timed."""

PEERS = (
    ONNXRUNTIME,
    OPENVINO,
    replace(OPENVINO, name="openvino-static", mode="static"),
    OPENVINO_BF16,
    replace(OPENVINO, name="openvino-static-bf16", mode="static", precision="bf16"),
    TORCH,
    replace(TORCH, name="torch-compile", mode="compile"),
    replace(TORCH, name="torch-bf16", precision="bf16"),
    replace(TORCH, name="torch-autocast-bf16", mode="autocast", precision="bf16"),
    replace(TORCH, name="torch-compile-bf16", mode="compile", precision="bf16"),
)


def peers_named(names: str) -> tuple[Engine, ...]:
    """The peers in a list with commas.

    Raises:
        OptionError: a name is unknown.
        MissingDependencyError: one is not installed.
    """
    found = []
    for name in dict.fromkeys(part.strip() for part in names.split(",") if part.strip()):
        engine = next((peer for peer in PEERS if peer.name == name), None)
        if engine is None:
            known = ", ".join(peer.name for peer in PEERS)
            raise OptionError(f"unknown engine {name!r}: give some of {known}, with commas between")
        if engine.version is None:
            raise MissingDependencyError(
                f"the engine {name} is not installed: pip install 'hasten[{engine.extra}]', or leave it out"
            )
        found.append(engine)
    return tuple(found)


@dataclass(frozen=True)
class Opened:
    """What an engine said after it opened a model and ran it once.

    Attributes:
        load: seconds from the file to something that can run, imports excluded.
        first: seconds of the first run.
        base: bytes of memory of the process before, with the engine imported; None if unknown.
        peak: the most bytes of memory until after the first run; None if unknown.
    """

    load: float
    first: float
    base: int | None
    peak: int | None


@dataclass(frozen=True)
class Limits:
    """What a worker may take.

    Attributes:
        seconds: until each answer: to opening, to some runs. None for any time.
        memory: bytes that it may allocate (Linux), mapped files not counted. None for no limit.
        until: a time by `time.monotonic`, the same in all processes, at which everything ends.
    """

    seconds: float | None = None
    memory: int | None = None
    until: float = math.inf

    def allowed(self) -> float:
        """Seconds that an answer which begins now may take; infinity for any time."""
        left = max(0.0, self.until - time.monotonic())
        return left if self.seconds is None else min(self.seconds, left)


NO_LIMITS = Limits()


class Worker:
    """An engine in a process of its own, with one model open."""

    def __init__(
        self, engine: Engine, model: Path | str, feeds: Path, threads: int, limits: Limits = NO_LIMITS
    ) -> None:
        self.engine = engine
        self._limits = limits
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        job = {
            "package": engine.package,
            "precision": engine.precision,
            "mode": engine.mode,
            "model": str(model),
            "feeds": str(feeds),
            "threads": threads,
            "memory": limits.memory,
            "path": str(Path(__file__).parents[2]),
        }
        give_back()  # before another process takes memory
        script = Path(__file__).with_name("engines_worker.py")
        self._process = subprocess.Popen(
            # -P: the folder of the script is no place to import from.
            [sys.executable, "-P", str(script), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(threads),
        )
        try:
            self.opened = Opened(**self._answer())
        except BaseException:
            self.close()
            raise

    def times(self, runs: int) -> list[float]:
        """Runs the model; returns the seconds that each run took."""
        return [float(seconds) for seconds in self._ask({"runs": runs})["seconds"]]

    def outputs(self, feeds: Path | None = None) -> dict[str, Array]:
        """Runs the model once; returns the arrays that came out, by name: maps and sequences are left out.

        Args:
            feeds: a file of other inputs, which are the worker's from now on.
        """
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            path = Path(folder) / "outputs.npz"
            inputs = {} if feeds is None else {"feeds": str(feeds)}
            self._ask({**inputs, "save": str(path)})
            return read_npz(str(path))

    def stop(self) -> None:
        """Takes the processor away from it: engines let threads spin for a while after a run."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # It has ended; why, is in its last words.
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout, seconds = self._process.stdout, self._limits.allowed()
        assert stdout is not None
        # Answers are single lines, each awaited before the next question: nothing waits in Python's buffer.
        if not math.isinf(seconds) and not select.select([stdout], [], [], seconds)[0]:
            self._process.kill()
            raise EngineError(f"{self.engine.name} did not answer within {seconds:.0f} s, and was ended")
        line = stdout.readline()
        if line:
            return dict(json.loads(line))
        raise EngineError(f"{self.engine.name} cannot run this model: {self._last_words()}")

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        return explained(self._errors.read().decode("utf-8", "replace"), status, self._limits)


def explained(stderr: str, status: int, limits: Limits) -> str:
    """Why a process ended: what it wrote last, or its status."""
    words = stderr.strip().splitlines()
    said = words[-1].strip()[:400] if words else f"its process ended with status {status}"
    if limits.memory is not None and any(sign in said for sign in _NO_MEMORY):
        return f"it needs more than {limits.memory / 1e6:.0f} MB of memory ({said})"
    return said


def answers(engine: Engine, model: Path | str, feeds: Mapping[str, Array], threads: int) -> dict[str, Array]:
    """What an engine answers.

    Args:
        engine: the engine.
        model: what the engine takes, see `Engine.runs`.
        feeds: an array for each input.
        threads: threads to use.

    Raises:
        EngineError: it cannot open or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        path = save_feeds(feeds, Path(folder))
        with Worker(engine, model, path, threads) as worker:
            return worker.outputs()


def save_feeds(feeds: Mapping[str, Array], folder: Path) -> Path:
    """Writes inputs to a file for workers."""
    path = folder / "inputs.npz"
    save_npz(str(path), feeds)
    return path


def check_outputs(manifest: Manifest, outputs: Sequence[str], engine: Engine) -> None:
    """Raises EngineError unless an engine's outputs include all of the artifact's."""
    missing = [info.name for info in manifest.outputs if info.name not in outputs]
    if missing:
        raise EngineError(
            f"the artifact's outputs {', '.join(missing)} are not among those of {engine.name} "
            f"({', '.join(outputs)}): is this the model that the artifact was compiled from?"
        )


def _environment(threads: int) -> dict[str, str]:
    """Environment of a worker: the same number of threads for all, and no network."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's, which only makes inputs here
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # its helper processes would outlive the worker
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    return {**os.environ, **settings}
