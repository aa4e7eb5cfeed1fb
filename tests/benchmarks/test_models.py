"""Models and inputs of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.reference
import pytest
import torch

from benchmarks import models, networks
from hasten.search.engines_worker import torch_module, torch_outputs


def test_inputs_of_the_benchmarks_have_the_shapes_of_their_cases() -> None:
    for array in models.token_inputs(8, 128).values():
        assert array.shape == (8, 128)
    padded = models.padded_inputs()
    lengths = padded["attention_mask"].sum(axis=1)
    assert sorted(lengths)[:: len(lengths) - 1] == [8, 128]
    for array in padded.values():
        assert array.shape == (32, 128)
        assert not array[np.arange(128) >= lengths[:, None]].any()
    made = models.sentence_inputs(models.SENTENCES[:3])
    assert made["attention_mask"].min() == 0  # padded
    pictures, labels = models.labelled_pictures()
    assert pictures.shape == (20, 3, 224, 224)
    assert -1 <= pictures.min() < pictures.max() <= 1
    assert labels.shape == (20,)
    assert models.page(64, 96).shape == (1, 3, 64, 96)
    assert models.chinese_inputs()["token_ids"].min() >= 0


def test_the_torch_perceptron_is_the_one_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (wanted,) = onnx.reference.ReferenceEvaluator(str(models.mlp_onnx())).run(None, {"x": x})
    np.testing.assert_allclose(networks.mlp()(torch.from_numpy(x)).detach().numpy(), wanted, atol=1e-5)


def test_mobilenetv2_is_the_papers() -> None:
    model = networks.mobilenetv2()
    # 3.4 million in the paper, whose count leaves out what normalization adds.
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_504_872
    with torch.no_grad():
        logits = model(torch.from_numpy(models.labelled_pictures()[0][:2]))
    assert logits.shape == (2, 1000)
    assert 0.1 < logits.std() < 10  # neither died out nor exploded on the way
    assert (logits[0] - logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_networks_are_made_as_a_worker_makes_them(name: str) -> None:
    module, arranged = torch_module(f"{networks.__file__}:{name}")
    args, named = arranged({"pixels": torch.from_numpy(models.labelled_pictures()[0][:1])})
    assert not named
    with torch.no_grad():
        (logits,) = torch_outputs(module(*args)).values()
    assert logits.shape[0] == 1
    assert logits.std() > 0
