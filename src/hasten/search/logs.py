"""Candidates of a search as records of TensorBoard or Weights & Biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.errors import MissingDependencyError, OptionError
from hasten.search.record import CandidateRecord, SearchRecord

Log = Callable[[SearchRecord], None]
"""Writes a search: each candidate is a step, numbered from 1 as in the report."""

_FORMS = "write tensorboard:FOLDER, or wandb, or wandb:PROJECT"


def log_to(place: str) -> Log:
    """A log by its name on the command line.

    Args:
        place: "tensorboard:FOLDER", "wandb" or "wandb:PROJECT".

    Raises:
        OptionError: it is none of these.
        MissingDependencyError: the package is not installed.
    """
    kind, _, where = place.partition(":")
    if kind == "tensorboard" and where:
        return _tensorboard(Path(where))
    if kind == "wandb":
        return _wandb(where or "hasten")
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
        "layers_int8": float(len(c.quantized)),
    }
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _tensorboard(folder: Path) -> Log:
    try:
        from tensorboardX.writer import SummaryWriter
    except ImportError:
        raise _missing("tensorboard", "tensorboardX") from None

    def write(record: SearchRecord) -> None:
        try:
            writer: Any = SummaryWriter(str(folder))
            writer.add_text("search", f"{record.headline}\n\n    {record.command}", 0)
            for step, candidate in enumerate(record.candidates, 1):
                writer.add_text("candidate", _described(candidate), step)
                for name, value in numbers(candidate).items():
                    writer.add_scalar(name, value, step)
            writer.close()
        except OSError as error:
            raise OptionError(f"--log: cannot write to {folder}: {error.strerror or error}") from None

    return write


def _wandb(project: str) -> Log:
    try:
        import wandb
    except ImportError:
        raise _missing("wandb", "wandb") from None

    def write(record: SearchRecord) -> None:
        config = {
            "model": record.model,
            "metric": record.metric,
            "max_drop": record.max_drop,
            "confidence": record.confidence,
            "seed": record.seed,
            "command": record.command,
            "processor": record.machine.processor,
            "versions": dict(record.versions),
        }
        # Where it goes is the user's choice: WANDB_MODE=offline keeps it in a folder.
        try:
            run: Any = wandb.init(project=project, config=config, settings=wandb.Settings(silent=True))
        except wandb.errors.Error as error:
            raise OptionError(
                f"--log wandb: {str(error).splitlines()[0]}; WANDB_MODE=offline keeps the log on this machine"
            ) from None
        for step, candidate in enumerate(record.candidates, 1):
            about = {
                "candidate": candidate.name,
                "outcome": candidate.outcome.value,
                "reason": candidate.reason,
            }
            run.log({**numbers(candidate), **about}, step=step)
        run.summary.update({"chosen": record.chosen, "headline": record.headline, "stated": record.stated})
        run.finish()

    return write


def _described(candidate: CandidateRecord) -> str:
    reason = f": {candidate.reason}" if candidate.reason else ""
    return f"{candidate.name} ({candidate.description}), {candidate.outcome.value}{reason}"


def _missing(log: str, package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"--log {log} needs {package}, which is not installed: pip install 'hasten[log]'"
    )
