from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import UserDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import hasten.runtime
from hasten.codegen.toolchain import find_compiler
from hasten.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    OptionError,
)
from hasten.runtime import Session, TensorInfo
from hasten.runtime.artifact import Artifact, read_artifact, write_artifact
from hasten.runtime.native import KEPT_SHAPES
from hasten.runtime.session import start
from hasten.target import TARGETS, native, runs_here

ROWS = 16
TABLE = np.arange(64, dtype=np.float32).reshape(16, 4)


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((batch, 4), dtype=np.float32)
    return {"x": x, "ids": generator.integers(0, ROWS, batch)}


def check(session: Session, inputs: dict[str, np.ndarray]) -> None:
    outputs = session.run(inputs)
    np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"] + TABLE[inputs["ids"]])
    total = inputs["x"].sum(dtype=np.float64)
    np.testing.assert_allclose(outputs["total"], total, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[1, 2])
def session(write, request) -> Iterator[Session]:
    with hasten.runtime.open(write(), threads=request.param) as opened:
        yield opened


def test_runs_every_batch_staged_or_large_or_empty(session: Session) -> None:
    # 64 KB is 4096 rows of x and 8192 ids
    for batch in (1, 3, 4096, 4097, 9000, 0, 3, 20000):
        check(session, feeds(batch))


def test_runs_on_the_callers_arrays(write) -> None:
    artifact = read_artifact(write(), verify="now")
    with Session(artifact, *start(artifact, 2, staged_bytes=-1)) as session:
        for batch in (1, 3, 3, 0, 5000):
            check(session, feeds(batch))


def test_describes_itself(session: Session) -> None:
    assert session.inputs[0] == TensorInfo("x", "float32", ("batch", 4))
    assert [info.name for info in session.outputs] == ["y", "total"]
    assert session.report == {"note": "by hand"}
    assert repr(session).startswith("<hasten.Session (x: float32[batch, 4], ids: int64[batch]) -> ")


def test_takes_what_can_be_converted_without_loss(session: Session) -> None:
    inputs = feeds(6)
    expected = session.run(inputs)["y"]
    for x in (np.asfortranarray(inputs["x"]), inputs["x"].astype(">f4"), inputs["x"].tolist()):
        for ids in (inputs["ids"].astype(np.int32), inputs["ids"].tolist(), inputs["ids"].repeat(2)[::2]):
            np.testing.assert_array_equal(session(x=x, ids=ids)["y"], expected)
    large = feeds(30000)
    backwards = {"x": large["x"][::-1], "ids": large["ids"][::-1]}
    check(session, backwards)
    odd = np.frombuffer(b"\0" + large["x"].tobytes(), np.uint8)[1:].view(np.float32)
    check(session, {"x": odd.reshape(-1, 4), "ids": large["ids"]})


def test_outputs_are_never_shared(session: Session) -> None:
    for batch in (2, 9000):
        inputs = feeds(batch)
        first = session.run(inputs)
        kept = {name: array.copy() for name, array in first.items()}
        second = session.run({"x": inputs["x"] + 1, "ids": inputs["ids"]})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            assert not np.may_share_memory(array, second[name])
            assert array.flags.writeable and array.flags.owndata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, r"missing ids; the model takes x: float32\[batch, 4\], ids: int64\[batch\]"),
        ({"z": [1]}, "unknown z"),
        ({"x": np.zeros((3, 4))}, "takes float32 and received float64"),
        ({"ids": np.zeros(3, np.uint64)}, "takes int64 and received uint64"),
        ({"ids": [0.5, 1, 2]}, "takes int64 and received float64"),
        ({"ids": [1 << 70, 1, 2]}, "takes int64 and received object"),
        ({"ids": ["a", "b", "c"]}, "takes int64 and received <U1"),
        ({"x": [[1, 2], [3]]}, "cannot be made an array"),
        ({"x": np.zeros((3, 4, 1), np.float32)}, "takes 2 axes .* received 3"),
        ({"x": np.zeros((3, 5), np.float32)}, "takes length 4 on axis 1 .* received 5"),
        ({"x": np.zeros((5, 4), np.float32)}, "'batch' is 5 in input 'x' and 3 in input 'ids'"),
        ({"ids": [0, 16, 0]}, "index 16 is outside its axis of length 16 in Gather 'table'"),
        ({"ids": [0, -1, 0]}, "index -1 is outside"),
        (feeds(13), r"condition of the model, batch != 13 \(Add 'sum'\): received x \[13, 4\]"),
        (feeds(7), r"too small: the results would have shapes \[-1, 4\]"),
    ],
)
def test_inputs_that_do_not_fit(session: Session, change: dict[str, object], message: str) -> None:
    inputs = {k: v for k, v in {**feeds(3), **change}.items() if v is not None}
    session.run(feeds(3))
    with pytest.raises(InputError, match=message) as caught:
        session.run(inputs)
    assert "\n" not in str(caught.value)
    check(session, feeds(3))  # and it goes on


@pytest.mark.parametrize("warm", [False, True])
def test_inputs_that_are_not_by_name(session: Session, warm: bool) -> None:
    x = feeds(3)["x"]
    for _ in range(2 * warm):
        session.run(feeds(3))
    for wrong, received in ((x, r"ndarray of shape \[3, 4\]"), ([x], "list"), (None, "NoneType"), (3, "int")):
        with pytest.raises(InputError, match=f"by name and received a {received}: give {{'x': ..., 'ids'"):
            session.run(wrong)  # type: ignore[arg-type]
    result = session.run(UserDict(feeds(3)))
    np.testing.assert_array_equal(result["y"], session.run(feeds(3))["y"])


def test_runs_at_once_from_many_threads(session: Session) -> None:
    def work(seed: int) -> None:
        for turn in range(60):
            check(session, feeds((seed * 7 + turn) % 11 + 14 + 5000 * (turn % 2), seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_memory_for_shapes_is_bounded(session: Session) -> None:
    for batch in range(20, 20 + 2 * KEPT_SHAPES):
        check(session, feeds(batch))
    (workspace,) = session._opened.runners[0]._free  # type: ignore[union-attr]
    assert len(workspace.calls) == KEPT_SHAPES
    check(session, feeds(20))


def test_works_in_a_child_by_fork(write) -> None:
    session = hasten.runtime.open(write(), threads=3)
    check(session, feeds(50))
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            check(session, feeds(5000))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    check(session, feeds(100))
                    check(session, feeds(10000))
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def test_sessions_share_a_pool_and_outlive_each_other(write) -> None:
    first = hasten.runtime.open(write("a"), threads=2)
    check(first, feeds(5))
    second = hasten.runtime.open(write("b"), threads=4)  # more threads than before
    first.close()
    del first
    gc.collect()
    check(second, feeds(5))
    with hasten.runtime.open(write("c"), threads=2) as third:
        check(third, feeds(5))
    check(second, feeds(6))


def test_save_and_close(write, tmp_path: Path) -> None:
    path = write()
    session = hasten.runtime.open(path)
    path.unlink()  # what is mapped stays
    session.save(tmp_path / "again.hasten")
    session.close()
    session.close()
    for call in (lambda: session.run(feeds(1)), lambda: session.save(path)):
        with pytest.raises(ArtifactError, match="the session is closed"):
            call()
    with hasten.runtime.open(tmp_path / "again.hasten", verify="now") as again:
        check(again, feeds(4))


def test_closing_during_runs_is_safe(write) -> None:
    for _ in range(5):
        session = hasten.runtime.open(write(), threads=2)
        closed = []

        def work(session: Session = session, closed: list[bool] = closed) -> None:
            try:
                while True:
                    check(session, feeds(5000))
            except ArtifactError:
                closed.append(True)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        session.close()
        for thread in threads:
            thread.join()
        assert closed == [True] * 3


def test_what_is_closed_during_its_first_run_stays_closed(write, monkeypatch: pytest.MonkeyPatch) -> None:
    session = hasten.runtime.open(write())
    monkeypatch.setattr(Artifact, "check_weights", lambda _: session.close())
    check(session, feeds(3))
    with pytest.raises(ArtifactError, match="the session is closed"):
        session.run(feeds(3))


def test_damaged_weights_never_give_results(write) -> None:
    path = write(members={"weights.bin": bytes(1 << 22)})
    data = bytearray(path.read_bytes())
    data[4096 + (1 << 21)] = 1
    path.write_bytes(data)
    with hasten.runtime.open(path) as session:
        for _ in range(2):
            with pytest.raises(ArtifactError, match=r"weights\.bin is wrong"):
                session.run(feeds(2))


def test_code_for_other_processors(write, code: bytes) -> None:
    name = next(target.name for target in TARGETS if target.arch != native().arch)
    path = write(members={f"code/{name}.so": b"not for us"})
    with hasten.runtime.open(path) as session:
        assert session.target == native()
        assert runs_here(session.target)
    members = {f"code/{native().name}.so": b"", "code/x86-64-v9.so": code}
    renamed = write(members=members)
    with pytest.raises(ArtifactError, match="does not load the artifact's code"):
        hasten.runtime.open(renamed)


def test_code_that_is_not_ours(write, tmp_path: Path) -> None:
    name = f"code/{native().name}.so"
    compiler = find_compiler(native()).command
    for text, message in (
        ("int f(void) { return 0; }", "not made by hasten"),
        (
            "int hasten_abi_version(void) { return 2; } void hasten_run(void) {}"
            "void hasten_plan(void) {} void hasten_pool_create(void) {}",
            "version 2 of the C interface and this hasten uses version 1",
        ),
    ):
        (tmp_path / "a.c").write_text(text)
        command = [*compiler, "-shared", "-fPIC", "-nostdlib", "-fno-sanitize=undefined"]
        subprocess.run([*command, "a.c", "-o", "a.so"], cwd=tmp_path, check=True)
        path = write(members={name: (tmp_path / "a.so").read_bytes()})
        with pytest.raises(ArtifactError, match=f"cannot open .*: its code .*{message}"):
            hasten.runtime.open(path)


def test_no_code_for_this_machine(tmp_path: Path, manifest) -> None:
    members = {"weights.bin": TABLE.data, "code/riscv64.so": b"not for us"}
    write_artifact(tmp_path / "a", manifest, members)
    with pytest.raises(ArtifactError, match=f"has code for riscv64, and this machine is {native().arch}"):
        hasten.runtime.open(tmp_path / "a")


def test_options_that_make_no_sense(write) -> None:
    for wrong in (0, 2.0, "2", True):
        with pytest.raises(OptionError, match=f"threads={wrong!r}: give a whole number, 1 or more, or None"):
            hasten.runtime.open(write(), threads=wrong)  # type: ignore[arg-type]
    with hasten.runtime.open(write(), threads=np.int64(2)) as session:
        assert type(session.threads) is int
    with pytest.raises(OptionError, match="verify='later'"):
        hasten.runtime.open(write(), verify="later")


@pytest.fixture
def with_host(write, manifest) -> Path:
    """The model, and after it on the host the places where y is not zero."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["y"], ["z"])],
        "host",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("z", TensorProto.INT64, [2, "found"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    step = {"kind": "host", "member": "host/0.onnx", "operators": ["NonZero"]}
    step |= {"inputs": ["y"], "input_dtypes": [""], "outputs": ["z"]}
    outputs = [*manifest["outputs"], {"name": "z", "dtype": "int64", "shape": [2, "found"]}]
    outputs.append({"name": "x", "dtype": "float32", "shape": ["batch", 4]})
    members = {"host/0.onnx": model.SerializeToString()}
    return write("host", members, outputs=outputs, steps=[*manifest["steps"], step])


def test_host_steps_between_compiled_ones(with_host: Path) -> None:
    with hasten.runtime.open(with_host) as session:
        for batch in (3, 0, 5000):
            inputs = feeds(batch)
            outputs = session.run(inputs)
            np.testing.assert_array_equal(outputs["z"], np.nonzero(outputs["y"]))
            np.testing.assert_array_equal(outputs["x"], inputs["x"])
            assert not np.may_share_memory(outputs["x"], inputs["x"])
        with pytest.raises(InputError, match="'batch' is 3"):
            session.run({"x": inputs["x"][:3], "ids": inputs["ids"][:2]})


def test_host_steps_without_onnx(with_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"runs NonZero through .* pip install onnx"):
        hasten.runtime.open(with_host)


def test_needs_numpy_alone(write, tmp_path: Path) -> None:
    script = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        allowed = ("errors", "target", "runtime")
        parts = name.split(".")
        if parts[0] in ("onnx", "onnx_ir", "torch", "ziglang", "ml_dtypes") or (
            parts[0] == "hasten" and len(parts) > 1 and parts[1] not in allowed
        ):
            raise ImportError(f"{name} must not be needed")
        return None

sys.meta_path.insert(0, Nothing())
import numpy as np
import hasten.runtime

with hasten.runtime.open(sys.argv[1]) as session:
    x, ids = np.ones((2, 4), np.float32), np.array([0, 1])
    print(session(x=x, ids=ids)["y"].tolist())
"""
    source = str(Path(hasten.runtime.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(write())],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/nonexistent", "PYTHONPATH": source},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0]]"
