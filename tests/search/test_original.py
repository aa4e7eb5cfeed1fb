"""A search compares with the framework that a model came from: a Hugging Face folder, a torch module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import hasten
from hasten.search.record import Outcome

WORDS, LENGTH = 40, 6


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(1, WORDS, (1, LENGTH)),
            "attention_mask": np.ones((1, LENGTH), np.int64),
            "token_type_ids": np.zeros((1, LENGTH), np.int64),
        }
        for _ in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier whose classes have names."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def search(source: object, data: object, tmp_path: Path, **more: Any) -> Any:
    found = hasten.optimize(
        source, data=data, precision="f32", engines=False, threads=1, max_drop=0.5, time_limit=None,
        cache=tmp_path / "cache", database=tmp_path / "results.sqlite", **more,
    )  # fmt: skip
    with found:
        return found.report.record


def check(told: Any) -> None:
    assert told.original == "torch"
    original, lossless = told.candidates[:2]
    assert (original.name, original.engine, original.outcome) == ("original", "torch", Outcome.BASELINE)
    assert original.drop == lossless.drop == 0
    assert original.latency_ms.median > 0
    assert lossless.to_original is not None
    assert not any("drops are against the lossless compilation" in note for note in told.notes)


def test_a_hugging_face_folder_and_labels_that_are_names(folder: Path, tmp_path: Path) -> None:
    names = json.loads((folder / "config.json").read_text())["id2label"]
    data = [(feeds, names[str(i % 2)]) for i, feeds in enumerate(samples(60))]
    told = search(folder, data, tmp_path, metric="accuracy")
    check(told)
    assert told.data.labelled


def test_a_torch_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((60, 1, 8)).astype(np.float32)
    told = search(module, list(rows), tmp_path, example=(torch.zeros(2, 8),), dynamic={"input": {0: "batch"}})
    check(told)
