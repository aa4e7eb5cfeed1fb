import numpy as np
import pytest
from tests.ops.conformance import case

RNG = np.random.default_rng(0)


def bytes_of(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize(("a", "b"), [("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")])
def test_products(a, b):
    def product(x, y, p, q):
        return (x.astype(np.int32) - p) @ (y.astype(np.int32) - q)

    prepared = case(
        "MatMulInteger", [(a, ["b", "m", 7]), (b, [7, "n"]), (a, []), (b, ["n"])], reference=product
    )
    prepared.check(bytes_of(a, 2, 5, 7), bytes_of(b, 7, 9), bytes_of(a), bytes_of(b, 9))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(groups):
    w = bytes_of("int8", 8, 4 // groups, 3, 3)
    zeros = [np.array(7, np.uint8), np.array(-3, np.int8)]
    inputs = [("uint8", ["n", 4, "h", "w"]), w, *zeros]

    def direct(x):
        wide = np.pad(x.astype(np.int32) - 7, [(0, 0), (0, 0), (1, 1), (1, 1)])
        views = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        parts = zip(np.split(views, groups, axis=1), np.split(w.astype(np.int32) + 3, groups), strict=True)
        return np.concatenate([np.einsum("nchwij,ocij->nohw", v, k) for v, k in parts], axis=1)

    prepared = case("ConvInteger", inputs, reference=lambda x: direct(x).astype(np.int32),
                    group=groups, pads=[1, 1, 1, 1], strides=[2, 2])  # fmt: skip
    for shape in ((2, 4, 6, 5), (1, 4, 1, 1)):
        prepared.check(bytes_of("uint8", *shape))
