"""Positions that a mask hides count neither as lost nor as kept, whatever stands there."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.search.searches import Search, record

from hasten.search import optimize
from hasten.search.answers import relative_change
from hasten.search.blocks import together
from hasten.search.candidates import Candidate
from hasten.search.certify import certify
from hasten.search.engines import HASTEN
from hasten.search.hidden import Shown, untold
from hasten.search.metrics import drop, metric_named
from hasten.search.samples import Samples
from hasten.search.transfer import mapped
from hasten.search.variants import Variant

LENGTH, CLASSES = 24, 7
SKIPPED = {"masks": ["mask"], "hidden": 0, "tensors": 9, "outputs": {"y": (0, 1)}}
NAMED = ("accuracy", "f1", "mcc", "agreement", "cosine", "kl", "mse")


def answers(mask: np.ndarray, rng: np.random.Generator, *axes: int) -> np.ndarray:
    return rng.standard_normal((*mask.shape, *axes)).astype(np.float32)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_drop_is_that_of_shown_positions_alone(name: str, ragged: bool, labelled: bool) -> None:
    """Labels of hidden positions may be classes like others: "no entity", or whatever they are."""
    metric, rng = metric_named(name), np.random.default_rng(0)
    if metric.needs_labels and not labelled:
        return
    regression = name == "mse"
    feeds, labels, before, after, kept = [], [], [], [], []
    for i in range(40):
        mask = np.arange(LENGTH + (i % 3 if ragged else 0))[None] < rng.integers(1, 4)
        mask = mask[:, ::-1] if i % 2 else mask
        feeds.append({"mask": mask.astype(np.int64)})
        axes = () if regression else (CLASSES,)
        before.append(answers(mask, rng, *axes))
        after.append(
            np.where(rng.random(mask.shape) < 0.3, -1, 1).reshape(*mask.shape, *(1 for _ in axes))
            * before[-1]
        )
        labels.append(before[-1][0] if regression else before[-1][0].argmax(-1))
        kept.append(mask)
        # A compiled model answers 0 at what is hidden.
        after[-1] = after[-1] * mask.reshape(*mask.shape, *(1 for _ in axes))
    samples = Samples(tuple(feeds), together(labels) if labelled else None)
    shown = Shown(metric, (SKIPPED,))

    def told(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": together([shown.answer([f], "y", r)[0] for f, r in zip(feeds, rows, strict=True)])}

    marked = shown.labels(samples, told(before))
    found = drop(metric, told(before), told(after), marked)

    def alone(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": together([r[m] for r, m in zip(rows, kept, strict=True)])}

    known = together([r[m[0]] for r, m in zip(labels, kept, strict=True)]) if labelled else None
    expected = drop(metric, alone(before), alone(after), known)
    assert expected > 0.02
    assert found == pytest.approx(expected)
    if metric.drops is not None:
        bounds = [
            certify(metric, told(before), told(after), marked),
            certify(metric, alone(before), alone(after), known),
        ]
        assert bounds[0].upper == pytest.approx(bounds[1].upper)
        assert bounds[0].samples == 40


@pytest.mark.parametrize("name", ["accuracy", "top5", "agreement", "kl", "cosine"])
def test_scores_of_positions(name: str) -> None:
    """Where an answer begins: a hidden position has no score, though 0 is above all others here."""
    rng, metric = np.random.default_rng(1), metric_named(name)
    lengths = np.append(rng.integers(1, 9, 59), 0)
    mask = np.arange(LENGTH)[None] < lengths[:, None]
    before, after = (-1 - abs(answers(mask, rng)) for _ in range(2))
    compiled = [np.where(mask, x, 0).astype(np.float32) for x in (before, after)]
    feeds = tuple({"mask": row[None].astype(np.int64)} for row in mask)
    samples = Samples(feeds, np.maximum(lengths - 1, 0))
    shown = Shown(metric, (SKIPPED,))
    right, same, other = ({"y": shown.answer(feeds, "y", x)} for x in (before, *compiled))
    labels = shown.labels(samples, right)
    np.testing.assert_array_equal(labels, samples.labels)
    assert drop(metric, right, same, labels) == 0
    assert relative_change(right, same) == 0
    assert 0 < relative_change(right, other) < 10
    if name in ("agreement", "accuracy"):
        best = [np.where(mask, x, -np.inf).argmax(1) for x in (before, after)]
        hits = [x == (best[0] if name == "agreement" else samples.labels) for x in best]
        assert drop(metric, right, other, labels) == pytest.approx(hits[0].mean() - hits[1].mean())
    else:
        assert np.isfinite(drop(metric, right, other, labels))


def test_functions_get_nothing_at_hidden_positions_and_labels_as_they_are() -> None:
    metric = metric_named(lambda outputs, labels: 0.0, larger_is_better=True)
    feeds = ({"mask": np.array([[1, 0]])},)
    samples = Samples(feeds, np.array([[3, 4]]))
    shown = Shown(metric, (SKIPPED,))
    scores = shown.answer(feeds, "y", np.ones((1, 2, 3), np.float32))
    np.testing.assert_array_equal(scores[0], [[1, 1, 1], [0, 0, 0]])
    assert shown.labels(samples, {"y": scores}) is samples.labels


def test_outputs_without_positions_are_as_before() -> None:
    shown = Shown(metric_named("agreement"), (SKIPPED,))
    feeds, pooled = ({"mask": np.array([[1, 0]])},), np.ones((1, 3), np.float32)
    assert shown.answer(feeds, "pooled", pooled) is pooled
    assert shown.labels(Samples(feeds), {"pooled": pooled}) is None
    assert shown.said(["y"]) == ["positions that mask hides do not count"]
    assert shown.said(["pooled"]) == []
    assert not untold((SKIPPED,), ["y", "pooled"])
    assert untold(({**SKIPPED, "hidden": None},), ["y"])
    assert untold(({**SKIPPED, "outputs": {"y": (1, 2)}},), ["y"])
    assert not untold(({**SKIPPED, "hidden": None},), ["pooled"])


def tagger(inputs: str, shown: str) -> onnx.ModelProto:
    """Scores of classes for each token, by one attention with a low number added where a mask says so."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 21]> g
        (float[b, s, 8] x, {inputs}) => (float[b, s, {CLASSES}] y) {{
        {shown} u = Unsqueeze(c, middle) low = Where(u, nil, lowest)
        q0 = MatMul(x, wq) q1 = Reshape(q0, heads) q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(x, wk) k1 = Reshape(k0, heads) k = Transpose<perm = [0, 2, 3, 1]>(k1)
        v0 = MatMul(x, wv) v1 = Reshape(v0, heads) v = Transpose<perm = [0, 2, 1, 3]>(v1)
        s0 = MatMul(q, k) s1 = Add(s0, low) p = Softmax<axis = -1>(s1) o = MatMul(p, v)
        t = Transpose<perm = [0, 2, 1, 3]>(o) r = Reshape(t, flat) y = MatMul(r, wo) }}""")
    constants = {n: rng.standard_normal((8, 8)).astype(np.float32) for n in ("wq", "wk", "wv")}
    constants |= {"wo": rng.standard_normal((8, CLASSES)).astype(np.float32)}
    constants |= {"nil": np.array(0, np.float32), "lowest": np.array(-3e38, np.float32)}
    constants |= {"middle": np.array([1, 2]), "heads": np.array([0, 0, 2, 4]), "flat": np.array([0, 0, 8])}
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def texts(count: int, *masks: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(count)
    lengths = rng.integers(2, 6, (count, 1))
    shown = (np.arange(LENGTH) < lengths).astype(np.int64)
    return [{"x": answers(np.ones((1, LENGTH)), rng, 8), **dict.fromkeys(masks, row[None])} for row in shown]


def test_a_search_over_padded_tokens(
    search: Search, clockwork: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most is padding: what is certified is what changes of the tokens, against the original."""

    def worse(found: optimize.Search) -> None:
        model, trials = found.trials.problem.graph.clone(), found.trials
        rng = np.random.default_rng(3)
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            array = value.const_value.numpy()
            if array.dtype.kind == "f" and array.ndim > 1:
                value.const_value = ir.tensor(
                    array + 0.2 * rng.standard_normal(array.shape).astype(np.float32)
                )
        trials.variants["worse"] = Variant(mapped(model, trials.problem.folder / "worse.onnx"))
        trials.add(Candidate("int8 for all the clock knows", "", HASTEN, variant="worse"))

    monkeypatch.setattr(optimize.Search, "_everywhere", worse)
    model, data = tagger("int64[b, s] mask", "c = Cast<to = 9>(mask)"), texts(200, "mask")
    found = search(model, data, calibration=texts(50, "mask"), max_drop=0.6, precision="f32")
    told = record(found)
    assert told.original == "onnxruntime"
    assert told.candidate("original").drop == told.candidate("lossless").drop == 0
    assert "positions that mask hides do not count" in told.notes
    chosen = told.candidate(told.chosen)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kept = []
    for feeds in data:
        same = session.run(None, feeds)[0].argmax(-1) == found.run(feeds)["y"].argmax(-1)
        kept.append(same[feeds["mask"] > 0].mean())
    assert chosen.bound.measured == pytest.approx(1 - np.mean(kept))
    assert chosen.bound.measured > 0.05
    assert chosen.bound.samples == 200


def test_padding_that_inputs_do_not_tell_is_computed(search: Search) -> None:
    shown = "a1 = Cast<to = 9>(one) a2 = Cast<to = 9>(other) c = And(a1, a2)"
    data = texts(60, "one", "other")
    found = search(tagger("int64[b, s] one, int64[b, s] other", shown), data, precision="f32", max_drop=0.5)
    assert "padding is computed: its positions cannot be told from the inputs alone" in record(found).notes
    assert found.run(data[0])["y"].all()
