"""`hasten optimize` and `hasten export`: the whole way, and bad input in one line."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

import hasten
from hasten.cli import console
from hasten.cli import optimize as optimize_verb
from hasten.cli.amounts import parse_bytes, parse_seconds, parse_share
from hasten.errors import OptionError

Invoke = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "samples.npz"
    ids = rng.integers(0, 50, (24, 6))
    np.savez(path, input_ids=ids, attention_mask=np.ones((24, 6), np.float32))
    return path


def test_optimize_and_export(invoke: Invoke, model: Path, data: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "fast.hasten", tmp_path / "report.json"
    found = invoke("optimize", model, "--data", data, "-o", out, "--report", report, "--max-drop", "1%")
    assert found.exit_code == 0, found.output
    assert "the lossless compilation is returned: 18 held-out samples cannot certify" in found.output
    told = json.loads(report.read_text())
    assert told["chosen"] == "lossless"
    assert told["samples_needed"] == 299
    page = tmp_path / "report.html"
    runs = tmp_path / "runs"
    again = invoke(
        "optimize",
        model,
        "--data",
        data,
        "-o",
        out,
        "--overwrite",
        "--report",
        page,
        "--json",
        "--log",
        f"tensorboard:{runs}",
    )
    assert again.exit_code == 0, again.output
    assert len(list(runs.iterdir())) == 1
    assert json.loads(again.stdout)["headline"] == told["headline"]
    assert "held-out samples cannot certify" in page.read_text()
    exported = tmp_path / "again.onnx"
    done = invoke("export", out, exported, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["quantized_values"] == 0
    assert json.loads(done.stdout)["opset"] == 21
    onnx.checker.check_model(onnx.load(exported))
    again = tmp_path / "again.hasten"
    assert invoke("compile", exported, "-o", again, "--keep-graph").exit_code == 0
    assert invoke("verify", again, model).exit_code == 0
    assert invoke("export", again, exported, "--overwrite").exit_code == 0


def test_bad_input(refused: Refused, model: Path, artifact: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast.hasten"

    def optimize(*more: object, given: Path = data) -> str:
        return refused("optimize", model, "--data", given, "-o", out, *more)

    assert "--log 'mlflow'" in optimize("--log", "mlflow")
    assert "--max-drop 'little'" in optimize("--max-drop", "little")
    assert "max_drop=-0.01" in optimize("--max-drop=-1%")
    assert "max_drop=nan" in optimize("--max-drop", "nan")
    assert "confidence" in optimize("--confidence", "100%")
    assert "--time-limit '5 moons'" in optimize("--time-limit", "5 moons")
    assert "--memory-limit 'much'" in optimize("--memory-limit", "much")
    assert "beauty" in optimize("--metric", "beauty")
    assert "needs a label for each sample" in optimize("--metric", "accuracy")
    assert "download that first" in refused("optimize", "bert-base-uncased", "--data", data, "-o", out)
    assert "absent.npz" in optimize(given=tmp_path / "absent.npz")
    other = tmp_path / "other.npz"
    np.savez(other, pixels=np.zeros((24, 3), np.float32))
    assert "input_ids" in optimize(given=other)
    assert "page.pdf: reports are .html or .json" in optimize("--report", tmp_path / "page.pdf")
    assert not out.exists()
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    assert f"{kept} exists: give another name, or --overwrite" in optimize("--report", kept)
    assert "exists" in refused("optimize", model, "--data", data, "-o", kept)
    assert "exists" in refused("profile", artifact, "--trace", kept)
    assert "exists" in refused("bench", artifact, "--json", kept)
    assert "exists" in refused("tune", "export", kept)
    assert "exists" in refused("export", artifact, kept)
    assert "reports are .html" in refused(
        "prune", model, "--flops", "50%", "-o", out, "--report", kept.with_suffix("")
    )
    assert "no folder" in refused("optimize", model, "--data", data, "-o", tmp_path / "absent" / "m.hasten")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert f"-o {copy} is what is read" in refused("optimize", copy, "--data", data, "-o", copy)
    assert f"--json {copy} is what is read" in refused("bench", copy, "--json", copy, "--overwrite")
    assert f"--trace {copy} is what is read" in refused("profile", copy, "--trace", copy, "--overwrite")
    assert f"--report {copy} is what is read" in refused(
        "optimize", copy, "--data", data, "-o", out, "--report", copy
    )
    assert f"-o {other} is what is read" in refused("optimize", copy, "--data", other, "-o", other)
    assert f"--report {out} is the place of -o too" in optimize("--report", out)
    assert "is compiled already" in refused("optimize", artifact, "--data", data, "-o", out)
    assert "compile again with --keep-graph" in refused("export", artifact, tmp_path / "m.onnx")
    assert "no folder" in refused("export", artifact, tmp_path / "absent" / "m.onnx")


def test_what_cannot_be_written_is_refused_before_the_search_or_kept(
    invoke: Invoke, refused: Refused, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = tmp_path / "fast.hasten", tmp_path / "report.html"

    def never(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(console.tempfile, "TemporaryFile", never)
        patch.setattr(optimize_verb, "optimize", lambda *_, **__: pytest.fail("it searched"))
        said = refused("optimize", model, "--data", data, "-o", out)
    assert "takes no files (Read-only file system)" in said

    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target in (out, report):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(console.tempfile, "tempdir", None)
    monkeypatch.setattr(Path, "replace", full)
    lost = invoke("optimize", model, "--data", data, "-o", out, "--report", report, "--max-drop", "1%")
    assert lost.exit_code == 2
    assert not out.exists()
    kept = re.findall(r"what was found is kept in (\S+)", lost.stderr)
    assert [Path(place.rstrip(";")).name for place in kept] == ["fast.hasten", "report.html"]
    with hasten.open(kept[0].rstrip(";")) as session:
        assert session.report["search"]["chosen"] == "lossless"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupt_waits_for_the_files(
    invoke: Invoke, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presses: int
) -> None:
    out, report = tmp_path / "fast.hasten", tmp_path / "report.json"
    save = hasten.Session.save

    def slow(session: hasten.Session, path: Path) -> None:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        save(session, path)

    monkeypatch.setattr(hasten.Session, "save", slow)
    done = invoke("optimize", model, "--data", data, "-o", out, "--report", report)
    assert done.exit_code == (0 if presses == 1 else 130), done.output
    assert [out.exists(), report.exists()] == [presses == 1] * 2


def test_amounts() -> None:
    assert parse_share("1%", "--x") == pytest.approx(0.01)
    assert parse_share(" 0.005 ", "--x") == pytest.approx(0.005)
    assert parse_seconds("90s", "--x") == parse_seconds("1.5m", "--x") == parse_seconds("90", "--x") == 90
    assert parse_seconds("1h", "--x") == 3600
    assert parse_bytes("8G", "--x") == 8_000_000_000
    assert parse_bytes("500MB", "--x") == 500_000_000
    for parse, text in ((parse_share, "one"), (parse_seconds, "-3s"), (parse_bytes, "8X")):
        with pytest.raises(OptionError, match="--x"):
            parse(text, "--x")
