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


@pytest.mark.parametrize("one_sided", [0, 1])
@pytest.mark.parametrize("windowed", [False, True])
def test_stretches(one_sided, windowed):
    # ONNX's evaluator takes a real signal of three axes, and a step and a length that are numbers.
    window = RNG.random(6).astype(np.float32) if windowed else None

    def stretches(x, step):
        views = np.lib.stride_tricks.sliding_window_view(x[..., 0], 6, axis=1)[:, :: int(step)]
        views = views * (1 if window is None else window)
        found = np.fft.rfft(views) if one_sided else np.fft.fft(views)
        return np.stack([found.real, found.imag], axis=-1).astype(np.float32)

    inputs = [("float32", ["b", "t", 1]), ("int64", []), window, np.array(6)]
    prepared = case("STFT", inputs, reference=stretches, onesided=one_sided)
    for t, step in ((6, 1), (20, 3), (17, 20)):
        x = RNG.standard_normal((2, t, 1)).astype(np.float32)
        prepared.check(x, np.array(step), rtol=1e-4, atol=1e-4)
