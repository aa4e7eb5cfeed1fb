"""The kernels that measure the machine's peaks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hasten.codegen.toolchain import Compiler, build, find_compiler
from hasten.search.peak import Peak, accumulators, peak_bf16_source, peak_source, peak_tiles_source
from hasten.target import TARGETS, Target, architecture, processor_features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_one_thread_does_more_than_one_operation_per_nanosecond(cache: Path) -> None:
    peak = Peak(1, cache=cache)
    assert 1 < peak.gflops() < 2000


def test_two_threads_work_at_once(cache: Path) -> None:
    assert Peak(2, cache=cache).gflops() > 1


def test_bf16_is_measured_where_the_processor_multiplies_it(cache: Path) -> None:
    found = Peak(1, cache=cache).bf16_gflops()
    if "avx512_bf16" in processor_features():
        assert found is not None
        assert 1 < found < 40000
    else:
        assert found is None


def test_memory_is_read_at_a_speed_that_memory_has(cache: Path) -> None:
    assert 0.1 < Peak(2, cache=cache).gigabytes_per_second() < 5000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_source_compiles_for_each_target(target: Target, cache: Path) -> None:
    compiler: Compiler = find_compiler(target)
    sources = {"peak.c": peak_source(target)}
    if target.arch == "x86-64":
        sources["peak_bf16.c"] = peak_bf16_source(target)
        sources["peak_tiles.c"] = peak_tiles_source().replace("peak_bf16", "peak_tiles")
    assert build(sources, target, compiler, cache=cache)[:4] == b"\x7fELF"
    assert peak_source(target).count(" * factor + term;") == 4 * accumulators(target)


@pytest.mark.skipif(
    shutil.which("gcc") is None or architecture() != "x86-64", reason="needs a gcc for x86-64"
)
def test_gcc_takes_the_intrinsics_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CC", "gcc")
    target = Target.named("x86-64-v4")
    sources = {"peak.c": peak_source(target), "peak_bf16.c": peak_bf16_source(target)}
    assert build(sources, target, find_compiler(target), cache=cache)[:4] == b"\x7fELF"
