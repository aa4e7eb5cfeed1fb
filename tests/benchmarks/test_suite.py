"""The suite from end to end, on the smallest case."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from benchmarks.cases import Goal, entries_named
from benchmarks.suite import gflop_of

from benchmarks import models, suite
from hasten.api import CompileOptions
from hasten.backends.native import Payload
from hasten.errors import OptionError
from hasten.search.engines import ONNXRUNTIME, TORCH, Precision
from hasten.search.measure import Plan

NO_SUCH_MODULE = f"{Path(models.__file__).with_name('networks.py')}:none"


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
    profiled = case["losses"]["f32"]
    assert profiled["run_us"]["median"] > 0
    assert profiled["peaks"]["gflops"]["f32"] > 0
    assert 0 < profiled["peak_share"] <= 1
    shares = [loss["share"] for loss in profiled["lost"]]
    assert 0 < sum(shares) <= 1
    assert shares == sorted(shares, reverse=True)
    assert files["picture"].read_bytes().startswith(b"\x89PNG")


def test_what_fails_costs_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    compile_payload = suite.compile_payload

    def refusing(source: Path, options: CompileOptions) -> Payload:
        if options.precision == "bf16":
            raise OptionError("precision='bf16': not here")
        return compile_payload(source, options)

    monkeypatch.setattr(suite, "compile_payload", refusing)
    (entry,) = entries_named("batch 1")[:1]
    goals: dict[Precision, Goal] = {"f32": Goal(1.0), "bf16": Goal(1.0)}
    entry = replace(entry, goals=goals, torch=lambda: NO_SUCH_MODULE)
    plan = Plan(1, rounds=1, turn=0.01, openings=1, pause=0, limit=1)
    peers = (ONNXRUNTIME, TORCH)
    case = suite.run_case(entry, suite.Setup(plan, ("f32", "bf16"), peers, None, tmp_path))
    assert [result.engine for result in case.measurement.results] == ["hasten", "onnxruntime"]
    assert set(case.measurement.failures) == {"hasten-bf16", "torch"}
    assert "'none'" in case.measurement.failures["torch"]
    f32, bf16 = case.verdicts
    assert (f32.problem, f32.peer) == (None, "onnxruntime")
    assert bf16.problem == "precision='bf16': not here"
    missing = suite.run_case(
        replace(entry, torch=None), suite.Setup(plan, ("f32",), (TORCH,), None, tmp_path)
    )
    assert missing.measurement.failures == {"torch": "there is no torch module of this model"}
    assert missing.verdicts[0].ratio is None


def test_a_mistyped_precision_is_refused() -> None:
    assert suite.precisions_named("bf16, f32") == ("f32", "bf16")
    for text, wrong in (("f32,bf61", "'bf61'"), ("", "''"), ("f32,", "''")):
        with pytest.raises(OptionError, match=f"there is no {wrong}; give some of f32, bf16, int8"):
            suite.precisions_named(text)


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for places, told in (
        ({"json": tmp_path / "absent" / "f.json"}, "no folder"),
        ({"picture": tmp_path}, "is a folder"),
        ({"json": kept, "markdown": kept}, "is the place of --json too"),
    ):
        options = argparse.Namespace(**{"json": None, "markdown": None, "picture": None, **places})
        with pytest.raises(OptionError, match=told):
            suite.check_outputs(options)


def test_making_the_data_is_no_part_of_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = entries_named("batch 1")[:1]
    clock = iter([50.0, 51.0, 52.0])
    monkeypatch.setattr(suite.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(suite, "compile_payload", lambda *_: Payload({}, {}))
    monkeypatch.setattr(suite, "write_artifact", lambda *_: None)

    def data() -> list[models.Inputs]:
        next(clock)
        return []

    setup = suite.Setup(Plan(1), ("int8",), (), None, tmp_path)
    found = suite.compiled(tmp_path / "m.onnx", "int8", replace(entry, calibration=data), setup)
    assert found.seconds == 1


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
