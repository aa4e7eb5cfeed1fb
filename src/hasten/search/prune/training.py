"""How a pruned model is trained."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.errors import OptionError


@dataclass(frozen=True)
class Training:
    """How long and how fast a pruned model learns from the original.

    Attributes:
        epochs: passes over the samples, at most.
        seconds: time limit; None for none.
        rate: the largest step of AdamW.
        batch: samples to a step.
        checkpoint: a file written after each epoch, by its path, from which the same pruning goes on; None
            for none.
    """

    epochs: int = 3
    seconds: float | None = 300
    rate: float = 1e-4
    batch: int = 8
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        given = (self.epochs, self.batch)
        whole = all(isinstance(number, int | np.integer) and number >= 1 for number in given)
        if not whole or not 0 < self.rate < math.inf:
            raise OptionError(
                f"epochs={self.epochs}, batch={self.batch}, rate={self.rate}: give numbers above zero, whole "
                "ones but for the rate"
            )
        if self.seconds is not None and not self.seconds > 0:
            raise OptionError(f"seconds={self.seconds}: give a time above zero, or None for no limit")
        if not isinstance(self.checkpoint, str | os.PathLike | None):
            raise OptionError(f"checkpoint={self.checkpoint!r}: give the path of a file, or None for none")
        if self.file is not None and not self.file.parent.is_dir():
            raise OptionError(f"checkpoint={self.checkpoint}: there is no folder {self.file.parent}")

    @property
    def file(self) -> Path | None:
        """The checkpoint's path."""
        return None if self.checkpoint is None else Path(self.checkpoint)
