"""Making candidates: a graph in other formats, and an artifact of it, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten.backends.native import Options, compile_graph
from hasten.errors import EngineError, HastenError
from hasten.graph.pages import give_back
from hasten.loops.dtypes import DType
from hasten.passes.quantize import Range
from hasten.runtime.artifact import write_artifact
from hasten.search.engines import Limits
from hasten.search.formats import Format
from hasten.search.isolated import isolated
from hasten.search.quantization import Prepared
from hasten.search.transfer import save_graph
from hasten.target import Target, with_factors


@dataclass(frozen=True)
class Build:
    """How candidates are compiled; `backends.native.Options` says what the fields mean.

    Attributes:
        targets: names of instruction sets.
        threads: of a run; None for all cores.
        padding: "skip" or "compute".
        cache: folder of compiled objects.
        version: of hasten.
    """

    targets: tuple[str, ...]
    threads: int | None
    padding: str
    cache: str
    version: str


@dataclass(frozen=True)
class Recipe:
    """How a quantized graph is made.

    Attributes:
        prepared: the graph in floats, with all that the formats need.
        formats: by the layer's name.
        ranges: of activations.
    """

    prepared: Prepared
    formats: Mapping[str, Format]
    ranges: Mapping[str, Range]

    def graph(self) -> ir.Model:
        """The graph."""
        return self.prepared.quantized(self.formats, self.ranges)


def write_quantized(recipe: Recipe, graph: Path, limits: Limits) -> None:
    """Makes a quantized graph.

    Args:
        recipe: how.
        graph: the ONNX file to write.
        limits: of the process that does it.

    Raises:
        HastenError: it failed, or took too long or too much memory.
    """
    isolated(_write_quantized, recipe, graph, doing="quantizing", folder=graph.parent, limits=limits)


def build(
    graph: Path,
    output: Path,
    how: Build,
    precision: str,
    limits: Limits,
    report: Mapping[str, Any],
    recipe: Recipe | None = None,
) -> None:
    """Compiles an optimized graph.

    Args:
        graph: an ONNX file.
        output: the artifact to write.
        how: for all candidates.
        precision: of products that are not quantized.
        limits: of the process and all that it starts.
        report: what earlier steps noted for people; goes into the manifest.
        recipe: makes the graph first; None where it is there.

    Raises:
        EngineError: it failed, or took too long or too much memory.
    """
    job = (graph, output, how, precision, report, recipe)
    try:
        isolated(_build, *job, doing="compiling", folder=output.parent, limits=limits)
    except EngineError:
        raise
    except HastenError as error:
        raise EngineError(f"hasten cannot compile it: {error}") from error


def compile_model(
    model: ir.Model, output: Path, how: Build, precision: str, report: Mapping[str, Any]
) -> None:
    """Compiles a graph in this process; the arguments are those of `build`.

    Raises:
        HastenError: it failed.
    """
    factors = {"u8"} if any(node.op_type == "QuantizeLinear" for node in model.graph) else set()
    factors |= {"bf16"} if precision == "bf16" else set()
    targets = [t for name in how.targets for t in with_factors(Target.named(name), factors)]
    options = Options(
        tuple(dict.fromkeys(targets)), how.threads, DType(precision), Path(how.cache), how.padding
    )
    payload = compile_graph(model, options, dict(report), how.version)
    write_artifact(output, payload.manifest, payload.members)


def _write_quantized(recipe: Recipe, graph: Path) -> None:
    save_graph(recipe.graph(), graph)
    give_back(recipe.prepared.model)


def _build(
    graph: Path, output: Path, how: Build, precision: str, report: Mapping[str, Any], recipe: Recipe | None
) -> None:
    if recipe is not None:
        _write_quantized(recipe, graph)
    compile_model(ir.load(graph), output, how, precision, report)
