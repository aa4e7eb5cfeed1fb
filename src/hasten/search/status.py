"""What a search tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasten.search.record import CandidateRecord


@dataclass(frozen=True)
class Status:
    """A moment of a search.

    Attributes:
        doing: what begins, in a few words.
        phase: the phase that it is part of.
        candidates: all that are known, in the order in which they were added.
        best: name of the fastest candidate that is certified so far.
        elapsed: seconds since the beginning.
        left: seconds until the time limit; None without one.
    """

    doing: str
    phase: str
    candidates: tuple[CandidateRecord, ...]
    best: str
    elapsed: float
    left: float | None

    def __str__(self) -> str:
        return self.doing


Watch = Callable[[Status], None]
"""Is told what happens."""


def tell(watch: Watch, status: Status) -> Exception | None:
    """Tells who watches; what that raised, which may be anything and ends no search."""
    try:
        watch(status)
    except Exception as error:  # noqa: BLE001 - as above
        return error
    return None


def nobody(_: Status) -> None:
    """Watches nothing."""
