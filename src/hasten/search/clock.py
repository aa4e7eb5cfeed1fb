"""How much time a search has left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Clock:
    """Counts down, and notes how long the phases took.

    Attributes:
        limit: seconds for everything; None for any time.
        now: seconds since some moment.
        reserve: seconds that what must come at the end will take.
        phases: names of those that ended, with the seconds they took.
    """

    limit: float | None
    now: Callable[[], float] = time.monotonic
    reserve: float = 0.0
    phases: list[tuple[str, float]] = field(default_factory=list)
    _phase: str | None = None
    _began: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._start = self.now()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self._start

    @property
    def left(self) -> float:
        """Seconds until the limit; below zero after it."""
        return float("inf") if self.limit is None else self.limit - self.elapsed

    def until(self, share: float = 1.0) -> float:
        """The time, by `now`, at which what begins now must have ended.

        Args:
            share: of the limit that it may take; infinity where there is no limit.
        """
        if self.limit is None:
            return math.inf
        return self.now() + min(self.left, share * self.limit)

    def has(self, seconds: float) -> bool:
        """Whether something that takes so long still fits before the end."""
        return self.left - self.reserve > seconds

    @property
    def current(self) -> str | None:
        """The phase under way."""
        return self._phase

    def phase(self, name: str | None) -> None:
        """Ends a phase, and begins one."""
        if self._phase is not None:
            self.phases.append((self._phase, self.now() - self._began))
        self._phase, self._began = name, self.now()
