"""The kernel that measures the machine's peak."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.codegen.toolchain import Compiler, build, find_compiler
from hasten.search.peak import Peak, accumulators, peak_source
from hasten.target import TARGETS, Target


def test_one_thread_does_more_than_one_operation_per_nanosecond(tmp_path: Path) -> None:
    peak = Peak(1, cache=tmp_path)
    assert 1 < peak.gflops() < 2000


def test_two_threads_work_at_once(tmp_path: Path) -> None:
    assert Peak(2, cache=tmp_path).gflops() > 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_source_compiles_for_each_target(target: Target, tmp_path: Path) -> None:
    compiler: Compiler = find_compiler(target)
    assert build({"peak.c": peak_source(target)}, target, compiler, cache=tmp_path)[:4] == b"\x7fELF"
    assert peak_source(target).count(" * factor + term;") == 4 * accumulators(target)
