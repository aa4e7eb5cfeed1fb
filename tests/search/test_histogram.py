"""Ranges from pieces of a distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.passes.quantize import Range
from hasten.search.histogram import BINS, METHODS, Histogram


def histogram(*pieces: np.ndarray) -> Histogram:
    made = Histogram()
    for piece in pieces:
        made.add(piece.astype(np.float32))
    return made


def error(values: np.ndarray, seen: Range) -> float:
    scale, zero = (p.astype(np.float64) for p in seen.parameters())
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float(np.square((codes - zero) * scale - values).mean())


@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=30), st.randoms())
def test_the_order_of_the_pieces_makes_no_difference(items, shuffle) -> None:
    one = histogram(np.array(items))
    shuffle.shuffle(items)
    other = histogram(*(np.array([item]) for item in items))
    assert (one.low, one.high, one.width) == (other.low, other.high, other.width)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.sum() == len(items)


def test_counts_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    made = histogram(values[:100], 0.01 * values[100:200], values[200:])
    all_of_them = np.concatenate([values[:100], np.float32(0.01) * values[100:200], values[200:]])
    edges = np.arange(-BINS, BINS + 1) * made.width
    np.testing.assert_array_equal(made.counts, np.histogram(all_of_them, edges)[0])
    assert made.width * BINS / 2 <= np.abs(all_of_them).max() < made.width * BINS


def test_least_and_greatest() -> None:
    assert histogram(np.array([1.5, 2])).range("minmax") == Range(0, 2)
    assert histogram(np.array([-3.0]), np.array([2.0])).range("minmax") == Range(-3, 2)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros_and_nothing_at_all(method) -> None:
    assert histogram().range(method) == Range(0, 0)
    assert histogram(np.zeros(10)).range(method) == Range(0, 0)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "minmax"])
@pytest.mark.parametrize("shape", ["both signs", "after ReLU"])
def test_a_lone_outlier_is_clipped(method, shape) -> None:
    values = np.random.default_rng(1).normal(0, 1, 200_000)
    if shape == "after ReLU":
        values = np.maximum(values, 0)
    seen = histogram(values, np.array([40.0])).range(method)
    # By squared errors the outlier, one in 200,000, weighs enough to be clipped in part only.
    assert 2.5 < seen.high < (38 if method == "mse" else 20)
    assert seen.low == 0 if shape == "after ReLU" else -20 < seen.low < -2.5
    assert error(values, seen) < error(values, Range(values.min(), 40.0))


@pytest.mark.parametrize("method", METHODS)
def test_an_even_distribution_is_kept_whole(method) -> None:
    seen = histogram(np.random.default_rng(2).uniform(-1, 3, 100_000)).range(method)
    assert seen.low == pytest.approx(-1, abs=0.02)
    assert seen.high == pytest.approx(3, abs=0.05)


@given(st.integers(0, 2**32))
def test_the_least_squared_error(seed: int) -> None:
    """No other method's range, nor any shrunk one, has a much lower error than the one of "mse"."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 20_000) * rng.uniform(0.1, 10) + rng.normal()
    made = histogram(values)
    found = error(values, made.range("mse"))
    others = [made.range(m) for m in METHODS]
    others += [Range(made.low * s, made.high * s) for s in np.linspace(0.1, 1, 10)]
    assert all(found <= 1.1 * error(values, other) for other in others)
