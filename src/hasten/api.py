"""`hasten.compile`: from any source to a session that runs machine code; `hasten.prune`: a smaller model."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten import __version__, frontends
from hasten.backends.native import Options, Payload, compile_graph, stored_sparse
from hasten.codegen.schedule import Schedules
from hasten.codegen.toolchain import default_cache
from hasten.errors import HostOperatorWarning, ModelError, OptionError
from hasten.frontends.protocol import Dynamic, Example
from hasten.loops.dtypes import DType
from hasten.loops.program import Program
from hasten.passes.facts import is_quantized
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.units import UNITS
from hasten.runtime.artifact import Artifact, read_artifact, write_artifact
from hasten.runtime.manifest import TensorInfo
from hasten.runtime.session import Session, open_session, start
from hasten.search.candidates import LOSSLESS
from hasten.search.clock import Clock
from hasten.search.data import load_samples
from hasten.search.formats import WEIGHTS
from hasten.search.measure_inputs import check_names
from hasten.search.metrics import UserMetric, metric_named
from hasten.search.prune.plan import Plan, Progress, check_plan, default_criterion
from hasten.search.prune.report import Pruned
from hasten.search.prune.run import prune_model
from hasten.search.prune.sparsity import Pattern
from hasten.search.prune.training import Training
from hasten.search.quantization import Quantization, quantize
from hasten.search.record import SearchRecord
from hasten.search.report import to_html, to_json
from hasten.search.results import default_database
from hasten.search.start import Asked, pose, search
from hasten.search.status import Status, Watch, nobody
from hasten.search.trials import mapped
from hasten.search.tune_options import Tuning, choose_schedules
from hasten.search.uncalibrated import quantize_dynamic, quantize_weights_only
from hasten.target import Target, cores, with_factors

PRECISIONS = ("f32", "bf16", "int8", *WEIGHTS)
PADDING = ("skip", "compute")
STORAGE = ("mapped", "sparse")


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
        quantization: for "int8", which layers and how; None for all of them and the usual way.
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
    payload = compile_payload(
        source,
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
    )
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


def compile_payload(  # noqa: PLR0913 - the choices of `compile`, each with a default
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
    progress: Progress = lambda _: None,
) -> Payload:
    """What `compile` would write, without writing or opening it.

    The arguments and errors are those of `compile`; `progress` is told what begins.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r}: give one of {', '.join(PRECISIONS)}")
    if padding not in PADDING:
        raise OptionError(f"padding={padding!r}: give one of {', '.join(PADDING)}")
    if storage not in STORAGE:
        raise OptionError(f"storage={storage!r}: give one of {', '.join(STORAGE)}")
    if threads is not None and threads < 1:
        raise OptionError(f"threads={threads}: give 1 or more, or None for the cores of this machine")
    names = [target] if isinstance(target, str) else list(target)
    if not names:
        raise OptionError("target=[]: give at least one instruction set, or 'native' for this machine's")
    named = [Target.named(name) for name in names]
    how = _quantization(precision, data, quantization)
    form = next((form for form in WEIGHTS if form == precision), None)
    if how is not None:
        precision = how.rest
    elif form is not None:
        precision = "f32"
    tuning = Tuning(tune) if isinstance(tune, str) else tune
    progress("reading the model")
    given = source.model if isinstance(source, Pruned) else source
    model = frontends.load(given, example=example, dynamic=dynamic)
    check_names(tuning.shapes, [v.name or "" for v in model.graph.inputs])
    progress("optimizing the graph")
    report = optimize_graph(model)
    noted: dict[str, Any] = {
        "passes": dataclasses.asdict(report),
        "notes": model.metadata_props.get("hasten.notes", ""),
        "tuning": {},
    }
    folder, element = default_cache() if cache is None else Path(cache), DType(precision)
    if how is not None or form is not None:
        progress("quantizing")
        feeds = [] if data is None else load_samples(data, _inputs(model), folder=_folder(given)).feeds
        if form is not None:
            found = quantize_weights_only(model, form, feeds, threads=threads, cache=folder)
        elif data is None:
            found = quantize_dynamic(model, how or Quantization())
        else:
            assert how is not None
            found = quantize(model, feeds, how, threads=threads, cache=folder, progress=progress)
        model, noted["quantization"] = found.model, found.report
    factors = ({"bf16"} if precision == "bf16" else set()) | ({"u8"} if is_quantized(model) else set())
    targets = tuple(dict.fromkeys(t for target in named for t in with_factors(target, factors)))

    def choose(programs: Sequence[Program], target: Target) -> Schedules:
        schedules, noted["tuning"][target.name] = choose_schedules(
            tuning,
            programs,
            target,
            threads=threads,
            precision=element,
            version=__version__,
            cache=folder,
            progress=progress,
        )
        progress(f"generating and compiling code for {target.name}")
        return schedules

    options = Options(targets, threads, element, folder, padding, choose, keep_graph)
    payload = compile_graph(model, options, noted, __version__)
    return stored_sparse(payload) if storage == "sparse" else payload


def prune(  # noqa: PLR0913 - choices, each with a default
    source: object,
    *,
    flops: float | None = None,
    sparsity: float | str | None = None,
    data: object = None,
    unit: str | Sequence[str] = UNITS,
    criterion: str | None = None,
    repair: str | None = None,
    training: Training | None = None,
    unseen: int | None = None,
    amounts: str = "global",
    seconds: float | None = None,
    seed: int = 0,
    example: Example | None = None,
    dynamic: Dynamic | None = None,
    progress: Progress = lambda _: None,
) -> Pruned:
    """Removes the units of a model that matter least, so that less arithmetic is left.

    Args:
        source: as `compile` takes it; the result of another `prune` too.
        flops: the share of the floating-point operations of products, convolutions and attention to keep,
            at the median shape of `data`, such as 0.6. At most that share is left, as little less as whole
            tiles of 16 features and whole heads allow. None leaves all of it.
        sparsity: single weights of products that become zero: their share, such as 0.5, or "2:4" for 2 of
            each 4 consecutive ones that stay. That makes nothing faster, and artifacts smaller which are
            compiled with `storage="sparse"`.
        data: examples of what the model will see, as `search.data.load_samples` takes them, with labels or
            without; some hundred are enough. Criteria but magnitude and random need them, and so does repair.
        unit: "neurons", "heads", "channels", "layers", or several of them; layers together with others by
            the criteria fisher and gradient only. "rows" are those of embeddings that `data` never asks for.
        criterion: "magnitude" or "magnitude-l1", "activation", "gradient", "fisher", "obs", "random"; by
            default magnitude without data and obs with data; fisher if layers are among the units or nothing
            is repaired. `sparsity` goes by magnitude, activation (weight times what it reads), obs or random.
        repair: "none"; "statistics" (means and variances); "least-squares", the default with data; or
            "distill", which trains after that.
        training: for "distill": epochs, time limit, rate and checkpoint (`search.prune.training`); None for
            3 epochs, 5 minutes at most.
        unseen: for rows: the id whose row those ids get that have none any more, such as that of the
            unknown token; None for the mean of the rows that went.
        amounts: "global", by one ranking over all groups of units, or "uniform", the same share of each.
        seconds: time limit of everything; None for none. What is left undone for want of time is noted.
        seed: of random numbers.
        example: inputs to trace a torch.nn.Module with.
        dynamic: for torch.nn.Module, the symbolic dims: input name -> {dim: name}.
        progress: is told what begins.

    Returns:
        The smaller model: `save` writes it as ONNX, `compile` takes it, `report` says what was removed
        where, what could not be, and whether the target was reached.

    Raises:
        ModelError: the source cannot be read.
        OptionError: an argument makes no sense, or the model has none of these units.
        DataError: the data cannot be read or do not fit the model.
        MissingDependencyError: PyTorch is needed and not installed.
        UnsupportedModelError: a gradient is needed and cannot pass through an operator.
    """
    units = (unit,) if isinstance(unit, str) else tuple(unit)
    repaired = repair or ("none" if data is None else "least-squares")
    chosen = criterion or default_criterion(units, repaired, with_data=data is not None)
    pattern = None if sparsity is None else Pattern.of(sparsity)
    plan = Plan(
        units,
        chosen,
        flops,
        repaired,
        training or Training(),
        seed,
        amounts,
        seconds,
        sparsity=pattern,
        unseen=unseen,
    )
    check_plan(plan, with_data=data is not None)
    progress("reading the model")
    given = source.model if isinstance(source, Pruned) else source
    model = frontends.load(given, example=example, dynamic=dynamic)
    samples = None
    if data is not None:
        samples = load_samples(data, _inputs(model), folder=_folder(given))
    optimize_graph(model)
    return prune_model(model, plan, samples, progress)


def _folder(source: object) -> Path | None:
    """A source's folder, which may bring what reads raw texts and pictures."""
    return Path(source) if isinstance(source, str | os.PathLike) and Path(source).is_dir() else None


def _inputs(model: ir.Model) -> list[TensorInfo]:
    """What a model takes."""
    described = []
    for value in model.graph.inputs:
        dims = tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape or ())
        dtype = "float32" if value.dtype is None else np.dtype(value.dtype.numpy()).name
        described.append(TensorInfo(value.name or "", dtype, dims))
    return described


def _quantization(precision: str, data: object, given: Quantization | None) -> Quantization | None:
    """How to quantize; None if the precision is not int8.

    Raises:
        OptionError: something is given that is for int8 alone.
    """
    if precision == "int8":
        return given or Quantization()
    if given is not None:
        raise OptionError(f"quantization= is for precision='int8', and precision is {precision!r}")
    if data is not None and precision not in WEIGHTS:
        raise OptionError(f"data= is for int8 and weights in codes, and precision is {precision!r}")
    return None


class SearchReport(Mapping[str, Any]):
    """What the compilation and the search noted for people: a mapping, as of any session, and the record.

    Attributes:
        record: everything that the search did and found.
    """

    def __init__(self, noted: Mapping[str, Any], record: SearchRecord) -> None:
        self.record = record
        self._noted = noted

    def __getitem__(self, key: str) -> Any:
        return self._noted[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._noted)

    def __len__(self) -> int:
        return len(self._noted)

    def __str__(self) -> str:
        return self.record.headline

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes it as one HTML file that needs nothing else.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(to_html(self.record), "utf-8")

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as JSON.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_text(to_json(self.record), "utf-8")


class Optimized(Session):
    """What `optimize` found, ready to run.

    Attributes:
        report: what was tried, what was kept, and why.
    """

    report: SearchReport

    def __init__(self, artifact: Artifact, record: SearchRecord, threads: int) -> None:
        """Opens it."""
        super().__init__(artifact, *start(artifact, threads))
        self.report = SearchReport(artifact.manifest.report, record)


def optimize(  # noqa: PLR0913 - choices, each with a default
    source: object,
    *,
    data: object,
    metric: str | UserMetric = "agreement",
    max_drop: float = 0.01,
    confidence: float = 0.95,
    calibration: object = None,
    larger_is_better: bool | None = None,
    output: str | None = None,
    precision: str = "auto",
    prune: bool = False,
    engines: bool = True,
    padding: str = "skip",
    threads: int | None = None,
    time_limit: float | None = 600.0,
    memory_limit: int | None = None,
    seed: int = 0,
    example: Example | None = None,
    dynamic: Dynamic | None = None,
    cache: str | os.PathLike[str] | None = None,
    database: str | os.PathLike[str] | None = None,
    command: str = "",
    watch: Watch = nobody,
) -> Optimized:
    """Finds the fastest version of a model whose drop in accuracy is certain to be within a budget.

    What is returned beat both the original engine and the lossless compilation in paired timing on this
    machine, and its drop on data like the user's is at most `max_drop` with the confidence asked for;
    otherwise it is the lossless compilation. The report says which, and why. Ctrl-C ends the search and
    keeps the best that is certified.

    Args:
        source: as for `compile`.
        data: samples, as `search.data.load_samples` takes them.
        metric: a name (`search.metrics.metric_named`), or a function of outputs and labels.
        max_drop: the budget, in the metric's units: 0.01 is one point of accuracy.
        confidence: of the certificate, from 0.5 to below 1.
        calibration: how many of the samples choices may look at, None for a share; the others are held
            out for certificates. Or data of their own for choices: all of `data` is then held out.
        larger_is_better: the direction of a metric that is a function.
        output: the output that a named metric looks at; None for the first.
        precision: "auto" for all; "f32", "bf16" or "int8" for what layers may have beside f32.
        prune: whether heads, neurons and channels may be removed, as far as the budget allows; needs PyTorch.
        engines: whether other engines that are installed are candidates.
        padding: as for `compile`.
        threads: of a run; None for all cores.
        time_limit: seconds for everything; None for any time. Where it is too short for more, the
            lossless compilation is returned.
        memory_limit: bytes that the process of a candidate may allocate; None for no limit.
        seed: of the split into parts and of the bootstrap.
        example: as for `compile`.
        dynamic: as for `compile`.
        cache: folder of compiled objects; None for the user's cache folder.
        database: file of measurements, which later searches reuse; None for the user's.
        command: what repeats this search, for the report.
        watch: is told what happens.

    Returns:
        An open session with `report`; `save` writes its artifact.

    Raises:
        ModelError: the source cannot be read, is quantized already, or has operators that nothing can run.
        DataError: the data cannot be read or do not fit the model.
        MetricError: the metric has no value on the original's answers.
        OptionError: an argument makes no sense.
        MissingDependencyError: `prune` is asked for and PyTorch is not installed.
        ToolchainError: no C compiler was found.
        TuningError: the measurements on disk cannot be read or written.
    """
    asked = Asked(
        metric=metric_named(metric, output=output, larger_is_better=larger_is_better),
        named=isinstance(metric, str),
        max_drop=max_drop,
        confidence=confidence,
        calibration=calibration,
        precision=precision,
        engines=engines,
        prune=prune,
        padding=padding,
        threads=threads or cores(),
        memory=memory_limit,
        seed=seed,
        cache=default_cache() if cache is None else Path(cache),
        database=default_database() if database is None else Path(database),
    )
    clock = Clock(time_limit)
    clock.phase("reading")
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        watch(Status("reading the model", "reading", (), LOSSLESS, 0.0, time_limit))
        model = frontends.load(source, example=example, dynamic=dynamic)
        if is_quantized(model):
            raise ModelError("the model is quantized already: compile it, or give what it was made from")
        passes = optimize_graph(model)
        watch(Status("reading the data", "reading", (), LOSSLESS, clock.elapsed, time_limit))
        # From here on the weights are mapped: a search holds several graphs, and few of them at a time.
        model = mapped(model, Path(folder) / "whole.onnx")
        problem = pose(model, source, data, asked, Path(folder), __version__)
        report = {"passes": dataclasses.asdict(passes), "tuning": {}, "notes": ""}
        record, path = search(problem, clock, asked.database, report, __version__, command, watch)
        return Optimized(read_artifact(path), record, asked.threads)
