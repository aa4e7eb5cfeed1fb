"""`hasten profile`: what it prints, its JSON and its trace, and what it refuses."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from tests.backends.test_foreign import write

from hasten.cli.profile import common_title, short_title
from hasten.errors import OptionError
from hasten.runtime.artifact import read_artifact, write_artifact

Invoke = Callable[..., Result]
Refused = Callable[..., str]


def test_table(invoke: Invoke, artifact: Path) -> None:
    result = invoke("profile", artifact, "--shape", "input_ids=3x7", "--runs", "3")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "text.hasten: input_ids 3x7, attention_mask 3x7"
    assert "median of 3" in lines[1]
    assert lines[2].split()[:3] == ["us", "%", "n"]
    assert any("MatMul" in line and "project" in line for line in lines)
    assert lines[-1].startswith("lost: barriers ")
    one_by_one = invoke("profile", artifact, "--runs", "1", "--all").stdout.splitlines()
    assert one_by_one[2].split()[:3] == ["us", "%", "GFLOP/s"]


def test_json_and_trace(invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
    ids, mask = np.ones((20, 100), np.int64), np.ones((20, 100), np.float32)
    np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=mask)
    options = ["--input", tmp_path / "x.npz", "--runs", "2", "--threads", "1", "--trace", tmp_path / "t.json"]
    result = invoke("profile", artifact, *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (step,) = read_artifact(artifact).manifest.steps
    assert [k["us"] for k in found["kernels"]] == sorted((k["us"] for k in found["kernels"]), reverse=True)
    in_a_run = sorted(found["kernels"], key=lambda k: k["number"])
    assert [k["title"] for k in in_a_run] == list(step.kernels)
    assert all(k["us"] > 0 and k["bytes"] > 0 for k in found["kernels"])
    assert (found["runs"], found["threads"], found["name"]) == (2, 1, "text.hasten")
    assert found["shapes"] == {"input_ids": [20, 100], "attention_mask": [20, 100]}
    assert set(found["peaks"]) == {"gflops", "gigabytes_per_second"}
    assert found["busy_cores"] >= 0
    trace = json.loads((tmp_path / "t.json").read_text())
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    assert [event["name"] for event in kernels] == list(step.kernels)


def test_what_cannot_be_written_takes_no_figures_along(
    invoke: Invoke, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, data: object) -> None:
        raise OptionError(f"cannot write {path}: no space left")

    for verb, option in (("profile", ["--runs", "1", "--trace"]), ("bench", ["--rounds", "1", "--json"])):
        monkeypatch.setattr(f"hasten.cli.{verb}.write_json", full)
        result = invoke(verb, artifact, *option, tmp_path / "t.json")
        assert result.exit_code == 2
        assert "no space left" in result.stderr
        assert "text.hasten: " in result.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_busy_machine_is_told(
    form: tuple[str, ...], invoke: Invoke, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.cli.profile.busy_cores", lambda: 1.75)
    monkeypatch.setattr("hasten.cli.profile._BUSY", 0.0)  # any run took too long
    result = invoke("profile", artifact, "--runs", "1", *form)
    assert "The machine was busy (1.8 of" in result.stderr
    if form:
        assert json.loads(result.stdout)["busy_cores"] == 1.75


def test_code_of_another_compiler_is_told(invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
    opened = read_artifact(artifact)
    with zipfile.ZipFile(artifact) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    del manifest["members"]
    own = manifest["report"].pop("compilers")

    def told(report: dict[str, object]) -> tuple[str, str | None]:
        changed = {**manifest, "report": {**manifest["report"], **report}}
        write_artifact(tmp_path / "m.hasten", changed, opened.members)
        result = invoke("profile", tmp_path / "m.hasten", "--runs", "1", "--json")
        assert result.exit_code == 0, result.stderr
        figures = json.loads(result.stdout)
        assert figures["compiler"] in own.values()
        return result.stderr, figures["artifact_compiler"]

    stderr, found = told({"compilers": dict.fromkeys(own, "clang version 99")})
    assert "compiled by clang version 99, and what ran here by" in stderr
    assert found == "clang version 99"
    for report, noted in (({"compilers": own}, own), ({}, {}), ({"compilers": ["clang"]}, {})):
        stderr, found = told(report)
        assert "compiled by" not in stderr
        assert found in (noted.values() or [None])


def test_a_model_is_compiled_first(invoke: Invoke, model: Path) -> None:
    result = invoke("profile", model, "--runs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["kernels"]


def test_what_is_refused(
    refused: Refused, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.hasten").write_text("Dear reader, this is no artifact.\n")
    assert "not a hasten artifact" in refused("profile", tmp_path / "notes.hasten")
    assert "absent.hasten" in refused("profile", tmp_path / "absent.hasten")
    assert "no input 'ids'" in refused("profile", artifact, "--shape", "ids=1x2")
    assert "input_ids" in refused("profile", artifact, "--shape", "input_ids=1x2x3")
    np.savez(tmp_path / "x.npz", ids=np.zeros(3))
    assert "ids" in refused("profile", artifact, "--input", tmp_path / "x.npz")
    assert "no folder" in refused("profile", artifact, "--trace", tmp_path / "absent" / "t.json")
    assert "the name of a file" in refused("profile", artifact, "--trace", "-")
    monkeypatch.setenv("HASTEN_CC", "/no/such/cc")
    assert "/no/such/cc" in refused("profile", artifact)


def test_an_artifact_of_another_engine_has_nothing_to_profile(refused: Refused, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    told = refused("profile", write(tmp_path / "foreign.hasten", "onnxruntime"))
    assert "is run by onnxruntime" in told
    assert "hasten compile" in told


def test_titles() -> None:
    assert short_title("MatMul 'a/b', Add 'c'") == "MatMul + Add  a/b"
    assert short_title("padded copy of x") == "padded copy of x"
    assert common_title(["Conv  n_1", "Conv  n_2"]) == "Conv  n_*"
    assert common_title(["Conv  n", "Conv  n_2"]) == "Conv  n*"
    assert common_title(["Conv  a/x/b", "Conv  a/y/b"]) == "Conv  a/*/b"
    assert common_title(["padded copy of x", "copy of y"]) == "padded copy of x"
    assert common_title(["Relu  r"]) == "Relu  r"
