"""Ways to choose what goes: what others can stand for, what matters together, uniform amounts, layers too."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.conftest import build
from tests.search.prune.conftest import HIDDEN, USELESS, WIDTH
from tests.search.prune.test_run import answers

from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.units import find_units
from hasten.search.prune import obs
from hasten.search.prune.amounts import choose_amounts, tile_of
from hasten.search.prune.cost import Cost
from hasten.search.prune.criteria import Scores, score_units
from hasten.search.prune.joined import join
from hasten.search.prune.loss import Loss
from hasten.search.prune.plan import Plan, check_plan
from hasten.search.prune.ranking import Ranking, rank
from hasten.search.prune.rearrange import rearranged
from hasten.search.prune.run import prune_model, prune_ranked
from hasten.search.prune.sparsity import Pattern
from hasten.search.samples import Samples


def test_obs_sees_what_others_can_stand_for(network: ir.Model, samples: Samples) -> None:
    """Neurons 0 and 1 do the same: one of them is worth nothing, the other much."""
    twins = network.clone()
    for name, axis in (("a", 1), ("b", 0)):
        value = twins.graph.initializers[name]
        assert value.const_value is not None
        array = np.moveaxis(value.const_value.numpy().copy(), axis, 0)
        array[1] = array[0]
        value.const_value = ir.tensor(np.ascontiguousarray(np.moveaxis(array, 0, axis)), name=name)
    (group,) = find_units(twins).groups
    obs, fisher = (
        score_units(name, twins, [group], samples.feeds).values[group] for name in ("obs", "fisher")
    )
    assert min(obs[:2]) < 0.01 * max(obs[:2])
    assert min(fisher[:2]) > 0.01 * max(fisher[:2])


@pytest.mark.parametrize(("ticks", "removed"), [(1.0, HIDDEN), (30.0, 10), (10_000.0, 0)])
def test_obs_stops_when_time_is_up(
    network: ir.Model, samples: Samples, monkeypatch: pytest.MonkeyPatch, ticks: float, removed: int
) -> None:
    """What is left by then is ranked as it stands, above what went."""
    went: list[int] = []
    clock, take = itertools.count(0.0, ticks), obs._System.remove
    (group,) = find_units(network).groups
    batches, loss = join(network, samples.feeds, 50), Loss.of(network, None, np.random.default_rng(0))

    def counted(system: obs._System, units: np.ndarray) -> float:
        went.extend(units.tolist())
        return take(system, units)

    monkeypatch.setattr(obs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(obs._System, "remove", counted)
    scores = obs.obs_scores(network, [group], batches, loss, 330.0)[group]
    assert len(went) == removed
    assert set(np.argsort(scores)[: HIDDEN - USELESS]) == set(range(USELESS, HIDDEN))
    assert set(np.argsort(scores)[:removed]) == set(went)


@given(st.integers(0, 2**32 - 1), st.integers(1, 11))
def test_rearranging_lowers_the_loss(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((30, 12)) * rng.uniform(0.1, 2, 12)
    fisher = gradients.T @ gradients / 30
    fisher += np.diag(fisher.diagonal())
    before = np.argsort(fisher.diagonal())[:count]
    after = rearranged(gradients, before)
    assert len(set(after.tolist())) == count
    assert fisher[np.ix_(after, after)].sum() <= fisher[np.ix_(before, before)].sum() * (1 + 1e-9)


def test_of_two_that_do_the_same_one_stays() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((200, 4)) * [1.0, 1.0, 1.1, 1.2]
    gradients[:, 1] = gradients[:, 0]
    assert set(rearranged(gradients, np.array([0, 1])).tolist()) != {0, 1}


def deep() -> ir.Model:
    """A stream with residual layers of 64 neurons, of which the second gives nearly nothing."""
    rng = np.random.default_rng(3)
    weights, lines, x = {}, [], "x"
    for k, size in enumerate((0.5, 1e-4, 0.5)):
        weights |= {f"a{k}": rng.standard_normal((WIDTH, HIDDEN)), f"b{k}": rng.standard_normal(HIDDEN)}
        weights |= {f"c{k}": rng.standard_normal((HIDDEN, WIDTH)) * size / 8, f"d{k}": np.ones(WIDTH) * 0.01}
        lines.append(
            f"p{k} = MatMul({x}, a{k}) q{k} = Add(p{k}, b{k}) r{k} = Gelu(q{k}) s{k} = MatMul(r{k}, c{k}) "
            f"t{k} = Add(s{k}, d{k}) y{k} = Add({x}, t{k})"
        )
        x = f"y{k}"
    lines.append(f"y = Identity({x})")
    signature = f"(float[n, {WIDTH}] x) => (float[n, {WIDTH}] y)"
    arrays = {name: w.astype(np.float32) for name, w in weights.items()}
    model = ir.from_proto(build(signature, " ".join(lines), arrays))
    optimize_graph(model)
    return model


@pytest.fixture
def inputs(samples: Samples) -> Samples:
    return Samples(samples.feeds)


def test_amounts_can_be_uniform(inputs: Samples) -> None:
    plan = Plan(("neurons",), "fisher", 0.8, "none")
    spread = prune_model(deep(), plan, inputs).report
    even = prune_model(deep(), dataclasses.replace(plan, amounts="uniform", flops=0.75), inputs).report
    assert [cut.after for cut in spread.cuts] != [cut.after for cut in even.cuts]
    assert {cut.after for cut in even.cuts} == {48}
    assert spread.reached
    assert even.reached


def test_no_step_is_taken_that_was_not_needed() -> None:
    """A dear small step before a cheap large one is given back."""
    model = deep()
    analysis = find_units(model)
    scores = {group: np.linspace(1, 2, group.count) for group in analysis.groups}
    cost = Cost(model, analysis, {"n": 1})
    choice = choose_amounts(scores, cost, 0.7 * cost.total)
    assert choice.reached
    for group, units in choice.removed.items():
        fewer = len(units) - tile_of(group)
        assert cost.without(group, fewer) > 0.7 * cost.total


def test_layers_go_with_other_units(inputs: Samples) -> None:
    """The layer that gives nothing goes as a whole, and the rest comes from the neurons of the others."""
    model = deep()
    small = prune_model(model, Plan(("layers", "neurons"), "fisher", 0.5, "least-squares"), inputs)
    layers = [cut.after for cut in small.report.cuts if cut.unit == "layers"]
    neurons = [cut.after for cut in small.report.cuts if cut.unit == "neurons"]
    assert layers == [1, 0, 1]
    assert neurons[1] == 0
    assert 0 < min(neurons[0], neurons[2]) < HIDDEN
    assert small.report.reached
    right = answers(model, inputs)
    error = np.square(answers(small.model, inputs) - right).sum() / np.square(right).sum()
    assert error < 0.02


def test_a_time_limit(inputs: Samples) -> None:
    """What does not fit is left out and said; what is returned runs."""
    small = prune_model(deep(), Plan(("neurons",), "fisher", 0.6, "least-squares", seconds=1e-6), inputs)
    assert any("for want of time" in note for note in small.report.notes)
    assert small.report.reached
    assert answers(small.model, inputs).shape == (200, WIDTH)


def test_units_change_places_within_the_time(inputs: Samples) -> None:
    plan = Plan(("neurons",), "fisher", 0.6, "none", looked_at=20)
    ranking = rank(deep(), plan, inputs)
    by_rank = dataclasses.replace(ranking, scores=Scores(ranking.scores.values))

    def weights(of: Ranking, seconds: float | None) -> list[float]:
        late = time.monotonic() - 100
        small = prune_ranked(of, dataclasses.replace(plan, seconds=seconds), start=late)
        constants = [v.const_value for v in small.model.graph.initializers.values()]
        return [float(np.abs(c.numpy()).sum()) for c in constants if c is not None]

    assert weights(ranking, None) != weights(by_rank, None)
    assert weights(ranking, 1.0) == weights(by_rank, None)


def test_samples_of_equal_shapes_run_together() -> None:
    feeds = [{"x": np.full((1, WIDTH + k % 2), k, np.float32)} for k in range(7)]
    found = join(deep(), feeds, 2)
    feeds[0]["x"][:] = 0.5  # joined when it is asked for, not before
    assert [batch.members.tolist() for batch in found] == [[0, 2], [1, 3], [4, 6], [5]]
    assert found[0].feeds["x"][:, 0].tolist() == [0.5, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amounts": "many"}, "amounts='many': give one of global"),
        ({"amounts": "uniform", "units": ("layers",)}, "amounts='uniform' is about"),
        ({"amounts": "uniform", "flops": None, "sparsity": Pattern(0.5)}, "amounts='uniform' is about"),
        ({"seconds": 0.0}, "seconds=0.0: give a"),
        ({"seconds": math.nan}, "seconds=nan: give a"),
        ({"flops": math.nan}, "flops=nan: give the share"),
        ({"units": ("layers", "layers")}, "unit=layers, layers: give each once"),
        ({"unseen": 3}, "unseen=3: give the id of a row, and the unit 'rows'"),
        ({"seed": 0.5}, "seed=0.5: give a whole number"),
    ],
)
def test_plans_without_sense(change: dict[str, object], message: str) -> None:
    plan = dataclasses.replace(Plan(("neurons",), "magnitude", 0.5, "none"), **change)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=message):
        check_plan(plan, with_data=False)
