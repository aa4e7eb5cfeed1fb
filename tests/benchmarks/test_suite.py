"""The suite from end to end, on the smallest case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from benchmarks.suite import gflop_of

from benchmarks import models


def test_the_suite_runs(tmp_path: Path) -> None:
    script = Path(models.__file__).with_name("suite.py")
    options = ["--cases", "batch 256", "--rounds", "1", "--engines", "onnxruntime,openvino-static,torch"]
    files = {kind: tmp_path / f"figures.{kind}" for kind in ("json", "markdown", "picture")}
    options += [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    environment = {**os.environ, "HASTEN_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert files["markdown"].read_text() in done.stdout
    (case,) = json.loads(files["json"].read_text())["cases"]
    assert case["gflop"] == pytest.approx(2 * 256 * (64 * 128 + 128 * 64 + 64) / 1e9)
    assert case["measurement"]["failures"] == {}
    engines = [result["engine"] for result in case["measurement"]["results"]]
    assert engines == ["hasten", "onnxruntime", "openvino-static", "torch"]
    (verdict,) = case["verdicts"]
    assert verdict["peer"] in engines[1:]
    assert verdict["ratio"]["median"] > 0
    assert files["picture"].read_bytes().startswith(b"\x89PNG")


def test_operations_are_counted_in_the_model_as_it_came(tmp_path: Path) -> None:
    f32 = onnx.TensorProto.FLOAT
    x = onnx.helper.make_tensor_value_info("x", f32, ["rows", 5])
    y = onnx.helper.make_tensor_value_info("y", f32, ["rows", "rows"])
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["t"]),
        onnx.helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]))
    onnx.save(model, tmp_path / "square.onnx")
    assert gflop_of(tmp_path / "square.onnx", {"x": (7, 5)}) == pytest.approx(2 * 7 * 7 * 5 / 1e9)
