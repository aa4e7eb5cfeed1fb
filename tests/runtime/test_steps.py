"""Loops and branches over the model that is written by hand."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.conftest import NATIVE, TABLE

import hasten.runtime
from hasten.errors import ArtifactError, InputError

Step = dict[str, Any]
INPUTS = [
    {"name": "x", "dtype": "float32", "shape": ["batch", 4]},
    {"name": "ids", "dtype": "int64", "shape": ["batch"]},
    {"name": "most", "dtype": "int64", "shape": []},
    {"name": "go", "dtype": "bool", "shape": []},
]


def native(state: str) -> Step:
    return {**copy.deepcopy(NATIVE), "inputs": [state, "ids"]}


def loop() -> Step:
    """y = 2 y + table[ids] some times, with the sums before each step as rows."""
    return {
        "kind": "loop",
        "operator": "Loop 'l'",
        "count": "most",
        "condition": "go",
        "goes_on": True,
        "initial": ["x"],
        "rows": [{"dtype": "float32", "shape": []}, {"dtype": "float32", "shape": [["x", 0], 4]}],
        "inputs": ["x", "ids", "most", "go"],
        "outputs": ["last", "sums", "all"],
        "bodies": [
            {"inputs": ["step", "still", "h"], "outputs": ["", "y", "total", "y"], "steps": [native("h")]}
        ],
    }


def branches() -> Step:
    bodies = [{"inputs": [], "outputs": ["y"], "steps": [native("x")]}]
    bodies.append({"inputs": [], "outputs": ["x"], "steps": []})
    inputs = ["x", "ids", "go"]
    common: Step = {"operator": "If 'i'", "inputs": inputs, "outputs": ["last"], "bodies": bodies}
    return {"kind": "branches", "condition": "go", **common}


def outputs(*names: str) -> list[Step]:
    shapes = {"last": ["batch", 4], "sums": ["steps"], "all": ["steps", "batch", 4]}
    return [{"name": n, "dtype": "float32", "shape": shapes[n]} for n in names]


def feeds(batch: int, most: int, go: bool) -> dict[str, np.ndarray]:
    x = np.arange(4.0 * batch, dtype=np.float32).reshape(batch, 4)
    return {"x": x, "ids": np.arange(batch) % 16, "most": np.array(most), "go": np.array(go)}


@pytest.mark.parametrize("most", [0, 1, 40])
def test_a_loop(write, most: int) -> None:
    path: Path = write(inputs=INPUTS, outputs=outputs("last", "sums", "all"), steps=[loop()])
    with hasten.runtime.open(path) as session:
        given = feeds(5, most, True)
        y, rows, sums = given["x"], [], []
        for _ in range(most):
            sums.append(y.sum())
            y = 2 * y + TABLE[given["ids"]]
            rows.append(y)
        found = session.run(given)
        np.testing.assert_array_equal(found["last"], y)
        np.testing.assert_allclose(found["sums"], np.array(sums, np.float32), rtol=1e-6)
        np.testing.assert_array_equal(found["all"], np.reshape(rows, (most, 5, 4)))
        assert session.run(feeds(5, most, False))["all"].shape == (0, 5, 4)
        if most:
            with pytest.raises(InputError, match="index 16 is outside"):
                session.run({**given, "ids": given["ids"] + 12})


def test_branches(write) -> None:
    path: Path = write(inputs=INPUTS, outputs=outputs("last"), steps=[branches()])
    with hasten.runtime.open(path) as session:
        given = feeds(3, 0, True)
        np.testing.assert_array_equal(session.run(given)["last"], 2 * given["x"] + TABLE[:3])
        other = session.run({**given, "go": np.array(False)})["last"]
        np.testing.assert_array_equal(other, given["x"])
        assert not np.may_share_memory(other, given["x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": None, "condition": True}, "which never ends"),
        ({"count": 1.5}, "'count' is of the wrong type"),
        ({"initial": ["h"]}, "describes Loop 'l' in part"),
        ({"goes_on": "total"}, "describes the end of Loop 'l'"),
        ({"rows": [{"dtype": "", "shape": [["h", 0]]}] * 2}, "where the length of a row should be"),
        ({"outputs": ["last"]}, "describes Loop 'l' in part"),
        ({"inputs": ["x", "most", "go"]}, "takes 'ids', which nothing makes"),
        ({"kind": "branches"}, "describes Loop 'l' in part"),
    ],
)
def test_manifests_of_loops_that_cannot_be_used(write, changes: Step, message: str) -> None:
    path = write(inputs=INPUTS, outputs=outputs("last"), steps=[{**loop(), **changes}])
    with pytest.raises(ArtifactError, match=message):
        hasten.runtime.open(path)


def test_bodies_in_bodies_are_counted(write) -> None:
    deep: Step = branches()
    for _ in range(101):
        outer = branches()
        outer["bodies"][1] = {"inputs": [], "outputs": ["last"], "steps": [deep]}
        deep = outer
    with pytest.raises(ArtifactError, match="more than 100 loops and branches"):
        hasten.runtime.open(write(inputs=INPUTS, outputs=outputs("last"), steps=[deep]))
