import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_determinants(n):
    prepared = case("Det", [("float32", ["b", "c", n, n])])
    x = RNG.integers(-3, 4, (4, 5, n, n)).astype(np.float32)  # many pivots are 0 and many are equal
    x[0, 0, -1] = x[0, 0, 0]
    prepared.check(x, rtol=1e-4, atol=1e-3)
    prepared.check(x[:0])


def test_one_matrix():
    case("Det", [("float64", [3, 3])]).check(RNG.standard_normal((3, 3)))
