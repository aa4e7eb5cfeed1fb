"""The table of layers says what each computes in a run of a sample."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten.passes.pipeline import optimize_graph
from hasten.search import layer_table
from hasten.search.candidates import LOSSLESS, lossless
from hasten.search.engines import HASTEN
from hasten.search.formats import Careful
from hasten.search.layer_table import LayerTable
from hasten.search.pace import Pace
from hasten.search.quantization import Quantization
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
    assert notes[0] == "in int8 outputs are no numbers with stem: left as they are"
