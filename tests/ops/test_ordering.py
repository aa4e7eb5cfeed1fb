import numpy as np
import pytest
from tests.ops.conformance import case

import hasten
from hasten.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_the_largest_and_the_smallest(axis, largest, dtype):
    prepared = case("TopK", [(dtype, ["n", 5, "m"]), ("int64", [1])], outputs=2, axis=axis, largest=largest)
    for shape, k in (((3, 5, 7), 3), ((4, 5, 4), 1), ((1, 5, 1), 1), ((6, 5, 33), 0)):
        prepared.check(RNG.integers(0, 9, shape).astype(dtype), np.array([k]))  # with many equal ones


def compiled(proto, tmp_path):
    session = hasten.compile(proto, cache=tmp_path)
    assert not session.report["host"]
    return session


def test_more_than_there_are(tmp_path):
    proto = case("TopK", [("float32", [4]), ("int64", [1])], outputs=2).proto
    session = compiled(proto, tmp_path)
    for k in (5, -1):
        with pytest.raises(InputError, match=r"a number of elements that the axis has \(TopK"):
            session.run({"x0": np.ones(4, np.float32), "x1": np.array([k])})


def different(x, axis, ordered):
    """What Unique gives; ONNX's reference evaluator takes unordered slices along the first axis only."""
    y, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not ordered:
        order = np.argsort(first)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
        y = np.take(x.reshape(-1), first) if axis is None else np.take(x, first, axis)
    return y, first, inverse, counts


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_what_is_different(tmp_path, ordered, axis):
    extra = {} if axis is None else {"axis": axis}
    prepared = case("Unique", [("int32", ["n", "m"])], outputs=4, sorted=ordered, **extra)
    session = compiled(prepared.proto, tmp_path)
    for shape, most in (((1, 1), 3), ((5, 4), 2), ((3, 40), 30), ((70, 1), 9), ((9, 3), 1)):
        x = RNG.integers(0, most, shape).astype(np.int32)
        if ordered or axis == 0:
            prepared.check(x)
        found = session.run({"x0": x})
        for name, right in zip(("y0", "y1", "y2", "y3"), different(x, axis, ordered), strict=True):
            np.testing.assert_array_equal(found[name], right)


@pytest.mark.parametrize("k", [1, 2, 5, 64, 1000, 4000])
def test_the_first_few_of_many(tmp_path, k):
    """A heap gives what sorting gives, however they come; of equal ones those that stand first."""
    prepared = case("TopK", [("float32", [3, 4000]), ("int64", [1])], outputs=2, largest=0)
    session = compiled(prepared.proto, tmp_path)
    rising = np.sort(RNG.integers(0, 700, (3, 4000)).astype(np.float32))
    for x in (rising, -rising, RNG.permuted(rising, axis=1)):
        found = session.run({"x0": x, "x1": np.array([k])})
        right = np.argsort(x, kind="stable")[:, :k]
        np.testing.assert_array_equal(found["y1"], right)
        np.testing.assert_array_equal(found["y0"], np.take_along_axis(x, right, 1))


def test_many_elements_in_order(tmp_path):
    prepared = case("TopK", [("float32", [100_000]), ("int64", [1])], outputs=2)
    x = RNG.integers(0, 50_000, 100_000).astype(np.float32)
    found = compiled(prepared.proto, tmp_path).run({"x0": x, "x1": np.array([100_000])})
    right = np.argsort(-x, kind="stable")
    np.testing.assert_array_equal(found["y1"], right)
    np.testing.assert_array_equal(found["y0"], x[right])
