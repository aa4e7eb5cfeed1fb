"""What a user asks of a search, and the problem that follows from it with a model and data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hasten.errors import OptionError
from hasten.runtime.checks import whole
from hasten.search.build import Build
from hasten.search.data import Samples
from hasten.search.metrics import Metric
from hasten.search.original import Original
from hasten.search.prune.criteria import check_criterion, need_torch
from hasten.search.prune.plan import SEARCHED
from hasten.target import TARGETS, runs_here

PRECISIONS = ("auto", "f32", "bf16", "int8")


@dataclass(frozen=True)
class Asked:
    """What the user asks for; `hasten.optimize` says what the fields mean.

    Attributes:
        metric: what must not drop.
        named: whether it is one of hasten's metrics, whose name says what it is in another process too.
        max_drop: the budget, in the metric's units.
        confidence: of the certificate.
        calibration: how many samples choices may look at, or data of their own for that; None for a share.
        precision: "auto", or the one that layers may have beside f32.
        engines: whether other engines are candidates.
        prune: kinds of units that may be removed, of `plan.SEARCHED`; none for none.
        prune_criterion: by which they are ranked; layers by fisher where that is obs.
        padding: "skip" or "compute".
        threads: of a run.
        seconds: for everything; None for any time.
        memory: bytes that a process may allocate; None for no limit.
        seed: of what is random.
        cache: folder of compiled objects.
        database: file of measurements.
    """

    metric: Metric
    named: bool
    max_drop: float
    confidence: float
    calibration: object
    precision: str
    engines: bool
    prune: tuple[str, ...]
    prune_criterion: str
    padding: str
    threads: int
    seconds: float | None
    memory: int | None
    seed: int
    cache: Path
    database: Path

    def __post_init__(self) -> None:
        given: Mapping[str, object] = {
            "max_drop": self.max_drop,
            "confidence": self.confidence,
            "time_limit": self.seconds,
            "memory_limit": self.memory,
        }
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise OptionError(f"{name}={value!r}: give a number")
        for name in ("max_drop", "confidence", "seconds"):  # NumPy's numbers are not those of JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name, least in (("threads", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if isinstance(self.calibration, numbers.Number):
            object.__setattr__(self, "calibration", whole("calibration", self.calibration, 1))
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise OptionError(
                f"max_drop={self.max_drop}: give 0 or more, such as 0.01 for one point of accuracy"
            )
        if not 0.5 <= self.confidence < 1:
            raise OptionError(
                f"confidence={self.confidence}: give a number from 0.5 to below 1, such as 0.95"
            )
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision={self.precision!r}: give one of {', '.join(PRECISIONS)}")
        if self.padding not in ("skip", "compute"):
            raise OptionError(f"padding={self.padding!r}: give one of skip, compute")
        if self.seconds is not None and not self.seconds >= 0:
            raise OptionError(f"time_limit={self.seconds}: give a number of seconds, 0 or more, or None")
        if self.memory is not None:
            if not (math.isfinite(self.memory) and self.memory >= 1):
                raise OptionError(f"memory_limit={self.memory}: give a number of bytes above 0, or None")
            object.__setattr__(self, "memory", int(self.memory))
        unknown = [unit for unit in self.prune if unit not in SEARCHED]
        if unknown:
            raise OptionError(f"prune={', '.join(unknown)}: give True, or some of {', '.join(SEARCHED)}")
        if self.prune:
            need_torch("prune=True")
            check_criterion(self.prune_criterion, with_data=True)
        elif self.prune_criterion != "obs":
            raise OptionError(
                f"prune_criterion={self.prune_criterion!r} is about units that go, and none do: "
                "give prune=True (--prune) too"
            )

    def precisions(self) -> frozenset[str]:
        """What layers may have: formats begin so. bf16 only where the processor multiplies it."""
        wanted = {"f32", "bf16", "int8", "int4"} if self.precision == "auto" else {"f32", self.precision}
        if not any("bf16" in t.factors and runs_here(t) for t in TARGETS):
            wanted.discard("bf16")
        return frozenset(wanted)


def share_of(given: object) -> float | None:
    """A share as people write it: a number, or a text such as "1%" or "0.01"; None for anything else."""
    if isinstance(given, str):
        number, percent = given.strip(), given.strip().endswith("%")
        try:
            return float(number.removesuffix("%")) / (100 if percent else 1)
        except ValueError:
            return None
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        return None
    return float(given)


@dataclass(frozen=True)
class Problem:
    """What is to be optimized, and under which conditions.

    Attributes:
        asked: by the user; its metric knows the model's outputs by now.
        name: of the model, for people.
        graph: after `optimize_graph`, its weights mapped from a file (`transfer.mapped`).
        sha256: of the graph with its weights.
        original: the engine that the model came from; None if nothing here runs it.
        calibration: samples that every choice may look at.
        held_out: samples for certificates alone.
        data_sha256: of both.
        outputs: names of the outputs that are looked at.
        build: how candidates are compiled.
        folder: for files while the search runs.
        without_original: why there is no original.
    """

    asked: Asked
    name: str
    graph: ir.Model
    sha256: str
    original: Original | None
    calibration: Samples
    held_out: Samples
    data_sha256: str
    outputs: tuple[str, ...]
    build: Build
    folder: Path
    without_original: str = ""
