"""Ctrl-C: it ends what may end at once, and waits while what was found is written."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Interrupts:
    """What an interrupt does.

    Attributes:
        held: one came while interrupts wait. The next one ends everything.
    """

    def __init__(self, usual: Handler) -> None:
        """At first, what is usual: KeyboardInterrupt."""
        self.held = False
        self._usual = usual
        self._waiting = False

    def wait(self) -> None:
        """From here on the first interrupt does nothing: what was found is being written."""
        self._waiting = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal."""
        if self._waiting and not self.held:
            self.held = True
        else:
            self._usual(number, frame)


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Ctrl-C does what is yielded, until the block ends; a block inside another yields what that did.

    Only the main thread receives signals: in others, and where interrupts are ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if isinstance(before, Interrupts):
        yield before
        return
    if not callable(before):
        yield Interrupts(signal.default_int_handler)
        return
    made = Interrupts(before)
    try:
        signal.signal(signal.SIGINT, made)
    except ValueError:  # not the main thread
        yield made
        return
    try:
        yield made
    finally:
        signal.signal(signal.SIGINT, before)
