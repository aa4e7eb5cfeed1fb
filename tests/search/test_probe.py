"""A probe computes what the quantized graph computes, and with nothing quantized what the graph does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import hasten
from hasten import frontends
from hasten.backends.native import Options, compile_graph
from hasten.loops.dtypes import DType
from hasten.passes.pipeline import optimize_graph
from hasten.passes.quantize import Layer, Range, products
from hasten.runtime.artifact import write_artifact
from hasten.search.formats import Format, layers_for
from hasten.search.probe import SETTINGS, Switched, with_switches
from hasten.search.quantization import Prepared, Quantization, prepare
from hasten.target import native


def network() -> ir.Model:
    """Convolutions, one grouped and strided, a Gemm and a MatMul whose result is an output."""
    rng = np.random.default_rng(0)
    weights = {
        "k1": rng.standard_normal((8, 3, 3, 3)) / 5,
        "b1": rng.standard_normal(8),
        "k2": rng.standard_normal((8, 4, 3, 3)) / 6,
        "w3": rng.standard_normal((6, 8)) / 3,
        "b3": rng.standard_normal(6),
        "w4": rng.standard_normal((6, 5)) / 2,
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1", "b1"], ["c1"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], "grouped", group=2, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], "gemm", transB=1),
        helper.make_node("MatMul", ["g", "w4"], ["y"], "scores"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [
            helper.make_tensor_value_info("g", TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = frontends.load(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    )
    optimize_graph(model)
    return model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("probe")

    def compile_(model: ir.Model) -> hasten.Session:
        payload = compile_graph(model, Options((native(),), 1, DType.F32, folder / "cache"), {}, "")
        path = Path(folder) / f"{len(list(folder.iterdir()))}.hasten"
        write_artifact(path, payload.manifest, payload.members)
        return hasten.open(path)

    return compile_


def switched(prepared: Prepared, layers: list[Layer], form: Format) -> list[Switched]:
    corrections = prepared.corrections({layer.name: form for layer in layers})
    return [Switched(i, prepared.weight(i, form), corrections[i.name]) for i in layers]


def test_a_probe_is_the_graph_and_the_quantized_graph(opened) -> None:
    model = network()
    layers = products(model)
    assert [layer.name for layer in layers] == ["conv", "grouped", "gemm", "scores"]
    x = {"x": np.random.default_rng(1).standard_normal((4, 3, 12, 12)).astype(np.float32)}
    names = [layer.name for layer in layers]
    prepared = prepare(model, [x], Quantization(smoothing=None))
    ranges = prepared.seen.ranges("minmax")
    forms = dict.fromkeys(names, "int8")
    probe = with_switches(model, switched(prepared, layers, "int8"))
    session = opened(probe.model)
    plain = opened(model).run(x)
    off = session.run({**x, SETTINGS: probe.settings({}, ())})
    for name in ("g", "y"):
        np.testing.assert_allclose(off[name], plain[name], rtol=1e-5, atol=1e-6)
    for quantized in ([], ["conv"], ["grouped", "scores"], names):
        formats = {name: forms[name] for name in quantized}
        wanted = opened(prepared.quantized(formats, ranges)).run(x) if quantized else plain
        got = session.run({**x, SETTINGS: probe.settings(ranges, quantized)})
        for name in ("g", "y"):
            # Another order of sums may round a value to the next step of the grid.
            scale = np.abs(wanted[name]).max()
            np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=0.02 * scale)
    assert not np.allclose(got["y"], plain["y"], rtol=1e-4, atol=1e-5)


def test_settings_have_a_row_for_each_layer() -> None:
    model = network()
    probe = with_switches(model, [Switched(i, np.zeros(i.shape, np.float32)) for i in products(model)])
    name = probe.layers[1].activation
    rows = probe.settings({name: Range(-1.0, 3.0)}, ["grouped"])
    np.testing.assert_allclose(rows[1], [1, 4 / 255, 64])
    np.testing.assert_array_equal(rows[[0, 2, 3]], [[0, 1, 0]] * 3)


def perceptron() -> ir.Model:
    """Two products, one of them a Gemm that reads its weight the other way round."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((64, 128)) / 8, "w2": rng.standard_normal((5, 128)) / 11}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], "first"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2"], ["y"], "second", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = frontends.load(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    )
    optimize_graph(model)
    return model


@pytest.mark.parametrize("form", ["int8-dynamic", "int8-weights", "int4-weights"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_probe_of_other_formats_is_the_graph_in_them(opened, form, rounding) -> None:
    model, names = perceptron(), ["first", "second"]
    rng = np.random.default_rng(1)
    x = {"x": (rng.standard_normal((40, 8)) @ rng.standard_normal((8, 64))).astype(np.float32)}
    prepared = prepare(model, [x], Quantization(rounding=rounding), [form])
    layers = layers_for(prepared.model, form)
    assert [layer.name for layer in layers] == names
    probe = with_switches(prepared.model, switched(prepared, layers, form), form)
    session = opened(probe.model)
    plain = opened(model).run(x)["y"]
    for chosen in ([], [names[-1]], names):
        graph = prepared.quantized(dict.fromkeys(chosen, form), {})
        wanted = opened(graph).run(x)["y"] if chosen else plain
        got = session.run({**x, SETTINGS: probe.settings({}, chosen)})["y"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.01 * np.abs(wanted).max())
        assert not chosen or not np.allclose(got, plain, rtol=1e-5, atol=1e-6)
