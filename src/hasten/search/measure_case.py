"""One case of a comparison: a compiled model, its source, inputs, and the engines that can run either."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from hasten.errors import EngineError, ModelError, ToolchainError
from hasten.frontends import huggingface
from hasten.runtime.artifact import read_artifact
from hasten.runtime.checks import bind_sizes, check_names
from hasten.runtime.manifest import all_steps
from hasten.search.busy import busy_cores
from hasten.search.engines import HASTEN, Engine, Precision
from hasten.search.measure import Contestant, Measurement, Plan, Spread, measure
from hasten.search.measure_flops import count_flops
from hasten.search.peak import Peak

Array = NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """Figures of one model with inputs of one size.

    Attributes:
        name: what was measured.
        shapes: shapes of the inputs.
        measurement: the engines' figures, hasten's first.
        gflop: 10**9 operations of a run; None if they could not be counted.
        gflops: 10**9 operations per second that hasten achieved; None if there are none to count.
        peak_precision: that the peak is of: what the artifact multiplies in (`precision_of`), or "f32" where
            the processor has no instructions for that.
        peak_gflops: the machine's peak with as many threads, in the same rounds; None without a compiler.
        share_of_peak: `gflops` by `peak_gflops`.
        busy_cores: cores that other programs used just before, of those that this one may run on; figures
            of a machine whose cores are busy mean little.
        compile_seconds: how long the compilation took, if it was part of this.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    measurement: Measurement
    gflop: float | None
    gflops: float | None
    peak_precision: Precision
    peak_gflops: Spread | None
    share_of_peak: float | None
    busy_cores: float
    compile_seconds: float | None = None


def measure_case(
    name: str,
    artifact: Path,
    sources: Sequence[Path],
    against: Sequence[Engine],
    feeds: Mapping[str, Array],
    plan: Plan,
    *,
    compile_seconds: float | None = None,
    progress: Progress = lambda _: None,
) -> Case:
    """Times an artifact, and other engines on the model that it was compiled from.

    Args:
        name: what is measured.
        artifact: the compiled model.
        sources: the ONNX file or the Hugging Face folder, or both, for the other engines.
        against: the other engines. One that cannot take a source is noted among the failures.
        feeds: an array for each input.
        plan: how much to measure.
        compile_seconds: passed on.
        progress: is told what begins.

    Raises:
        EngineError: the artifact does not run.
        InputError: the arrays are not those that it takes.
        ModelError: the source cannot be read.
    """
    used = busy_cores()
    opened = read_artifact(artifact)
    check_names(opened.manifest.inputs, feeds)
    sizes = bind_sizes(opened.manifest.inputs, [feeds[i.name].shape for i in opened.manifest.inputs])
    flops = count_flops(onnx.load_from_string(bytes(opened.members["graph.onnx"])).graph, sizes)
    opened.close()
    precision = precision_of(artifact)
    failures: dict[str, str] = {}
    peak = None
    try:
        peak = Peak(plan.threads)
    except ToolchainError as error:
        failures["peak of the machine"] = str(error)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        contestants = [Contestant(replace(HASTEN, precision=precision), artifact, [artifact])]
        for engine in against:
            progress(f"preparing the model for {engine.name}")
            model = model_for(engine, sources, Path(folder))
            if isinstance(model, str):
                failures[engine.name] = model
            else:
                contestants.append(Contestant(engine, model, files_of(model)))
        found = measure(
            contestants, feeds, plan, progress=progress, beside=peak.by_precision if peak else None
        )
    if not found.results or found.results[0].engine != HASTEN.name:
        raise EngineError(found.failures[HASTEN.name])
    found = Measurement(
        found.threads, found.rounds, found.results, {**failures, **found.failures}, found.beside
    )
    compared: Precision = precision if found.beside_named(precision) is not None else "f32"
    peaks = found.beside_named(compared)
    achieved = flops / found.results[0].run_ms.median / 1e6 if flops else None
    return Case(
        name=name,
        shapes={key: array.shape for key, array in feeds.items()},
        measurement=found,
        gflop=None if flops is None else flops / 1e9,
        gflops=achieved,
        peak_precision=compared,
        peak_gflops=peaks,
        share_of_peak=None if achieved is None or peaks is None else achieved / peaks.median,
        busy_cores=used,
        compile_seconds=compile_seconds,
    )


def precision_of(artifact: Path) -> Precision:
    """The narrowest precision in which an artifact's products and convolutions multiply; "f32" without any.

    A model may have several. By the peak of the narrowest, which is the highest, no share is too large.
    """
    with zipfile.ZipFile(artifact) as archive:
        steps = list(all_steps(json.loads(archive.read("manifest.json"))["steps"]))
        graph = onnx.load_from_string(archive.read("graph.onnx")).graph
    native = [products for step in steps for products in step.get("products", {}).values()]
    # The element type stands first in the text of a product's shape (`codegen.schedule.ProductShape`).
    found = {product["shape"].partition(":")[0] for products in native for product in products}
    foreign = {step["precision"] for step in steps if step["kind"] == "foreign"}
    if foreign and any(node.op_type in _QUANTIZES for node in graph.node):
        foreign.add("u8")
    found |= foreign
    return "int8" if found & {"u8", "i8"} else "bf16" if "bf16" in found else "f32"


_QUANTIZES = ("QuantizeLinear", "DynamicQuantizeLinear")
"""Operators that make the bytes which integer products multiply."""


def model_for(engine: Engine, sources: Sequence[Path], folder: Path) -> Path | str:
    """A source in the form that an engine takes, written to a folder if need be; or why there is none.

    Raises:
        ModelError: the source cannot be read.
    """
    folders = [source for source in sources if huggingface.accepts(source)]
    files = [source for source in sources if source not in folders]
    wanted = folders if engine.runs == "module" else files
    if wanted:
        return wanted[0]
    if engine.runs == "module" or not folders:
        shown = ", ".join(map(str, sources)) or "no source is given"
        return f"it runs {'Hugging Face folders' if engine.runs == 'module' else 'ONNX files'}: {shown}"
    exported = folder / "exported.onnx"
    if not exported.exists():
        ir.save(huggingface.load(folders[0]), exported, external_data="exported.data")
    return exported


_WHOLE = (".hasten", ".pt", ".pt2")
"""Suffixes of models that are one file: artifacts, and modules that PyTorch saved."""


def files_of(model: Path) -> list[Path]:
    """All files that a model consists of.

    Raises:
        ModelError: it cannot be read, is neither a folder nor an ONNX file, or lacks one of its files.
    """
    if model.is_dir():
        return sorted(path for path in model.rglob("*") if path.is_file())
    if model.suffix in _WHOLE:
        return [_existing(model)]
    try:
        proto = onnx.load(str(model), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {model}: {error.strerror}; check the path") from None
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"{model} cannot be read as ONNX ({error}): give an ONNX file or a Hugging Face folder"
        ) from None
    found = {model: None}
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[_existing(model.parent / entry.value)] = None
    return list(found)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"there is no file {path}, which the model needs: check the path")
    return path
