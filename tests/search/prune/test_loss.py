"""What is differentiated where a model gives choices, or nothing that has a gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.passes.conftest import build
from tests.search.prune.conftest import CLASSES, USELESS, WIDTH

from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.units import find_units
from hasten.search.prune.criteria import score_units
from hasten.search.prune.loss import judged
from hasten.search.prune.plan import Plan
from hasten.search.prune.ranking import rank
from hasten.search.prune.run import prune_model
from hasten.search.prune.training import Training
from hasten.search.samples import Samples


def ending_in(network: ir.Model, end: str, output: str) -> ir.Model:
    """The network with more behind its scores, which are no output any more."""
    weights = {
        name: v.const_value.numpy()
        for name, v in network.graph.initializers.items()
        if v.const_value is not None
    }
    body = f"p = MatMul(x, a) q = Add(p, b) h = Gelu(q) s = MatMul(h, c) z = Add(s, d) {end}"
    model = ir.from_proto(build(f"(float[n, {WIDTH}] x) => ({output} y)", body, weights))
    optimize_graph(model)
    return model


ENDS = {
    "ArgMax": ("y = ArgMax<axis=1, keepdims=0>(z)", "int64[n]"),
    "Cast": ("i = ArgMax<axis=1>(z) j = Cast<to=1>(i) y = Flatten(j)", "float[n, 1]"),
}


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("criterion", ["gradient", "fisher", "obs"])
def test_a_choice_is_judged_by_what_it_is_made_from(
    end: str, criterion: str, network: ir.Model, samples: Samples
) -> None:
    model = ending_in(network, *ENDS[end])
    assert [value.name for value in judged(model)] == ["z"]
    (group,) = find_units(model).groups
    scores = score_units(criterion, model, [group], samples.feeds[:64]).values[group]
    assert set(np.argsort(scores)[:USELESS].tolist()) == set(range(USELESS, 2 * USELESS))
    assert rank(model, Plan(("neurons",), criterion, 0.6, "none"), samples).labels is not None


def test_training_towards_scores_behind_a_choice(network: ir.Model, samples: Samples) -> None:
    model = ending_in(network, *ENDS["ArgMax"])
    plan = Plan(("neurons",), "random", 0.6, "distill", Training(epochs=2, seconds=None, rate=1e-2))
    assert samples.labels is not None
    small = prune_model(model, plan, Samples(samples.feeds[:60], samples.labels[:60]))
    assert "2 epochs" in small.report.notes[-1]


def test_whole_numbers_alone_are_refused(network: ir.Model, samples: Samples) -> None:
    model = ending_in(network, "y = Cast<to=7>(z)", f"int64[n, {CLASSES}]")
    for criterion in ("gradient", "fisher", "obs"):
        with pytest.raises(OptionError, match="whole numbers"):
            prune_model(model, Plan(("neurons",), criterion, 0.6, "none"), samples)
    small = prune_model(model, Plan(("neurons",), "activation", 0.6, "none"), samples)
    assert small.report.reached


def test_an_answer_that_no_gradient_reaches(network: ir.Model, samples: Samples) -> None:
    model = ending_in(network, "i = Cast<to=7>(z) y = Cast<to=1>(i)", f"float[n, {CLASSES}]")
    with pytest.raises(OptionError, match="no gradient reaches"):
        prune_model(model, Plan(("neurons",), "fisher", 0.6, "none"), samples)
