"""The choice of layers is the best there is: compared with all choices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.search.choice import Choice, LayerCost, best_within, curve

costs_of_layers = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(-200, 1000)), min_size=1, max_size=7
).map(lambda pairs: [LayerCost(f"layer{i}", loss * 1e-6, gain / 10) for i, (loss, gain) in enumerate(pairs)])


def best_by_trying(costs: list[LayerCost], limit: float) -> float:
    subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(len(costs) + 1))
    return max(sum(c.gain for c in s) for s in subsets if sum(c.loss for c in s) <= limit + 1e-12)


@settings(max_examples=40, deadline=None)
@given(costs_of_layers, st.integers(0, 3000))
def test_nothing_within_the_limit_gains_more(costs: list[LayerCost], limit: int) -> None:
    found = best_within(costs, limit * 1e-6)
    assert found.loss <= limit * 1e-6 * (1 + 1e-6) + 1e-12
    assert found.gain == pytest.approx(best_by_trying(costs, limit * 1e-6), rel=1e-3, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(costs_of_layers)
def test_the_curve_falls_in_both_and_ends_with_nothing(costs: list[LayerCost]) -> None:
    points = curve(costs)
    assert points[-1].loss == 0
    for better, worse in itertools.pairwise(points):
        assert better.gain >= worse.gain
        assert better.loss > worse.loss
    assert points[0].gain == pytest.approx(sum(max(c.gain, 0) for c in costs))


def test_a_layer_that_costs_the_most_is_left_out_first() -> None:
    costs = [LayerCost("bad", 0.9, 50.0), LayerCost("good", 0.01, 40.0), LayerCost("slower", 0.0, -3.0)]
    assert curve(costs)[0].layers == ("bad", "good")
    assert best_within(costs, 0.5) == Choice(("good",), 0.01, 40.0)
    assert curve(costs)[1].layers == ("good",)
    assert curve([LayerCost("slower", 0.1, -1.0)]) == [Choice((), 0.0, 0.0)]
