"""Whether other programs use this machine: figures that are measured beside them mean little."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hasten.target import cores

_STAT = Path("/proc/stat")
_IDLE = slice(3, 5)  # idle, and idle while waiting for a disk
_COUNTED = 8  # user, nice, system, idle, iowait, irq, softirq, steal; the rest is part of these


def busy_cores(seconds: float = 0.5) -> float:
    """Processors in use, of those that this one may run on, while this function waits.

    They are used by other programs, if the caller does nothing. The load average would count what the caller
    itself did a moment ago. Where the system does not tell (it is not Linux), it is the load average after
    all.
    """
    before = _times()
    if before is None:
        return os.getloadavg()[0]
    time.sleep(seconds)
    after = _times() or before
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent)
    return len(_processors()) * (total - sum(spent[_IDLE])) / total if total else 0.0


def is_busy(used: float) -> bool:
    """Whether so many processors in use, by `busy_cores`, leave too few to measure beside them."""
    # Half of the cores. A quota of time, which makes `cores` small, does not say what others leave; two
    # processors may be one core.
    return used > max(cores() / 2, len(_processors()) / 4)


def in_use(used: float) -> str:
    """What `busy_cores` found, for people."""
    return f"{used:.1f} of {len(_processors())} processors in use"


def _processors() -> set[int]:
    """Numbers of those that this process may run on."""
    everywhere = set(range(os.cpu_count() or 1))
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else everywhere


def _times() -> list[int] | None:
    """Ticks of the processors that this process may run on together, by what they did.

    In a container there may be a count of the whole machine, of which it has a part.
    """
    own = {f"cpu{number}" for number in _processors()}
    try:
        rows = [line.split() for line in _STAT.read_text("utf-8").splitlines()]
    except OSError:
        return None
    if not own <= {row[0] for row in rows if row}:
        own = {"cpu"}  # a container that counts its own processors from 0: all of them together
    counted = [[int(word) for word in row[1 : 1 + _COUNTED]] for row in rows if row and row[0] in own]
    return [sum(column) for column in zip(*counted, strict=True)] or None
