"""The search: what it returns, and what it says. Times are made up, so that its choices are known."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.hostile import CLASSES, WIDTH, network, samples
from onnx import helper, numpy_helper
from tests.search.searches import LAYERS, Search, record

import hasten
from hasten.backends.graph_members import whole_graph
from hasten.errors import (
    DataError,
    EngineError,
    MetricError,
    ModelError,
    OptionError,
)
from hasten.runtime.artifact import read_artifact
from hasten.search import layer_table, trials, uniform
from hasten.search.asked import Asked
from hasten.search.build import Recipe
from hasten.search.candidates import Candidate
from hasten.search.logs import log_to
from hasten.search.measure import Measurement, Spread
from hasten.search.quantization import prepare
from hasten.search.record import Outcome
from hasten.search.status import Status

MEASURED_TIMES = layer_table.measured_times


def test_a_hostile_layer_is_kept_in_higher_precision(
    search: Search, clockwork: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uniform, "_LEAST_SHARE", 0.2)
    model = network(outlier=1000.0)
    found = search(model)
    told = record(found)
    everywhere = [c for c in told.candidates if len(c.quantized) == 3 and c.drop is not None]
    assert {c.outcome for c in everywhere} == {Outcome.OVER_BUDGET, Outcome.SET_ASIDE}
    chosen = told.candidate(told.chosen)
    assert chosen.formats == {"first": "int8", "last": "int8"}
    assert chosen.smoothing == 0.8
    assert chosen.correct_bias
    assert chosen.outcome is Outcome.CHOSEN
    assert chosen.bound.upper <= 0.05
    assert told.stated <= 0.05
    precisions = {layer.name: layer.precision for layer in told.layers}
    assert precisions == {"first": "int8", "hostile": "f32", "last": "int8"}
    for form in ("int8", "int8-dynamic"):
        losses = {layer.name: layer.sensitivity[form] for layer in told.layers}
        assert losses["hostile"] > 20 * max(losses["first"], losses["last"])
        assert all(form in layer.us for layer in told.layers)
    rounded = {c.rounding for c in told.candidates if set(c.formats.values()) == {"int8"}}
    assert rounded == {"nearest", "gptq"}
    assert {c.calibration for c in told.candidates} == {
        None,
        "minmax",
        "percentile",
        "entropy",
        "mse",
        "layer",
    }
    assert told.headline.startswith(f"{chosen.name}: 1.50 x as fast as the original; with 95% confidence")
    x = {"x": np.concatenate([s["x"] for s in samples(200, seed=9)])}
    right = hasten.compile(model).run(x)["scores"].argmax(axis=1)
    assert (found.run(x)["scores"].argmax(axis=1) == right).mean() > 0.93
    found.save(tmp_path / "found.hasten")
    exported = whole_graph(read_artifact(tmp_path / "found.hasten"))
    onnx.checker.check_model(exported)
    assert sum(node.op_type == "QuantizeLinear" for node in exported.graph.node) == 2
    with hasten.open(tmp_path / "found.hasten") as again:
        assert again.report["search"]["chosen"] == chosen.name
        assert json.loads(json.dumps(again.report["search"]))["headline"] == told.headline


def test_a_repeated_search_measures_nothing_and_chooses_the_same(
    search: Search, clockwork: list[str]
) -> None:
    first = record(search())
    assert first.candidate(first.chosen).quantized == LAYERS
    count = len(clockwork)
    assert count > 0
    second = record(search())
    assert clockwork[count:] == []
    assert second.chosen == first.chosen
    assert second.candidate(second.chosen) == first.candidate(first.chosen)
    assert any("from earlier searches" in note for note in second.notes)


def test_too_few_samples_give_the_lossless_compilation_and_say_how_many(search: Search) -> None:
    found = search(data=samples(20), max_drop=0.01)
    told = record(found)
    assert told.chosen == "lossless"
    assert told.samples_needed == 299
    assert told.stated is None
    assert "15 held-out samples cannot certify a drop of at most 1 points" in told.headline
    assert "about 299 would be needed" in told.headline
    assert found.run(samples(1)[0])["scores"].shape == (1, CLASSES)


def test_a_budget_that_fails_on_the_held_out_part_says_how_many_samples(
    search: Search, clockwork: list[str]
) -> None:
    told = record(search(data=samples(1704), max_drop=0.002, calibration=4))
    assert told.chosen == "lossless"
    tested = [c for c in told.candidates if c.bound is not None]
    assert [c.outcome for c in tested] == [Outcome.NOT_CERTIFIED]
    assert tested[0].bound.upper > 0.002
    if told.samples_needed is None:
        assert tested[0].bound.measured >= 0.002
    else:
        assert told.samples_needed > 1700
        assert f"about {told.samples_needed:,} would be needed" in told.headline


def test_a_short_time_gives_the_lossless_compilation(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.search.asked.runs_here", lambda _: False)
    log = log_to(f"tensorboard:{tmp_path / 'runs'}")  # as docs/optimize.md has it
    told = record(search(time_limit=0.001, precision="bf16", watch=log))
    assert "bf16 was not tried: this processor has no instructions for it" in told.notes
    log.close(told)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert told.chosen == "lossless"
    assert told.interrupted
    assert [c.name for c in told.candidates] == ["lossless"]


def test_what_hangs_ends_at_its_share_of_the_time(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated = trials.isolated

    def hanging(function: Callable[..., Any], *args: Any, doing: str, **named: Any) -> Any:
        if function is not prepare:
            return isolated(function, *args, doing=doing, **named)
        return isolated(time.sleep, 600, doing=doing, folder=named["folder"], limits=named["limits"])

    monkeypatch.setattr(trials, "isolated", hanging)
    monkeypatch.setattr(uniform, "_OBSERVING_SHARE", 0.02)
    told = record(search(time_limit=100))
    assert told.chosen == "lossless"
    assert any("smoothing and observing took longer than 4 s, and was ended" in note for note in told.notes)
    assert sum(phase.seconds for phase in told.phases) < 60


@pytest.mark.parametrize("enough_time", [True, False])
def test_bf16_is_certified_early_only_where_int8_keeps_its_turn(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch, enough_time: bool
) -> None:
    monkeypatch.setattr(Asked, "precisions", lambda _: frozenset({"f32", "bf16", "int8"}))
    monkeypatch.setattr(uniform.Uniform, "fits_after", lambda *_: enough_time)
    bounds_before_int8: list[str] = []

    def watch(status: Status) -> None:
        if status.phase == "calibration":
            bounds_before_int8.extend(c.name for c in status.candidates if c.bound is not None)

    told = record(search(precision="auto", watch=watch))
    assert bounds_before_int8 == (["bf16"] if enough_time else [])
    assert len(told.candidate(told.chosen).quantized) == len(LAYERS)
    assert any("bf16 was not certified early" in note for note in told.notes) is not enough_time


def test_an_interrupt_keeps_what_is_certified(search: Search, clockwork: list[str]) -> None:
    def watch(status: Status) -> None:
        if status.phase == "int8":
            raise KeyboardInterrupt

    found = search(watch=watch)
    told = record(found)
    assert told.interrupted
    assert told.chosen == "lossless"
    assert "the search ended before anything else was certified" in told.headline
    assert found.run(samples(1)[0])["scores"].shape == (1, CLASSES)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_artifact_and_a_second_one_does_not(
    search: Search, clockwork: list[str]
) -> None:
    def pressing(times: int) -> Callable[[Status], None]:
        def watch(status: Status) -> None:
            if status.doing.startswith("writing the artifact"):
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        return watch

    before = signal.getsignal(signal.SIGINT)
    found = search(watch=pressing(1))
    assert record(found).candidate(record(found).chosen).quantized == LAYERS
    assert found.run(samples(1)[0])["scores"].shape == (1, CLASSES)
    with pytest.raises(KeyboardInterrupt):
        search(watch=pressing(2))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("what", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_certified_outlives_whatever_happens(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch, what: BaseException
) -> None:
    def broken(*_: object) -> None:
        raise what

    monkeypatch.setattr(Asked, "precisions", lambda _: frozenset({"f32", "bf16", "int8"}))
    monkeypatch.setattr(uniform.Uniform, "calibrate", broken)
    found = search(precision="auto")
    told = record(found)
    assert told.chosen == "bf16"
    assert told.stated <= 0.05
    assert told.interrupted is isinstance(what, KeyboardInterrupt)
    said = "interrupted" if told.interrupted else f"the phase 'calibration' failed: {type(what).__name__}: "
    assert any(said in note for note in told.notes)
    assert found.run(samples(1)[0])["scores"].shape == (1, CLASSES)


def test_a_repeated_search_makes_the_same_choices_of_noisy_times(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measurement differs; layers are timed as they are."""
    rng, steady, asked = np.random.default_rng(0), trials.measure, list[str]()

    def noisy(*args: Any, **named: Any) -> Measurement:
        found = steady(*args, **named)
        factor = {r.engine: rng.uniform(0.9, 1.1) for r in found.results}
        results = tuple(
            replace(
                r,
                run_ms=Spread.of([r.run_ms.median * factor[r.engine]]),
                rounds_ms={n: ms * factor[r.engine] for n, ms in r.rounds_ms.items()},
            )
            for r in found.results
        )
        return replace(found, results=results)

    def measured_times(
        among: trials.Trials, candidate: Candidate, work: Mapping[Any, float]
    ) -> dict[str, float]:
        asked.append(candidate.name)
        return MEASURED_TIMES(among, candidate, work)

    monkeypatch.setattr(trials, "measure", noisy)
    monkeypatch.setattr(layer_table, "measured_times", measured_times)
    first = record(search())
    assert len(asked) > 1
    assert first.curve
    count, timed = len(asked), len(clockwork)
    again = record(search())
    assert asked[count:] == []
    assert clockwork[timed:] == []
    assert again.curve == first.curve
    assert again.layers == first.layers
    for told in ("name", "latency_ms", "to_lossless", "to_original", "outcome"):
        assert [getattr(c, told) for c in again.candidates] == [getattr(c, told) for c in first.candidates]
    assert again.chosen == first.chosen
    assert again.original_value == first.original_value is not None


def test_a_search_from_python_says_how_to_repeat_it_and_takes_percents(
    search: Search, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(network(), model)
    told = record(search(model, data=samples(20), max_drop="1%", confidence="95%", seed=3))
    assert (told.max_drop, told.confidence) == (0.01, 0.95)
    assert told.command.startswith(
        f"hasten.optimize({str(model)!r}, data=data, max_drop='1%', confidence='95%', "
    )
    assert "seed=3" in told.command
    assert "engines=False" in told.command
    assert "metric" not in told.command

    def share(outputs: Mapping[str, np.ndarray], labels: object) -> float:
        return 1.0

    told = record(search(data=samples(20), time_limit=0.0, metric=share, larger_is_better=True))
    assert told.command.startswith(
        "hasten.optimize(source, data=data, metric=share, max_drop=0.05, larger_is_"
    )


def test_a_metric_without_a_value_loses_the_candidate(search: Search, clockwork: list[str]) -> None:
    plain = {}

    def metric(outputs: Mapping[str, np.ndarray], labels: object) -> float:
        first = plain.setdefault(len(outputs["scores"]), outputs["scores"])
        close = np.allclose(first, outputs["scores"], rtol=1e-4, atol=1e-4)
        return 1.0 if close else float("nan")

    told = record(search(metric=metric, larger_is_better=True))
    assert told.chosen == "lossless"
    tried = [c for c in told.candidates if c.quantized and c.outcome is Outcome.FAILED]
    assert tried
    assert all("NaN" in c.reason for c in tried)

    def broken(outputs: object, labels: object) -> float:
        raise ZeroDivisionError("no such luck")

    with pytest.raises(MetricError, match="no such luck"):
        search(metric=broken, larger_is_better=True)


def test_a_candidate_that_cannot_be_compiled_is_lost_alone(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trials.build

    def failing(*job: Any) -> None:
        recipe: Recipe | None = job[-1]
        if recipe is not None and list(recipe.formats.values()) == ["int8"] * 3:
            raise EngineError("compiling failed: its process ended with status -11")
        build(*job)

    monkeypatch.setattr(trials, "build", failing)
    told = record(search())
    lost = [c for c in told.candidates if c.outcome is Outcome.FAILED]
    assert {c.reason for c in lost} == {"compiling failed: its process ended with status -11"}
    assert told.chosen == "lossless"


def test_bad_arguments_are_refused_before_anything_is_compiled(search: Search) -> None:
    for options, words in (
        ({"max_drop": -0.1}, "max_drop=-0.1: give 0 or more"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"precision": "int3"}, "precision='int3'"),
        ({"metric": "beauty"}, "beauty"),
        ({"output": "logits"}, "output='logits': the model has scores"),
        ({"memory_limit": 0}, "memory_limit=0"),
        ({"time_limit": float("nan")}, "time_limit=nan"),
        ({"time_limit": -1.0}, "time_limit=-1.0"),
        ({"threads": 0}, "threads=0"),
        ({"threads": "2"}, "threads='2': give a whole number"),
        ({"seed": 0.5}, "seed=0.5: give a whole number"),
        ({"calibration": np.int64(600)}, "calibration=600 of 600 samples"),
        ({"calibration": 100.0}, "calibration=100.0: give a whole number"),
        ({"max_drop": "little"}, "max_drop='little': give a share, such as 0.01 or '1%'"),
        ({"max_drop": None}, "max_drop=None"),
        ({"confidence": "100%"}, "confidence=1.0"),
        ({"time_limit": "10m"}, "time_limit='10m': give a number"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(OptionError, match=re.escape(words)):
            search(**options)
    for data, words in (
        ([], "empty"),
        (samples(1), "1 sample"),
        ([{"y": np.zeros((1, 3), np.float32)}] * 9, "x"),
        ([{"x": np.full((1, WIDTH), np.nan, np.float32)}] * 9, "NaN"),
    ):
        with pytest.raises(DataError, match=words):
            search(data=data)
    with pytest.raises(DataError, match="needs a label for each sample"):
        search(metric="accuracy")
    labelled = [(x, CLASSES if number == 7 else 0) for number, x in enumerate(samples(9))]
    with pytest.raises(DataError, match="sample 7: label 5 is no class of the model, which has 5"):
        search(metric="accuracy", data=labelled)


def test_a_quantized_model_is_refused(search: Search) -> None:
    model = network()
    scale, zero = (
        numpy_helper.from_array(np.array(v), n) for v, n in ((np.float32(0.1), "s"), (np.uint8(0), "z"))
    )
    model.graph.initializer.extend([scale, zero])
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"))
    model.graph.node[2].input[0] = "d"
    with pytest.raises(ModelError, match="quantized already"):
        search(model)
