"""Prices of nodes at sizes between those that were measured."""

from __future__ import annotations

import pytest

from hasten.search.pruning import next_share
from hasten.search.size_times import Point, price_from


def test_times_are_straight_between_measured_sizes_and_never_fall() -> None:
    whole = {"a": Point(1000, 10.0), "b": Point(1000, 30.0)}
    half = {"a": Point(500, 6.0), "b": Point(500, 40.0)}
    quarter = {"a": Point(250, 4.0)}
    price = price_from([whole, half, quarter])
    assert [price("a", flops) for flops in (1000, 750, 500, 250)] == pytest.approx([10, 8, 6, 4])
    assert price("a", 125) == pytest.approx(3)
    assert price("a", 0) == 0
    assert price("b", 500) == price("b", 1000) == 30
    assert price("unknown", 100) == pytest.approx(100 * 40 / 2000)


def test_shares_fall_until_one_fails_and_the_last_step_is_halved() -> None:

    def search(least: float) -> list[float]:
        good, bad, tried = [1.0], [0.0], []
        while (share := next_share(good, bad)) is not None:
            tried.append(share)
            (good if share >= least else bad).append(share)
        return tried

    assert search(0.5) == pytest.approx([0.75, 0.6, 0.45, 0.525])
    assert search(0.99)[:2] == pytest.approx([0.75, 0.875])
    assert min(search(0.0)) >= 0.1
