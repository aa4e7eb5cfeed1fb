"""Weights in mapped files take no memory once they are given back, and are still there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hasten.graph.pages import give_back
from hasten.search.transfer import mapped

WORDS = 8 << 20


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux says how much of files a process has in memory"
)
def test_mapped_weights_are_given_back_and_read_again(tmp_path: Path) -> None:
    weight = np.arange(WORDS, dtype=np.float32)
    value = ir.Value(name="w", shape=ir.Shape([WORDS]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(weight, name="w")
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21}, name="g")
    model = mapped(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    held = tensor.numpy()
    assert held.sum() > 0
    before = resident_file_bytes()
    give_back(model)
    assert before - resident_file_bytes() > 3 * WORDS
    np.testing.assert_array_equal(held, weight)
