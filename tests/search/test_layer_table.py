"""The table of layers says what each computes in a run of a sample."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
from benchmarks.hostile import network, samples
from onnx import TensorProto, helper, numpy_helper

from hasten.errors import MetricError
from hasten.passes.pipeline import optimize_graph
from hasten.search import layer_table
from hasten.search.asked import Problem
from hasten.search.candidates import LOSSLESS, Candidate, lossless
from hasten.search.clock import Clock
from hasten.search.engines import HASTEN
from hasten.search.formats import Careful
from hasten.search.layer_table import LayerTable
from hasten.search.memory import Memory
from hasten.search.pace import Pace
from hasten.search.quantization import Prepared, Quantization
from hasten.search.samples import Samples
from hasten.search.sensitivity import Sensitivity
from hasten.search.trials import Trials
from hasten.search.uniform import Uniform
from hasten.search.variants import WHOLE, Variant


def two_towers() -> ir.Model:
    """The first convolution of ResNet, and a product of a sequence."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 3, 7, 7)), "v": rng.standard_normal((8, 4))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], "stem", strides=[2, 2], pads=[3, 3, 3, 3]),
            helper.make_node("MatMul", ["t", "v"], ["z"], "head"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224]),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["batch", "tokens", 8]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64, 112, 112]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "tokens", 4]),
        ],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    optimize_graph(model)
    return model


def test_multiplications_are_those_of_a_sample() -> None:
    sample = {"x": np.zeros((1, 3, 224, 224), np.float32), "t": np.zeros((1, 50, 8), np.float32)}
    graph = two_towers()
    trials = SimpleNamespace(
        problem=SimpleNamespace(graph=graph, calibration=Samples((sample,))),
        variants={WHOLE: Variant(graph)},
        candidates={LOSSLESS: lossless()},
    )
    table = LayerTable(cast(Trials, trials), cast(Pace, None), [])
    right = {"stem": 112 * 112 * 64 * 3 * 7 * 7, "head": 50 * 8 * 4}
    assert {record.name: record.macs for record in table.records(LOSSLESS)} == right
    assert {layer.name: work for layer, work in table.work.items()} == right


def test_what_breaks_in_a_format_is_left_out_of_it_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two_towers()
    names = ("stem", "head")
    sample = {"x": np.zeros((1, 3, 224, 224)), "t": np.zeros((1, 50, 8))}
    prepared = SimpleNamespace(model=graph, layers=names, careful=Careful(), how=Quantization(names))
    trials = SimpleNamespace(
        problem=SimpleNamespace(graph=graph, calibration=Samples((sample,))),
        variants={WHOLE: SimpleNamespace(graph=graph, prepared=prepared, ranges={"minmax": {}})},
        say=lambda _: None,
    )
    pace, notes = SimpleNamespace(has_time=lambda _: True), list[str]()
    table = LayerTable(cast(Trials, trials), cast(Pace, pace), notes)
    uniform = Uniform(cast(Trials, trials), cast(Pace, pace), table, notes)
    assert uniform.all_in("int8", HASTEN).quantized == names
    for losses, left in (
        ({"stem": math.inf, "head": 0.1}, ("head",)),
        ({"stem": math.inf, "head": math.inf}, names),  # nothing is left, so what breaks is tried and fails
    ):
        monkeypatch.setattr(layer_table, "probe_layers", lambda *_, found=losses: Sensitivity({}, found))
        table.probe("int8")
        assert uniform.all_in("int8", HASTEN).quantized == left
    assert notes == [
        "in int8 outputs are no numbers with stem: left as they are",
        "in int8 outputs are no numbers with any layer",
    ]


@pytest.mark.parametrize(
    ("breaking", "tried"),
    [
        (("hostile",), ["int8-weights", "int8-weights 2/3"]),
        (("first", "hostile", "last"), ["int8-weights"]),
        ((), ["int8-weights"]),
    ],
)
def test_a_layer_that_breaks_in_another_format_does_not_lose_the_format(
    monkeypatch: pytest.MonkeyPatch, breaking: tuple[str, ...], tried: list[str]
) -> None:
    graph = ir.from_proto(network())
    optimize_graph(graph)
    names = ("first", "hostile", "last")
    prepared = SimpleNamespace(model=graph, layers=names, careful=Careful(), how=Quantization(names))
    asked = SimpleNamespace(precisions=lambda: {"int8"})
    problem = SimpleNamespace(graph=graph, calibration=Samples(tuple(samples(1))), asked=asked)
    known = Trials(cast(Problem, problem), Clock(None), cast(Memory, None))
    known.variants[WHOLE] = Variant(graph, cast(Prepared, prepared), {"minmax": {}})
    built: list[str] = []

    def build(candidate: Candidate) -> bool:
        known.register(candidate)
        built.append(candidate.name)
        return True

    def judge(candidate: Candidate) -> None:
        if set(candidate.quantized) & set(breaking):
            raise MetricError("output 'scores' has NaN")

    monkeypatch.setattr(known, "build", build)
    monkeypatch.setattr(known, "judge", judge)
    monkeypatch.setattr(known, "time", lambda names, rounds: None)
    losses = {name: math.inf if name in breaking else 0.1 for name in names}
    monkeypatch.setattr(layer_table, "probe_layers", lambda *_: Sensitivity({}, losses))
    pace = cast(Pace, SimpleNamespace(has_time=lambda _: True))
    table = LayerTable(known, pace, [])
    table.times["f32"] = {}
    Uniform(known, pace, table, []).others()
    assert [name for name in built if name.startswith("int8-weights")] == tried
    assert known.works(tried[-1]) is (len(breaking) < len(names))
