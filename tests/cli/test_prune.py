"""`hasten prune` and `hasten.prune`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import Result
from tests.search.prune.conftest import WIDTH, network, samples  # noqa: F401 - fixtures

import hasten
from hasten.errors import ArtifactError, OptionError
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
    """To a file that is not replaced unless asked, to the compiler, a search, and another pruning."""
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
    found = hasten.optimize(
        smaller, data=data, precision="f32", engines=False, threads=1, cache=cache, database=tmp_path / "db"
    )
    np.testing.assert_allclose(found.run({"x": x})["y"], right, rtol=1e-4, atol=1e-5)


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


def test_rows_and_zeros_make_a_smaller_file(
    invoke: Invoke, refused: Callable[..., str], tmp_path: Path, cache: Path
) -> None:
    """Half of each matrix and most words go; the file shrinks twice, and gives what ONNX Runtime gives."""
    rng = np.random.default_rng(2)
    words, width = 3000, 64
    table, matrix = rng.standard_normal((words, width)), rng.standard_normal((width, 256)) / 8
    body = "(int64[n, s] ids) => (float[n, s, 256] y) { x = Gather(table, ids) y = MatMul(x, matrix) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> main {body}')
    for name, array in (("table", table), ("matrix", matrix)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model, data, small = tmp_path / "texts.onnx", tmp_path / "ids.npz", tmp_path / "small.onnx"
    onnx.save(proto, model)
    np.savez(data, ids=rng.integers(100, 300, (40, 20)))
    done = invoke(
        "prune", model, "--data", data, "--unit", "rows", "--unseen", "7", "--sparsity", "2:4", "-o", small
    )
    assert done.exit_code == 0, done.output
    assert "rows" in done.stdout and "weights" in done.stdout and "of new ids" in done.stderr
    ids = np.array([[100, 7, 299, 150, 2000]])
    (right,) = onnxruntime.InferenceSession(small).run(None, {"ids": ids})
    np.testing.assert_array_equal(right[0, 1], right[0, 4])
    sizes = []
    for source, storage in ((model, "mapped"), (small, "mapped"), (small, "sparse")):
        artifact = tmp_path / f"{source.stem}-{storage}.hasten"
        done = invoke("compile", source, "--storage", storage, "-o", artifact)
        assert done.exit_code == 0, done.output
        sizes.append(artifact.stat().st_size)
    with hasten.open(artifact) as session:
        np.testing.assert_allclose(session.run({"ids": ids})["y"], right, rtol=1e-4, atol=1e-5)
        session.save(tmp_path / "again.hasten")
    assert sizes[0] - sizes[1] > 2700 * width * 4 and sizes[1] - sizes[2] > 0.45 * matrix.size * 4
    assert (tmp_path / "again.hasten").stat().st_size == sizes[2]
    assert "weights.sparse" in invoke("inspect", artifact).stdout
    damaged = bytearray(artifact.read_bytes())
    damaged[damaged.index(b"weights.sparse") + 8192] ^= 1
    artifact.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"weights\.sparse is wrong"):
        hasten.open(artifact)
    assert "give the share of zeros" in refused(
        "prune", model, "--sparsity", "4:2", "-o", tmp_path / "n.onnx"
    )
    assert "nothing is asked for" in refused("prune", model, "-o", tmp_path / "n.onnx")
