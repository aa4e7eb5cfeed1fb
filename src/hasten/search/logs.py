"""Candidates of a search as records of TensorBoard or Weights & Biases, written as soon as they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hasten.errors import MissingDependencyError, OptionError
from hasten.search.record import CandidateRecord, Outcome, SearchRecord
from hasten.search.status import Status

_FORMS = "write tensorboard:FOLDER, or wandb, or wandb:PROJECT"


class Writer(Protocol):
    """A library's way to record candidates. Each is a step, numbered from 1 as they came."""

    def write(self, step: int, candidate: CandidateRecord, changed: Mapping[str, float]) -> None:
        """Records what is new about a candidate."""

    def close(self, record: SearchRecord) -> None:
        """Records what the search found, and ends."""


class Log:
    """Tells a writer what changes while a search runs: a `Watch`."""

    def __init__(self, writer: Writer, place: str) -> None:
        """Nothing is written yet."""
        self._writer, self._place = writer, place
        self._known: dict[str, CandidateRecord] = {}
        self._failed: Exception | None = None

    def __call__(self, status: Status) -> None:
        """Writes what is new. A log that cannot be written ends no search: `close` says so."""
        if self._failed is None:
            try:
                self._write(status.candidates)
            except Exception as error:  # noqa: BLE001 - the library may raise anything
                self._failed = error

    def close(self, record: SearchRecord) -> None:
        """Writes what is new since, and what the search found.

        Raises:
            OptionError: it could not be written.
        """
        try:
            if self._failed is None:
                self._write(record.candidates)
                self._writer.close(record)
        except Exception as error:  # noqa: BLE001 - the library may raise anything
            self._failed = error
        if isinstance(self._failed, OSError):
            why = self._failed.strerror or self._failed
            raise OptionError(f"--log {self._place}: cannot write: {why}; choose another place")
        if self._failed is not None:
            raise OptionError(f"--log {self._place}: {type(self._failed).__name__}: {self._failed}")

    def _write(self, candidates: tuple[CandidateRecord, ...]) -> None:
        for candidate in candidates:
            before = self._known.get(candidate.name)
            if candidate == before:
                continue
            self._known[candidate.name] = candidate
            earlier = {} if before is None else numbers(before)
            changed = {k: v for k, v in numbers(candidate).items() if earlier.get(k) != v}
            ended = candidate.outcome is not Outcome.NOT_TRIED
            if changed or (ended and (before is None or before.outcome is not candidate.outcome)):
                self._writer.write(list(self._known).index(candidate.name) + 1, candidate, changed)


def log_to(place: str) -> Log:
    """A log by its name on the command line.

    Args:
        place: "tensorboard:FOLDER", "wandb" or "wandb:PROJECT".

    Raises:
        OptionError: it is none of these, or cannot be written.
        MissingDependencyError: the package is not installed.
    """
    kind, _, where = place.partition(":")
    if kind == "tensorboard" and where:
        return Log(_TensorBoard(Path(where)), place)
    if kind == "wandb":
        return Log(_Wandb(where or "hasten"), place)
    raise OptionError(f"--log {place!r}: {_FORMS}")


def numbers(candidate: CandidateRecord) -> dict[str, float]:
    """What is a number about a candidate and known, by name."""
    c = candidate
    found = {
        "latency_ms": None if c.latency_ms is None else c.latency_ms.median,
        "speed/to_original": None if c.to_original is None else c.to_original.median,
        "speed/to_lossless": None if c.to_lossless is None else c.to_lossless.median,
        "loss": c.loss,
        "drop/calibration": c.drop,
        "drop/held_out": None if c.bound is None else c.bound.measured,
        "drop/at_most": None if c.bound is None else c.bound.upper,
        "size_mb": None if c.bytes is None else c.bytes / 1e6,
        "memory_mb": None if c.memory is None else c.memory / 1e6,
        "layers_quantized": float(len(c.quantized)),
    }
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX.writer import SummaryWriter
        except ImportError:
            raise _missing("tensorboard", "tensorboardX") from None
        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as error:
            raise OptionError(f"--log: cannot write to {folder}: {error.strerror or error}") from None

    def write(self, step: int, candidate: CandidateRecord, changed: Mapping[str, float]) -> None:
        self._writer.add_text("candidate", _described(candidate), step)
        for name, value in changed.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, record: SearchRecord) -> None:
        self._writer.add_text("search", f"{record.headline}\n\n    {record.command}", 0)
        self._writer.close()


class _Wandb:
    def __init__(self, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb", "wandb") from None
        # Where it goes is the user's choice: WANDB_MODE=offline keeps it in a folder.
        try:
            self._run: Any = wandb.init(project=project, settings=wandb.Settings(silent=True))
        except wandb.errors.Error as error:
            raise OptionError(
                f"--log wandb: {str(error).splitlines()[0]}; WANDB_MODE=offline keeps the log on this machine"
            ) from None

    def write(self, step: int, candidate: CandidateRecord, changed: Mapping[str, float]) -> None:
        about = {"candidate": candidate.name, "outcome": candidate.outcome.value, "reason": candidate.reason}
        self._run.log({**changed, **about, "number": step})

    def close(self, record: SearchRecord) -> None:
        about = ("model", "metric", "max_drop", "confidence", "seed", "command")
        self._run.config.update(
            {name: getattr(record, name) for name in about}
            | {"processor": record.machine.processor, "versions": dict(record.versions)}
        )
        found = {"chosen": record.chosen, "headline": record.headline, "stated": record.stated}
        self._run.summary.update(found)
        self._run.finish()


def _described(candidate: CandidateRecord) -> str:
    reason = f": {candidate.reason}" if candidate.reason else ""
    return f"{candidate.name} ({candidate.description}), {candidate.outcome.value}{reason}"


def _missing(log: str, package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"--log {log} needs {package}, which is not installed: pip install 'hasten[log]'"
    )
