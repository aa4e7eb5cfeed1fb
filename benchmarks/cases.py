"""What the suite measures: models, inputs of one size, and what was asked of hasten there (issues 3 and 4).

Where issue 4 asks nothing of int8, 1.0 stands for "not slower than the best peer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import models
from hasten.search.engines import Precision

Figure = Literal["run", "load"]
"""What is compared: the time of a run, or of opening the model."""

_CALIBRATION = 32
"""Texts on which scales of int8 are found."""

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
        calibration: makes the inputs on which scales of int8 are found; None where that is not measured.
    """

    name: str
    onnx: Callable[[], Path]
    torch: Callable[[], Path | str] | None
    inputs: Callable[[], models.Inputs]
    goals: Mapping[Precision, Goal]
    figure: Figure = "run"
    calibration: Callable[[], Sequence[models.Inputs]] | None = None


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


def _goals(f32: float, bf16: float, int8: float | None = None) -> dict[Precision, Goal]:
    goals: dict[Precision, Goal] = {"f32": Goal(f32), "bf16": Goal(bf16)}
    return goals if int8 is None else goals | {"int8": Goal(int8)}


def _some_tokens() -> Sequence[models.Inputs]:
    return [models.sentence_inputs([text]) for text in models.news(_CALIBRATION)]


def _some_pictures() -> Sequence[models.Inputs]:
    pictures = models.labelled_pictures()[0]
    return [{"pixels": pictures[n : n + 1].copy()} for n in range(len(pictures))]


def _bert(name: str, batch: int, length: int, goals: Mapping[Precision, Goal]) -> Entry:
    inputs, some = _tokens(batch, length), _some_tokens
    return Entry(name, models.bert_base_onnx, models.bert_base, inputs, goals, calibration=some)


ENTRIES = (
    _bert(
        "BERT-base 1 x 128",
        1,
        128,
        {"f32": Goal(1.12, 0.92), "bf16": Goal(1.25, 0.90), "int8": Goal(1.35, 0.88)},
    ),
    _bert("BERT-base 1 x 384", 1, 384, _goals(1.12, 1.25)),
    _bert("BERT-base 8 x 128", 8, 128, _goals(1.12, 1.25)),
    *(
        Entry(
            f"MiniLM {batch} x {length}",
            models.minilm_onnx,
            models.minilm,
            _tokens(batch, length),
            _goals(1.15, 1.25, 1.0),
            calibration=_some_tokens,
        )
        for batch, length in ((1, 16), (1, 64), (1, 128), (8, 128))
    ),
    Entry("MiniLM 32 x 8..128", models.minilm_onnx, models.minilm, models.padded_inputs, _goals(2.0, 2.0)),
    *(
        Entry(
            f"ResNet-50 {batch} x 224",
            models.resnet50_onnx,
            _network("resnet50"),
            _pictures(batch),
            _goals(1.25, 1.08, 1.15),
            calibration=_some_pictures,
        )
        for batch in (1, 8)
    ),
    Entry(
        "EfficientNet-lite0 1 x 224",
        models.efficientnet_lite0_onnx,
        _network("efficientnet_lite0"),
        _pictures(1),
        _goals(1.25, 1.25, 1.6),
        calibration=_some_pictures,
    ),
    Entry(
        "MobileNetV2 1 x 224",
        models.mobilenetv2_onnx,
        _network("mobilenetv2"),
        _pictures(1),
        _goals(1.25, 1.25, 1.0),
        calibration=_some_pictures,
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
