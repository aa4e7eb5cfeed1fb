"""`hasten.compile`: from any source to a session that runs machine code."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from hasten import __version__, frontends
from hasten.api.sources import folder_of, inputs_of, plain
from hasten.backends.native import Options, Payload, compile_graph, stored_sparse
from hasten.codegen.schedule import Schedules
from hasten.codegen.toolchain import default_cache
from hasten.errors import HostOperatorWarning, OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.loops.dtypes import DType
from hasten.loops.program import Program
from hasten.passes.facts import is_quantized
from hasten.passes.pipeline import optimize_graph
from hasten.runtime.artifact import write_artifact
from hasten.runtime.checks import whole_threads
from hasten.runtime.session import Session, open_session
from hasten.search.data import Feeds, load_runs
from hasten.search.formats import WEIGHTS
from hasten.search.measure_inputs import check_names
from hasten.search.prune.plan import Progress
from hasten.search.quantization import Quantization, Quantized, quantize
from hasten.search.tune_options import Chosen, Tuning, choose_schedules
from hasten.search.uncalibrated import quantize_dynamic, quantize_weights_only
from hasten.target import Target, best_here, with_factors

PRECISIONS = ("f32", "bf16", "int8", *WEIGHTS)
PADDING = ("skip", "compute")
STORAGE = ("mapped", "sparse")


@dataclass(frozen=True)
class CompileOptions:
    """The choices of `compile`, which says what they mean."""

    precision: str = "f32"
    data: object = None
    quantization: Quantization | None = None
    padding: str = "skip"
    threads: int | None = None
    target: str | Sequence[str] = "native"
    example: Example | None = None
    dynamic: Dynamic | None = None
    cache: str | os.PathLike[str] | None = None
    tune: str | Tuning = "0"
    keep_graph: bool = False
    storage: str = "mapped"
    winograd: bool = True

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("padding", PADDING), ("storage", STORAGE)):
            if (given := getattr(self, name)) not in known:
                raise OptionError(f"{name}={given!r}: give one of {', '.join(known)}")
        object.__setattr__(self, "threads", whole_threads(self.threads))
        if not isinstance(self.tune, str | Tuning):
            raise OptionError(f"tune={self.tune!r}: give '0', 'stored', 'quick', 'full' or a hasten.Tuning")
        if not self.targets:
            raise OptionError("target=[]: give at least one instruction set, or 'native' for this machine's")
        quantized = self.precision in ("int8", *WEIGHTS)
        for name in () if quantized else ("data", "quantization"):
            if getattr(self, name) is not None:
                raise OptionError(
                    f"{name}= is for int8, int8-weights and int4-weights, and precision is {self.precision!r}"
                )
        if self.quantization is not None and self.quantization.rounding == "gptq" and self.data is None:
            raise OptionError("rounding='gptq' looks at what layers multiply: give data= too")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of instruction sets."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    @property
    def folder(self) -> Path:
        """Of compiled objects."""
        return default_cache() if self.cache is None else Path(self.cache)

    @property
    def rest(self) -> DType:
        """What is computed in where nothing is quantized."""
        if self.precision in ("int8", *WEIGHTS):
            return DType((self.quantization or Quantization()).rest)
        return DType(self.precision)


def compile(  # noqa: A001, PLR0913 - the field's word; choices, each with a default
    source: object,
    *,
    precision: str = "f32",
    data: object = None,
    quantization: Quantization | None = None,
    padding: str = "skip",
    threads: int | None = None,
    target: str | Sequence[str] = "native",
    example: Example | None = None,
    dynamic: Dynamic | None = None,
    cache: str | os.PathLike[str] | None = None,
    tune: str | Tuning = "0",
    keep_graph: bool = False,
    storage: str = "mapped",
    winograd: bool = True,
) -> Session:
    """Compiles a trained model to machine code for this processor.

    Args:
        source: an ONNX file (path, bytes or ModelProto), a Hugging Face model folder, a torch.nn.Module or
            ExportedProgram, a fitted estimator or pipeline of scikit-learn (LightGBM's and XGBoost's too), or
            what `prune` returned.
        precision: "f32", or "bf16": weights and what products read are stored in 16 bits, sums and
            all other arithmetic stay f32. Fast on processors with AVX512-BF16; others give the same
            results to rounding. "int8": products are computed in 8 bits, with scales found on `data`, or
            without data by matrix products alone, with a scale for each row that is found in the run.
            "int8-weights", "int4-weights": the weights of matrix products take 8 or 4 bits, and all
            arithmetic stays f32; fast where few rows are multiplied with large weights.
        data: examples of what the model will see, as `search.data.load_samples` takes them. Positions that
            a mask hides do not count. "int8" finds scales on them, or without them in the run; weights
            alone are rounded by what they do to the results, or without data to the nearest codes.
        quantization: for "int8" and weights alone, which layers and how, and what the rest computes in; None
            for all of them, the usual way, and f32.
        padding: "skip" computes a padded batch at the positions that its attention mask shows only;
            outputs keep their shape, and are 0 at hidden positions of outputs that have one for each.
            "compute" computes hidden positions too, as the source does.
        threads: threads that a run uses; None for all cores that this process may use.
        target: instruction set, or several for one artifact that picks the best at opening.
        example: inputs to trace a torch.nn.Module with; some rows, for an estimator whose columns have types
            that it does not tell itself.
        dynamic: for torch.nn.Module, the symbolic dims: input name -> {dim: name}.
        cache: folder of compiled objects; None for the user's cache folder.
        tune: how tile shapes and the like are chosen: "0" from the model alone, the same on every
            machine; "stored", "quick" or "full" by measurements on this one; or a `Tuning`.
        keep_graph: keep the graph's weights in the artifact too, so that it can be exported to ONNX.
        storage: "mapped": weights lie in the file as kernels read them, and opening costs nothing. "sparse":
            zeros take a bit each, if that makes a tenth or more smaller; opening then puts the weights
            together in memory, at about 1 GB a second.
        winograd: whether convolutions may go by Winograd's algorithms: less arithmetic, and up to three times
            the rounding error of sums as the definition has them (docs/decisions/0007-winograd.md).

    Returns:
        An open session; `save` writes its artifact.

    Raises:
        ModelError: the source cannot be read, or has operators that nothing can run.
        OptionError: an argument makes no sense.
        DataError: `data` cannot be read or does not fit the model.
        CalibrationError: `data` gives NaN or infinity somewhere in the model.
        TargetError: an unknown target, or none of them runs on this machine.
        ToolchainError: no C compiler was found.
        TuningError: the measurements on disk cannot be read or written.

    Warns:
        HostOperatorWarning: some operators run on the host.
    """
    options = CompileOptions(
        precision=precision,
        data=data,
        quantization=quantization,
        padding=padding,
        threads=threads,
        target=target,
        example=example,
        dynamic=dynamic,
        cache=cache,
        tune=tune,
        keep_graph=keep_graph,
        storage=storage,
        winograd=winograd,
    )
    payload = compile_payload(source, options)
    hosted = payload.manifest["report"]["host"]
    if hosted:
        listing = "; ".join(f"{node}: {reason}" for node, reason in hosted.items())
        text = f"{len(hosted)} operators run on the host, correct but slow ({listing})"
        warnings.warn(text, HostOperatorWarning, stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        path = Path(folder) / "model.hasten"
        write_artifact(path, payload.manifest, payload.members)
        # The open file outlives its name: the session keeps it mapped.
        return open_session(path, threads=threads)


def compile_payload(
    source: object, options: CompileOptions | None = None, *, progress: Progress = lambda _: None
) -> Payload:
    """What `compile` would write, without writing or opening it.

    Args:
        source: as for `compile`.
        options: its choices; None for all defaults.
        progress: is told what begins.

    Raises:
        HastenError: as for `compile`.
    """
    asked = options or CompileOptions()
    named = [Target.named(name) for name in asked.targets]
    tuning = Tuning(asked.tune) if isinstance(asked.tune, str) else asked.tune
    progress("reading the model")
    model = frontends.load(plain(source), example=asked.example, dynamic=asked.dynamic)
    check_names(tuning.shapes, [v.name or "" for v in model.graph.inputs])
    progress("optimizing the graph")
    cautions: list[str] = []
    noted: dict[str, Any] = {
        "passes": dataclasses.asdict(optimize_graph(model)),
        "notes": model.metadata_props.get("hasten.notes", ""),
        "warnings": cautions,
        "tuning": {},
    }
    found = _quantized(model, folder_of(source), asked, cautions, progress)
    if found is not None:
        model, noted["quantization"] = found.model, found.report
        cautions += found.warnings
    factors = {"bf16"} if asked.rest is DType.BF16 else set()
    factors |= {"u8"} if is_quantized(model) else set()
    targets = tuple(dict.fromkeys(t for target in named for t in with_factors(target, factors)))
    cautions += _slow_bf16(asked.rest, targets)

    chosen: dict[Target, Chosen] = {}

    def choose(programs: Sequence[Program], target: Target) -> Schedules:
        # For all targets at once: they share the time limit.
        if not chosen:
            chosen.update(
                choose_schedules(
                    tuning,
                    programs,
                    targets,
                    threads=asked.threads,
                    precision=asked.rest,
                    version=__version__,
                    cache=asked.folder,
                    winograd=asked.winograd,
                    progress=progress,
                )
            )
        noted["tuning"][target.name] = chosen[target].noted
        progress(f"generating and compiling code for {target.name}")
        return chosen[target].schedules

    how = Options(targets, asked.threads, asked.rest, asked.folder, asked.padding, choose, asked.keep_graph)
    payload = compile_graph(model, how, noted, __version__)
    return stored_sparse(payload) if asked.storage == "sparse" else payload


def _slow_bf16(rest: DType, targets: Sequence[Target]) -> list[str]:
    """A warning where bf16 was asked for and the code that runs here, or all of it, does not multiply it."""
    here = best_here(targets)
    used = targets if here is None else (here,)
    if rest is not DType.BF16 or any("bf16" in t.factors for t in used):
        return []
    return [
        f"bf16: {' and '.join(t.name for t in used)} has no fast instructions for it: weights take half the "
        "space, and products are no faster than in f32"
    ]


def _quantized(
    model: ir.Model, folder: Path | None, asked: CompileOptions, cautions: list[str], progress: Progress
) -> Quantized | None:
    """The model in the precision that is asked for; None where that takes no change of the graph.

    What is to be said of the data is added to `cautions`.
    """
    form = next((form for form in WEIGHTS if form == asked.precision), None)
    if form is None and asked.precision != "int8":
        return None
    progress("quantizing")
    feeds: Sequence[Feeds] = ()
    if asked.data is not None:
        feeds, said = load_runs(asked.data, inputs_of(model), folder=folder)
        cautions += said
    if form is not None:
        wanted = asked.quantization
        return quantize_weights_only(model, form, feeds, wanted, threads=asked.threads, cache=asked.folder)
    how = asked.quantization or Quantization()
    if asked.data is None:
        return quantize_dynamic(model, how)
    return quantize(model, feeds, how, threads=asked.threads, cache=asked.folder, progress=progress)
