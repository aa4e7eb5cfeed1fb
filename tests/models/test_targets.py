"""One artifact with code for every instruction set: networks answer alike on all that run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.targets import PLAIN, on_each_target
from onnxruntime.quantization import QuantType, quantize_static
from tests.passes.test_normalize_qdq import NETWORKS, Feeds, feed, network

from benchmarks import models


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_whole_numbers_answer_exactly_alike(name: str, cache: Path, tmp_path: Path) -> None:
    """Products, pooling, residual sums, and functions of single elements in f32 between them."""
    which, path = NETWORKS[name][0], tmp_path / "quantized.onnx"
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(network(which, tmp_path / "source.onnx"), path, Feeds(which), per_channel=True, **types)
    feeds = {"x": np.concatenate([feed(which, seed)["x"] for seed in range(20)])}
    found = on_each_target(path, feeds, cache)
    assert set(PLAIN) <= set(found)
    first, *others = found.values()
    assert np.unique(first).size > 20
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_transformer_answers_exactly_alike(precision: str, cache: Path) -> None:
    """Sums of rows, soft-max and products of floats, and the codes of int8 that depend on them."""
    texts = models.news(12)
    feeds = models.sentence_inputs(texts[:5])
    options = (
        {"precision": precision, "data": [models.sentence_inputs(texts[5:])]} if precision == "int8" else {}
    )
    found = on_each_target(models.minilm(), feeds, cache, **options)
    assert set(PLAIN) <= set(found)
    first, *others = found.values()
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_convolutional_network_answers_exactly_alike(cache: Path) -> None:
    pictures, _ = models.labelled_pictures()
    found = on_each_target(models.efficientnet_lite0_onnx(), {"pixels": pictures[:3]}, cache)
    first, *others = found.values()
    for other in others:
        np.testing.assert_array_equal(first, other)
