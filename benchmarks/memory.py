"""The most memory that this process and all that it starts have at a time, and who has it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

_PAUSE = 0.05  # seconds between looks
_REST = 20  # times what a look took, if that is more: a look adds up all pages of all processes
OWN = "the search"


@dataclass(frozen=True)
class Moment:
    """Bytes of memory of each process at one time; pages that several share count once in their sum (PSS).

    Attributes:
        when: what went on, for people.
        each: by what the process is.
    """

    when: str = ""
    each: Mapping[str, int] = field(default_factory=dict)

    @property
    def together(self) -> int:
        """Of all of them."""
        return sum(self.each.values())

    def __str__(self) -> str:
        listed = sorted(self.each.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {size / 1e6:.0f}" for name, size in listed)


class Peak:
    """Looks at the processes while a block runs, but not while it times something.

    A look takes a core for milliseconds, which what is timed then lacks.

    Attributes:
        own: the most bytes of this process that lie in memory, mapped files among them.
        most: the moment at which this process and its children had the most.
        phases: the same for each phase of the search.
        phase: under way; set by the block.
        doing: what goes on in it, for people; set by the block.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.own = 0
        self.most = Moment()
        self.phases: dict[str, Moment] = {}
        self.phase = self.doing = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        """Begins to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        process, took = psutil.Process(os.getpid()), 0.0
        while not self._end.wait(max(_PAUSE, _REST * took)):
            if "timing" in self.doing:
                continue
            begin = time.perf_counter()
            here = process.memory_full_info()
            each = {OWN: int(here.pss)}
            for child in process.children(recursive=True):
                name, size = _named(child)
                each[name] = each.get(name, 0) + size
            found = Moment(f"{self.phase}: {self.doing}", each)
            self.own = max(self.own, here.rss)
            self.most = max(self.most, found, key=lambda moment: moment.together)
            before = self.phases.get(self.phase, Moment())
            self.phases[self.phase] = max(before, found, key=lambda moment: moment.together)
            took = time.perf_counter() - begin


def _named(process: psutil.Process) -> tuple[str, int]:
    """What a process is, and its bytes; none if it ended, or is about to."""
    try:
        words = process.cmdline()
        return _title(words) if words else process.name(), int(process.memory_full_info().pss)
    except psutil.Error:
        return "ended", 0


def _title(words: list[str]) -> str:
    """The program or script, and what a worker of the search was told to do."""
    script = next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).name)
    try:
        job = json.loads(words[-1])
    except ValueError:
        return script
    told = [str(job[key]) for key in ("package", "precision") if key in job]
    place = [Path(job[key]).name for key in ("model", "graph") if key in job]
    return " ".join([script, *told, *place])
