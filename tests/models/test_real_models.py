"""Whole models on real inputs against the framework that they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import hasten
from benchmarks import models, networks
from hasten.runtime.session import Session
from hasten.target import Target, native, runs_here

TOLERANCE = 1e-4
"""Largest difference from the framework, as a part of the output's range."""

OTHER = "x86-64-v3"
"""The target beside the native one."""

Compile = Callable[..., list[Session]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a model for each target that runs here and is not the same as another."""
    cache = tmp_path_factory.mktemp("cache")
    names = ["native", *([OTHER] if native().name != OTHER and runs_here(Target.named(OTHER)) else [])]

    def run(source: object, **options: Any) -> list[Session]:
        return [hasten.compile(source, target=name, threads=2, cache=cache, **options) for name in names]

    return run


def assert_agrees(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max(initial=0.0) <= TOLERANCE * max(float(np.ptp(expected)), 1e-6)


def onnxruntime_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_runs_as_onnxruntime(sessions: list[Session], path: Path, inputs: list[models.Inputs]) -> None:
    reference = onnxruntime_session(path)
    for feeds in inputs:
        expected = reference.run(None, feeds)
        for session in sessions:
            found = session.run(feeds)
            assert list(found) == [o.name for o in reference.get_outputs()]
            for left, right in zip(found.values(), expected, strict=True):
                assert_agrees(left, right)


def test_minilm_from_its_folder_on_sentences(compiled: Compile) -> None:
    import torch
    import transformers

    folder = models.minilm()
    reference = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    sessions = compiled(folder)
    batches = [models.SENTENCES[:1], models.SENTENCES[1:8], ["a"], [" ".join(models.SENTENCES[:8]), "yes"]]
    for batch in batches:
        feeds = models.sentence_inputs(batch)
        with torch.inference_mode():
            expected = reference(**{name: torch.from_numpy(a) for name, a in feeds.items()})
        shown = feeds["attention_mask"] == 1
        for session in sessions:
            found = session.run(feeds)
            states = found["last_hidden_state"]
            assert (states[~shown] == 0).all()
            assert_agrees(states[shown], expected["last_hidden_state"].numpy()[shown])
            assert_agrees(found["pooler_output"], expected["pooler_output"].numpy())


def test_minilm_on_padded_batches_as_on_each_sentence_alone(compiled: Compile) -> None:
    feeds = models.sentence_inputs([" ".join(models.SENTENCES[:n]) for n in (1, 9, 3, 5)])
    left = {name: np.ascontiguousarray(a[:, ::-1]) for name, a in feeds.items()}
    for session in compiled(models.minilm()):
        together = session.run(feeds)
        for row, mask in enumerate(feeds["attention_mask"]):
            alone = session.run({name: a[row : row + 1, : mask.sum()] for name, a in feeds.items()})
            states = together["last_hidden_state"][row, : mask.sum()]
            np.testing.assert_array_equal(states, alone["last_hidden_state"][0])
            np.testing.assert_array_equal(together["pooler_output"][row], alone["pooler_output"][0])
    (computed, *_) = compiled(models.minilm(), padding="compute")
    for name, value in session.run(left).items():
        shown = left["attention_mask"] == 1 if value.ndim == 3 else slice(None)
        np.testing.assert_allclose(value[shown], computed.run(left)[name][shown], atol=1e-5)


def test_efficientnet_on_labelled_pictures(compiled: Compile) -> None:
    import torch

    pictures, labels = models.labelled_pictures()
    with torch.inference_mode():
        expected = networks.efficientnet_lite0()(torch.from_numpy(pictures)).numpy()
    for session in compiled(models.efficientnet_lite0_onnx()):
        (name,) = [i.name for i in session.inputs]
        (found,) = session.run({name: pictures}).values()
        assert_agrees(found, expected)
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
        assert (found.argmax(1) == labels).mean() >= 0.8
        (single,) = session.run({name: pictures[3:4]}).values()
        assert_agrees(single, expected[3:4])


def test_text_detection_at_several_picture_sizes(compiled: Compile) -> None:
    path = models.ppocr_det()
    pages = [models.page(*size) for size in ((192, 384), (96, 160), (160, 64))]
    assert_runs_as_onnxruntime(compiled(path), path, [{"x": page} for page in pages])


def test_text_recognition_at_several_widths(compiled: Compile) -> None:
    path = models.ppocr_rec()
    lines = [models.page_line(width) for width in (320, 96, 201)]
    assert_runs_as_onnxruntime(compiled(path), path, [{"x": line} for line in lines])


def test_direction_of_text(compiled: Compile) -> None:
    path = models.ppocr_cls()
    line = models.page_line(192)
    turned = np.ascontiguousarray(line[:, :, ::-1, ::-1])
    assert_runs_as_onnxruntime(compiled(path), path, [{"x": line}, {"x": np.concatenate([line, turned])}])


def test_chinese_tagging(compiled: Compile) -> None:
    path = models.lac()
    inputs = [models.chinese_inputs(models.CHINESE_SENTENCES[:1]), models.chinese_inputs()]
    assert_runs_as_onnxruntime(compiled(path), path, inputs)


def test_small_configurations_of_bert_and_resnet(compiled: Compile) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40
        )
    ).eval()
    resnet = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 40, 48], depths=[1, 2, 1, 1])
    ).eval()
    for statistic in (m for m in resnet.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(statistic.running_mean, -0.2, 0.2)
        torch.nn.init.uniform_(statistic.running_var, 0.5, 1.5)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        logits = bert(ids, mask).logits.numpy()
        classes = resnet(pixels).logits.numpy()
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    for session in compiled(bert, example=example):
        (found,) = session.run({n: a.numpy() for n, a in example.items()}).values()
        assert_agrees(found, logits)
    for session in compiled(resnet, example={"pixel_values": pixels}):
        (found,) = session.run({"pixel_values": pixels.numpy()}).values()
        assert_agrees(found, classes)
