"""Whole models in int8, against themselves in float32 on real inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.test_bf16 import cosines, embeddings

import hasten
from benchmarks import models

# Measured on 100 texts: mean 0.994, least 0.990 with the plainest method; with what is usual 0.998 and 0.997.
# On other processors rounding falls differently.
PLAIN, USUAL = 0.985, 0.993


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_sentence_embeddings_keep_their_direction(cache: Path) -> None:
    texts = models.news(120)
    data = [models.sentence_inputs(texts[start : start + 4]) for start in range(60, 120, 4)]
    plain = embeddings(hasten.compile(models.minilm(), cache=cache), texts[:60])
    plainly = hasten.Quantization(smoothing=None, correct_bias=False)
    least = []
    for how, bound in ((plainly, PLAIN), (None, USUAL)):
        quantized = hasten.compile(
            models.minilm(), precision="int8", data=data, quantization=how, cache=cache
        )
        assert len(quantized.report["quantization"]["layers"]) == 25
        found = cosines(plain, embeddings(quantized, texts[:60]))
        assert found.mean() >= bound
        least.append(found.min())
    assert PLAIN - 0.015 <= least[0] < least[1]


def test_efficientnet_answers_as_in_f32(cache: Path) -> None:
    pictures, _ = models.labelled_pictures()
    path = models.efficientnet_lite0_onnx()
    answers = []
    for options in ({}, {"precision": "int8", "data": [{"pixels": pictures}]}):
        session = hasten.compile(path, cache=cache, **options)
        (found,) = session.run({"pixels": pictures}).values()
        answers.append(found)
    assert cosines(*answers).mean() >= 0.99
    assert (answers[0].argmax(1) == answers[1].argmax(1)).sum() >= 19
