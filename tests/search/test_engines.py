"""Engines in processes of their own."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hasten.api import CompileOptions, compile_payload
from hasten.errors import OptionError
from hasten.runtime.artifact import write_artifact
from hasten.search.engines import (
    HASTEN,
    ONNXRUNTIME,
    OPENVINO,
    REFERENCE,
    EngineError,
    Limits,
    Worker,
    answers,
    peers_named,
    save_feeds,
)


def test_all_engines_give_the_same_answer(
    mlp: Path, mlp_artifact: Path, feeds: dict[str, np.ndarray]
) -> None:
    wanted = answers(REFERENCE, mlp, feeds, 1)["y"]
    assert wanted.shape == (3, 1)
    for engine, model in ((HASTEN, mlp_artifact), (ONNXRUNTIME, mlp), (OPENVINO, mlp)):
        np.testing.assert_allclose(answers(engine, model, feeds, 1)["y"], wanted, rtol=1e-4, atol=1e-5)


def test_a_worker_says_what_opening_took_and_times_runs(
    mlp_artifact: Path, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with Worker(HASTEN, mlp_artifact, save_feeds(feeds, tmp_path), 1) as worker:
        opened = worker.opened
        assert 0 < opened.load < 60
        assert opened.peak is not None
        assert opened.peak > mlp_artifact.stat().st_size
        assert opened.base is None or opened.base <= opened.peak
        seconds = worker.times(5)
    assert len(seconds) == 5
    assert min(seconds) > 0


def test_a_stopped_worker_does_not_run_and_can_be_closed(
    mlp_artifact: Path, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = save_feeds(feeds, tmp_path)
    with Worker(HASTEN, mlp_artifact, path, 1) as worker:
        stat = Path(f"/proc/{worker._process.pid}/stat")
        worker.stop()
        deadline = time.monotonic() + 10
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
        worker.go_on()
        assert len(worker.times(2)) == 2
        worker.stop()
    assert not stat.exists()


def test_why_an_engine_fails_is_said_in_its_last_words(
    mlp: Path, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"onnxruntime cannot run this model: .*bad\.onnx"):
        answers(ONNXRUNTIME, tmp_path / "bad.onnx", feeds, 1)
    with pytest.raises(EngineError, match="onnxruntime cannot run"):
        answers(ONNXRUNTIME, mlp, {"z": feeds["x"]}, 1)


def test_inputs_may_have_any_name(tmp_path: Path) -> None:
    names = ["file", "allow_pickle", "scope/x.0"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in names]
    made = helper.make_tensor_value_info("arr_0", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Sum", names, ["arr_0"])], "sum", values, [made])
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]),
        tmp_path / "sum.onnx",
    )
    feeds = {name: np.array([2.0**index], np.float32) for index, name in enumerate(names)}
    assert answers(REFERENCE, tmp_path / "sum.onnx", feeds, 1)["arr_0"] == [7.0]


@pytest.mark.parametrize("scalar", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_types_that_numpy_has_no_name_for_reach_an_engine_and_come_back(scalar: type, tmp_path: Path) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(scalar))
    values = [helper.make_tensor_value_info(v, kind, ["n"]) for v in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", values[:1], values[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "same.onnx")
    payload = compile_payload(model, CompileOptions(cache=tmp_path))
    write_artifact(tmp_path / "same.hasten", payload.manifest, payload.members)
    x = np.array([1, -2, 3]).astype(scalar)
    for engine, path in ((HASTEN, tmp_path / "same.hasten"), (REFERENCE, tmp_path / "same.onnx")):
        found = answers(engine, path, {"x": x}, 1)["y"]
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x)


def test_peers_are_named() -> None:
    assert peers_named("openvino, onnxruntime,openvino,") == (OPENVINO, ONNXRUNTIME)
    with pytest.raises(OptionError, match="'hasten'"):
        peers_named("hasten")


def test_a_worker_takes_other_inputs(
    mlp_artifact: Path, mlp: Path, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    other = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    (tmp_path / "other").mkdir()
    path = save_feeds(other, tmp_path / "other")
    wanted = answers(REFERENCE, mlp, other, 1)["y"]
    for engine, model in ((HASTEN, mlp_artifact), (ONNXRUNTIME, mlp), (OPENVINO, mlp), (REFERENCE, mlp)):
        with Worker(engine, model, save_feeds(feeds, tmp_path), 1) as worker:
            assert worker.outputs()["y"].shape == (3, 1)
            np.testing.assert_allclose(worker.outputs(path)["y"], wanted, rtol=1e-4, atol=1e-5)
            assert worker.outputs()["y"].shape == (5, 1)


def test_a_worker_that_hangs_is_ended(mlp: Path, feeds: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save_feeds(feeds, tmp_path)
    with pytest.raises(EngineError, match=r"did not answer within 0 s, and was ended"):
        Worker(REFERENCE, mlp, path, 1, Limits(seconds=0.01))
    with Worker(REFERENCE, mlp, path, 1, Limits(seconds=60)) as worker:
        worker.stop()
        worker._limits = Limits(seconds=0.1)
        with pytest.raises(EngineError, match="did not answer"):
            worker.times(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's own data")
def test_a_worker_that_needs_too_much_memory_says_so(tmp_path: Path) -> None:
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    model = helper.make_model(helper.make_graph([node], "large", [shape], [made]))
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    feeds = save_feeds({"shape": np.array([1 << 30])}, tmp_path)
    with pytest.raises(EngineError, match="needs more than 1000 MB of memory"):
        Worker(REFERENCE, path, feeds, 1, Limits(memory=1_000_000_000))


def test_a_worker_that_dies_is_told(mlp: Path, feeds: dict[str, np.ndarray], tmp_path: Path) -> None:
    with Worker(REFERENCE, mlp, save_feeds(feeds, tmp_path), 1, Limits(seconds=60)) as worker:
        worker._process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match="its process ended with status -9"):
            worker.outputs()
