import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)
NO_REGION = np.empty(0, np.float32)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(0.6, 0.4), (0.37, 1.5), (1.0, 0.25)])
@pytest.mark.parametrize("exclude", [0, 1])
def test_smaller_pictures_are_means(mode, scales, exclude):
    factors = np.array([1, 1, *scales], np.float32)
    prepared = case("Resize", [("float32", ["n", 1, "h", "w"]), NO_REGION, factors],
                    mode=mode, antialias=1, exclude_outside=exclude)  # fmt: skip
    for shape in ((1, 1, 9, 8), (2, 1, 4, 5)):
        prepared.check(RNG.standard_normal(shape).astype(np.float32), rtol=1e-4, atol=1e-5)


def test_sizes_that_are_read():
    inputs = [("float32", ["n", "h", "w"]), NO_REGION, None, ("int64", [2])]
    prepared = case("Resize", inputs, mode="linear", antialias=1, axes=[1, 2])
    x = RNG.standard_normal((1, 9, 7)).astype(np.float32)
    for size in ((4, 3), (9, 2), (12, 7)):
        prepared.check(x, np.array(size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_regions_that_are_read(mode):
    inputs = [("float32", [1, 2, "h", "w"]), ("float32", [4]), None, ("int64", [2])]
    prepared = case("Resize", inputs, mode=mode, axes=[2, 3], extrapolation_value=7.0,
                    coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    x = RNG.standard_normal((1, 2, 6, 5)).astype(np.float32)
    for region, size in (((0.1, 0.2, 0.8, 0.9), (4, 3)), ((-0.3, 0, 1.2, 1), (5, 7)), ((0, 0, 1, 1), (6, 5))):
        prepared.check(x, np.array(region, np.float32), np.array(size), rtol=1e-3, atol=1e-3)
    prepared.check(x, np.array((0.2, 0.4, 0.7, 0.5), np.float32), np.array((1, 1)), rtol=1e-3, atol=1e-3)
