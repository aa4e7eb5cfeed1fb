"""The kernels that measure the machine's peaks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hasten.codegen.toolchain import Compiler, build, find_compiler
from hasten.search import peak
from hasten.search.peak import DOTS, TILE_DOTS, Peak, accumulators, dot_source, peak_source, tile_source
from hasten.target import TARGETS, Target, architecture, processor_features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_one_thread_does_more_than_one_operation_per_nanosecond(cache: Path) -> None:
    assert 1 < (Peak(1, cache=cache).gflops() or 0) < 2000


def test_a_disturbed_call_does_not_make_the_measurement_shorter(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def disturbed(work: Sequence[tuple[Any, tuple[int, ...]]]) -> float:
        (_, (turns,)) = work[0]
        calls.append(turns)
        return 0.01 if len(calls) == 1 else turns * 1e-9

    monkeypatch.setattr(peak, "_together", disturbed)
    measured = Peak(1, cache=cache, seconds=0.002)
    measured.gflops()
    assert calls[-1] * 1e-9 >= 0.002


def test_two_threads_work_at_once(cache: Path) -> None:
    assert (Peak(2, cache=cache).gflops() or 0) > 1


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_narrow_types_are_measured_where_the_processor_multiplies_them(precision: str, cache: Path) -> None:
    found = Peak(1, cache=cache).gflops(precision)
    if any(d.precision == precision and d.feature in processor_features() for d in DOTS):
        assert found is not None
        assert 1 < found < 80000
    else:
        assert found is None


def test_memory_is_read_at_a_speed_that_memory_has(cache: Path) -> None:
    assert 0.1 < Peak(2, cache=cache).gigabytes_per_second() < 5000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_source_compiles_for_each_target(target: Target, cache: Path) -> None:
    compiler: Compiler = find_compiler(target)
    sources = {"peak.c": peak_source(target)}
    of_arch = {16: "aarch64", 32: "x86-64", 64: "x86-64"}
    for number, dot in enumerate(DOTS):
        if of_arch[dot.vector_bytes] == target.arch and dot.vector_bytes <= target.vector_bytes:
            sources[f"dot_{number}.c"] = dot_source(f"dot_{number}", dot, target)
    if target.arch == "x86-64":
        sources |= {f"{n}.c": tile_source(f"tiles_{n}", code) for n, code in TILE_DOTS.items()}
    assert build(sources, target, compiler, cache=cache)[:4] == b"\x7fELF"
    assert peak_source(target).count(" * factor + term;") == 4 * accumulators(target)


@pytest.mark.skipif(
    shutil.which("gcc") is None or architecture() != "x86-64", reason="needs a gcc for x86-64"
)
def test_gcc_takes_the_intrinsics_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CC", "gcc")
    target = Target.named("x86-64-v4")
    sources = {"peak.c": peak_source(target), "dot.c": dot_source("dot", DOTS[0], target)}
    assert build(sources, target, find_compiler(target), cache=cache)[:4] == b"\x7fELF"
