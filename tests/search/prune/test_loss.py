"""What is differentiated where a model gives choices, or nothing that has a gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.passes.conftest import build
from tests.search.prune.conftest import CLASSES, USELESS, WIDTH

from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.remove import remove_units
from hasten.passes.prune.units import find_units
from hasten.search.prune.criteria import score_units
from hasten.search.prune.distill import distill
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


TRAINING = Training(epochs=1, seconds=None)
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


PROBABILITIES = {
    "Softmax": ("y = Softmax(z)", f"float[n, {CLASSES}]"),
    "Identity": ("u = Softmax<axis=1>(z) y = Identity(u)", f"float[n, {CLASSES}]"),
}


@pytest.mark.parametrize("end", list(PROBABILITIES))
def test_labels_are_judged_by_scores_behind_probabilities(
    end: str, network: ir.Model, samples: Samples
) -> None:
    """The cross-entropy of a model with a Softmax at its end is that of the model without."""
    assert samples.labels is not None
    labels = samples.labels.tolist()
    model = ending_in(network, *PROBABILITIES[end])
    scores, losses = [], []
    for each in (network, model):
        analysis = find_units(each)
        (group,) = analysis.groups
        scores.append(score_units("fisher", each, [group], samples.feeds, labels=labels).values[group])
        small = remove_units(each, analysis, {group: range(0, 64, 2)})
        before = [
            distill(each, small.clone(), samples.feeds[:80], TRAINING, labels=known).before
            for known in (None, labels[:80])
        ]
        losses.append(before[1] - before[0])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


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
