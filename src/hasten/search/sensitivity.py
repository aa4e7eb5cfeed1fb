"""How much the outputs change when layers are quantized, one by one and all together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.passes.quantize import Layer, Range, products
from hasten.search.answers import Outputs, Part, answers_to, relative_change, write_part
from hasten.search.build import build
from hasten.search.data import Samples
from hasten.search.engines import HASTEN, Worker
from hasten.search.engines_worker import read_feeds, save_npz
from hasten.search.histogram import Method
from hasten.search.probe import SETTINGS, Probe, with_switches
from hasten.search.trials import Trials, described, save_graph
from hasten.search.variants import Variant

_FOR_METHODS, _FOR_LAYERS = 128, 16  # samples that the probe answers each time
_SHARE = 0.15  # of the time limit that it may take


@dataclass(frozen=True)
class Sensitivity:
    """What quantization does to the outputs, as `CandidateRecord.loss`.

    Attributes:
        methods: for each method of calibration the loss of all layers together, where it was measured.
        layers: for each layer the loss of it alone, where it was measured.
    """

    methods: Mapping[Method, float]
    layers: Mapping[str, float]


class Switchboard:
    """A probe that runs in a worker on a part of the samples."""

    def __init__(self, worker: Worker, probe: Probe, part: Part, outputs: Sequence[str]) -> None:
        """Asks for the answers with nothing quantized.

        Raises:
            EngineError: the worker fails.
        """
        self._worker, self._probe, self._part, self._outputs = worker, probe, part, outputs
        self._plain = self._answers({}, ())

    def loss(self, ranges: Mapping[str, Range], quantized: Sequence[str]) -> float:
        """The change of the outputs with some layers quantized.

        Raises:
            EngineError: the worker fails.
        """
        return relative_change(self._plain, self._answers(ranges, quantized))

    def _answers(self, ranges: Mapping[str, Range], quantized: Sequence[str]) -> Outputs:
        settings = self._probe.settings(ranges, quantized)
        with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
            batches = []
            for number, batch in enumerate(self._part.batches):
                path = Path(folder) / f"{number}.npz"
                save_npz(str(path), {**read_feeds(str(batch.path)), SETTINGS: settings})
                batches.append(type(batch)(path, batch.place))
            return answers_to(self._worker, Part(self._part.samples, tuple(batches)), self._outputs)


def alone(
    board: Switchboard, layers: Sequence[Layer], ranges: Mapping[str, Range], enough_time: Callable[[], bool]
) -> dict[str, float]:
    """The loss of each layer alone.

    Args:
        board: the probe.
        layers: that can be quantized.
        ranges: of activations.
        enough_time: is asked before each layer; once it says no, the others are left out.

    Raises:
        EngineError: the worker fails.
    """
    found = {}
    for layer in layers:
        if not enough_time():
            break
        found[layer.name] = board.loss(ranges, [layer.name])
    return found


def probe_layers(trials: Trials, variant: Variant) -> Sensitivity:
    """The sensitivity of a graph's layers, by a probe in a process of its own.

    What an earlier search measured is not measured again.

    Raises:
        EngineError: the probe cannot be compiled or run.
    """
    problem, clock, prepared = trials.problem, trials.clock, variant.prepared
    assert prepared is not None
    about = {"seed": problem.seed, "how": described(prepared.how)}
    known = trials.memory.get("sensitivity", **about)
    if known is not None:
        trials.reused += 1
        return Sensitivity(known["methods"], known["layers"])
    layers = [layer for layer in products(prepared.model) if layer.name in prepared.layers]
    probe = with_switches(prepared.model, layers, prepared.corrections(prepared.layers))
    graph, artifact = problem.folder / "probe.onnx", problem.folder / "probe.hasten"
    save_graph(probe.model, graph)
    build(graph, artifact, problem.build, "f32", trials.limits(clock.left), {})
    size = trials.part("calibration").batches[0].place.stop
    many, few = (_first_samples(trials, count, size) for count in (_FOR_METHODS, _FOR_LAYERS))
    first = problem.folder / "probe.npz"
    save_npz(str(first), {**read_feeds(str(few.batches[0].path)), SETTINGS: probe.settings({}, ())})
    end = clock.elapsed + (clock.left if clock.limit is None else _SHARE * clock.limit)
    names = [layer.name for layer in layers]
    with Worker(HASTEN, artifact, first, problem.threads, trials.limits()) as worker:
        board = Switchboard(worker, probe, many, problem.outputs)
        methods = {method: board.loss(ranges, names) for method, ranges in variant.ranges.items()}
        best = min(methods, key=lambda method: methods[method])
        board = Switchboard(worker, probe, few, problem.outputs)
        single = alone(board, layers, variant.ranges[best], lambda: clock.elapsed < end)
    if len(single) == len(layers):
        trials.memory.put("sensitivity", {"methods": methods, "layers": single}, **about)
    return Sensitivity(methods, single)


def _first_samples(trials: Trials, count: int, size: int) -> Part:
    """The first samples of the calibration part, which are in random order."""
    whole = trials.problem.calibration
    labels = None if whole.labels is None else whole.labels[:count]
    folder = trials.problem.folder / f"first{count}"
    return write_part(Samples(whole.feeds[:count], labels), min(size, count), folder)
