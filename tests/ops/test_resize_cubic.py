import numpy as np
import pytest
from tests.ops.conformance import case

POSITIONS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("factors", [(2, 2), (0.5, 1.5), (1, 3)])
@pytest.mark.parametrize("a", [-0.75, -0.5])
def test_cubic(where, factors, a):
    scales = np.array([1, 1, *factors], np.float32)
    prepared = case(
        "Resize",
        [("float32", ["n", 2, "h", 4]), None, scales],
        mode="cubic",
        coordinate_transformation_mode=where,
        cubic_coeff_a=a,
    )
    for n, h in ((1, 4), (2, 6)):
        x = np.random.default_rng(0).standard_normal((n, 2, h, 4)).astype(np.float32)
        prepared.check(x, rtol=1e-3, atol=1e-4)
