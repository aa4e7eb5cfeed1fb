"""Bad input: one line that says what was wrong, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from hasten.runtime.artifact import read_artifact, write_artifact

Invoke = Callable[..., Result]
Refused = Callable[..., str]


def test_no_such_model(refused: Refused, tmp_path: Path) -> None:
    assert "absent.onnx" in refused("compile", tmp_path / "absent.onnx", "-o", tmp_path / "m.hasten")


def test_not_a_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("Dear reader, this is no model at all.\n")
    assert "notes.onnx" in refused("compile", tmp_path / "notes.onnx", "-o", tmp_path / "m.hasten")


def test_truncated_model(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-200])
    assert "truncated" in refused("compile", tmp_path / "cut.onnx", "-o", tmp_path / "m.hasten")


def test_missing_external_data(refused: Refused, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert "w.bin" in refused("compile", path, "-o", tmp_path / "m.hasten")


def test_no_compiler(refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CC", "/no/such/cc")
    assert "/no/such/cc" in refused("compile", model, "-o", tmp_path / "m.hasten")


def test_places_that_cannot_be_written(refused: Refused, model: Path, tmp_path: Path) -> None:
    assert "no folder" in refused("compile", model, "-o", tmp_path / "absent" / "m.hasten")
    assert "is a folder" in refused("compile", model, "-o", tmp_path)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert "is what is read" in refused("compile", copy, "-o", copy)
    assert "is what is read" in refused("prune", copy, "--flops", "50%", "-o", copy, "--overwrite")


def test_nothing_that_is_read_is_replaced(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    own, feeds = tmp_path / "own.hasten", tmp_path / "x.npz"
    own.write_bytes(artifact.read_bytes())
    np.savez(feeds, x=np.zeros(1))
    assert "is what is read" in refused("export", own, own)
    for place in (own, feeds):
        assert "is what is read" in refused("run", own, "--input", feeds, "-o", place)


def test_options_that_would_do_nothing(refused: Refused, model: Path, tmp_path: Path) -> None:
    assert "--source is for artifacts" in refused("bench", model, "--source", model)
    search = ("optimize", model, "--data", model, "-o", tmp_path / "o.hasten")
    assert "about units that go" in refused(*search, "--prune-criterion", "fisher")
    assert "write 1% for a hundredth" in refused(*search, "--max-drop", "1")


def test_disk_full_while_saving(model: Path, artifact: Path, cache: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    (tmp_path / "m.hasten").write_bytes(b"an older file")
    command = [sys.executable, "-m", "hasten.cli.main", "compile", model, "-o", tmp_path / "m.hasten"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(errors) == 1
    assert "cannot write" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["m.hasten"]
    assert (tmp_path / "m.hasten").read_bytes() == b"an older file"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.pop("attention_mask"), "missing attention_mask"),
        (lambda x: x.update(extra=np.zeros(1)), "unknown extra"),
        (lambda x: x.update(input_ids=x["input_ids"].astype(np.float64)), "takes int64"),
        (lambda x: x.update(input_ids=x["input_ids"][0]), "takes 2 axes"),
        (lambda x: x.update(attention_mask=x["attention_mask"][:, :3]), "'sequence'"),
        (lambda x: x.update(input_ids=x["input_ids"] + 1000), "50"),
    ],
    ids=["missing", "unknown", "dtype", "rank", "contradiction", "index"],
)
def test_inputs_that_do_not_fit(
    refused: Refused,
    artifact: Path,
    inputs: dict[str, np.ndarray],
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    said: str,
) -> None:
    change(inputs)
    np.savez(tmp_path / "x.npz", **inputs)
    assert said in refused("run", artifact, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")


def test_input_files_that_are_none(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    assert "absent.npz" in refused("run", artifact, "-i", tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("x = 1")
    assert "numpy.savez" in refused("run", artifact, "-i", tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "one array" in refused("run", artifact, "-i", tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", input_ids=np.array([{}], dtype=object))
    assert "objects.npz" in refused("run", artifact, "-i", tmp_path / "objects.npz")


def test_data_files_that_are_damaged(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    ids = np.random.default_rng(0).integers(0, 50, (40, 5))
    np.savez_compressed(tmp_path / "d.npz", input_ids=ids, attention_mask=np.ones((40, 5), np.float32))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[60:90] = bytes(30)
    (tmp_path / "d.npz").write_bytes(content)
    for name, said in (("latin.jsonl", "line 1: not UTF-8"), ("d.npz", "damaged")):
        data = ("--data", tmp_path / name, "-o", tmp_path / "m.hasten")
        assert said in refused("compile", model, "--precision", "int8", *data)
        assert said in refused("optimize", model, *data)
    assert "d.npz" in refused("run", model, "-i", tmp_path / "d.npz")


def test_artifact_truncated(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.hasten").write_bytes(artifact.read_bytes()[:-5000])
    assert "truncated" in refused("run", tmp_path / "cut.hasten")


def test_artifact_with_a_flipped_byte(refused: Refused, artifact: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(artifact) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for member, data in contents.items():
        if member.startswith(("code/", "weights", "manifest")):
            content = bytearray(artifact.read_bytes())
            content[content.index(data) + len(data) // 2] ^= 1
            (tmp_path / "flipped.hasten").write_bytes(content)
            assert "damaged" in refused("run", tmp_path / "flipped.hasten"), member


@pytest.fixture
def rewritten(artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """The artifact with another manifest or other names of members."""

    def rewrite(change: Callable[[dict[str, object]], object], rename: Callable[[str], str] = str) -> Path:
        opened = read_artifact(artifact)
        with zipfile.ZipFile(artifact) as archive:
            manifest = json.loads(archive.read("manifest.json"))
        del manifest["members"]
        change(manifest)
        path = tmp_path / "rewritten.hasten"
        write_artifact(path, manifest, {rename(name): data for name, data in opened.members.items()})
        return path

    return rewrite


def test_artifact_of_a_newer_version(refused: Refused, rewritten: Callable[..., Path]) -> None:
    path = rewritten(lambda manifest: manifest.update(format=99, hasten="9.0"))
    assert "9.0" in refused("run", path)


def test_artifact_for_another_processor(refused: Refused, rewritten: Callable[..., Path]) -> None:
    def rename(name: str) -> str:
        return "code/sparc.so" if name.startswith("code/") else name

    assert "sparc" in refused("run", rewritten(lambda manifest: None, rename))


def test_options_without_meaning(refused: Refused, artifact: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.hasten"
    assert "pdp11" in refused("compile", model, "-o", out, "--target", "pdp11")
    assert "compiled already" in refused("compile", artifact, "-o", out)
    assert "--threads" in refused("compile", model, "-o", out, "--threads", "0")
    assert "tensorflow" in refused("bench", model, "--against", "tensorflow")
    assert "--source" in refused("bench", artifact, "--against", "onnxruntime")
    assert "is an artifact" in refused("bench", artifact, "--source", artifact)
    (tmp_path / "notes.txt").write_text("Dear reader, this is no model.\n")
    assert "notes.txt" in refused("bench", artifact, "--source", tmp_path / "notes.txt", "--shape", "ids=1x2")
    assert "no input 'ids'" in refused("run", artifact, "--shape", "ids=1x2")
    assert "input_ids=1x128" in refused("run", artifact, "--shape", "input_ids:1x2")
    assert "2 axes" in refused("run", artifact, "--shape", "input_ids=1x2x3")
    assert "no kernel 'nothing'" in refused("inspect", artifact, "--c", "nothing")
    assert "is an artifact" in refused("verify", artifact, artifact)
    assert "absent.onnx" in refused("verify", artifact, tmp_path / "absent.onnx")
    assert "frobnicate" in refused("frobnicate")
    assert "MODEL" in refused("compile")


def test_verify_with_another_model(refused: Refused, artifact: Path, model: Path, tmp_path: Path) -> None:
    other = onnx.load(model)
    other.graph.output[0].name = "logits"
    other.graph.node[-1].output[0] = "logits"
    onnx.save(other, tmp_path / "other.onnx")
    assert "scores" in refused("verify", artifact, tmp_path / "other.onnx")


def test_a_traceback_with_debug_alone(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", tmp_path / "absent.hasten", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "ArtifactError" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("hasten: error: ")


def test_a_bug_is_said_to_be_one(invoke: Invoke, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("hasten.cli.run.open_session", broken)
    result = invoke("run", artifact)
    assert result.exit_code == 70
    assert result.stderr.count("\n") == 1
    assert "ZeroDivisionError: boom" in result.stderr
    assert "--debug" in result.stderr
