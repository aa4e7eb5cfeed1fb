"""Records of searches, as a search might leave them: one succeeded, one could certify nothing."""

from __future__ import annotations

import dataclasses

from hasten.search.certify import Bound
from hasten.search.measure import Spread
from hasten.search.prune.report import Cut
from hasten.search.record import (
    CandidateRecord,
    CurvePoint,
    DataRecord,
    LayerRecord,
    MachineRecord,
    Outcome,
    PhaseRecord,
    PrunePoint,
    SearchRecord,
)

_LAYERS = [
    f"encoder.layer.{i}.{part}"
    for i in range(6)
    for part in ("attention.qkv", "attention.output", "intermediate", "output")
]
_TIMED = (
    (9.8, 9.9, 10.4),
    (7.1, 7.2, 7.3),
    (4.4, 4.5, 4.7),
    (3.0, 3.1, 3.2),
    (2.9, 2.95, 3.0),
    (2.4, 2.5, 2.6),
)


def _timed(index: int) -> dict[str, Spread]:
    spread = Spread(*_TIMED[index])
    original, lossless = Spread(*_TIMED[0]).median, Spread(*_TIMED[1]).median
    return {
        "latency_ms": spread,
        "to_original": Spread(original / spread.high, original / spread.median, original / spread.low),
        "to_lossless": Spread(lossless / spread.high, lossless / spread.median, lossless / spread.low),
    }


def _bound(losses: int, gains: int, upper: float) -> Bound:
    return Bound(
        (losses - gains) / 1642, upper, 0.95, 1642, "exact test of paired answers", True, losses, gains
    )


def _candidates() -> tuple[CandidateRecord, ...]:
    most = tuple(_LAYERS[1:])
    return (
        CandidateRecord(
            "original",
            "as ONNX Runtime runs it",
            "onnxruntime",
            "f32",
            **_timed(0),
            drop=0.0,
            outcome=Outcome.BASELINE,
            bytes=90_900_000,
            memory=312_000_000,
        ),
        CandidateRecord(
            "lossless",
            "compiled, the same answers",
            "hasten",
            "f32",
            **_timed(1),
            loss=0.0,
            drop=0.0,
            outcome=Outcome.BASELINE,
            bytes=91_300_000,
            memory=141_000_000,
        ),
        CandidateRecord(
            "bf16",
            "bf16 everywhere",
            "hasten",
            "bf16",
            **_timed(2),
            loss=2e-5,
            drop=0.0,
            bound=_bound(2, 2, 0.0025),
            outcome=Outcome.CERTIFIED,
            reason="a faster one was certified too",
            bytes=46_000_000,
            memory=97_000_000,
        ),
        CandidateRecord(
            "int8 (percentile), 23 layers",
            "the curve's point of loss 4e-3",
            "hasten",
            "bf16",
            most,
            "percentile",
            **_timed(3),
            loss=4e-3,
            drop=0.0009,
            bound=_bound(7, 4, 0.0046),
            outcome=Outcome.CHOSEN,
            reason="the fastest whose drop is certain to be within the budget",
            bytes=24_100_000,
            memory=71_000_000,
        ),
        CandidateRecord(
            "int8 (percentile)",
            "int8 everywhere",
            "hasten",
            "bf16",
            tuple(_LAYERS),
            "percentile",
            **_timed(4),
            loss=2e-2,
            drop=0.0037,
            bound=_bound(15, 6, 0.0096),
            outcome=Outcome.NOT_CERTIFIED,
            reason="the drop may be 0.96 points, measured 0.55 on 1,642 samples",
            bytes=23_400_000,
        ),
        CandidateRecord(
            "int8 (minmax)",
            "int8 everywhere",
            "hasten",
            "bf16",
            tuple(_LAYERS),
            "minmax",
            **_timed(4),
            loss=0.3,
            drop=0.061,
            outcome=Outcome.OVER_BUDGET,
            reason="a drop of 6.1 points on the calibration part",
        ),
        CandidateRecord(
            "onnxruntime, int8 (percentile)",
            "the same quantized graph",
            "onnxruntime",
            "f32",
            tuple(_LAYERS),
            "percentile",
            latency_ms=Spread(4.9, 5.2, 5.6),
            loss=2.1e-2,
            drop=0.0041,
            outcome=Outcome.NOT_FASTER,
            reason="int8 (percentile), 23 layers changes less and is as fast",
        ),
        CandidateRecord(
            "openvino, int8 (percentile)",
            "the same quantized graph",
            "openvino",
            "f32",
            tuple(_LAYERS),
            "percentile",
            outcome=Outcome.FAILED,
            reason="ended by signal 9 at the limit of memory <of 2 GB>",
        ),
    )


def _layers() -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(
            name,
            "MatMul",
            "bf16" if i == 0 else "int8",
            (3, 1, 4, 4)[i % 4] * 384 * 384 * 128,
            {"int8": 3e-3 if i == 0 else 2e-5 * (1 + i % 7), "bf16": 1e-7 * (1 + i % 3)},
            {"int8": 40.0 + 20 * (i % 4), "bf16": 75.0 + 38 * (i % 4), "f32": 150.0 + 71 * (i % 4)},
        )
        for i, name in enumerate(_LAYERS)
    )


def found() -> SearchRecord:
    """A search that returned a candidate."""
    return SearchRecord(
        model="minilm-r8 <onnx>",
        model_sha256="4b1f" * 16,
        machine=MachineRecord("AMD EPYC 9B45", "x86-64-v4-bf16", 2, 2, "Linux 6.1", 16_000_000_000),
        versions={"hasten": "0.1.0", "Python": "3.11.7", "numpy": "2.4.6", "onnxruntime": "1.32.0"},
        command="hasten optimize minilm-r8/ --data r8.jsonl --metric accuracy --max-drop 0.5% -o fast.hasten",
        started="2026-01-31T12:00:00+00:00",
        seed=0,
        metric="accuracy",
        larger_is_better=True,
        max_drop=0.005,
        confidence=0.95,
        data=DataRecord(2190, 548, 1642, True, "9d03" * 16),
        original="onnxruntime",
        original_value=0.953,
        candidates=_candidates(),
        chosen="int8 (percentile), 23 layers",
        layers=_layers(),
        curve=(CurvePoint(0.0, 7200.0, 0), CurvePoint(1e-3, 4100.0, 12), CurvePoint(4e-3, 3100.0, 23)),
        stated=0.005,
        headline="int8 (percentile), 23 layers: 3.19 x as fast as the original; with 95% confidence the "
        "drop in accuracy "
        "on data like yours is at most 0.5 points (measured 0.183 on 1,642 held-out samples)",
        notes=(
            "raw texts through the tokenizer of the model (BertTokenizer)",
            "5 measurements are from earlier searches",
        ),
        phases=(PhaseRecord("reading", 2.1), PhaseRecord("sensitivity", 71.4), PhaseRecord("timing", 44.0)),
        interrupted=False,
        samples_needed=None,
    )


def pruned() -> SearchRecord:
    """The same search, with units removed too: what is returned lost a third of the arithmetic."""
    base = found()
    chosen = base.candidates[3]
    made = []
    for flops, ms, loss, outcome in (
        (0.74, 2.5, 6e-3, Outcome.CERTIFIED),
        (0.62, 2.2, 1.1e-2, Outcome.CHOSEN),
        (0.5, 1.9, 4e-2, Outcome.OVER_BUDGET),
    ):  # fmt: skip
        cuts = tuple(
            Cut(f"encoder.layer.{i}.{part}", unit, before, max(1, round(before * flops * (0.8 + 0.08 * i))))
            for i in range(6)
            for part, unit, before in (("attention", "heads", 12), ("intermediate", "neurons", 1536))
        )
        made.append(
            dataclasses.replace(
                chosen, name=f"{flops:.0%} of FLOPs, {chosen.name}", flops=flops, cuts=cuts, loss=loss,
                latency_ms=Spread(ms * 0.98, ms, ms * 1.03), outcome=outcome,
                to_original=Spread(9.7 / ms, 9.9 / ms, 10.1 / ms),
            )
        )  # fmt: skip
    others = [
        dataclasses.replace(chosen, outcome=Outcome.CERTIFIED) if c is chosen else c for c in base.candidates
    ]
    return dataclasses.replace(
        base,
        candidates=(*others, *made),
        chosen=made[1].name,
        headline=base.headline.replace(chosen.name, made[1].name),
        prune_curve=tuple(PrunePoint(0.02 * (1 - s) ** 2, 3100 * s + 400, s) for s in (1.0, 0.8, 0.6, 0.4)),
        left_alone=("384 neurons of embeddings: LayerNormalization 'norm' needs all of axis 2",),
    )


def refused() -> SearchRecord:
    """A search that returned the lossless compilation, of a metric that is no share, and was interrupted."""
    base = found()
    unknown = {"latency_ms": None, "to_original": None, "to_lossless": None, "bytes": None, "memory": None}
    original, lossless, _, int8, *_ = base.candidates
    return dataclasses.replace(
        base,
        metric="kl",
        larger_is_better=False,
        chosen="lossless",
        candidates=(
            dataclasses.replace(original, **unknown),  # type: ignore[arg-type]
            dataclasses.replace(lossless, outcome=Outcome.CHOSEN),
            dataclasses.replace(
                int8,
                bound=Bound(0.001, float("inf"), 0.95, 12, "bootstrap (BCa)", False),
                outcome=Outcome.NOT_CERTIFIED,
            ),
        ),
        layers=(),
        curve=(),
        stated=None,
        original=None,
        original_value=None,
        headline="the lossless compilation is returned: 12 held-out samples cannot certify a drop of at "
        "most 0.005",
        notes=(),
        interrupted=True,
        samples_needed=597,
    )
