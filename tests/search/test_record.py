"""A search's record says everything in values that JSON has."""

import dataclasses
import json

import pytest

from hasten.search.certify import Bound
from hasten.search.measure import Spread
from hasten.search.record import (
    CandidateRecord,
    CurvePoint,
    DataRecord,
    LayerRecord,
    MachineRecord,
    Outcome,
    PhaseRecord,
    SearchRecord,
)

RECORD = SearchRecord(
    model="model.onnx",
    model_sha256="ab",
    machine=MachineRecord("a processor", "x86-64-v3", 2, 2, "Linux", None),
    versions={"hasten": "0.1.0"},
    command="hasten optimize model.onnx",
    started="2026-01-31T12:00:00+00:00",
    seed=0,
    metric="accuracy",
    larger_is_better=True,
    max_drop=0.01,
    confidence=0.95,
    data=DataRecord(100, 40, 60, True, "cd"),
    original="onnxruntime",
    original_value=0.9,
    candidates=(
        CandidateRecord("lossless", "compiled", "hasten", "f32", outcome=Outcome.BASELINE),
        CandidateRecord(
            "int8",
            "int8 everywhere",
            "hasten",
            "f32",
            ("a",),
            "mse",
            Spread(1.0, 2.0, 3.0),
            bound=Bound(0.0, 0.008, 0.95, 60, "exact test of paired answers", True, 1, 1),
            outcome=Outcome.CHOSEN,
        ),
    ),
    chosen="int8",
    layers=(LayerRecord("a", "MatMul", "int8", 10, {"int8": 1e-4}, {"int8": 2.0, "f32": 5.0}),),
    curve=(CurvePoint(1e-4, 7.0, 1),),
    stated=0.008,
    headline="2 x faster",
    notes=(),
    phases=(PhaseRecord("measuring", 1.0),),
    interrupted=False,
    samples_needed=None,
)


def test_it_is_json() -> None:
    data = json.loads(json.dumps(dataclasses.asdict(RECORD)))
    assert data["candidates"][1]["outcome"] == "chosen"
    assert data["candidates"][1]["latency_ms"] == {"low": 1.0, "median": 2.0, "high": 3.0}
    assert data["layers"][0]["us"] == {"int8": 2.0, "f32": 5.0}


def test_candidates_have_names() -> None:
    assert RECORD.candidate("int8").bound == Bound(
        0.0, 0.008, 0.95, 60, "exact test of paired answers", True, 1, 1
    )
    with pytest.raises(KeyError):
        RECORD.candidate("int4")
