"""Ensembles of trees, neighbours, recurrences and detections against ONNX Runtime.

    python -m benchmarks.classical [--rounds 15]

Trees are trained on synthetic data and exported by their converters; recurrences have random weights. Each
engine runs in a process of its own, in turns. Given is the median of ONNX Runtime's time divided by hasten's
within each round, with its quartiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import hasten
from benchmarks.ratio import ratio_to_onnxruntime
from hasten.search.measure import Plan

Array = NDArray[Any]

FEATURES = 30
_SEQUENCE, _INPUTS, _HIDDEN = 50, 64, 128


def samples(rows: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Numbers [rows, FEATURES] in float32, some of them missing, and classes of them that trees can learn."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, FEATURES), np.float32)
    hidden = np.tanh(x @ np.random.default_rng(1).standard_normal((FEATURES, classes), np.float32))
    y = (hidden + 0.3 * rng.standard_normal(hidden.shape, np.float32)).argmax(axis=1)
    x[::7, 3] = np.nan
    return x, y


def lightgbm_trees(trees: int, classes: int) -> onnx.ModelProto:
    """LightGBM's classifier."""
    import lightgbm
    from onnxmltools import convert_lightgbm

    x, y = samples(4000, classes)
    model = lightgbm.LGBMClassifier(n_estimators=trees, verbose=-1, n_jobs=2).fit(x, y)
    return convert_lightgbm(model, initial_types=_features(), zipmap=False)


def xgboost_trees(trees: int, classes: int) -> onnx.ModelProto:
    """XGBoost's classifier."""
    import xgboost
    from onnxmltools import convert_xgboost

    x, y = samples(4000, classes)
    return convert_xgboost(
        xgboost.XGBClassifier(n_estimators=trees, n_jobs=2).fit(x, y), initial_types=_features()
    )


def forest(trees: int, classes: int) -> onnx.ModelProto:
    """scikit-learn's random forest, deep trees that differ in depth."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    x, y = samples(4000, classes)
    x = np.nan_to_num(x)
    model = RandomForestClassifier(n_estimators=trees, n_jobs=2, random_state=0).fit(x, y)
    return to_onnx(model, x[:1], options={"zipmap": False})


def neighbours(trained_on: int) -> onnx.ModelProto:
    """scikit-learn's nearest neighbours: all distances, of which the five least count."""
    from skl2onnx import to_onnx
    from sklearn.neighbors import KNeighborsClassifier

    x, y = samples(trained_on, 2)
    x = np.nan_to_num(x)
    return to_onnx(KNeighborsClassifier(5).fit(x, y), x[:1], options={"zipmap": False})


def _features() -> list[tuple[str, Any]]:
    from onnxmltools.convert.common.data_types import FloatTensorType

    return [("x", FloatTensorType([None, FEATURES]))]


def recurrence(operator: str, directions: int) -> onnx.ModelProto:
    """One LSTM or GRU over [_SEQUENCE, batch, _INPUTS] in one direction or both."""
    gates = {"LSTM": 4, "GRU": 3}[operator]
    rng = np.random.default_rng(0)
    shapes = {"w": (gates * _HIDDEN, _INPUTS), "r": (gates * _HIDDEN, _HIDDEN), "b": (2 * gates * _HIDDEN,)}
    weights = [
        numpy_helper.from_array((rng.standard_normal((directions, *s)) / 12).astype(np.float32), name)
        for name, s in shapes.items()
    ]
    node = helper.make_node(
        operator,
        ["x", *shapes],
        ["y"],
        hidden_size=_HIDDEN,
        direction="bidirectional" if directions == 2 else "forward",
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [_SEQUENCE, "batch", _INPUTS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [_SEQUENCE, directions, "batch", _HIDDEN])
    graph = helper.make_graph([node], operator, [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


TABLES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "LightGBM, 100 trees": lambda: lightgbm_trees(100, 2),
    "LightGBM, 5 x 100 trees": lambda: lightgbm_trees(100, 5),
    "XGBoost, 100 trees": lambda: xgboost_trees(100, 2),
    "random forest, 100 trees": lambda: forest(100, 2),
    "random forest, 100 trees, 5 classes": lambda: forest(100, 5),
    "5 nearest of 2000 neighbours": lambda: neighbours(2000),
}
RECURRENCES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "LSTM": lambda: recurrence("LSTM", 1),
    "LSTM, both directions": lambda: recurrence("LSTM", 2),
    "GRU": lambda: recurrence("GRU", 1),
    "GRU, both directions": lambda: recurrence("GRU", 2),
}


def compare(model: onnx.ModelProto, feeds: Mapping[str, Array], rounds: int) -> str:
    """ONNX Runtime's time by hasten's, as text.

    Raises:
        EngineError: one of them fails.
    """
    with tempfile.TemporaryDirectory(prefix="hasten-") as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        plan = Plan(2, rounds=rounds, turn=0.05, openings=1)
        with hasten.compile(source, threads=2) as session:
            ratio = ratio_to_onnxruntime(session, source, dict(feeds), plan)
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    print("| model | rows | by ONNX Runtime |\n|---|---:|---:|")
    for name, build in {**TABLES, **RECURRENCES}.items():
        model = build()
        source = model.graph.input[0].name
        for rows in (1, 8) if name in RECURRENCES else (1, 1000):
            if name in RECURRENCES:
                x = np.random.default_rng(0).standard_normal((_SEQUENCE, rows, _INPUTS), np.float32)
            else:
                x = np.nan_to_num(samples(rows, 2, seed=2)[0])
            print(f"| {name} | {rows} | {compare(model, {source: x}, rounds)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
