"""`hasten prune` and `hasten.prune`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import Result
from tests.search.prune.conftest import WIDTH, network, samples  # noqa: F401 - fixtures

import hasten
from hasten.errors import OptionError
from hasten.search.samples import Samples

Invoke = Callable[..., Result]


@pytest.fixture
def given(tmp_path: Path, network: ir.Model, samples: Samples) -> tuple[Path, Path]:  # noqa: F811
    model, data = tmp_path / "big.onnx", tmp_path / "data.npz"
    onnx.save(ir.to_proto(network), model)
    np.savez(data, x=np.concatenate([f["x"] for f in samples.feeds]), labels=samples.labels)
    return model, data


def test_from_file_to_file(invoke: Invoke, given: tuple[Path, Path], tmp_path: Path, cache: Path) -> None:
    model, data = given
    small = tmp_path / "small.onnx"
    done = invoke("prune", model, "--data", data, "--unit", "neurons", "--flops", "60%", "-o", small)
    assert done.exit_code == 0, done.output
    assert "50.0% of the FLOPs" in done.stdout
    x = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    (right,) = onnx.reference.ReferenceEvaluator(onnx.load(model)).run(None, {"x": x})
    with hasten.compile(small, cache=cache) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], right, atol=0.02)


def test_the_report_as_json(invoke: Invoke, given: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    done = invoke("prune", given[0], "--unit", "neurons", "--flops", "0.5", "-o", small, "--json")
    report = json.loads(done.stdout)
    assert report["flops"] == 0.5
    assert report["cuts"] == [
        {"name": report["cuts"][0]["name"], "unit": "neurons", "before": 64, "after": 32}
    ]
    assert report["criterion"] == "magnitude"


def test_the_result_goes_on(given: tuple[Path, Path], tmp_path: Path, cache: Path) -> None:
    """To a file that is not replaced unless asked, to the compiler, and to another pruning."""
    model, data = given
    small = hasten.prune(model, flops=0.8, data=data, unit="neurons")
    smaller = hasten.prune(small, flops=0.7, data=data, unit="neurons")
    assert smaller.report.parameters_after < small.report.parameters_after
    path = tmp_path / "small.onnx"
    small.save(path)
    with pytest.raises(OptionError, match="overwrite=True"):
        smaller.save(path)
    smaller.save(path, overwrite=True)
    x = np.ones((2, WIDTH), np.float32)
    with hasten.compile(smaller, cache=cache) as session:
        (right,) = onnx.reference.ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
        np.testing.assert_allclose(session.run({"x": x})["y"], right, rtol=1e-4, atol=1e-5)


def test_bad_input(refused: Callable[..., str], given: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = given
    small = tmp_path / "small.onnx"
    assert "--flops much" in refused("prune", model, "--flops", "much", "-o", small)
    assert "give some of neurons" in refused("prune", model, "--flops", "60%", "--unit", "atoms", "-o", small)
    assert "give one of magnitude" in refused(
        "prune", model, "--flops", "60%", "--criterion", "x", "--data", data, "-o", small
    )
    assert "exists" in refused("prune", model, "--flops", "60%", "-o", data)
    np.savez(tmp_path / "other.npz", z=np.ones((4, 2), np.float32))
    assert "no x" in refused("prune", model, "--flops", "60%", "--data", tmp_path / "other.npz", "-o", small)
