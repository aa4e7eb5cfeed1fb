"""How much the outputs change when layers are quantized, one by one and all together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hasten.graph.pages import give_back
from hasten.passes.quantize import Layer, Range
from hasten.search.answers import Outputs, Part, answers_to, relative_change
from hasten.search.build import Build, compile_model
from hasten.search.engines import HASTEN, Worker
from hasten.search.engines_worker import read_feeds, save_npz
from hasten.search.formats import Format, layers_for
from hasten.search.identity import described
from hasten.search.probe import SETTINGS, Switched, settings_of, with_switches
from hasten.search.quantization import Prepared, Ranges
from hasten.search.transfer import save_graph
from hasten.search.trials import Trials
from hasten.search.variants import Variant

_FOR_METHODS, _FOR_LAYERS = 128, 16  # samples that the probe answers each time, not those of rounding
_SHARE = 0.1  # of the time limit that it may take for each format


@dataclass(frozen=True)
class Sensitivity:
    """What a format does to the outputs, as `CandidateRecord.loss`.

    Attributes:
        methods: of int8, for each method of calibration the loss of all layers together.
        layers: for each layer the loss of it alone, where it was measured.
    """

    methods: Mapping[Ranges, float]
    layers: Mapping[str, float]


class Switchboard:
    """A probe that runs in a worker on a part of the samples."""

    def __init__(self, worker: Worker, layers: Sequence[Layer], part: Part, outputs: Sequence[str]) -> None:
        """Asks for the answers with nothing quantized; `layers` have the switches, in order.

        Raises:
            EngineError: the worker fails.
        """
        self._worker, self._layers, self._part, self._outputs = worker, layers, part, outputs
        self._plain = self._answers({}, ())

    def loss(self, ranges: Mapping[str, Range], quantized: Sequence[str]) -> float:
        """The change of the outputs with some layers quantized.

        Raises:
            EngineError: the worker fails.
        """
        return relative_change(self._plain, self._answers(ranges, quantized))

    def _answers(self, ranges: Mapping[str, Range], quantized: Sequence[str]) -> Outputs:
        settings = settings_of(self._layers, ranges, quantized)
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            batches = []
            for number, batch in enumerate(self._part.batches):
                path = Path(folder) / f"{number}.npz"
                save_npz(str(path), {**read_feeds(str(batch.path)), SETTINGS: settings})
                batches.append(type(batch)(path, batch.place))
            return answers_to(self._worker, self._part.samples, batches, self._outputs)


def alone(
    board: Switchboard, layers: Sequence[Layer], ranges: Mapping[str, Range], until: float
) -> dict[str, float]:
    """The loss of each layer alone.

    Args:
        board: the probe.
        layers: that can be quantized.
        ranges: of activations.
        until: a time by `time.monotonic` after which the layers that are left are left out.

    Raises:
        EngineError: the worker fails.
    """
    found = {}
    for layer in layers:
        if time.monotonic() >= until:
            break
        found[layer.name] = board.loss(ranges, [layer.name])
    return found


def probe_layers(trials: Trials, variant: Variant, form: Format) -> Sensitivity:
    """The sensitivity of a graph's layers to a format, by a probe in a process of its own.

    What an earlier search measured is not measured again.

    Raises:
        HastenError: the probe cannot be compiled or run.
    """
    problem, clock, prepared = trials.problem, trials.clock, variant.prepared
    assert prepared is not None
    about = {
        "seed": problem.asked.seed,
        "how": described(prepared.how),
        "format": form,
        "rounded": sorted(prepared.careful.layers),
    }
    known = trials.recall("sensitivity", **about)
    if known is not None:
        return Sensitivity(known["methods"], known["layers"])
    until = clock.until(_SHARE)
    layers = [layer for layer in layers_for(prepared.model, form) if layer.name in prepared.layers]
    names = [layer.name for layer in layers]
    artifact = problem.folder / f"probe-{form}.hasten"
    job = (prepared, form, names, artifact, problem.build)
    trials.apart(compile_probe, *job, doing="compiling a probe")
    many, few = (trials.part("calibration", count) for count in (_FOR_METHODS, _FOR_LAYERS))
    first = problem.folder / "probe.npz"
    save_npz(str(first), {**read_feeds(str(few.batches[0].path)), SETTINGS: settings_of(layers, {}, ())})
    methods: dict[Ranges, float] = {}
    ranges: Mapping[str, Range] = {}
    with Worker(HASTEN, artifact, first, problem.asked.threads, trials.limits()) as worker:
        if form == "int8":
            board = Switchboard(worker, layers, many, problem.outputs)
            methods = {method: board.loss(found, names) for method, found in variant.ranges.items()}
            ranges = variant.ranges[min(methods, key=lambda method: methods[method])]
        board = Switchboard(worker, layers, few, problem.outputs)
        single = alone(board, layers, ranges, until)
    artifact.unlink()
    if len(single) == len(layers):
        trials.remember("sensitivity", {"methods": methods, "layers": single}, **about)
    return Sensitivity(methods, single)


def compile_probe(
    prepared: Prepared, form: Format, layers: Sequence[str], artifact: Path, how: Build
) -> None:
    """Writes the artifact of a probe, in this process.

    Args:
        prepared: the graph, with how its layers become when they are quantized.
        form: what they are quantized to.
        layers: names of those that get a switch.
        artifact: the file.
        how: to compile.

    Raises:
        HastenError: it cannot be compiled.
    """
    corrections = prepared.corrections(dict.fromkeys(layers, form))
    known = {layer.name: layer for layer in layers_for(prepared.model, form)}
    switched = [
        Switched(known[name], prepared.weight(known[name], form), corrections.get(name)) for name in layers
    ]
    graph = artifact.with_suffix(".onnx")
    save_graph(with_switches(prepared.model, switched, form).model, graph)
    del switched, corrections
    give_back(prepared.model)
    compile_model(ir.load(graph), artifact, how, "f32", {})
    for path in artifact.parent.glob(f"{graph.name}*"):
        path.unlink()
