"""`hasten prune` and `hasten.prune`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import Result
from tests.search.prune.conftest import WIDTH, network, samples  # noqa: F401 - fixtures
from tests.search.test_data import tokenizer

import hasten
from hasten.api import pruning
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
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "page.html exists" in refused("prune", model, "--flops", "60%", "-o", small, "--report", page)
    assert page.read_text() == "mine" and not small.exists()
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


def residual(path: Path) -> Path:
    """A stream of which the second of three residual layers gives next to nothing."""
    rng = np.random.default_rng(3)
    lines, x = [], "x"
    signature = "(float[n, 16] x) => (float[n, 4] z) { z = MatMul(x, e) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> main {signature}')
    del proto.graph.node[:]
    arrays = {"e": rng.standard_normal((16, 4))}
    for k, size in enumerate((0.5, 1e-4, 0.5)):
        arrays |= {f"a{k}": rng.standard_normal((16, 64)), f"b{k}": rng.standard_normal((64, 16)) * size / 8}
        lines += [("MatMul", [x, f"a{k}"], f"p{k}"), ("Relu", [f"p{k}"], f"q{k}")]
        lines += [("MatMul", [f"q{k}", f"b{k}"], f"r{k}"), ("Add", [x, f"r{k}"], f"y{k}")]
        x = f"y{k}"
    for kind, inputs, output in [*lines, ("MatMul", [x, "e"], "z")]:
        proto.graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=f"make {output}"))
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(proto, path)
    return path


@pytest.fixture
def deep(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(4)
    data = tmp_path / "deep.npz"
    np.savez(data, x=rng.standard_normal((60, 16)).astype(np.float32), labels=np.arange(60) % 4)
    return residual(tmp_path / "deep.onnx"), data


def test_layers_and_a_page(invoke: Invoke, deep: tuple[Path, Path], tmp_path: Path) -> None:
    small, page = tmp_path / "small.onnx", tmp_path / "page.html"
    done = invoke(
        *("prune", deep[0], "--data", deep[1], "--unit", "layers", "--flops", "70%", "-o", small),
        *("--report", page, "--json"),
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [cut["after"] for cut in told["cuts"]] == [1, 0, 1]
    assert told["criterion"] == "fisher"
    assert told["bytes"] == small.stat().st_size
    assert page.read_text("utf-8").count('class="bar"') == 3
    done = invoke(
        *("prune", deep[0], "--data", deep[1], "--unit", "layers,neurons", "--criterion", "gradient"),
        *("--flops", "50%", "-o", small, "--overwrite", "--report", tmp_path / "page.json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "page.json").read_text())["flops"] <= 0.5


@pytest.mark.parametrize(
    "asked",
    [
        ("--repair", "none"),
        ("--repair", "statistics"),
        ("--unit", "layers"),
        ("--unit", "layers", "--flops", "70%"),
        ("--unit", "layers,neurons", "--flops", "70%", "--repair", "none"),
    ],
)
def test_no_default_is_refused(
    invoke: Invoke, deep: tuple[Path, Path], tmp_path: Path, asked: tuple[str, ...]
) -> None:
    done = invoke(
        *("prune", deep[0], "--data", deep[1], "--sparsity", "2:4", "-o", tmp_path / "small.onnx"),
        *(*asked, "--json"),
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    weights = [cut for cut in told["cuts"] if cut["unit"] == "weights"]
    assert weights and all(2 * cut["after"] <= cut["before"] for cut in weights)
    by = "obs" if "--repair" not in asked else "activation"
    assert told["criterion"] == ("fisher" if "--flops" in asked else by)
    assert any(f"ranked by {by}" in note for note in told["notes"]) == ("--flops" in asked)


def test_rows_alone_need_no_pytorch(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "(int64[n, s] ids) => (float[n, s, 64] x) { x = Gather(table, ids) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> main {body}')
    table = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    model, data, small = tmp_path / "texts.onnx", tmp_path / "ids.npz", tmp_path / "small.onnx"
    onnx.save(proto, model)
    np.savez(data, ids=np.arange(200).reshape(10, 20))
    monkeypatch.setitem(sys.modules, "torch", None)
    done = invoke("prune", model, "--data", data, "--unit", "rows", "-o", small)
    assert done.exit_code == 0, done.output
    (found,) = onnxruntime.InferenceSession(small).run(None, {"ids": np.array([[0, 199]])})
    np.testing.assert_array_equal(found[0], table[[0, 199]])


def test_training_goes_on_from_its_checkpoint(
    invoke: Invoke, refused: Callable[..., str], deep: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, small = tmp_path / "t.pt", tmp_path / "small.onnx"
    command = [
        "prune", *(deep[0], "--data", deep[1], "--unit", "neurons", "--flops", "60%", "--repair", "distill"),
        *("--checkpoint", checkpoint, "-o", small, "--overwrite"),
    ]  # fmt: skip
    done = invoke(*command, "--epochs", "1")
    assert done.exit_code == 0, done.output
    done = invoke(*command, "--epochs", "2")
    assert done.exit_code == 0, done.output
    assert "epoch 2 of 2" in done.stderr and "epoch 1 of 2" not in done.stderr
    assert "of another pruning" in refused(*command, "--seed", "3")


def test_limits_and_amounts(invoke: Invoke, deep: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    common = ("prune", deep[0], "--unit", "neurons", "-o", small, "--overwrite", "--json")
    even = json.loads(invoke(*common, "--flops", "80%", "--amounts", "uniform").stdout)
    assert [cut["after"] for cut in even["cuts"]] == [48, 48, 48]
    least = json.loads(invoke(*common, "--flops", "1%").stdout)
    assert not least["reached"]
    assert "cannot be reached" in least["notes"][0]
    done = invoke(*common, "--flops", "60%", "--data", deep[1], "--seconds", "0.001")
    assert done.exit_code == 0, done.output
    assert any("for want of time" in note for note in json.loads(done.stdout)["notes"])


def test_what_makes_no_sense_is_refused(
    refused: Callable[..., str], deep: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small.onnx"
    common = ("prune", deep[0], "--flops", "60%", "-o", small)
    assert "--seed" in refused(*common, "--seed", "-1")
    with pytest.raises(OptionError, match="seed=-1"):
        hasten.prune(deep[0], flops=0.6, seed=-1)
    kept = (tmp_path / "small.onnx.data", tmp_path / "t.pt")
    for option in (("--checkpoint", kept[1]), ("--epochs", 3), ("--epochs", 3, "--repair", "none")):
        assert "give --repair distill too" in refused(*common, "--data", deep[1], *option)
    assert "--checkpoint" in refused(*common, "--repair", "distill", "--checkpoint", deep[0])
    assert "seconds=nan" in refused(*common, "--seconds", "nan")
    rows = ("prune", deep[0], "--data", deep[1], "--unit", "rows", "-o", small)
    assert "repair='distill' is about" in refused(*rows, "--repair", "distill")
    assert "criterion='obs' is about" in refused(*rows, "--criterion", "obs")
    with pytest.raises(OptionError, match="training is for repair='distill'"):
        hasten.prune(deep[0], flops=0.6, training=hasten.Training())
    kept[0].write_bytes(b"mine")
    assert f"{kept[0].name} exists" in refused(*common)
    kept[0].unlink()
    layers = refused(*common, "--data", deep[1], "--unit", "layers", "--criterion", "obs")
    assert "ranks no layers" in layers
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'hasten[torch]'" in refused(*common, "--data", deep[1], "--criterion", "fisher")


def test_the_original_folder_reads_texts_for_what_is_left(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw texts go through the tokenizer of the folder that was pruned, to compiler and search too."""
    folder = tokenizer(tmp_path)
    body = (
        "(int64[n, s] input_ids) => (float[n, 3] y) "
        "{ e = Gather(table, input_ids) m = ReduceMean<keepdims=0>(e, axis) p = MatMul(m, a) q = Relu(p) "
        "y = MatMul(q, b) }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> main {body}')
    rng = np.random.default_rng(0)
    arrays = {"table": rng.standard_normal((5, 8)), "a": rng.standard_normal((8, 64)), "b": np.ones((64, 3))}
    for name, array in (*arrays.items(), ("axis", np.array([1]))):
        kept = array if name == "axis" else array.astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(kept, name))
    monkeypatch.setattr(pruning.frontends, "load", lambda source, **_: ir.from_proto(proto))
    texts = [" ".join(words) for words in itertools.product(("good", "bad", "film"), repeat=4)]
    small = hasten.prune(folder, data=texts, unit="neurons", flops=0.7)
    assert small.folder == folder
    monkeypatch.undo()
    hasten.compile(small, precision="int8", data=texts, cache=cache).close()
    found = hasten.optimize(
        small, data=texts, precision="f32", engines=False, threads=1, cache=cache, database=tmp_path / "db"
    )
    assert any("raw texts through the tokenizer" in note for note in found.report.record.notes)


def test_a_search_that_may_remove_some_units(
    invoke: Invoke, deep: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.search.pruning._MOST_LAYERS", 1)
    fast = tmp_path / "fast.hasten"
    common = ("optimize", deep[0], "--data", deep[1], "-o", fast, "--database", tmp_path / "db")
    wrong = invoke(*common, "--prune-units", "atoms")
    assert wrong.exit_code == 2
    assert "prune=atoms: give True, or some of neurons" in wrong.stderr
    done = invoke(
        *(
            *common,
            "--prune",
            "--prune-units",
            "layers",
            "--prune-criterion",
            "gradient",
            "--max-drop",
            "40%",
        ),
        *("--precision", "f32", "--no-engines", "--json"),
    )
    assert done.exit_code == 0, done.output
    tried = [c for c in json.loads(done.stdout)["candidates"] if c["cuts"]]
    assert tried
    assert {cut["unit"] for c in tried for cut in c["cuts"]} == {"layers"}
    assert [cut["after"] for cut in tried[0]["cuts"]] == [1, 0, 1]
    assert "without 1 layer" in tried[0]["name"]
