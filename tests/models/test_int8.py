"""Whole models in int8, against themselves in float32 on real inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.test_bf16 import cosines, embeddings

import hasten
from benchmarks import models

# Measured on 100 texts: mean 0.9938, least 0.9897; on other processors rounding falls differently.
COSINE = 0.985


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_sentence_embeddings_keep_their_direction(cache: Path) -> None:
    texts = models.news(120)
    data = [models.sentence_inputs(texts[start : start + 4]) for start in range(60, 120, 4)]
    plain = embeddings(hasten.compile(models.minilm(), cache=cache), texts[:60])
    quantized = hasten.compile(models.minilm(), precision="int8", data=data, cache=cache)
    assert len(quantized.report["quantization"]["layers"]) == 25
    found = cosines(plain, embeddings(quantized, texts[:60]))
    assert found.mean() >= COSINE
    assert found.min() >= COSINE - 0.015


def test_efficientnet_answers_as_in_f32(cache: Path) -> None:
    pictures, _ = models.labelled_pictures()
    path = models.efficientnet_lite0_onnx()
    answers = []
    for options in ({}, {"precision": "int8", "data": {"pixels": pictures}}):
        session = hasten.compile(path, cache=cache, **options)
        (found,) = session.run({"pixels": pictures}).values()
        answers.append(found)
    assert cosines(*answers).mean() >= 0.98
    assert (answers[0].argmax(1) == answers[1].argmax(1)).sum() >= 18
