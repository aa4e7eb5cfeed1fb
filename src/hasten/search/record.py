"""Everything that a search did and found, as plain values: what reports are made from.

Milliseconds, microseconds and bytes are what their names say; drops are in the metric's own units (0.01
is one point of accuracy), positive where a candidate is worse than the original. None stands for what was
not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hasten.search.certify import Bound
from hasten.search.measure import Spread
from hasten.search.prune.report import Cut

FORMAT = 1


class Outcome(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    CERTIFIED = "certified"
    NOT_CERTIFIED = "not certified"
    OVER_BUDGET = "over budget"
    SET_ASIDE = "set aside"
    NOT_FASTER = "not faster"
    NOT_TRIED = "not tried"
    FAILED = "failed"
    BASELINE = "baseline"


@dataclass(frozen=True)
class MachineRecord:
    """Where the search ran.

    Attributes:
        processor: its model.
        target: the instruction set that code was made for.
        threads: of each run.
        cores: that the process could use.
        system: the operating system.
        memory: bytes of the machine; None if unknown.
    """

    processor: str
    target: str
    threads: int
    cores: int
    system: str
    memory: int | None


@dataclass(frozen=True)
class DataRecord:
    """What data the search had.

    Attributes:
        samples: all of them.
        calibration: that ranges were observed on and candidates compared with.
        held_out: that nothing but certificates looked at.
        labelled: whether there are labels.
        sha256: of all samples and labels, hexadecimal.
    """

    samples: int
    calibration: int
    held_out: int
    labelled: bool
    sha256: str


@dataclass(frozen=True)
class LayerRecord:
    """A layer that could be quantized.

    Attributes:
        name: of its node in the graph.
        operator: its kind.
        precision: what it has in the chosen candidate: "bf16", "f32", or as in `CandidateRecord.formats`;
            "removed" if it is gone.
        macs: multiplications of one sample; None if unknown.
        sensitivity: for each precision, the loss when this layer alone has it: the mean squared change of
            the outputs by their variance.
        us: for each precision, the microseconds of this layer in a run of one sample.
    """

    name: str
    operator: str
    precision: str
    macs: int | None
    sensitivity: Mapping[str, float]
    us: Mapping[str, float]


@dataclass(frozen=True)
class CandidateRecord:
    """A version of the model, and what was found about it.

    Attributes:
        name: short, unique within the search: "int8 (entropy)", "original".
        description: what it is, in words.
        engine: what runs it: "hasten", "onnxruntime", ...
        precision: of the layers that are not in `quantized`.
        quantized: names of the layers that are not in floats.
        calibration: the method of the activations' ranges; None where there are none.
        latency_ms: of a run of one sample, quartiles; None where it was not timed.
        to_original: the original's time divided by its time, in the same rounds: above 1, it is faster.
        to_lossless: the same with the lossless compilation's time.
        loss: the mean squared change of the outputs by their variance, on the calibration part.
        drop: of the metric on the calibration part.
        bound: from the held-out part; None where it was not tested.
        against: name of the candidate whose answers the bound compares with; None as `bound`.
        outcome: what became of it.
        reason: why, in words.
        bytes: size of its artifact or model files.
        memory: the most bytes of a process that opened it and ran it once.
        smoothing: how much of the activations' outliers was moved into weights, 0 to 1; None for not at all.
        correct_bias: whether the mean error of int8 weights was taken back in biases.
        flops: of a pruned one, the share of the arithmetic that is left; None for the whole model.
        cuts: of a pruned one, what each group of units has lost, in the order of the model.
        formats: of the layers in `quantized`, by name: "int8", "int8-dynamic" (a scale for each row of
            activations, found in the run), "int8-weights" or "int4-weights" (weights alone).
        rounding: how weights were rounded: "nearest" or "gptq"; None where none were.
    """

    name: str
    description: str
    engine: str
    precision: str
    quantized: tuple[str, ...] = ()
    calibration: str | None = None
    latency_ms: Spread | None = None
    to_original: Spread | None = None
    to_lossless: Spread | None = None
    loss: float | None = None
    drop: float | None = None
    bound: Bound | None = None
    outcome: Outcome = Outcome.NOT_TRIED
    reason: str = ""
    bytes: int | None = None
    memory: int | None = None
    smoothing: float | None = None
    correct_bias: bool = False
    flops: float | None = None
    cuts: tuple[Cut, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    rounding: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A point of the curve of predicted time against predicted loss.

    Attributes:
        loss: predicted, as `CandidateRecord.loss`.
        us: predicted microseconds of a run.
        quantized: how many layers are quantized there.
    """

    loss: float
    us: float
    quantized: int


@dataclass(frozen=True)
class PrunePoint:
    """A point of the curve of predicted time against what pruning loses.

    Attributes:
        loss: predicted, by the criterion; comparable within the curve alone.
        us: predicted microseconds of a run.
        share: of the time of the layers that is left.
    """

    loss: float
    us: float
    share: float


@dataclass(frozen=True)
class PhaseRecord:
    """A phase of the search: its name and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class SearchRecord:
    """A search.

    Attributes:
        format: of this record; grows when the meaning of a field changes.
        model: what was optimized, for people.
        model_sha256: of its optimized graph with weights, hexadecimal.
        machine: where.
        versions: of hasten, Python and the packages that took part, by name.
        command: what repeats the search.
        started: when, in UTC, as ISO 8601 has it.
        seed: of the split and everything random.
        metric: its name.
        larger_is_better: its direction.
        max_drop: the budget, in the metric's units.
        confidence: of the certificate, such as 0.95.
        data: what data there was.
        original: what stood for the original engine ("torch", "onnxruntime"); None if none could.
        original_value: the metric's value of the reference on the held-out part.
        candidates: all, baselines (original, lossless) first, then in the order in which they were tried.
        chosen: name of the candidate that was returned.
        layers: that could be quantized, in order.
        curve: fastest predicted time for each predicted loss.
        stated: the drop that is certain, with `confidence`, not to be exceeded by what is returned
            (`certify.sequence_bound`); None where the lossless compilation is.
        headline: one sentence about what is returned and what is certain about it.
        notes: what else the user should know: too little data, phases cut short, reused measurements.
        phases: how long each took, in order.
        interrupted: whether the user ended it, or the time did.
        samples_needed: how many held-out samples would certify the budget, where too few prevented it.
        prune_curve: predicted time for falling amounts of units that stay; empty where nothing was pruned.
        left_alone: units that could not be removed, and why, in words.
        reference: name of the candidate whose answers drops are against: "original", or "lossless" where the
            original could not be asked; the notes say why.
    """

    model: str
    model_sha256: str
    machine: MachineRecord
    versions: Mapping[str, str]
    command: str
    started: str
    seed: int
    metric: str
    larger_is_better: bool
    max_drop: float
    confidence: float
    data: DataRecord
    original: str | None
    original_value: float | None
    candidates: tuple[CandidateRecord, ...]
    chosen: str
    layers: tuple[LayerRecord, ...]
    curve: tuple[CurvePoint, ...]
    stated: float | None
    headline: str
    notes: tuple[str, ...]
    phases: tuple[PhaseRecord, ...]
    interrupted: bool
    samples_needed: int | None
    format: int = FORMAT
    prune_curve: tuple[PrunePoint, ...] = ()
    left_alone: tuple[str, ...] = ()
    reference: str = "original"

    def candidate(self, name: str) -> CandidateRecord:
        """The candidate of a name.

        Raises:
            KeyError: there is none.
        """
        found = {c.name: c for c in self.candidates}
        return found[name]
