"""Whether other programs use this machine: figures that are measured beside them mean little."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = slice(3, 5)  # idle, and idle while waiting for a disk
_COUNTED = 8  # user, nice, system, idle, iowait, irq, softirq, steal; the rest is part of these


def busy_cores(seconds: float = 0.5) -> float:
    """Cores that are in use while this function waits: by other programs, if the caller does nothing.

    The load average would count what the caller itself did a moment ago. Where the system does not tell
    (it is not Linux), it is the load average after all.
    """
    before = _times()
    if before is None:
        return os.getloadavg()[0]
    time.sleep(seconds)
    after = _times() or before
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent)
    return (os.cpu_count() or 1) * (total - sum(spent[_IDLE])) / total if total else 0.0


def _times() -> list[int] | None:
    """Ticks of all processors together, by what they did."""
    try:
        words = _STAT.read_text("utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    return [int(word) for word in words[:_COUNTED]]
