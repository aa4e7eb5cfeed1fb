"""The choice of formats is the best there is: compared with all choices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.search.choice import Choice, LayerCost, curve
from hasten.search.formats import FORMATS

options = st.lists(st.tuples(st.integers(0, 1000), st.integers(-200, 1000)), min_size=1, max_size=3)
costs_of_layers = st.lists(options, min_size=1, max_size=5).map(
    lambda layers: [
        LayerCost(f"layer{i}", form, loss * 1e-6, gain / 10)
        for i, pairs in enumerate(layers)
        for form, (loss, gain) in zip(FORMATS, pairs, strict=False)
    ]
)


def best_by_trying(costs: list[LayerCost], limit: float) -> float:
    names = dict.fromkeys(c.name for c in costs)
    of_each = [[None, *(c for c in costs if c.name == name)] for name in names]
    sets = ([c for c in chosen if c is not None] for chosen in itertools.product(*of_each))
    return max(sum(c.gain for c in s) for s in sets if sum(c.loss for c in s) <= limit + 1e-12)


@settings(max_examples=40, deadline=None)
@given(costs_of_layers)
def test_no_choice_that_loses_no_more_gains_more(costs: list[LayerCost]) -> None:
    points = curve(costs)
    known = {(c.name, c.format): c for c in costs}
    for choice in points:
        chosen = [known[item] for item in choice.formats.items()]
        assert choice.loss == pytest.approx(sum(c.loss for c in chosen))
        assert choice.gain == pytest.approx(sum(c.gain for c in chosen))
        assert choice.gain == pytest.approx(best_by_trying(costs, choice.loss))
    assert points[-1].loss == 0
    names = {c.name for c in costs}
    assert points[0].gain == pytest.approx(
        sum(max(0, *(c.gain for c in costs if c.name == n)) for n in names)
    )
    for faster, slower in itertools.pairwise(points):
        assert faster.gain > slower.gain
        assert faster.loss > slower.loss


def test_a_layer_that_costs_the_most_is_left_out_first_or_gets_another_format() -> None:
    bad, good = LayerCost("bad", "int8", 0.9, 50.0), LayerCost("good", "int8", 0.01, 40.0)
    slower = LayerCost("slower", "int8", 0.0, -3.0)
    assert curve([bad, good, slower]) == [
        Choice({"bad": "int8", "good": "int8"}, 0.91, 90.0),
        Choice({"good": "int8"}, 0.01, 40.0),
        Choice({}, 0.0, 0.0),
    ]
    careful = LayerCost("bad", "int8-dynamic", 0.05, 30.0)
    useless = LayerCost("bad", "int4-weights", 0.8, 31.0)  # as much loss as int8, and hardly faster
    assert [c.formats for c in curve([bad, careful, useless, good])] == [
        {"bad": "int8", "good": "int8"},
        {"bad": "int8-dynamic", "good": "int8"},
        {"good": "int8"},
        {},
    ]
    assert curve([LayerCost("slower", "int8", 0.1, -1.0)]) == [Choice({}, 0.0, 0.0)]
