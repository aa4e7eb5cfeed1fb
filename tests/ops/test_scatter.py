import numpy as np
import pytest
from tests.ops.conformance import case

import hasten
from hasten.errors import InputError
from hasten.loops.evaluate import evaluate

REDUCTIONS = ["none", "add", "mul", "min", "max"]


def random(rng, *shape, dtype="float32"):
    return rng.integers(-9, 9, shape).astype(dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_scatter_elements(reduction, axis, dtype):
    rng = np.random.default_rng(0)
    prepared = case(
        "ScatterElements",
        [(dtype, [4, 5, 3]), ("int64", [3, 2, 3]), (dtype, [3, 2, 3])],
        axis=axis,
        reduction=reduction,
    )
    for _ in range(3):  # several updates name the same element
        indices = rng.integers(-2, 3, (3, 2, 3))
        prepared.check(random(rng, 4, 5, 3, dtype=dtype), indices, random(rng, 3, 2, 3, dtype=dtype))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(reduction, depth):
    rng = np.random.default_rng(1)
    tail = ["n", 3, 4][depth:]
    prepared = case(
        "ScatterND",
        [("float32", ["n", 3, 4]), ("int64", [2, 5, depth]), ("float32", [2, 5, *tail])],
        reduction=reduction,
    )
    for n in (2, 4):
        updates = random(rng, 2, 5, *[n, 3, 4][depth:])
        prepared.check(random(rng, n, 3, 4), rng.integers(-2, 2, (2, 5, depth)), updates)


def test_scatter_without_updates_changes_nothing():
    prepared = case("ScatterND", [("float32", [3]), ("int64", [0, 1]), ("float32", [0])])
    prepared.check(np.ones(3, np.float32), np.zeros((0, 1), np.int64), np.zeros(0, np.float32))


@pytest.mark.parametrize("bad", [3, -4])
def test_scatter_outside_is_refused(bad):
    prepared = case("ScatterElements", [("float32", [3]), ("int64", [2]), ("float32", [2])])
    with pytest.raises(InputError, match="ScatterElements"):
        evaluate(
            prepared.program,
            {"x0": np.zeros(3, np.float32), "x1": np.array([0, bad]), "x2": np.ones(2, np.float32)},
        )


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_updates_of_a_number_found_in_the_run(tmp_path, reduction, threads):
    """Of several updates of an element the last one stays; sums have one order whatever the threads."""
    prepared = case(
        "ScatterND",
        [("float32", ["n", 70]), ("int64", ["k", 1]), ("float32", ["k", 70])],
        reduction=reduction,
    )
    session = hasten.compile(prepared.proto, threads=threads, cache=tmp_path)
    rng = np.random.default_rng(0)
    x, u = (rng.standard_normal((n, 70)).astype(np.float32) for n in (500, 3000))
    at = rng.integers(-500, 500, (3000, 1))
    right = x.copy()
    for place, row in zip(at[:, 0], u, strict=True):
        right[place] = row if reduction == "none" else right[place] + row
    np.testing.assert_array_equal(session.run({"x0": x, "x1": at, "x2": u})["y0"], right)
    with pytest.raises(InputError, match="ScatterND"):
        session.run({"x0": x, "x1": at + 500, "x2": u})
    empty = session.run({"x0": x, "x1": at[:0], "x2": u[:0]})["y0"]
    np.testing.assert_array_equal(empty, x)


CACHE = [("float32", ["n", 3, 6, 2]), ("float32", ["n", 3, "k", 2]), ("int64", ["n"])]


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_stretch_of_a_cache(mode):
    prepared = case("TensorScatter", CACHE, mode=mode)
    cache, update = np.zeros((3, 3, 6, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    places = [0, 4, 1] if mode == "linear" else [5, 4, 0]
    prepared.check(cache, update, np.array(places))
    if mode == "linear":
        for wrong in ([0, 5, 0], [0, 0, 7]):
            with pytest.raises(InputError, match="TensorScatter"):
                evaluate(prepared.program, {"x0": cache, "x1": update, "x2": np.array(wrong)})
