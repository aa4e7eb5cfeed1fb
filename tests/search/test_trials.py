"""What goes wrong beside the candidates of a search ends neither them nor the search."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hasten.errors import TuningError
from hasten.search.asked import Problem
from hasten.search.clock import Clock
from hasten.search.memory import Memory
from hasten.search.status import Status, Watch, nobody
from hasten.search.trials import Trials, reason_of


class Full:
    """A memory that keeps nothing."""

    def put(self, kind: str, value: object, **of: Any) -> None:
        raise TuningError("cannot write results.sqlite: no space left")


def trials(watch: Watch = nobody) -> Trials:
    problem = cast(Problem, SimpleNamespace(graph=None))
    return Trials(problem, Clock(None), cast(Memory, Full()), watch)


def test_a_watcher_that_breaks_is_told_nothing_more() -> None:
    heard: list[str] = []

    def watch(status: Status) -> None:
        heard.append(status.doing)
        if len(heard) == 2:
            raise ConnectionError("the server has gone")

    known = trials(watch)
    for doing in ("compiling", "timing", "certifying"):
        known.say(doing)
    assert heard == ["compiling", "timing"]
    assert known.notes == [
        "what watches the search failed, and was told nothing more: ConnectionError: the server has gone"
    ]


def test_measurements_that_cannot_be_kept_are_said_and_lose_nothing() -> None:
    known = trials()
    known.remember("judged", {"loss": 0.0}, candidate="int8")
    assert known.notes == [
        "measurements are not kept for later searches: cannot write results.sqlite: no space left"
    ]


def test_a_reason_names_the_kind_of_what_nobody_expected() -> None:
    assert reason_of(TuningError("no space")) == "no space"
    assert reason_of(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
