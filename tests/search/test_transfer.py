"""Values in files: arrays come back mapped, graphs by place. Functions in other processes end in time."""

from __future__ import annotations

import math
import operator
import os
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hasten.errors import EngineError, OptionError
from hasten.search.engines import Limits
from hasten.search.isolated import isolated
from hasten.search.quantization import Quantization
from hasten.search.transfer import file_of, mapped, read_value, write_value


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def graph() -> ir.Model:
    value = ir.Value(name="w", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.tensor(np.arange(3, dtype=np.float32), name="w")
    inside = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21}, name="g")
    return ir.Model(inside, ir_version=10)


def test_arrays_and_graphs_come_back(tmp_path: Path) -> None:
    large, small = np.arange(10_000.0).reshape(100, 100), np.arange(3)
    stored = mapped(graph(), tmp_path / "stored.onnx")
    write_value({"a": [large, small, large.T], "graphs": (graph(), stored)}, tmp_path / "value", tmp_path)
    found = read_value(tmp_path / "value")
    (tmp_path / "value").unlink()
    for got, wanted in zip(found["a"], (large, small, large.T), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not found["a"][0].flags.writeable
    new, same = found["graphs"]
    assert file_of(same) == file_of(stored) == tmp_path / "stored.onnx"
    assert file_of(stored.clone()) is None
    assert file_of(new) not in (None, file_of(stored))
    np.testing.assert_array_equal(new.graph.initializers["w"].const_value.numpy(), np.arange(3))
    write_value(found, tmp_path / "again", tmp_path)  # from pages that are given back afterwards
    np.testing.assert_array_equal(read_value(tmp_path / "again")["a"][0], large)


def test_a_graph_in_a_file_is_opened_once(tmp_path: Path) -> None:
    weights = [np.full((8, i), i, np.float32) for i in range(40, 100)]
    values = [ir.Value(name=f"w{w.shape[1]}", const_value=ir.tensor(w)) for w in weights]
    inside = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}, name="g")
    stored = mapped(ir.Model(inside, ir_version=10), tmp_path / "stored.onnx")
    before = open_files()
    for weight, value in zip(weights, stored.graph.initializers.values(), strict=True):
        assert isinstance(value.const_value, ir.ExternalTensor)
        np.testing.assert_array_equal(value.const_value.numpy(), weight)
    assert open_files() <= before + 1


def test_a_function_gives_its_result_or_its_error(tmp_path: Path) -> None:
    assert isolated(operator.add, 1, 2, doing="adding", folder=tmp_path) == 3
    assert isolated(os.getpid, doing="asking", folder=tmp_path) != os.getpid()
    with pytest.raises(OptionError, match="smoothing=2"):
        isolated(Quantization, doing="choosing", folder=tmp_path, smoothing=2)
    with pytest.raises(EngineError, match="dividing failed: ZeroDivisionError"):
        isolated(operator.truediv, 1, 0, doing="dividing", folder=tmp_path)
    with pytest.raises(EngineError, match="its process ended with status -6"):
        isolated(os.abort, doing="aborting", folder=tmp_path)


@pytest.mark.parametrize("limits", [Limits(seconds=0.5), Limits(until=0.5)])
def test_a_function_ends_in_time(limits: Limits, tmp_path: Path) -> None:
    begin = time.monotonic()
    if not math.isinf(limits.until):
        limits = Limits(until=begin + limits.until)
    with pytest.raises(EngineError, match=r"sleeping took longer than \d s, and was ended"):
        isolated(time.sleep, 60, doing="sleeping", folder=tmp_path, limits=limits)
    assert time.monotonic() - begin < 20
