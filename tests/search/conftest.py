"""A perceptron as ONNX and compiled, with inputs; searches, and made-up times for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.hostile import network, samples
from tests.search.searches import LAYERS, Search

import hasten
from benchmarks import models
from hasten.api import CompileOptions, compile_payload
from hasten.runtime.artifact import write_artifact
from hasten.search import layer_table, pruning, trials, uniform
from hasten.search.candidates import Candidate
from hasten.search.measure import Contestant, Measurement, Plan, Result, Spread
from hasten.search.prune.cost import flops_by_node
from hasten.search.size_times import Point


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_CACHE", str(tmp_path_factory.mktemp("models")))
        return models.mlp_onnx()


@pytest.fixture(scope="session")
def mlp_artifact(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "mlp.hasten"
    payload = compile_payload(mlp, CompileOptions(cache=tmp_path_factory.mktemp("cache")))
    write_artifact(path, payload.manifest, payload.members)
    return path


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each layer in int8 saves a millisecond of ten, weights alone nothing; notes what is timed."""
    timed: list[str] = []

    def milliseconds(name: str) -> float:
        mixed = re.match(r"int8 (\d+)/", name)
        saved = float(mixed[1]) if mixed else float(len(LAYERS)) if "int8" in name else 0.0
        saved -= 0.5 if name.startswith("int8-dynamic") else 0.0
        saved = 0.0 if re.match(r"int\d-weights", name) else saved
        pruned = re.match(r"(\d+)% of FLOPs", name)
        return {"original": 12.0, "bf16": 9.5}.get(
            name, (10.0 - saved) * (int(pruned[1]) / 100 if pruned else 1)
        )

    def measure(contestants: Sequence[Contestant], feeds: Any, plan: Plan, **_: Any) -> Measurement:
        names = [c.name for c in contestants]
        timed.extend(names)
        results = tuple(
            Result(
                engine=name, version="1", precision="f32", run_ms=Spread.of([milliseconds(name)]), ratio=None,
                rounds_ms=dict.fromkeys(range(3), milliseconds(name)), runs=3, load_ms=1.0, first_ms=1.0,
                load_ratio=None, loads_ms=(1.0,), peak_mb=1.0, base_mb=None, file_mb=1.0,
            )
            for name in names
        )  # fmt: skip
        return Measurement(plan.threads, 3, results, {})

    def measured_times(_: Any, candidate: Candidate, work: Mapping[Any, float]) -> dict[str, float]:
        quantized = bool(candidate.quantized)
        return {layer.name: 1000.0 if quantized else 2000.0 for layer in work}

    def measured(_: Any, artifact: Path, model: Any, sizes: Mapping[str, int]) -> dict[str, Point]:
        return {name: Point(flops, flops / 1e3) for name, flops in flops_by_node(model, sizes).items()}

    monkeypatch.setattr(pruning, "measured", measured)
    monkeypatch.setattr(uniform, "_LEAST_SHARE", 1.0)  # no other formats, unless a test wants them
    monkeypatch.setattr(trials, "measure", measure)
    monkeypatch.setattr(layer_table, "measured_times", measured_times)
    return timed


@pytest.fixture(scope="session")
def cache_of_searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def search(cache_of_searches: Path, tmp_path: Path) -> Search:
    def run(source: object = None, data: object = None, **options: Any) -> hasten.Session:
        defaults = {
            "precision": "int8", "engines": False, "threads": 1, "cache": cache_of_searches,
            "database": tmp_path / "results.sqlite", "max_drop": 0.05, "time_limit": None,
        }  # fmt: skip
        source = network() if source is None else source
        data = samples(600) if data is None else data
        return hasten.optimize(source, data=data, **{**defaults, **options})

    return run
