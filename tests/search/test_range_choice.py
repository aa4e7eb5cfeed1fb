"""Each activation gets the method of calibration that changes its own layers least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from hasten import frontends
from hasten.passes.pipeline import optimize_graph
from hasten.passes.quantize import Range, Scheme
from hasten.search.range_choice import choose_ranges


def network() -> ir.Model:
    """A product beside a convolution in groups, of inputs of their own."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((16, 8)) / 4, "k": rng.standard_normal((8, 2, 3, 3)) / 5}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        helper.make_node("Conv", ["p", "k"], ["z"], "grouped", group=4, pads=[1, 1, 1, 1]),
    ]
    inputs = {"x": ["b", 16], "p": ["b", 8, 10, 10]}
    outputs = {"y": ["b", 8], "z": ["b", 8, 10, 10]}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = frontends.load(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    )
    optimize_graph(model)
    return model


def test_a_range_that_fits_is_chosen_for_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    feeds = [
        {
            "x": rng.standard_normal((4, 16)).astype(np.float32),
            "p": 50 * rng.standard_normal((4, 8, 10, 10)).astype(np.float32),
        }
        for _ in range(3)
    ]
    small, large = Range(-4, 4), Range(-200, 200)
    ranges = {"minmax": {"x": large, "p": large}, "mse": {"x": small, "p": small}}
    found = choose_ranges(network(), feeds, ["product", "grouped"], ranges, Scheme(), cache=tmp_path)
    assert found == {"x": "mse", "p": "minmax"}
    assert choose_ranges(network(), feeds, ["product"], ranges, Scheme(), cache=tmp_path) == {"x": "mse"}
