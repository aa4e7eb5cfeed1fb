"""Which engine gets which file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from hasten.api import CompileOptions, compile_payload
from hasten.errors import ModelError
from hasten.runtime.artifact import write_artifact
from hasten.search.engines import ONNXRUNTIME, TORCH
from hasten.search.measure_case import files_of, model_for, precision_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (path / "model.safetensors").write_bytes(bytes(10))
    return path


def test_each_engine_gets_what_it_takes(mlp: Path, folder: Path, tmp_path: Path) -> None:
    assert model_for(ONNXRUNTIME, [folder, mlp], tmp_path) == mlp
    assert model_for(TORCH, [mlp, folder], tmp_path) == folder
    assert "Hugging Face" in str(model_for(TORCH, [mlp], tmp_path))
    assert "no source" in str(model_for(ONNXRUNTIME, [], tmp_path))


def test_the_files_of_a_model(mlp: Path, folder: Path, tmp_path: Path) -> None:
    assert files_of(mlp) == [mlp]
    assert files_of(folder) == [folder / "config.json", folder / "model.safetensors"]
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(mlp), split, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert files_of(split) == [split, tmp_path / "weights.bin"]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"no file .*weights\.bin"):
        files_of(split)


def test_what_is_no_model_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear reader, this is no model.")
    with pytest.raises(ModelError, match=r"notes\.txt cannot be read as ONNX"):
        files_of(tmp_path / "notes.txt")
    for name in ("absent.onnx", "absent.pt"):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            files_of(tmp_path / name)


@pytest.mark.parametrize(
    ("asked", "multiplied"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int8-weights", "f32")]
)
def test_the_precision_of_an_artifact_is_that_of_its_products(
    asked: str, multiplied: str, mlp: Path, tmp_path: Path
) -> None:
    payload = compile_payload(mlp, CompileOptions(precision=asked, cache=tmp_path))
    write_artifact(tmp_path / "model.hasten", payload.manifest, payload.members)
    assert precision_of(tmp_path / "model.hasten") == multiplied
