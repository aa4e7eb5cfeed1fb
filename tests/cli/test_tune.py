"""`hasten compile --tune` and `hasten tune`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result as Invocation
from tests.search.test_results import result

from hasten import Tuning, __version__
from hasten import compile as hasten_compile
from hasten.codegen.schedule import Algorithm, Order, Schedule
from hasten.codegen.sources import kernels_version
from hasten.errors import InputError, OptionError
from hasten.search.results import Results
from hasten.search.tune import machine_for
from hasten.target import TARGETS, cores, native

Invoke = Callable[..., Invocation]

MADE_BY = kernels_version(__version__)
KERNEL = "f32: ~4x~8 rows, depth 8, 4 columns"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def compiled(invoke: Invoke, model: Path, database: Path, *options: object) -> dict[str, object]:
    path = database.parent / "m.hasten"
    shape = ("--shape", "input_ids=3x7")
    done = invoke("compile", model, "-o", path, "--database", database, "--json", *shape, *options)
    assert done.exit_code == 0, done.stderr
    summary: dict[str, object] = json.loads(done.stdout)["tuning"][native().name]
    return summary


def schedule_in(invoke: Invoke, artifact: Path) -> tuple[str, bool]:
    kernels = json.loads(invoke("inspect", artifact, "--kernels", "--json").stdout)["kernels"]
    ((found,),) = [k["schedules"] for k in kernels if k["schedules"]]
    return found["schedule"], found["measured"]


def test_kernels_are_measured_once_and_shown(
    invoke: Invoke, model: Path, database: Path, inputs: dict[str, np.ndarray]
) -> None:
    first = compiled(invoke, model, database, "--tune", "quick")
    assert (first["effort"], first["measured"], first["stored"], first["left"]) == ("quick", 1, 0, 0)
    second = compiled(invoke, model, database, "--tune", "quick", "--tune-seconds", "5")
    assert (second["measured"], second["stored"]) == (0, 1)
    assert schedule_in(invoke, database.parent / "m.hasten")[1]
    (row,) = Results(database).rows(machine_for(native(), cores()))
    assert row.kernel == KERNEL
    listing = invoke("tune", "list", "--database", database)
    assert KERNEL in listing.stdout
    assert f"1 results in {database}" in listing.stdout


def test_stored_results_are_used_only_where_asked_for(invoke: Invoke, model: Path, database: Path) -> None:
    other = Schedule(order=Order.ROWS, row_block=48)
    row = result(KERNEL, machine=machine_for(native(), cores()), schedule=other, version=MADE_BY)
    Results(database).record([row])
    path = database.parent / "m.hasten"
    assert compiled(invoke, model, database) == {"effort": "0"}
    assert schedule_in(invoke, path) == ("plain", False)
    untouched = path.read_bytes()
    assert compiled(invoke, model, database, "--tune", "stored") == {
        "effort": "stored", "kernels": 1, "used": 1,
    }  # fmt: skip
    assert schedule_in(invoke, path) == ("rows outside, blocks of 48", True)
    assert "rows outside, blocks of 48 (measured)" in invoke("inspect", path, "--kernels").stdout
    compiled(invoke, model, database, "--tune", "0")
    assert path.read_bytes() == untouched


def test_tuning_that_changes_nothing_says_so(invoke: Invoke, model: Path, database: Path) -> None:
    abroad = next(t.name for t in TARGETS if t.arch != native().arch)
    command = ("compile", model, "-o", database.parent / "m.hasten", "--database", database)
    done = invoke(*command, "--tune", "stored", "--target", native().name, "--target", abroad)
    assert done.stdout.splitlines()[:2] == [
        f"tuning for {native().name}: 0 of 1 kernels use a result",
        f"tuning for {abroad}: none, this machine does not run it; its kernels are as by default",
    ]
    done = invoke(*command, "--tune", "quick", "--target", abroad, "--json")
    assert json.loads(done.stdout)["tuning"] == {
        abroad: {"effort": "quick", "skipped": "this machine does not run it", "kernels": 1, "used": 0}
    }


def test_what_was_measured_of_other_kernels_is_not_used(invoke: Invoke, model: Path, database: Path) -> None:
    older = f"{__version__}+00000000"
    other = Schedule(order=Order.ROWS, row_block=48)
    row = result(KERNEL, machine=machine_for(native(), cores()), schedule=other, version=older)
    Results(database).record([row])
    compiled(invoke, model, database, "--tune", "stored")
    assert schedule_in(invoke, database.parent / "m.hasten") == ("plain", False)
    assert compiled(invoke, model, database, "--tune", "quick")["measured"] == 1
    assert [r.version for r in Results(database).rows()] == sorted((older, MADE_BY))
    compiled(invoke, model, database, "--tune", "stored")
    assert schedule_in(invoke, database.parent / "m.hasten")[1]


def test_what_is_not_used_says_so(invoke: Invoke, database: Path) -> None:
    here = machine_for(native(), cores())
    rows = [
        result("a", machine=here, version=MADE_BY),
        result("b", machine=here, version="0.0.1"),
        result("c"),
    ]
    rows += [result("f", machine=here, version=f"{__version__}+00000000"), result("g", machine=here)]
    Results(database).record(rows)
    Results(database).record([result("d", machine=here, version=MADE_BY)], verified=False)
    Results(database).record([result("e", machine=here)])
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE results SET schedule = '{\"way\": 1}' WHERE kernel = 'e'")
    connection.close()
    data = json.loads(invoke("tune", "list", "--database", database, "--json").stdout)
    used = {r["kernel"]: r["used"] for r in data["results"]}
    assert used == {
        "a": "yes", "b": "other hasten", "c": "other processor", "d": "when verified",
        "f": "other kernels", "g": "other kernels",
    }  # fmt: skip
    assert data["not_understood"] == 1
    assert "6 results" in (listing := invoke("tune", "list", "--database", database).stdout)
    assert "and 1 of another version of hasten, which this one does not understand" in listing
    assert "when verified" in listing
    done = invoke("tune", "export", "-", "--database", database)
    assert len(done.stdout.splitlines()) == 6
    assert "left out: 1 of another version" in done.stderr


def test_a_stored_schedule_is_verified_when_it_is_used(invoke: Invoke, model: Path, database: Path) -> None:
    other = Schedule(order=Order.ROWS, row_block=48)
    row = result(KERNEL, machine=machine_for(native(), cores()), schedule=other, version=MADE_BY)
    Results(database).record([row], verified=False)
    compiled(invoke, model, database, "--tune", "stored")
    assert schedule_in(invoke, database.parent / "m.hasten") == ("rows outside, blocks of 48", True)
    assert Results(database).rows(verified=True) == [row]


def test_convolutions_go_without_winograd_where_that_is_asked_for(
    invoke: Invoke, database: Path, tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    loaded = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1, 64, 28, 28] x) => (float[1, 64, 28, 28] y) '
        "{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }"
    )
    loaded.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(loaded, tmp_path / "conv.onnx")
    found = {}
    for option in ((), ("--no-winograd",), ("--no-winograd", "--tune", "quick", "--database", database)):
        done = invoke("compile", tmp_path / "conv.onnx", "-o", tmp_path / "conv.hasten", *option)
        assert done.exit_code == 0, done.stderr
        found[option] = schedule_in(invoke, tmp_path / "conv.hasten")
    plain, without, tuned = found.values()
    assert "winograd" in plain[0]
    assert without == tuned
    assert "winograd" not in without[0]
    assert Results(database).rows() == []
    kernel = "f32: 28x28 rows, 3x3 taps by 1x1 padded, depth 64, 64 columns"
    other = Schedule(Algorithm.WINOGRAD_2)
    row = result(kernel, machine=machine_for(native(), cores()), schedule=other, version=MADE_BY)
    Results(database).record([row])
    for option, expected in (((), ("winograd 2", True)), (("--no-winograd",), without)):
        stored = ("--tune", "stored", "--database", database, *option)
        assert (
            invoke("compile", tmp_path / "conv.onnx", "-o", tmp_path / "conv.hasten", *stored).exit_code == 0
        )
        assert schedule_in(invoke, tmp_path / "conv.hasten") == expected


def test_results_go_from_one_database_to_another(invoke: Invoke, database: Path, tmp_path: Path) -> None:
    Results(database).record([result("a"), result("b")])
    file, other = tmp_path / "results.jsonl", tmp_path / "other.sqlite"
    assert "2 results" in invoke("tune", "export", file, "--database", database).stdout
    assert invoke("tune", "export", "-", "--database", database).stdout == file.read_text()
    done = invoke("tune", "import", file, "--database", other)
    assert (done.exit_code, done.stdout) == (0, "2 results added\n")
    data = json.loads(invoke("tune", "list", "--database", other, "--json").stdout)
    assert [r["kernel"] for r in data["results"]] == ["a", "b"]
    assert invoke("tune", "clear", "--database", other).stdout == (
        f"2 results and 0 measurements of searches deleted from {other}\n"
    )
    assert Results(other).rows() == []
    assert len(Results(database).rows()) == 2


def test_lines_that_are_left_out_are_named(invoke: Invoke, database: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(f"{json.dumps(result().data())}\n{{}}\n")
    done = invoke("tune", "import", file, "--database", database)
    assert done.exit_code == 1
    assert done.stdout == "1 results added, 1 lines left out\n"
    assert f"{file}, line 2: a result is an object" in done.stderr


def test_without_results(invoke: Invoke, database: Path) -> None:
    assert invoke("tune", "list", "--database", database).stdout == f"0 results in {database}\n"
    assert invoke("tune", "clear", "--database", database).exit_code == 0
    assert not database.exists()


def test_what_makes_no_sense_is_refused(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff" * 5000)
    out = ("-o", tmp_path / "m.hasten")
    assert "is no text" in refused("tune", "import", tmp_path / "bad")
    assert "no file" in refused("tune", "import", tmp_path / "none")
    assert "damaged" in refused("tune", "list", "--database", tmp_path / "bad")
    assert "damaged" in refused("compile", model, *out, "--tune", "stored", "--database", tmp_path / "bad")
    assert "--tune quick" in refused("compile", model, *out, "--tune-seconds", "3")
    assert "no input 'ids'" in refused("compile", model, *out, "--shape", "ids=1x2")
    assert "'some'" in refused("compile", model, *out, "--tune", "some")


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    for name, array in weights.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return made


def test_sizes_that_one_part_hands_to_the_next_are_worked_out(database: Path, cache: Path) -> None:
    """A later part takes the convolution's result, whose height looks there like any free size."""
    made = parsed(
        "(float[1, 8, h, w] x, float[1, 20] z) => (float[1, 16, n, ow] y) "
        "<int64[1] zero = {0}, int64[1] axis = {2}> { p = Conv(x, f) r = Tanh(z) "
        "k = ArgMax<axis = 1, keepdims = 0>(r) y = Slice(p, zero, k, axis) }",
        f=np.ones((16, 8, 3, 3)),
    )
    tuning = Tuning("quick", shapes={"x": (1, 8, 9, 9)}, database=database)
    tuned = hasten_compile(made, cache=cache, tune=tuning)
    assert [r.kernel[:20] for r in Results(database).rows()] == ["f32: ~8x~8 rows, 3x3"]
    feeds = {"x": np.ones((1, 8, 30, 30), np.float32), "z": np.linspace(0, 1, 20, dtype=np.float32)[None]}
    np.testing.assert_allclose(tuned.run(feeds)["y"], np.full((1, 16, 19, 28), 72), rtol=1e-5)


def test_kernels_whose_sizes_come_from_data_keep_the_default(
    invoke: Invoke, database: Path, tmp_path: Path
) -> None:
    made = parsed(
        "(float[64, 8] x, int64[1] start, int64[1] end) => (float[n, 4] y, float[64, 4] z) "
        "<int64[1] axis = {0}> { s = Slice(x, start, end, axis) y = MatMul(s, w) z = MatMul(x, w) }",
        w=np.ones((8, 4)),
    )
    onnx.save(made, tmp_path / "sliced.onnx")
    command = ("compile", tmp_path / "sliced.onnx", "-o", tmp_path / "s.hasten", "--database", database)
    done = invoke(*command, "--tune", "quick")
    assert done.exit_code == 0, done.stderr
    assert "1 kernels measured" in done.stdout
    assert "1 not measured (their sizes come from data, or" in done.stdout
    assert [r.kernel for r in Results(database).rows()] == ["f32: 64 rows, depth 8, 4 columns"]


def test_from_python(model: Path, database: Path, cache: Path, inputs: dict[str, np.ndarray]) -> None:
    loaded = onnx.load(model)
    plain = hasten_compile(loaded, cache=cache)
    tuned = hasten_compile(
        loaded, cache=cache, tune=Tuning("quick", shapes={"input_ids": (3, 7)}, database=database)
    )
    assert [r.kernel for r in Results(database).rows()] == [KERNEL]
    np.testing.assert_allclose(tuned.run(inputs)["scores"], plain.run(inputs)["scores"], rtol=1e-5, atol=1e-5)
    with pytest.raises(OptionError, match="'fast'"):
        hasten_compile(loaded, tune="fast")
    with pytest.raises(OptionError, match="seconds"):
        Tuning("quick", seconds=0)
    with pytest.raises(InputError):
        hasten_compile(loaded, cache=cache, tune=Tuning(shapes={"input_ids": (3,)}))
