"""Trees as LightGBM, XGBoost and scikit-learn export them, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hasten
from benchmarks import classical

BUILDERS = [classical.lightgbm_trees, classical.xgboost_trees, classical.forest]


@pytest.mark.filterwarnings("ignore")  # of the converters, which are older than what they convert
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda f: f.__name__)
def test_exported_trees(build, classes: int, tmp_path: Path) -> None:
    model = build(20, classes)
    reference = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session = hasten.compile(model, threads=2, cache=tmp_path)
    assert not session.report["host"]
    for rows in (1, 7, 300):
        x, _ = classical.samples(rows, classes, seed=rows)
        if build is classical.forest:
            x = np.nan_to_num(x)  # its converter knows no missing values
        feeds = {model.graph.input[0].name: x}
        (label, probability), (right, likely) = session.run(feeds).values(), reference.run(None, feeds)
        np.testing.assert_allclose(probability, likely, atol=2e-6)
        best = np.sort(likely, axis=1)
        clear = best[:, -1] - best[:, -2] > 1e-5  # trees of a forest vote, and votes may be equal
        np.testing.assert_array_equal(label[clear], right[clear])
        assert clear.mean() >= 0.7 or rows == 1
