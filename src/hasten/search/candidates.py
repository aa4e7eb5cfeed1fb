"""The versions of a model that a search looks at, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from hasten.search.engines import HASTEN, HASTEN_BF16, ONNXRUNTIME, OPENVINO, OPENVINO_BF16, Engine, Precision
from hasten.search.formats import FORMATS, Format
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
        how: how layers are quantized; None where none is.
        variant: the graph that it is made from (`variants`).
        formats: of the layers that are quantized, by name.
    """

    name: str
    description: str
    engine: Engine
    how: Quantization | None = None
    variant: str = WHOLE
    formats: Mapping[str, Format] = field(default_factory=dict)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that are not in floats."""
        return tuple(self.formats)

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


_WORDS: Mapping[Format, str] = {
    "int8": "int8",
    "int8-dynamic": "int8 with a scale for each row",
    "int8-weights": "weights of 8 bits",
    "int4-weights": "weights of 4 bits",
}


_BY = {"layer": "the best method for each layer"}


def quantized(formats: Mapping[str, Format], how: Quantization, engine: Engine, of: int) -> Candidate:
    """Some layers or all of them quantized.

    Args:
        formats: by the layer's name.
        how: to quantize.
        engine: what runs it.
        of: how many layers there are.
    """
    counts = Counter(formats.values())
    found = [(form, counts[form]) for form in FORMATS if form in counts]
    names = [form if count == of else f"{form} {count}/{of}" for form, count in found]
    calibrated = "int8" in counts
    choices: list[str] = [how.ranges] if calibrated else []
    choices += ["gptq"] if how.rounding == "gptq" else []
    choices += [engine.precision] if engine.precision != "f32" else []
    choices += [] if engine.runs == "artifact" else [engine.package]
    name = ", ".join(names) + (f" ({', '.join(choices)})" if choices else "")
    described = [
        f"{'all' if count == of else f'{count} of'} {of} layers {_WORDS[form]}" for form, count in found
    ]
    described += [f"ranges by {_BY.get(how.ranges, how.ranges)}"] if calibrated else []
    described += [] if how.smoothing is None else [f"smoothed by {how.smoothing:g}"]
    described += ["rounded by GPTQ"] if how.rounding == "gptq" else []
    described += ["biases corrected"] if how.correct_bias else []
    described.append(f"the rest {engine.precision}")
    return Candidate(name, ", ".join(described), engine, replace(how, rest=engine.precision), formats=formats)


def pruned(of: Candidate, variant: str, flops: float, *, layers: int = 0) -> Candidate:
    """A candidate in the precision of another, of a graph that units were removed from.

    Args:
        of: the other one.
        variant: the graph.
        flops: the share of the arithmetic that is left.
        layers: that were left out.
    """
    left = f"{flops:.0%} of FLOPs"
    left += f" without {layers} layer{'s' if layers > 1 else ''}" if layers else ""
    name = left if of.name == LOSSLESS else f"{left}, {of.name}"
    described = f"pruned to {flops:.1%} of the arithmetic, {of.description}"
    how = None if of.how is None else replace(of.how, rounding="nearest")
    return replace(of, name=name, description=described, how=how, variant=variant)


def foreign_engines(precisions: Collection[str], *, original: Engine | None) -> list[tuple[Engine, bool]]:
    """Other engines that are installed, each with whether it is for quantized graphs.

    Args:
        precisions: that layers may have; bf16 is among them only if this processor multiplies it.
        original: the engine of the original, which needs no second candidate for the same graph.
    """
    known = [OPENVINO, OPENVINO_BF16, ONNXRUNTIME]
    engines = [e for e in known if e.precision in precisions and e.version is not None]
    plain = [e for e in engines if original is None or e.package != original.package]
    quantized = engines if "int8" in precisions else []
    return [*((e, False) for e in plain), *((e, True) for e in reversed(quantized))]


def foreign(engine: Engine) -> Candidate:
    """Another engine on the model as it is."""
    return Candidate(engine.name, f"{engine.name} {engine.version}, {engine.precision}", engine)
