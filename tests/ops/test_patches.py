import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("image", "block", "attributes", "patches"),
    [
        ((5, 6), (2, 3), {}, 16),
        ((5, 5), (3, 1), {"strides": [2, 2]}, 6),
        ((4, 5), (2, 2), {"pads": [1, 0, 1, 2]}, 30),
        ((7, 7), (2, 3), {"dilations": [3, 2]}, 12),
    ],
)
def test_patches_added_up(image, block, attributes, patches):
    prepared = case("Col2Im", [("float32", ["n", "c", "l"]), ("int64", [2]), ("int64", [2])], **attributes)
    x = RNG.standard_normal((2, 3 * block[0] * block[1], patches)).astype(np.float32)
    prepared.check(x, np.array(image), np.array(block), rtol=1e-4, atol=1e-5)
