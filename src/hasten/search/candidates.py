"""The versions of a model that a search looks at, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hasten.search.engines import HASTEN, HASTEN_BF16, Engine, Precision
from hasten.search.histogram import Method
from hasten.search.quantization import Quantization
from hasten.search.variants import WHOLE

ORIGINAL, LOSSLESS, BF16 = "original", "lossless", "bf16"


@dataclass(frozen=True)
class Candidate:
    """A version of the model.

    Attributes:
        name: unique within a search.
        description: for people.
        engine: what runs it, with its settings.
        how: which layers are int8, and how they are quantized; None where none is.
        variant: the graph that it is made from (`variants`).
    """

    name: str
    description: str
    engine: Engine
    how: Quantization | None = None
    variant: str = WHOLE

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that are int8."""
        return () if self.how is None else tuple(self.how.layers or ())

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


def everywhere(how: Quantization, ranges: Method, engine: Engine) -> Candidate:
    """All layers that can be quantized in int8.

    Args:
        how: to quantize; its layers are all of them.
        ranges: the method for the activations'.
        engine: what runs it.
    """
    where = "" if engine.runs == "artifact" else f", {engine.name}"
    count = len(how.layers or ())
    return _int8(f"int8 ({ranges}{_rest(engine)}{where})", f"all {count} layers", how, ranges, engine)


def mixed(layers: tuple[str, ...], how: Quantization, ranges: Method, engine: Engine) -> Candidate:
    """Some layers in int8."""
    count, of = len(layers), len(how.layers or ())
    name = f"int8 {count}/{of} ({ranges}{_rest(engine)})"
    return _int8(name, f"{count} of {of} layers", replace(how, layers=layers), ranges, engine)


def pruned(of: Candidate, variant: str, flops: float) -> Candidate:
    """A candidate in the precision of another, of a graph that units were removed from.

    Args:
        of: the other one.
        variant: the graph.
        flops: the share of the arithmetic that is left.
    """
    left = f"{flops:.0%} of FLOPs"
    name = left if of.name == LOSSLESS else f"{left}, {of.name}"
    described = f"pruned to {flops:.1%} of the arithmetic, {of.description}"
    return replace(of, name=name, description=described, variant=variant)


def _rest(engine: Engine) -> str:
    return "" if engine.precision == "f32" else f", {engine.precision}"


def _int8(name: str, which: str, how: Quantization, ranges: Method, engine: Engine) -> Candidate:
    smoothed = "" if how.smoothing is None else f", smoothed by {how.smoothing:g}"
    corrected = ", biases corrected" if how.correct_bias else ""
    described = f"{which} int8, ranges by {ranges}{smoothed}{corrected}, the rest {engine.precision}"
    return Candidate(name, described, engine, replace(how, ranges=ranges, rest=engine.precision))


def foreign(engine: Engine) -> Candidate:
    """Another engine on the model as it is."""
    return Candidate(engine.name, f"{engine.name} {engine.version}, {engine.precision}", engine)
