"""A small model of text, compiled once, and the command as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from hasten.cli.group import hasten

Invoke = Callable[..., Result]

ROWS, WIDTH = 50, 8


def text_model(scale: float = 1.0) -> onnx.ModelProto:
    """Rows of a table by id, masked, times a matrix; both sizes of the inputs are symbolic."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    matrix = scale * rng.standard_normal((WIDTH, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], "lookup"),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"], "widen"),
        helper.make_node("Mul", ["rows", "mask"], ["masked"], "mask"),
        helper.make_node("MatMul", ["masked", "matrix"], ["scores"], "project"),
    ]
    dims = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, dims),
        helper.make_tensor_value_info("attention_mask", TensorProto.FLOAT, dims),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [*dims, 4])]
    weights = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(matrix.astype(np.float32), "matrix"),
        numpy_helper.from_array(np.array([2]), "last"),
    ]
    graph = helper.make_graph(nodes, "text", inputs, outputs, weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def classifier_of_texts(*classes: str) -> onnx.ModelProto:
    """What scikit-learn's classifiers become: a column of texts, classes by name, a map of probabilities."""
    names = ", ".join(f'"{name}"' for name in classes)
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>
        g (string[n, 1] city, float[n, 2] x)
            => (string[n] label, seq(map(string, float)) p, float[n, 2] scores) {{
            code = ai.onnx.ml.LabelEncoder
                <keys_strings = ["oslo", "rome"], values_floats = [1.0, 2.0], default_float = nan>(city)
            both = Concat<axis = 1>(code, x)
            label, scores = ai.onnx.ml.LinearClassifier<
                classlabels_strings = [{names}], post_transform = "SOFTMAX",
                coefficients = [0.5, -0.2, 0.3, -0.5, 0.2, -0.3], intercepts = [-0.7, 0.7]>(both)
            p = ai.onnx.ml.ZipMap<classlabels_strings = [{names}]>(scores)
        }}""")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all commands of this session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_CACHE", str(folder))
        patch.setenv("HASTEN_TUNING", str(folder / "tuning.sqlite"))
        patch.delenv("HASTEN_CC", raising=False)
        yield folder


@pytest.fixture(scope="session")
def invoke(cache: Path) -> Invoke:
    """Runs a command line in this process."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(hasten, [os.fspath(a) for a in arguments], prog_name="hasten")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "text.onnx"
    onnx.save(text_model(), path)
    return path


@pytest.fixture(scope="session")
def artifact(invoke: Invoke, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, compiled by the command."""
    path = tmp_path_factory.mktemp("artifact") / "text.hasten"
    result = invoke("compile", model, "-o", path)
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "input_ids": rng.integers(0, ROWS, (2, 5)),
        "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.float32),
    }


@pytest.fixture
def refused(invoke: Invoke, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail: exit code 2, one line on stderr, nothing on stdout, no new file."""

    def run(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        result = invoke(*map(str, arguments))
        assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
        errors = [line for line in result.stderr.splitlines() if not line.startswith("  ")]  # progress
        assert len(errors) == 1, result.stderr
        assert errors[0].startswith("hasten: error: ")
        assert result.stdout == ""
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return errors[0]

    return run
