"""What the suite measures: models, inputs of one size, and what was asked of hasten there (issue 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import models
from hasten.search.engines import Precision

Figure = Literal["run", "load"]
"""What is compared: the time of a run, or of opening the model."""

_NETWORKS = Path(models.__file__).with_name("networks.py")


@dataclass(frozen=True)
class Goal:
    """What was asked.

    Attributes:
        ratio: the best peer's time divided by hasten's, at least.
        share: of the machine's peak, at least; None if that was not asked.
    """

    ratio: float
    share: float | None = None


@dataclass(frozen=True)
class Entry:
    """A case.

    Attributes:
        name: in tables.
        onnx: makes the ONNX file, or finds it.
        torch: the same model for PyTorch, see `Engine.runs`; None where there is none.
        inputs: makes the inputs, the same for all engines.
        goals: what was asked, by precision; it is measured in these precisions.
        figure: what the ratio is about: the time of a run, or of opening the model.
    """

    name: str
    onnx: Callable[[], Path]
    torch: Callable[[], Path | str] | None
    inputs: Callable[[], models.Inputs]
    goals: Mapping[Precision, Goal]
    figure: Figure = "run"


def _network(name: str) -> Callable[[], str]:
    return lambda: f"{_NETWORKS}:{name}"


def _tokens(batch: int, length: int) -> Callable[[], models.Inputs]:
    return lambda: models.token_inputs(batch, length)


def _pictures(batch: int) -> Callable[[], models.Inputs]:
    return lambda: {"pixels": models.labelled_pictures()[0][:batch].copy()}


def _page() -> models.Inputs:
    return {"x": models.page(640, 640)}


def _numbers(batch: int) -> Callable[[], models.Inputs]:
    return lambda: {"x": np.random.default_rng(0).standard_normal((batch, 64)).astype(np.float32)}


def _both(f32: float, bf16: float) -> dict[Precision, Goal]:
    return {"f32": Goal(f32), "bf16": Goal(bf16)}


def _bert(name: str, batch: int, length: int, goals: Mapping[Precision, Goal]) -> Entry:
    return Entry(name, models.bert_base_onnx, models.bert_base, _tokens(batch, length), goals)


ENTRIES = (
    _bert("BERT-base 1 x 128", 1, 128, {"f32": Goal(1.12, 0.92), "bf16": Goal(1.25, 0.90)}),
    _bert("BERT-base 1 x 384", 1, 384, _both(1.12, 1.25)),
    _bert("BERT-base 8 x 128", 8, 128, _both(1.12, 1.25)),
    *(
        Entry(
            f"MiniLM {batch} x {length}",
            models.minilm_onnx,
            models.minilm,
            _tokens(batch, length),
            _both(1.15, 1.25),
        )
        for batch, length in ((1, 16), (1, 64), (1, 128), (8, 128))
    ),
    Entry("MiniLM 32 x 8..128", models.minilm_onnx, models.minilm, models.padded_inputs, _both(2.0, 2.0)),
    *(
        Entry(
            f"ResNet-50 {batch} x 224",
            models.resnet50_onnx,
            _network("resnet50"),
            _pictures(batch),
            _both(1.25, 1.08),
        )
        for batch in (1, 8)
    ),
    Entry(
        "EfficientNet-lite0 1 x 224",
        models.efficientnet_lite0_onnx,
        _network("efficientnet_lite0"),
        _pictures(1),
        _both(1.25, 1.25),
    ),
    Entry(
        "MobileNetV2 1 x 224",
        models.mobilenetv2_onnx,
        _network("mobilenetv2"),
        _pictures(1),
        _both(1.25, 1.25),
    ),
    Entry("PP-OCR detection 640 x 640", models.ppocr_det, None, _page, {"f32": Goal(1.15)}),
    *(
        Entry(
            f"MLP 64-128-64-1, batch {batch}",
            models.mlp_onnx,
            _network("mlp"),
            _numbers(batch),
            {"f32": Goal(ratio)},
        )
        for batch, ratio in ((1, 3.0), (256, 1.3))
    ),
    Entry(
        "opening BERT-base",
        models.bert_base_onnx,
        models.bert_base,
        _tokens(1, 128),
        {"f32": Goal(20.0)},
        "load",
    ),
)


def entries_named(part: str) -> list[Entry]:
    """The cases whose name contains this, in any case of letters."""
    return [entry for entry in ENTRIES if part.lower() in entry.name.lower()]
