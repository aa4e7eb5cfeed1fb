import numpy as np
import pytest
from tests.ops.conformance import case


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode, padding, aligned):
    rng = np.random.default_rng(2)
    prepared = case(
        "GridSample",
        [("float32", ["n", 2, "h", 4]), ("float32", ["n", "a", 3, 2])],
        mode=mode,
        padding_mode=padding,
        align_corners=aligned,
    )
    for n, h in ((1, 3), (2, 5)):
        x = rng.standard_normal((n, 2, h, 4)).astype(np.float32)
        grid = rng.uniform(-2.5, 2.5, (n, 4, 3, 2)).astype(np.float32)
        prepared.check(x, grid, rtol=1e-3, atol=1e-4)


def test_grid_sample_of_volumes():
    rng = np.random.default_rng(3)
    prepared = case("GridSample", [("float32", [1, 1, 3, 4, 2]), ("float32", [1, 2, 2, 2, 3])], mode="linear")
    grid = rng.uniform(-1.2, 1.2, (1, 2, 2, 2, 3)).astype(np.float32)
    prepared.check(rng.standard_normal((1, 1, 3, 4, 2)).astype(np.float32), grid, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_positions_that_are_no_numbers_read_nothing_outside(mode, padding):
    prepared = case(
        "GridSample",
        [("float32", [1, 1, 3, 3]), ("float32", [1, 1, 3, 2])],
        mode=mode,
        padding_mode=padding,
        reference=lambda x, grid: np.ones((1, 1, 1, 3), np.float32) * (padding != "zeros"),
    )
    grid = np.array([np.nan, np.nan, np.inf, -np.inf, 1e30, -1e30], np.float32).reshape(1, 1, 3, 2)
    prepared.check(np.ones((1, 1, 3, 3), np.float32), grid)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 3, 4, 5)])
def test_grids_of_affine_maps(aligned, size):
    space = len(size) - 2
    inputs = [("float32", ["n", space, space + 1]), ("int64", [space + 2])]
    prepared = case("AffineGrid", inputs, align_corners=aligned)
    theta = np.random.default_rng(0).standard_normal((2, space, space + 1)).astype(np.float32)
    prepared.check(theta, np.array(size), rtol=1e-4, atol=1e-5)
