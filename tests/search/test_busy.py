"""Whether other programs use the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.search import busy
from hasten.search.busy import busy_cores, in_use, is_busy


def test_a_program_that_runs_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            used = busy_cores()
        finally:
            other.kill()
    assert 0.3 < used <= (os.cpu_count() or 1)


def test_what_runs_on_processors_of_others_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, tail = tmp_path / "stat", "0 0 0 0 0 0"

    def write(first: tuple[int, int], second: tuple[int, int]) -> None:
        rows = [("cpu", first[0] + second[0], first[1] + second[1]), ("cpu0", *first), ("cpu1", *second)]
        lines = [f"{name} {user} 0 0 {idle} {tail}" for name, user, idle in rows]
        stat.write_text("\n".join([*lines, "intr 5", ""]))

    def pass_by(_: float) -> None:
        write((1090, 10), (25, 1075))

    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy.time, "sleep", pass_by)
    for mine, used in (({1}, 0.25), ({0}, 0.9), ({0, 1}, 1.15)):
        monkeypatch.setattr(busy.os, "sched_getaffinity", lambda _, mine=mine: mine)
        write((1000, 0), (0, 1000))
        assert busy_cores() == pytest.approx(used)
        assert in_use(used) == f"{used:.1f} of {len(mine)} processors in use"


def test_a_container_that_counts_its_processors_from_0_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"

    def write(user: int, idle: int) -> None:
        stat.write_text("".join(f"{name} {user} 0 0 {idle} 0\n" for name in ("cpu", "cpu0", "cpu1")))

    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy.time, "sleep", lambda _: write(1075, 25))
    monkeypatch.setattr(busy.os, "sched_getaffinity", lambda _: {1, 2})
    write(1000, 0)
    assert busy_cores() == pytest.approx(1.5)


def test_a_small_part_of_a_large_machine_is_not_busy_because_the_rest_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(busy.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(busy, "cores", lambda: 2)  # by a quota
    assert not is_busy(13.2)
    assert is_busy(17)
    monkeypatch.setattr(busy, "cores", lambda: 48)
    assert not is_busy(17)
    assert is_busy(25)
