"""The most memory that this process and all that it starts have at a time."""

from __future__ import annotations

import os
import threading
from types import TracebackType

import psutil

_PAUSE = 0.05  # seconds between looks


class Peak:
    """Looks at the processes while a block runs.

    Attributes:
        own: the most bytes of this process that lie in memory, mapped files among them.
        together: the most of this process and its children at a time; what they share counts once (PSS).
        when: what `doing` was then.
        doing: what goes on, for people; set by the block.
    """

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.own = self.together = 0
        self.when = self.doing = ""
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
        process = psutil.Process(os.getpid())
        while not self._end.wait(_PAUSE):
            here = process.memory_full_info()
            total = here.pss + sum(map(_shared_once, process.children(recursive=True)))
            self.own = max(self.own, here.rss)
            if total > self.together:
                self.together, self.when = total, self.doing


def _shared_once(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it ended, or is about to
        return 0
