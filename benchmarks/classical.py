"""Ensembles of trees, neighbours, recurrences and detections against ONNX Runtime.

    python -m benchmarks.classical [--rounds 15] [--only TEXT]

Trees are trained on synthetic data and exported by their converters; recurrences have random weights. Each
engine runs in a process of its own, in turns. Given is the median of ONNX Runtime's time divided by hasten's
within each round, with its quartiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
_SEQUENCE, _INPUTS, _HIDDEN, _CLASSES = 50, 64, 128, 80


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


def suppression(most: int, score: float) -> onnx.ModelProto:
    """NonMaxSuppression over [_CLASSES, boxes] scores, as detectors have it at their end."""
    numbers = {"most": np.array([most]), "overlap": np.float32([0.5]), "score": np.float32([score])}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *numbers], ["chosen"])
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, _CLASSES, "n"])
    chosen = helper.make_tensor_value_info("chosen", TensorProto.INT64, ["k", 3])
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items()]
    graph = helper.make_graph([node], "suppression", [boxes, scores], [chosen], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def detections(boxes: int) -> dict[str, Array]:
    """Boxes in a picture of 640 x 640, and scores of which most are low."""
    rng = np.random.default_rng(0)
    center, size = rng.uniform(0, 640, (1, boxes, 2)), rng.uniform(10, 120, (1, boxes, 2))
    corners = np.concatenate([center - size / 2, center + size / 2], axis=-1).astype(np.float32)
    return {"boxes": corners, "scores": rng.beta(0.3, 6, (1, _CLASSES, boxes)).astype(np.float32)}


Case = tuple[str, int, Callable[[], onnx.ModelProto], dict[str, Array]]
"""Name, rows, the model, and what it is run on."""


def cases() -> Iterator[Case]:
    """All that is compared."""
    for name, build in TABLES.items():
        for rows in (1, 1000):
            feed = "X" if "neighbours" in name or "forest" in name else "x"
            yield name, rows, build, {feed: np.nan_to_num(samples(rows, 2, seed=2)[0])}
    for name, build in RECURRENCES.items():
        for rows in (1, 8):
            x = np.random.default_rng(0).standard_normal((_SEQUENCE, rows, _INPUTS), np.float32)
            yield name, rows, build, {"x": x}
    for most, score in ((100, 0.25), (100, 0.05), (200, 0.0)):
        name = f"NonMaxSuppression, {_CLASSES} classes, scores over {score}"
        yield name, 8400, partial(suppression, most, score), detections(8400)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="a part of the names of the models to compare")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| model | rows | by ONNX Runtime |\n|---|---:|---:|")
    for name, rows, build, feeds in cases():
        if options.only in name:
            print(f"| {name} | {rows} | {compare(build(), feeds, options.rounds)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
