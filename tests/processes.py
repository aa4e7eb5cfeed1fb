"""Work in processes that may die or hang: what was under way then is known, and the rest goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a process may use.

    Attributes:
        seconds: of computing, from one result to the next; ten times that if it waits.
        first: the same until the first result, importing and preparing included.
        bytes: address space; None for no limit.
    """

    seconds: float
    first: float
    bytes: int | None


Work = Callable[[Sequence[Any]], Iterator[Any]]
"""A function of a module: gives a result for each item, in order."""


def run(work: Work, items: Sequence[Any], limits: Limits) -> list[Any]:
    """A result for each item; None for one at which the process died or took too long."""
    results: list[Any] = []
    rest = list(items)
    while rest:
        found = list(_run_once(work, rest, limits))
        results += found
        rest = rest[len(found) :]
        if len(rest) > 1 and not found:
            # Nothing was done yet, so that it may be any of them: the halves tell.
            half = len(rest) // 2
            return results + run(work, rest[:half], limits) + run(work, rest[half:], limits)
        if rest:
            results.append(None)
            rest = rest[1:]
    return results


def described(error: BaseException) -> str:
    """An exception, and the places that it came through last."""
    where = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{f.filename.split('/')[-1]}:{f.lineno}" for f in reversed(where))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} at {places}"


def _run_once(work: Work, items: Sequence[Any], limits: Limits) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, work, items, limits.bytes), daemon=True)
    process.start()
    there.close()
    with contextlib.suppress(EOFError, ConnectionResetError):
        seconds = limits.first
        for _ in items:
            if not _arrives(here, process.pid or 0, seconds):
                break
            yield here.recv()
            seconds = limits.seconds
    process.kill()
    process.join()
    here.close()


def _arrives(pipe: Connection, pid: int, seconds: float) -> bool:
    """Whether something comes before a process has computed, or waited ten times, for so long.

    On a machine with much to do a process may get little of it, and is not at fault.
    """
    begin, end = _computed(pid), time.monotonic() + 10 * seconds
    while True:
        if pipe.poll(seconds):
            return True
        if _computed(pid) - begin >= seconds or time.monotonic() >= end:
            return False


def _computed(pid: int) -> float:
    """Processor seconds of a process and of those that it started; the clock's where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _child(pipe: Connection, work: Work, items: Sequence[Any], limit: int | None) -> None:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for result in work(items):
        pipe.send(result)
