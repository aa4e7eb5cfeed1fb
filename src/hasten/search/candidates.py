"""The versions of a model that a search looks at, as values."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.search.engines import HASTEN, HASTEN_BF16, Engine, Precision
from hasten.search.histogram import Method

ORIGINAL, LOSSLESS, BF16 = "original", "lossless", "bf16"


@dataclass(frozen=True)
class Candidate:
    """A version of the model.

    Attributes:
        name: unique within a search.
        description: for people.
        engine: what runs it, with its settings.
        quantized: names of the layers that are int8.
        calibration: how their ranges follow from the data; None where no layer is quantized.
    """

    name: str
    description: str
    engine: Engine
    quantized: tuple[str, ...] = ()
    calibration: Method | None = None

    @property
    def precision(self) -> Precision:
        """Of the layers that are not quantized."""
        return self.engine.precision

    @property
    def ours(self) -> bool:
        """Whether hasten compiles it."""
        return self.engine.runs == "artifact"


def own_engine(precision: Precision) -> Engine:
    """The engine of artifacts, by the precision of what is not quantized."""
    return HASTEN_BF16 if precision == "bf16" else HASTEN


def lossless() -> Candidate:
    """The compilation that changes nothing but rounding."""
    return Candidate(LOSSLESS, "compiled, all layers f32", HASTEN)


def narrow() -> Candidate:
    """All layers in bf16."""
    return Candidate(BF16, "compiled, all layers bf16", HASTEN_BF16)


def everywhere(layers: tuple[str, ...], calibration: Method, engine: Engine) -> Candidate:
    """All layers that can be quantized in int8."""
    rest = "" if engine.precision == "f32" else f", {engine.precision}"
    where = "" if engine.runs == "artifact" else f", {engine.name}"
    return Candidate(
        f"int8 ({calibration}{rest}{where})",
        f"all {len(layers)} layers int8, ranges by {calibration}, the rest {engine.precision}",
        engine,
        layers,
        calibration,
    )


def mixed(layers: tuple[str, ...], of: int, calibration: Method, engine: Engine) -> Candidate:
    """Some layers in int8."""
    rest = "" if engine.precision == "f32" else f", {engine.precision}"
    return Candidate(
        f"int8 {len(layers)}/{of} ({calibration}{rest})",
        f"{len(layers)} of {of} layers int8, ranges by {calibration}, the rest {engine.precision}",
        engine,
        layers,
        calibration,
    )


def foreign(engine: Engine) -> Candidate:
    """Another engine on the model as it is."""
    return Candidate(engine.name, f"{engine.name} {engine.version}, {engine.precision}", engine)
