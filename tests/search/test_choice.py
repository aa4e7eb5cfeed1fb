"""The choice of layers is the best there is: compared with all choices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.search.choice import Choice, LayerCost, curve

costs_of_layers = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(-200, 1000)), min_size=1, max_size=7
).map(lambda pairs: [LayerCost(f"layer{i}", loss * 1e-6, gain / 10) for i, (loss, gain) in enumerate(pairs)])


def best_by_trying(costs: list[LayerCost], limit: float) -> float:
    subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(len(costs) + 1))
    return max(sum(c.gain for c in s) for s in subsets if sum(c.loss for c in s) <= limit + 1e-12)


@settings(max_examples=40, deadline=None)
@given(costs_of_layers)
def test_no_choice_that_loses_no_more_gains_more(costs: list[LayerCost]) -> None:
    points = curve(costs)
    by_name = {c.name: c for c in costs}
    for choice in points:
        assert choice.loss == pytest.approx(sum(by_name[n].loss for n in choice.layers))
        assert choice.gain == pytest.approx(sum(by_name[n].gain for n in choice.layers))
        assert choice.gain == pytest.approx(best_by_trying(costs, choice.loss))
    assert points[-1].loss == 0
    assert points[0].gain == pytest.approx(sum(max(c.gain, 0) for c in costs))
    for faster, slower in itertools.pairwise(points):
        assert faster.gain > slower.gain
        assert faster.loss > slower.loss


def test_a_layer_that_costs_the_most_is_left_out_first() -> None:
    costs = [LayerCost("bad", 0.9, 50.0), LayerCost("good", 0.01, 40.0), LayerCost("slower", 0.0, -3.0)]
    assert curve(costs) == [
        Choice(("bad", "good"), 0.91, 90.0),
        Choice(("good",), 0.01, 40.0),
        Choice((), 0.0, 0.0),
    ]
    assert curve([LayerCost("slower", 0.1, -1.0)]) == [Choice((), 0.0, 0.0)]
