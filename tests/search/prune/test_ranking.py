"""Groups are told apart, what cannot be ranked or removed is said, and time limits hold."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build

from hasten.backends.torch_graph import TorchGraph
from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.layers import find_branches, find_layers
from hasten.passes.prune.units import find_units
from hasten.search.prune.criteria import score_layers
from hasten.search.prune.plan import Plan
from hasten.search.prune.ranking import key_of, rank, worth_of
from hasten.search.prune.run import prune_model
from hasten.search.samples import Samples

HALF, SIDE = 16, 4


def model_of(signature: str, body: str, weights: dict[str, np.ndarray]) -> ir.Model:
    arrays = {name: w if w.dtype.kind == "i" else w.astype(np.float32) for name, w in weights.items()}
    model = ir.from_proto(build(signature, body, arrays))
    optimize_graph(model)
    return model


def halves() -> ir.Model:
    """A convolution whose halves go different ways; of each, other channels give nothing."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((2 * HALF, 3, 3, 3)), "b": rng.standard_normal(2 * HALF),
        "sizes": np.array([HALF, HALF]), "c": rng.standard_normal((8, HALF, 3, 3)),
        "d": rng.standard_normal((8, HALF, 1, 1)),
    }  # fmt: skip
    nothing = [*range(HALF // 2), *range(HALF + HALF // 2, 2 * HALF)]
    weights["a"][nothing], weights["b"][nothing] = 1e-6, 1e-6
    body = (
        "p = Conv<pads=[1,1,1,1]>(x, a, b) q = Tanh(p) r, s = Split<axis=1>(q, sizes) "
        "t = Conv<pads=[1,1,1,1]>(r, c) u = Conv(s, d) y = Concat<axis=1>(t, u)"
    )
    return model_of(f"(float[n, 3, {SIDE}, {SIDE}] x) => (float[n, 16, {SIDE}, {SIDE}] y)", body, weights)


def pictures(count: int) -> Samples:
    rng = np.random.default_rng(1)
    return Samples(tuple({"x": rng.standard_normal((1, 3, SIDE, SIDE), np.float32)} for _ in range(count)))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0])


@pytest.mark.parametrize("criterion", ["magnitude", "fisher", "obs"])
def test_halves_that_go_different_ways_lose_channels_of_their_own(criterion: str) -> None:
    model, data = halves(), pictures(24)
    assert len({key_of(group) for group in find_units(model).groups}) == 2
    plan = Plan(("channels",), criterion, 0.5, "none", amounts="uniform")
    assert len(worth_of(model, plan, data).units) == 2
    small = prune_model(model, plan, data)
    assert [(cut.before, cut.after) for cut in small.report.cuts] == [(HALF, HALF // 2)] * 2
    x = np.concatenate([feeds["x"] for feeds in data.feeds])
    np.testing.assert_allclose(run(small.model, x), run(model, x), atol=1e-3)


def test_what_one_half_loses_the_other_keeps() -> None:
    """One ranking over both: the report says of each half what it has lost."""
    model = halves()
    ranking = rank(model, Plan(("channels",), "magnitude", 0.8, "none"), None)
    small = prune_model(model, Plan(("channels",), "magnitude", 0.8, "none"))
    lost = [cut.before - cut.after for cut in small.report.cuts]
    weights = {tuple(v.const_value.shape) for v in small.model.graph.initializers.values() if v.const_value}
    assert len(ranking.groups) == 2
    assert sorted(lost) == [0, HALF // 2]
    assert (2 * HALF - sum(lost), 3, 3, 3) in weights
    assert (8, HALF - lost[0], 3, 3) in weights


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("rank_", [1, 3])
def test_convolutions_of_other_ranks_are_ranked_and_repaired(rank_: int, depthwise: bool) -> None:
    rng = np.random.default_rng(2)
    side = 20 if rank_ == 1 else 5
    weights = {
        "a": rng.standard_normal((32, 4, *[1] * rank_)),
        "b": rng.standard_normal((6, 32, *[3] * rank_)) / 12,
        "d": rng.standard_normal((32, 1, *[2] * rank_)),
    }
    how = f"strides={[2] * rank_}, dilations={[2] * rank_}, pads={[2] * rank_ + [1] * rank_}"
    shape, out = ", ".join([str(side)] * rank_), ", ".join(["mno"[k] for k in range(rank_)])
    middle = "o0 = Conv<group=32>(p, d) q = Relu(o0)" if depthwise else "q = Relu(p)"
    body = f"p = Conv(x, a) {middle} y = Conv<{how}>(q, b)"
    if not depthwise:
        del weights["d"]
    model = model_of(f"(float[b, 4, {shape}] x) => (float[b, 6, {out}] y)", body, weights)
    x = rng.standard_normal((200, 4, *[side] * rank_)).astype(np.float32)
    data = Samples(tuple({"x": row[None]} for row in x[:120]))
    errors = []
    for repair in ("none", "least-squares"):
        small = prune_model(model, Plan(("channels",), "obs", 0.6, repair), data)
        assert small.report.notes == ()
        errors.append(float(np.square(run(small.model, x[120:]) - run(model, x[120:])).mean()))
    assert errors[1] < 0.7 * errors[0]


def test_what_obs_cannot_rank_is_said() -> None:
    rng = np.random.default_rng(3)
    weights = {"a": rng.standard_normal((32, 3, 1, 1)), "b": rng.standard_normal((32, 2, 2, 2))}
    body = "p = Conv(x, a) q = Relu(p) y = ConvTranspose<strides=[2,2]>(q, b)"
    model = model_of("(float[n, 3, 4, 4] x) => (float[n, 2, 8, 8] y)", body, weights)
    ranking = rank(model, Plan(("channels",), "obs", 0.6, "none"), pictures(8))
    assert len(ranking.notes) == 1
    assert "ranked by fisher, not obs: 32 channels" in ranking.notes[0]
    assert "ConvTranspose" in ranking.notes[0]


def stream() -> ir.Model:
    """A residual layer without weights, and one with, and a sum that is no layer."""
    rng = np.random.default_rng(4)
    weights = {name: rng.standard_normal((8, 8)) / 3 for name in "abcd"}
    body = (
        "p = Tanh(x) q = Add(x, p) r = MatMul(q, a) s = Relu(r) t = MatMul(s, b) u = Add(q, t) "
        "v = MatMul(u, c) w = MatMul(u, d) y = Add(v, w)"
    )
    return model_of("(float[n, 8] x) => (float[n, 8] y)", body, weights)


@pytest.mark.parametrize("criterion", ["gradient", "fisher", "activation"])
def test_layers_without_weights_are_ranked(criterion: str) -> None:
    """The first is made of nothing that a gradient reaches by itself."""
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.standard_normal((1, 8), np.float32)} for _ in range(8)]
    model = stream()
    layers = find_layers(model)
    assert len(layers) == 2
    worth = score_layers(criterion, model, layers, feeds)
    assert (worth > 0).all() and np.isfinite(worth).all()


def test_branches_that_are_no_layers_are_listed() -> None:
    _, alone = find_branches(stream())
    assert [(each.unit, each.count) for each in alone] == [("layers", 1)]
    assert "it has no shortcut" in alone[0].reasons[0]
    small = prune_model(stream(), Plan(("layers",), "magnitude", 0.9, "none"))
    assert small.report.left_alone == alone


def test_the_time_limit_holds_for_layers_and_counts_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    data = Samples(tuple({"x": rng.standard_normal((1, 8), np.float32)} for _ in range(60)))
    runs: list[int] = []
    before = TorchGraph.run

    def counted(graph: TorchGraph, *given: Any, **named: Any) -> Any:
        runs.append(1)
        return before(graph, *given, **named)

    monkeypatch.setattr(TorchGraph, "run", counted)
    plan = Plan(("layers",), "fisher", 0.7, "least-squares", seconds=1e-6)
    prune_model(stream(), plan, data)
    assert len(runs) == 16
    late = dataclasses.replace(plan, seconds=100.0)
    small = prune_model(stream(), late, data, start=time.monotonic() - 101)
    assert any("for want of time" in note for note in small.report.notes)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("repair", ["none", "least-squares"])
def test_data_sorted_by_class_do_not_prune_by_the_first(labelled: bool, repair: str) -> None:
    """Half of the neurons read what only the class that comes last has, and half of those are needed."""
    rng = np.random.default_rng(8)
    weights = {"a": np.zeros((8, 64)), "b": rng.standard_normal((64, 4))}
    weights["a"][:4, :32], weights["a"][4:, 32:] = rng.standard_normal((2, 4, 32))
    weights["b"][16:48] *= 0.01
    body = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"
    model = model_of("(float[n, 8] x) => (float[n, 4] y)", body, weights)
    classes = np.repeat([0, 1], [60, 30])
    x = rng.standard_normal((90, 8)).astype(np.float32)
    x[classes == 0, 4:], x[classes == 1, :4] = 0, 0
    data = Samples(tuple({"x": row[None]} for row in x), classes if labelled else None)
    small = prune_model(model, Plan(("neurons",), "fisher", 0.6, repair, looked_at=48), data)
    right, got = run(model, x)[classes == 1], run(small.model, x)[classes == 1]
    assert np.square(got - right).sum() < 0.02 * np.square(right).sum()


@pytest.mark.parametrize(("criterion", "repair"), [("fisher", "none"), ("magnitude", "distill")])
def test_labels_that_are_no_classes_are_told_by_what_the_model_says(criterion: str, repair: str) -> None:
    """Topics of texts beside an embedding; and classes, of which the data have few."""
    rng = np.random.default_rng(12)
    model = model_of(
        "(float[n, 8] x) => (float[n, 100] y)",
        "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
        {"a": rng.standard_normal((8, 64)), "b": rng.standard_normal((64, 100))},
    )
    x = rng.standard_normal((200, 8)).astype(np.float32)
    data, said = tuple({"x": row[None]} for row in x), run(model, x).argmax(1)
    plan = Plan(("neurons",), criterion, 0.6, repair)
    topics = rank(model, plan, Samples(data, rng.integers(0, 8, 200)))
    assert topics.labels is None
    assert "the labels are not taken for classes of 'y': they name 8 of its 100 values" in topics.notes[0]
    few = np.isin(said, np.unique(said)[:40])
    feeds, named = tuple(f for f, there in zip(data, few, strict=True) if there), said[few]
    classes = rank(model, plan, Samples(feeds, named))
    assert classes.labels == named.tolist() and classes.notes == ()


def test_sizes_that_nobody_knows_are_said() -> None:
    """With one position attention costs nothing; with many, much."""
    rng = np.random.default_rng(7)
    shapes = {"q": (16, 16), "k": (16, 16), "v": (16, 16), "o": (16, 16), "a": (16, 64), "b": (64, 16)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    body = (
        "l = MatMul(x, q) m = MatMul(x, k) n0 = MatMul(x, v) "
        "h = Attention<q_num_heads=4, kv_num_heads=4>(l, m, n0) i = MatMul(h, o) "
        "j = MatMul(i, a) r = Relu(j) y = MatMul(r, b)"
    )
    model = model_of("(float[n, s, 16] x) => (float[n, s, 16] y)", body, weights)
    plan = Plan(("neurons",), "magnitude", 0.8, "none")
    (note,) = prune_model(model, plan).report.notes
    assert "there are no data to tell sizes from" in note
    assert "are left where n=1, s=128, and" in note and "where n=1, s=512" in note
    data = Samples(tuple({"x": rng.standard_normal((1, 9, 16), np.float32)} for _ in range(4)))
    assert prune_model(model, plan, data).report.notes == ()


def filters(side: int) -> ir.Model:
    rng = np.random.default_rng(13)
    weights = {"a": rng.standard_normal((32, 1, side, 3)), "b": rng.standard_normal((2, 32, 1, 1))}
    return model_of(
        "(float[n, 1, h, w] x) => (float[n, 2, u, v] y)", "p = Conv(x, a) q = Relu(p) y = Conv(q, b)", weights
    )


def test_pictures_of_any_size_are_pruned_without_data() -> None:
    report = prune_model(filters(3), Plan(("channels",), "magnitude", 0.6, "none")).report
    assert report.sizes == {"n": 1, "h": 224, "w": 224}
    assert report.flops_before == 2 * 222 * 222 * (32 * 9 + 32 * 2)
    assert report.reached and report.flops == 0.5


def test_a_model_whose_arithmetic_cannot_be_counted() -> None:
    """No picture of the size that is assumed is large enough."""
    with pytest.raises(OptionError, match=r"is counted in this model where n=1, h=224, w=224: give data"):
        prune_model(filters(300), Plan(("channels",), "magnitude", 0.6, "none"))


@pytest.mark.parametrize("criterion", ["gradient", "fisher", "obs"])
@pytest.mark.parametrize("weak", ["q", "k"])
def test_features_that_only_products_of_variables_read(criterion: str, weak: str) -> None:
    """Of queries and keys those go whose products are small, whichever of the two makes them so."""
    rng = np.random.default_rng(0)
    weights = {
        "q": rng.standard_normal((8, 64)), "k": rng.standard_normal((8, 64)),
        "a": rng.standard_normal((8, 64)), "b": rng.standard_normal((64, 8)) / 8,
    }  # fmt: skip
    nothing = rng.permutation(64)[:32]
    weights[weak][:, nothing] *= 1e-4
    other = "qk".replace(weak, "")
    weights[other][:, nothing] *= 3  # so that sizes of one side say the contrary
    body = (
        "m = MatMul(x, a) h = Relu(m) z = MatMul(h, b) r = MatMul(z, q) s = MatMul(z, k) "
        "t = Transpose<perm=[1,0]>(s) y = MatMul(r, t)"
    )
    model = model_of("(float[4, 8] x) => (float[4, 4] y)", body, weights)
    x = rng.standard_normal((20, 4, 8)).astype(np.float32)
    data = Samples(tuple({"x": each} for each in x))
    small = prune_model(model, Plan(("neurons",), criterion, 0.77, "none"), data)
    assert sorted(cut.after for cut in small.report.cuts if cut.before == 64) == [32, 64]
    right = np.stack([run(model, each) for each in x])
    got = np.stack([run(small.model, each) for each in x])
    assert np.square(got - right).sum() < 1e-4 * np.square(right).sum()
    assert not small.report.left_alone
    assert any("ranked by fisher, not obs" in note for note in small.report.notes) == (criterion == "obs")
