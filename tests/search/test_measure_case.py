"""Which engine gets which file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from benchmarks import models

from hasten.search.engines import ONNXRUNTIME, TORCH
from hasten.search.measure_case import files_of, model_for


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


def test_inputs_of_the_benchmarks_have_the_shapes_of_their_cases() -> None:
    for array in models.token_inputs(8, 128).values():
        assert array.shape == (8, 128)
    made = models.sentence_inputs(models.SENTENCES[:3])
    assert made["attention_mask"].min() == 0  # padded
    pictures, labels = models.labelled_pictures()
    assert pictures.shape == (20, 3, 224, 224)
    assert -1 <= pictures.min() < pictures.max() <= 1
    assert labels.shape == (20,)
    assert models.page(64, 96).shape == (1, 3, 64, 96)
    assert models.chinese_inputs()["token_ids"].min() >= 0


def test_the_benchmarks_of_the_spine_run(tmp_path: Path) -> None:
    script = Path(models.__file__).with_name("spine.py")
    options = ["--cases", "mlp", "--rounds", "1", "--against", "onnxruntime", "--json", tmp_path / "f.json"]
    environment = {**os.environ, "HASTEN_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    header, _, ours, other = (line for line in done.stdout.splitlines() if line.startswith("|"))
    assert header.count("|") == ours.count("|") == other.count("|")
    assert "| onnxruntime " in other
    (case,) = json.loads((tmp_path / "f.json").read_text())["cases"]
    assert case["gflop"] == pytest.approx(2 * (64 * 128 + 128 * 64 + 64) / 1e9)
