"""A search compares with the framework that a model came from: a Hugging Face folder, a torch module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.cli.conftest import classifier_of_texts

import hasten
from hasten.errors import OptionError
from hasten.runtime.manifest import TensorInfo
from hasten.search.engines import answers
from hasten.search.original import Original, original_of
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


def check(told: Any, engine: str = "torch") -> None:
    assert told.original == engine
    original, lossless = told.candidates[:2]
    assert (original.name, original.engine, original.outcome) == ("original", engine, Outcome.BASELINE)
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


def test_a_classifier_with_texts_and_maps(tmp_path: Path) -> None:
    model, rng = classifier_of_texts("no", "yes").SerializeToString(), np.random.default_rng(2)
    words = np.array(["oslo", "rome"], object)
    data = [
        ({"city": rng.choice(words, (1, 1)), "x": rng.standard_normal((1, 2), np.float32)}, i % 2)
        for i in range(60)
    ]
    check(search(model, data, tmp_path, metric="accuracy", output="scores"), "onnxruntime")
    with pytest.raises(OptionError, match=r"'p' is a sequence or a map.*another output \(label, scores\)"):
        search(model, data, tmp_path, metric="accuracy", output="p")
    with pytest.raises(OptionError, match=r"'label' is texts.*name another output \(scores\)"):
        search(model, data, tmp_path)


class Gated(torch.nn.Module):
    """A user's own: its class is in a module that no other process can import."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = torch.nn.Linear(8, 16), torch.nn.Linear(8, 16)
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, times: int = 1, *, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.layer(x) * torch.sigmoid(self.gate(x)) * times
        return {"scores": self.head(hidden) + shift, "hidden": hidden}


# As of a script, or of a file beside it.
Gated.__module__ = "__main__"


def gated() -> Gated:
    torch.manual_seed(0)
    return Gated().train()


def test_a_torch_module_of_the_user(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = [
        {name: rng.standard_normal((1, width), np.float32) for name, width in (("x", 8), ("shift", 3))}
        for _ in range(60)
    ]
    example = {"x": torch.zeros(1, 8), "shift": torch.zeros(1, 3)}
    module = gated()
    dynamic = {name: {0: "batch"} for name in example}
    check(search(module, data, tmp_path, example=example, dynamic=dynamic, output="scores"))
    assert module.training


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_module_answers_by_name_for_any_size(rows: int, tmp_path: Path) -> None:
    module, rng = gated(), np.random.default_rng(rows)
    inputs = [TensorInfo("x", "float32", ("batch", 8)), TensorInfo("shift", "float32", ("batch", 3))]
    example = {"x": torch.zeros(1, 8), "times": 2, "shift": torch.zeros(1, 3)}
    found = original_of(module, tmp_path, example, inputs)
    assert isinstance(found, Original), found
    x, shift = (rng.standard_normal((rows, width), np.float32) for width in (8, 3))
    got = answers(found.engine, found.model, {"shift": shift, "x": x}, 1)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(x), 2, shift=torch.from_numpy(shift))
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name].numpy(), rtol=1e-5, atol=1e-6)


def test_an_exported_program_answers_by_name(tmp_path: Path) -> None:
    module, rng = gated().eval(), np.random.default_rng(0)
    x, shift = (rng.standard_normal((2, width), np.float32) for width in (8, 3))
    given = (torch.from_numpy(x),), {"shift": torch.from_numpy(shift)}
    found = original_of(torch.export.export(module, *given), tmp_path, None, ())
    assert isinstance(found, Original), found
    got = answers(found.engine, found.model, {"shift": shift, "x": x}, 1)
    with torch.no_grad():
        wanted = module(*given[0], **given[1])
    np.testing.assert_allclose(got["scores"], wanted["scores"].numpy(), rtol=1e-5, atol=1e-6)


class Nested(torch.nn.Linear):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return super().forward(pair[0] + pair[1])


def test_a_module_that_cannot_be_traced_by_name_is_pickled_or_refused(tmp_path: Path) -> None:
    inputs = [TensorInfo(f"pair_{i}", "float32", (2, 8)) for i in (0, 1)]
    example = ((torch.zeros(2, 8), torch.zeros(2, 8)),)
    found = original_of(Nested(8, 3), tmp_path, example, inputs)
    assert isinstance(found, Original)
    assert found.model.suffix == ".pt"
    module = Nested(8, 3)
    module.unpicklable = lambda: None  # type: ignore[assignment]
    why = original_of(module, tmp_path, example, inputs)
    assert isinstance(why, str)
    assert "the inputs pair are not those of the graph" in why
