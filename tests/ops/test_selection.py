import numpy as np
import pytest
from tests.ops.conformance import case

import hasten
from hasten.errors import InputError

RNG = np.random.default_rng(0)


def check(prepared, tmp_path, *examples):
    session = hasten.compile(prepared.proto, cache=tmp_path)
    assert not session.report["host"]
    for arrays in examples:
        (right,) = prepared.check(*arrays)
        found = session.run({f"x{k}": a for k, a in enumerate(arrays)})["y0"]
        np.testing.assert_array_equal(found, right)
    return session


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64"])
def test_what_is_not_zero(tmp_path, dtype):
    examples = [RNG.integers(0, 2, shape).astype(dtype) for shape in ((3, 4, 5), (1, 4, 1), (0, 4, 2))]
    examples += [np.zeros((2, 4, 3), dtype), np.ones((2, 4, 3), dtype)]
    prepared = case("NonZero", [(dtype, ["n", 4, "m"])])
    check(prepared, tmp_path, *((x,) for x in examples))


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_slices_for_which_a_condition_holds(tmp_path, axis):
    extra = {} if axis is None else {"axis": axis}
    prepared = case("Compress", [("float32", ["n", "m"]), ("bool", ["k"])], **extra)
    x = RNG.standard_normal((4, 5)).astype(np.float32)
    conditions = ([True, False, True], [False] * 4, [True] * 4)
    session = check(prepared, tmp_path, *((x, np.array(c)) for c in conditions))
    with pytest.raises(InputError, match="outside its axis of length"):
        session.run({"x0": x, "x1": np.ones(30, bool)})
