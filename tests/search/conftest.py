"""A perceptron as ONNX and compiled, with inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from hasten.api import CompileOptions, compile_payload
from hasten.runtime.artifact import write_artifact


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
