import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("length", [7, 10])
@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("parts", [1, 2])
def test_transforms(length, axis, parts):
    prepared = case("DFT", [("float32", ["n", length, "m", parts]), None, ("int64", [])])
    inverse = case("DFT", [("float32", ["n", length, "m", 2]), None, ("int64", [])], inverse=1)
    x = RNG.standard_normal((2, length, 5, parts)).astype(np.float32)
    prepared.check(x, np.array(axis), rtol=1e-4, atol=1e-4)
    both = RNG.standard_normal((2, length, 5, 2)).astype(np.float32)
    inverse.check(both, np.array(axis), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [6, 8, 16])
def test_one_side_and_other_lengths(length):
    size = np.array(length)
    real = case("DFT", [("float32", [2, 8, 1]), size, np.array(1)], onesided=1)
    x = RNG.standard_normal((2, 8, 1)).astype(np.float32)
    (side,) = real.check(x, rtol=1e-4, atol=1e-4)
    back = case("DFT", [("float32", [2, length // 2 + 1, 2]), size, np.array(1)], onesided=1, inverse=1)
    back.check(side, rtol=1e-4, atol=1e-4)
