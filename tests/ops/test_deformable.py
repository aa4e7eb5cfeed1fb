import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("shift", ["half_pixel", "output_half_pixel"])
def test_regions(ratio, mode, shift):
    prepared = case(
        "RoiAlign",
        [("float32", ["n", 2, "h", "w"]), ("float32", ["r", 4]), ("int64", ["r"])],
        output_height=3,
        output_width=2,
        mode=mode,
        sampling_ratio=ratio,
        spatial_scale=0.5,
        coordinate_transformation_mode=shift,
    )
    for (n, h, w), count in (((2, 9, 7), 5), ((1, 1, 1), 2), ((1, 4, 12), 1)):
        x = RNG.standard_normal((n, 2, h, w)).astype(np.float32)
        corners = RNG.uniform(-4, 2 * max(h, w) + 4, (count, 2, 2)).astype(np.float32)
        rois = np.sort(corners, axis=1).reshape(count, 4)  # some of them reach outside
        prepared.check(x, rois, RNG.integers(0, n, count), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("groups", "offsets"), [(1, 1), (1, 2), (2, 4)])
def test_windows_that_are_moved(masked, groups, offsets):
    weight = RNG.standard_normal((6, 4 // groups, 3, 2)).astype(np.float32)
    bias = RNG.standard_normal(6).astype(np.float32)
    inputs = [("float32", ["n", 4, "h", "w"]), weight, ("float32", ["n", offsets * 12, "a", "b"]), bias]
    inputs += [("float32", ["n", offsets * 6, "a", "b"])] if masked else []
    prepared = case(
        "DeformConv", inputs, group=groups, offset_group=offsets, pads=[1, 0, 1, 1], strides=[2, 1]
    )
    for h, w in ((5, 6), (4, 3)):
        out = ((h + 2 - 3) // 2 + 1, w + 1 - 2 + 1)
        x = RNG.standard_normal((2, 4, h, w)).astype(np.float32)
        offset = RNG.uniform(-2, 2, (2, offsets * 12, *out)).astype(np.float32)
        mask = [RNG.random((2, offsets * 6, *out)).astype(np.float32)] if masked else []
        prepared.check(x, offset, *mask, rtol=1e-4, atol=1e-4)
