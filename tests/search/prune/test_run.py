"""Criteria find what is worth nothing, targets are met in whole tiles, repair brings outputs nearer."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build
from tests.search.prune.conftest import HIDDEN, USELESS

from benchmarks import models
from hasten import frontends
from hasten.errors import HastenError, MissingDependencyError, OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.units import find_units
from hasten.search.prune import run
from hasten.search.prune.cost import Cost, graph_flops
from hasten.search.prune.criteria import CRITERIA, score_units
from hasten.search.prune.plan import Plan, check_plan
from hasten.search.prune.run import prune_model
from hasten.search.samples import Samples

NEURONS = ("neurons",)


def answers(model: ir.Model, samples: Samples) -> np.ndarray:
    x = np.concatenate([feeds["x"] for feeds in samples.feeds])
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0])


@pytest.mark.parametrize(("criterion", "labelled"), list(itertools.product(CRITERIA, (False, True))))
def test_what_is_worth_nothing_ranks_last(
    criterion: str, labelled: bool, network: ir.Model, samples: Samples
) -> None:
    (group,) = find_units(network).groups
    labels = samples.labels.tolist() if labelled and samples.labels is not None else None
    scores = score_units(criterion, network, [group], samples.feeds, labels=labels).values[group]
    assert scores.shape == (HIDDEN,)
    last = set(np.argsort(scores)[: HIDDEN - USELESS].tolist())
    if criterion == "random":
        assert last != set(range(USELESS, HIDDEN))
    else:
        assert last == set(range(USELESS, HIDDEN))


def test_fisher_is_the_curvature_of_the_distance(network: ir.Model, samples: Samples) -> None:
    """Removing one neuron changes the outputs as much as its score says, to first order in the mean."""
    (group,) = find_units(network).groups
    several = Samples(samples.feeds * 10)
    scores = score_units("fisher", network, [group], several.feeds).values[group]
    before = answers(network, samples)
    constants = {v.name: v for v in network.graph.initializers.values()}
    expected = []
    for neuron in range(USELESS):
        changed = network.clone()
        value = changed.graph.initializers["c"]
        array = constants["c"].const_value.numpy().copy()  # type: ignore[union-attr]
        array[neuron] = 0
        value.const_value = ir.tensor(array, name="c")
        change = answers(changed, samples) - before
        expected.append(((change / np.linalg.norm(before, axis=1, keepdims=True)) ** 2).sum(1).mean())
    np.testing.assert_allclose(scores[:USELESS], expected, rtol=0.35)
    assert np.corrcoef(scores[:USELESS], expected)[0, 1] > 0.98


def test_a_target_is_met_in_whole_tiles(network: ir.Model, samples: Samples) -> None:
    small = prune_model(network, Plan(NEURONS, "fisher", 0.6, "none"), samples)
    (cut,) = small.report.cuts
    assert (cut.before, cut.after) == (64, 32)
    assert small.report.reached
    assert small.report.flops == 0.5
    np.testing.assert_allclose(answers(small.model, samples), answers(network, samples), atol=5e-3)


def test_a_target_out_of_reach(network: ir.Model, samples: Samples) -> None:
    small = prune_model(network, Plan(NEURONS, "magnitude", 0.1, "none"), samples)
    assert [cut.after for cut in small.report.cuts] == [16]
    assert not small.report.reached
    assert "cannot be reached: 25.0% is the nearest" in small.report.notes[0]
    assert "25.0%" in str(small.report)


def test_repair_brings_outputs_nearer(network: ir.Model, samples: Samples) -> None:
    right = answers(network, samples)
    plan = Plan(NEURONS, "random", 0.6, "none")
    both = [
        prune_model(network, p, samples) for p in (plan, dataclasses.replace(plan, repair="least-squares"))
    ]
    errors = [float(np.square(answers(small.model, samples) - right).mean()) for small in both]
    assert errors[1] < 0.5 * errors[0]
    assert both[1].report.notes == ()  # the addition of a bias that became shorter is nothing to repair


def test_a_convolutional_network_is_repaired() -> None:
    model = frontends.load(models.efficientnet_lite0_onnx())
    optimize_graph(model)
    pictures, _ = models.labelled_pictures()
    data = Samples(tuple({"pixels": p[None]} for p in pictures[:6]))
    held = pictures[6:10]
    before = graph_flops(model, {"batch": 1})
    right = ReferenceOrt(model).run(held)
    errors = []
    for repair in ("none", "least-squares"):
        small = prune_model(model, Plan(("channels",), "fisher", 0.9, repair), data)
        assert small.report.flops_before == before
        assert 0.8 < small.report.flops <= 0.9
        errors.append(float(np.square(ReferenceOrt(small.model).run(held) - right).mean()))
    assert errors[1] < errors[0]


class ReferenceOrt:
    """A model of pictures in ONNX Runtime."""

    def __init__(self, model: ir.Model) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())

    def run(self, pictures: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(None, {"pixels": pictures})[0])


def test_an_attention_whose_past_is_empty_costs_something() -> None:
    body = "y, a, b = Attention(x, x, x, , past, past)"
    head = "(float[1, 2, 3, 4] x, float[1, 2, p, 4] past) => (float[1, 2, 3, 4] y)"
    model = ir.from_proto(build(head, body, {}))
    assert graph_flops(model, {"p": 0}) == 2 * 2 * (2 * 3 * 3 * 4)


def test_the_cost_is_what_the_pruned_graph_costs() -> None:
    """Also of groups that share axes, such as parts of a concatenation."""
    model = frontends.load(models.ppocr_rec())
    optimize_graph(model)
    analysis = find_units(model)
    sizes = {"x_dim0": 1, "x_dim2": 48, "x_dim3": 192}
    cost = Cost(model, analysis, sizes)
    assert cost.total == graph_flops(model, sizes)
    removed = {group: range(group.count // 2) for group in analysis.groups[::2]}
    for group, units in removed.items():
        cost.remove(group, len(units))
    from hasten.passes.prune.remove import remove_units

    assert cost.now == graph_flops(remove_units(model, analysis, removed), sizes)


def test_whole_layers_of_an_encoder() -> None:
    model = frontends.load(models.minilm_onnx())
    optimize_graph(model)
    feeds = models.sentence_inputs(models.SENTENCES[:2])
    data = Samples(tuple({n: a[k : k + 1] for n, a in feeds.items()} for k in range(2)))
    for criterion in ("magnitude", "activation", "gradient"):
        small = prune_model(model, Plan(("layers",), criterion, 0.7, "none"), data)
        assert sum(cut.after for cut in small.report.cuts) == 4
        assert 0.6 < small.report.flops < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": ("filters",)}, "unit=filters: give some of neurons, heads, channels, layers"),
        ({"units": ("layers", "heads")}, "layers can be compared with other units by fisher"),
        ({"criterion": "luck"}, "criterion='luck': give one of magnitude, "),
        ({"flops": 60.0}, "between 0 and 1"),
        ({"repair": "prayer"}, "repair='prayer': give one of none"),
        ({"criterion": "fisher"}, "needs samples"),
        ({"repair": "least-squares"}, "needs samples"),
    ],
)
def test_plans_without_sense(change: dict[str, object], message: str) -> None:
    plan = dataclasses.replace(Plan(NEURONS, "magnitude", 0.5, "none"), **change)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        check_plan(plan, with_data=False)


def test_gradients_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[torch\]'"):
        check_plan(Plan(NEURONS, "fisher", 0.5, "none"), with_data=True)
    check_plan(Plan(NEURONS, "magnitude", 0.5, "none"), with_data=True)


@pytest.mark.parametrize(
    ("worst", "unseen", "kind", "said"),
    [
        (5, 999_999, np.float32, "unseen=999999: no table has such a row"),
        (100, None, np.float32, "id 100 of input 'i' is outside the 100 rows"),
        (5, None, np.float16, "elements are FLOAT16"),
    ],
)
def test_rows_that_cannot_go_are_said_before_the_work(
    worst: int, unseen: int | None, kind: type, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "rank", None)
    rng = np.random.default_rng(1)
    shapes = {"t": (100, 8), "a": (8, 64), "b": (64, 2)}
    weights = {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
    body = "e = Gather(t, i) p = MatMul(e, a) h = Relu(p) y = MatMul(h, b)"
    name = {np.float32: "float", np.float16: "float16"}[kind]
    model = ir.from_proto(build(f"(int64[n, m] i) => ({name}[n, m, 2] y)", body, weights))
    optimize_graph(model)
    data = Samples(tuple({"i": np.array([[k, worst]])} for k in range(3)))
    plan = Plan(("neurons", "rows"), "magnitude", 0.6, "none", unseen=unseen)
    with pytest.raises(HastenError, match=said):
        prune_model(model, plan, data)


def test_a_model_without_such_units(network: ir.Model) -> None:
    with pytest.raises(OptionError, match="no heads that can be removed; it has neurons"):
        prune_model(network, Plan(("heads",), "magnitude", 0.5, "none"))
