"""Distillation brings a pruned model nearer to the original, within its limits, and can be taken up again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tests.passes.conftest import build
from tests.search.prune.conftest import CLASSES

from hasten.errors import OptionError
from hasten.passes.pipeline import optimize_graph
from hasten.passes.prune.layers import find_layers, remove_layers
from hasten.passes.prune.remove import remove_units
from hasten.passes.prune.units import find_units
from hasten.search.prune import run
from hasten.search.prune.distill import distill, unchanged
from hasten.search.prune.plan import Plan
from hasten.search.prune.run import prune_model
from hasten.search.prune.training import Training
from hasten.search.samples import Samples

TRAINING = Training(epochs=6, seconds=None, rate=1e-2)


def halved(network: ir.Model) -> ir.Model:
    analysis = find_units(network)
    return remove_units(network, analysis, {analysis.groups[0]: range(0, 64, 2)})


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: v.const_value.numpy()
        for name, v in model.graph.initializers.items()
        if v.const_value is not None
    }


def test_the_distance_shrinks(network: ir.Model, samples: Samples) -> None:
    small = halved(network)
    done = distill(network, small, samples.feeds[:80], TRAINING)
    assert done.after < 0.2 * done.before
    assert done.epochs == 6
    again = distill(network, small, samples.feeds[:80], dataclasses.replace(TRAINING, epochs=1, rate=1e-12))
    assert again.before == pytest.approx(done.after, rel=1e-5)


def test_what_training_cannot_mend_stays(network: ir.Model, samples: Samples) -> None:
    """Steps far too large: the weights from before come back."""
    small = halved(network)
    before = arrays(small)
    done = distill(network, small, samples.feeds[:80], dataclasses.replace(TRAINING, rate=100.0, epochs=1))
    assert done.after == done.before
    for name, array in arrays(small).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_checkpoint_is_taken_up(network: ir.Model, samples: Samples, tmp_path: Path) -> None:
    """Cut off after two epochs of four and taken up, it trains the other two."""
    path = tmp_path / "training.pt"
    whole = dataclasses.replace(TRAINING, epochs=4, checkpoint=str(path))
    told: list[str] = []

    class Cut(Exception):  # noqa: N818
        pass

    def cut(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise Cut

    with pytest.raises(Cut):
        distill(network, halved(network), samples.feeds[:80], whole, progress=cut)
    told.clear()
    small = halved(network)
    done = distill(network, small, samples.feeds[:80], whole, progress=told.append)
    assert [text.split(":")[0] for text in told] == ["epoch 3 of 4", "epoch 4 of 4"]
    straight = halved(network)
    distill(network, straight, samples.feeds[:80], dataclasses.replace(whole, checkpoint=None))
    for name, array in arrays(straight).items():
        np.testing.assert_allclose(arrays(small)[name], array, rtol=1e-4, atol=1e-5)
    assert done.epochs == 4


def test_what_an_epoch_that_was_cut_off_did_is_done_again(
    network: ir.Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is up in the second epoch, of 9 steps each: the rate falls by those of the first alone."""
    path = tmp_path / "training.pt"
    asked: list[float] = []

    def over(_: object, start: float) -> bool:
        asked.append(start)
        return len(asked) > 1 + 9 + 1 + 4

    with monkeypatch.context() as patched:
        patched.setattr("hasten.search.prune.distill._State.over", over)
        whole = dataclasses.replace(TRAINING, epochs=4, checkpoint=path)
        assert distill(network, halved(network), samples.feeds[:80], whole).epochs == 2
    kept = torch.load(path, weights_only=True)
    assert (kept["epoch"], kept["steps"]) == (1, 9)
    distill(network, halved(network), samples.feeds[:80], whole)
    kept = torch.load(path, weights_only=True)
    assert (kept["epoch"], kept["steps"]) == (4, 36)


def test_a_checkpoint_of_something_else(network: ir.Model, samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    path.write_text("no checkpoint")
    training = dataclasses.replace(TRAINING, checkpoint=path)
    with pytest.raises(OptionError, match="is no checkpoint"):
        distill(network, halved(network), samples.feeds[:80], training)
    path.unlink()
    distill(network, halved(network), samples.feeds[:80], dataclasses.replace(training, epochs=1))
    with pytest.raises(OptionError, match=r"of another pruning .* a time limit"):
        distill(network, network.clone(), samples.feeds[:80], training)


def test_limits(network: ir.Model, samples: Samples, tmp_path: Path) -> None:
    done = distill(network, halved(network), samples.feeds[:80], Training(epochs=10**6, seconds=0.3))
    assert done.epochs < 10**6
    with pytest.raises(OptionError, match="10 samples at least"):
        distill(network, halved(network), samples.feeds[:9], TRAINING)
    nan, nowhere = float("nan"), tmp_path / "none" / "f.pt"
    for wrong in (
        *({"epochs": 0}, {"epochs": 1.5}, {"seconds": 0.0}, {"seconds": nan}, {"rate": nan}),
        *({"checkpoint": nowhere}, {"checkpoint": str(nowhere)}, {"checkpoint": 3}),
    ):
        with pytest.raises(OptionError):
            Training(**wrong)  # type: ignore[arg-type]


def test_as_a_repair(network: ir.Model, samples: Samples) -> None:
    plan = Plan(("neurons",), "random", 0.6, "distill", TRAINING)
    small = prune_model(network, plan, Samples(samples.feeds[:80]))
    assert "6 epochs" in small.report.notes[-1]


def test_labels_are_learned_where_there_are_some(network: ir.Model, samples: Samples) -> None:
    """Labels that the original does not give: with them the student comes nearer to them than without."""
    feeds = samples.feeds[:80]
    x = np.concatenate([f["x"] for f in feeds])
    labels = x[:, :CLASSES].argmax(1)
    right = []
    for given in (None, labels.tolist()):
        small = halved(network)
        distill(network, small, feeds, TRAINING, labels=given)
        said = np.asarray(ReferenceEvaluator(ir.to_proto(small)).run(None, {"x": x})[0])
        right.append(float((said.argmax(1) == labels).mean()))
    assert right[1] > right[0] + 0.2, right


def test_what_comes_before_all_that_changed_runs_once_and_stays(samples: Samples) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 16), "b": (16, 32), "c": (32, CLASSES)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    body = "p = MatMul(x, a) q = Gelu(p) r = MatMul(q, b) s = Gelu(r) y = MatMul(s, c)"
    network = ir.from_proto(build(f"(float[n, 8] x) => (float[n, {CLASSES}] y)", body, weights))
    optimize_graph(network)
    analysis = find_units(network)
    (second,) = [group for group in analysis.groups if group.count == 32]
    small = remove_units(network, analysis, {second: range(0, 32, 2)})
    assert set(unchanged(network, small)) == {"p", "q"}
    before = arrays(small)
    x = np.concatenate([f["x"] for f in samples.feeds[:80:10]])
    right, found = (
        np.asarray(ReferenceEvaluator(ir.to_proto(m)).run(None, {"x": x})[0]) for m in (network, small)
    )
    distance = np.square(found - right).sum(1) / np.square(right).sum(1)
    done = distill(network, small, samples.feeds[:80], TRAINING)
    assert done.before == pytest.approx(distance.mean(), rel=1e-4)
    assert done.after < 0.5 * done.before
    changed = {name for name, array in arrays(small).items() if not np.array_equal(array, before[name])}
    assert len(changed) == 2
    assert "a" not in changed


def two_layers(answer: str, dtype: str, *, seed: int) -> ir.Model:
    """Two residual layers, and an answer that is made of what leaves them, `w`, without weights."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) / 3 for name in "abcd"}
    body = (
        "p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) s = Add(x, r) "
        f"t = MatMul(s, c) u = Relu(t) v = MatMul(u, d) w = Add(s, v) y = {answer}"
    )
    network = ir.from_proto(build(f"(float[n, 8] x) => ({dtype}[n, 8] y)", body, weights))
    optimize_graph(network)
    return network


def test_where_no_weights_follow_those_before_are_trained(samples: Samples) -> None:
    """The last layer goes, and what is behind it has no weights."""
    network = two_layers("Tanh(w)", "float", seed=12)
    small = remove_layers(network, find_layers(network)[1:])
    assert {"p", "q", "r", "s"} <= set(unchanged(network, small))
    before = arrays(small)
    done = distill(network, small, samples.feeds[:80], TRAINING)
    assert done.after < 0.9 * done.before
    assert not np.array_equal(arrays(small)["b"], before["b"])


def test_answers_without_scores_leave_the_values_between_to_learn_from(samples: Samples) -> None:
    network = two_layers("Greater(w, x)", "bool", seed=13)
    analysis = find_units(network)
    small = remove_units(network, analysis, {analysis.groups[0]: range(0, 8, 2)})
    done = distill(network, small, samples.feeds[:80], TRAINING)
    assert done.after < done.before


def test_statistics_are_not_trained(samples: Samples) -> None:
    """Of a normalization that no product takes up, behind a concatenation."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 64), "s": (72,), "b": (72,), "m": (72,), "v": (72,), "c": (72, CLASSES)}
    weights = {name: rng.uniform(0.5, 1, shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    body = (
        "p = MatMul(x, a) q = Concat<axis=1>(p, x) r = BatchNormalization(q, s, b, m, v) t = Relu(r) "
        "y = MatMul(t, c)"
    )
    network = ir.from_proto(build(f"(float[n, 8] x) => (float[n, {CLASSES}] y)", body, weights))
    optimize_graph(network)
    small = halved(network)
    before = arrays(small)
    distill(network, small, samples.feeds[:80], dataclasses.replace(TRAINING, epochs=2))
    after = arrays(small)
    same = {name for name, array in after.items() if np.array_equal(array, before[name])}
    assert {"m", "v"} <= same and not {"s", "b", "c"} & same


def test_the_best_weights_outlive_a_cut(network: ir.Model, samples: Samples, tmp_path: Path) -> None:
    """Of two epochs the first helps; the second, taken up with steps far too large, does not."""
    path = tmp_path / "training.pt"
    feeds = samples.feeds[:80]
    first = dataclasses.replace(TRAINING, epochs=1, checkpoint=path)
    good = halved(network)
    done = distill(network, good, feeds, first, identity="these units")
    assert done.after < done.before
    small = halved(network)
    again = distill(
        network, small, feeds, dataclasses.replace(first, epochs=2, rate=100.0), identity="these units"
    )
    assert (again.before, again.after, again.epochs) == (done.before, done.after, 2)
    for name, array in arrays(small).items():
        np.testing.assert_array_equal(array, arrays(good)[name])


def test_a_checkpoint_of_another_plan(
    network: ir.Model, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other units of the same number, another seed, other data or labels: all of equal shapes.

    That is said before anything is ranked, as is what is too little to train on.
    """
    path, feeds = tmp_path / "training.pt", samples.feeds[:80]
    training = dataclasses.replace(TRAINING, epochs=1, checkpoint=path)
    plan = Plan(("neurons",), "random", 0.6, "distill", training, seed=1)
    prune_model(network, plan, Samples(feeds))
    others = (
        (dataclasses.replace(plan, seed=2), Samples(feeds)),
        (plan, Samples(samples.feeds[80:160])),
        (plan, Samples(feeds, np.arange(80) % CLASSES)),
    )
    with monkeypatch.context() as patched:
        patched.setattr(run, "rank", None)
        for other, data in others:
            with pytest.raises(OptionError, match="of another pruning"):
                prune_model(network, other, data)
        with pytest.raises(OptionError, match="10 samples at least"):
            prune_model(network, plan, Samples(feeds[:9]))
    small = prune_model(network, dataclasses.replace(plan, training=training), Samples(feeds))
    assert "1 epochs" in small.report.notes[-1]
