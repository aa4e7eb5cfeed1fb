"""Compiling in a process of its own: it works, and what goes wrong is told."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

import hasten
from hasten import frontends
from hasten.errors import EngineError
from hasten.passes.pipeline import optimize_graph
from hasten.search import isolated
from hasten.search.build import Build, build
from hasten.search.engines import NO_LIMITS, Limits


@pytest.fixture(scope="module")
def graph(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = frontends.load(mlp)
    optimize_graph(model)
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    ir.save(model, path)
    return path


def how(cache: Path, target: str = "native") -> Build:
    return Build((target,), 1, "skip", str(cache), "0.1.0")


def waiting_for_a_compiler(folder: Path) -> Callable[..., int]:
    """A wait that is over the time of all processes as soon as one in `folder` has a folder of its own."""
    wait = subprocess.Popen.wait

    def waiting(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        end = time.monotonic() + 60
        while not list(folder.glob("hasten-*/*/")) and time.monotonic() < end:
            time.sleep(0.01)
        assert list(folder.glob("hasten-*/*/"))
        isolated.time = SimpleNamespace(monotonic=lambda: math.inf)  # type: ignore[assignment]
        raise subprocess.TimeoutExpired("build", timeout)

    return waiting


def test_what_it_compiles_runs(graph: Path, mlp_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.hasten"
    build(graph, path, how(tmp_path / "cache"), "f32", NO_LIMITS, {"notes": "none"})
    x = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    with hasten.open(path) as made, hasten.open(mlp_artifact) as wanted:
        assert made.report["notes"] == "none"
        np.testing.assert_allclose(made.run(x)["y"], wanted.run(x)["y"], rtol=1e-5, atol=1e-6)


def test_a_failure_and_a_hang_are_told_and_leave_no_files(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "made.hasten"
    with pytest.raises(EngineError, match=r"hasten cannot compile it: .*unknown target 'sausage'"):
        build(graph, path, how(tmp_path / "cache", "sausage"), "f32", NO_LIMITS, {})
    with pytest.raises(EngineError, match="compiling took longer than 0 s, and was ended"):
        build(graph, path, how(tmp_path / "cache"), "f32", Limits(seconds=0.05), {})
    # Killed while the compiler works: it would have left its folder behind.
    monkeypatch.setattr(isolated, "time", time)  # is put back afterwards
    monkeypatch.setattr(subprocess.Popen, "wait", waiting_for_a_compiler(tmp_path))
    with pytest.raises(EngineError, match="was ended"):
        build(graph, path, how(tmp_path / "cache"), "f32", Limits(seconds=60), {})
    monkeypatch.undo()
    assert not path.exists()
    assert not list(tmp_path.glob("hasten-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's own data")
def test_a_lack_of_memory_is_told(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="compiling failed: "):
        build(graph, tmp_path / "made.hasten", how(tmp_path / "cache"), "f32", Limits(memory=60_000_000), {})
