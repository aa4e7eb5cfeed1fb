"""Artifacts that another engine runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten import frontends
from hasten.backends.foreign import foreign_payload
from hasten.backends.graph_members import graph_members, whole_graph
from hasten.backends.native import Options, compile_graph
from hasten.cli.group import hasten as command
from hasten.errors import ArtifactError, EngineError, InputError, MissingDependencyError
from hasten.loops.dtypes import DType
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import read_artifact, write_artifact
from hasten.search.transfer import mapped
from hasten.target import native

WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def model() -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("Add", ["m", "b"], ["y"], "sum"),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
    ]
    weights = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(WEIGHT[0], "b")]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32]) for name in ("y", "z")],
        weights,
    )
    loaded = frontends.load(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    )
    optimize_graph(loaded)
    return loaded


def write(path: Path, engine: str, version: str = "1", precision: str = "f32", damage: bool = False) -> Path:
    payload = foreign_payload(
        mapped(model(), path.with_suffix(".onnx")),  # as a search has its graphs: weights in another file
        engine=engine,
        engine_version=version,
        precision=precision,
        threads=2,
        report={"passes": {}},
        version="0.1.0",
    )
    members = {**payload.members, "foreign/model.onnx": b"damaged"} if damage else payload.members
    write_artifact(path, payload.manifest, members)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_engine_runs_it(engine: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    with hasten.open(write(tmp_path / "foreign.hasten", engine)) as session:
        found = session.run({"x": x})
        kept = {name: array.copy() for name, array in found.items()}
        session.run({"x": np.zeros((5, 64), np.float32)})
        assert session.target is None
        with pytest.raises(InputError):
            session.run({"x": x[0]})
        session.save(tmp_path / "copy.hasten")
    for name, array in kept.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_allclose(found["y"], x @ WEIGHT + WEIGHT[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["z"], np.maximum(found["y"], 0))
    with hasten.open(tmp_path / "copy.hasten") as again:
        np.testing.assert_array_equal(again.run({"x": x})["y"], found["y"])


def test_an_engine_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "foreign.hasten", "onnxruntime", "1.2.3")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'onnxruntime==1\.2\.3'"):
        hasten.open(path)


def test_an_unknown_engine_and_a_damaged_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="needs the engine 'sausage', and this hasten knows onnxruntime"):
        hasten.open(write(tmp_path / "unknown.hasten", "sausage"))
    for engine in ("onnxruntime", "openvino"):
        version = importlib.import_module(engine).__version__
        with pytest.raises(EngineError, match="cannot open the model"):
            hasten.open(write(tmp_path / "damaged.hasten", engine, version, damage=True))


def test_the_graph_of_an_artifact_comes_back_with_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "kept.hasten"
    options = Options((native(),), 1, DType.F32, tmp_path / "cache", keep_graph=True)
    payload = compile_graph(model(), options, {}, "0.1.0")
    write_artifact(path, payload.manifest, payload.members)
    proto = whole_graph(read_artifact(path))
    onnx.checker.check_model(proto)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert any(np.array_equal(WEIGHT, array) for array in weights.values())
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    again = hasten.compile(proto, cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.run({"x": x})["y"], hasten.open(path).run({"x": x})["y"])


def test_the_graph_that_another_engine_runs_is_exported_and_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "foreign.hasten", "onnxruntime", "1.2.3", "bf16")
    run = CliRunner().invoke
    shown = run(command, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "Steps\n  onnxruntime 1.2.3 runs all of it, bf16\n" in shown.output
    exported = tmp_path / "again.onnx"
    done = run(command, ["export", str(path), str(exported)])
    assert done.exit_code == 0, done.output
    proto = onnx.load(exported)
    onnx.checker.check_model(proto)
    weights = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    assert any(np.array_equal(WEIGHT, array) for array in weights)


def test_a_graph_without_weights_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    path = tmp_path / "plain.hasten"
    payload = compile_graph(model(), Options((native(),), 1, DType.F32, tmp_path / "cache"), {}, "0.1.0")
    write_artifact(path, payload.manifest, payload.members)
    assert "graph.data" not in payload.members
    with pytest.raises(ArtifactError, match="compile again with --keep-graph"):
        whole_graph(read_artifact(path))
    members = {**payload.members, **graph_members(model(), weights=True)}
    write_artifact(path, payload.manifest, members)
    content = bytearray(path.read_bytes())
    place = content.index(WEIGHT.tobytes()[:256], content.index(b"graph.data"))
    content[place] ^= 1
    path.write_bytes(content)
    artifact = read_artifact(path)  # a run does not need it, and does not notice
    with pytest.raises(ArtifactError, match=r"checksum of its member graph\.data"):
        whole_graph(artifact)
