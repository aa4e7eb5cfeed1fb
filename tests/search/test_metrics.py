"""Metrics against definitions that somebody else wrote, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import DataError, MetricError, OptionError
from hasten.search import metrics
from hasten.search.data_labels import check_labels
from hasten.search.lone_score import Lone
from hasten.search.metrics import evaluate, metric_named

RNG = np.random.default_rng(1)
SCORES = RNG.standard_normal((200, 7)).astype(np.float32)
BEFORE = (SCORES + 0.3 * RNG.standard_normal(SCORES.shape)).astype(np.float32)
LABELS = np.where(RNG.random(200) < 0.6, SCORES.argmax(1), RNG.integers(0, 7, 200))


def value(
    name: str, scores: np.ndarray, labels: np.ndarray | None = None, before: np.ndarray | None = None
) -> float:
    original = {"y": scores if before is None else before}
    return metrics.evaluate(metric_named(name), {"y": scores}, labels, original)


def test_classes_of_scores() -> None:
    assert value("accuracy", SCORES, LABELS) == np.mean(SCORES.argmax(1) == LABELS)
    assert value("accuracy", SCORES.argmax(1), LABELS) == np.mean(SCORES.argmax(1) == LABELS)
    assert value("agreement", SCORES, before=BEFORE) == np.mean(SCORES.argmax(1) == BEFORE.argmax(1))
    ranked = np.argsort(-SCORES, axis=1, kind="stable")[:, :5]
    assert value("top5", SCORES, LABELS) == np.mean(
        [label in row for label, row in zip(LABELS, ranked, strict=True)]
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_two_classes_by_their_textbook_formulas(pairs: list[tuple[bool, bool]]) -> None:
    right, said = (np.array(x, int) for x in zip(*pairs, strict=True))
    scores = np.eye(2, dtype=np.float32)[said]
    tp, fp = int((said & right).sum()), int((said & ~right & 1).sum())
    fn, tn = int((~said & 1 & right).sum()), int((~said & ~right & 1).sum())
    assert value("f1", scores, right) == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0)
    scale = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert value("mcc", scores, right) == pytest.approx((tp * tn - fp * fn) / scale if scale else 0)


def test_f1_of_many_classes_is_the_mean_of_those_that_occur() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    assert value("f1", scores, np.array([0, 1, 1, 2])) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_numbers_against_scipy() -> None:
    scores, labels = SCORES[:, 0], np.round(BEFORE[:, 0], 1)
    assert value("spearman", scores[:, None], labels) == pytest.approx(
        scipy.stats.spearmanr(scores, labels).statistic
    )
    assert value("spearman", scores[:, None], labels[:, None]) == value("spearman", scores, labels)
    with pytest.raises(MetricError, match="one number of each sample"):
        value("spearman", SCORES, SCORES)
    assert value("mse", scores[:, None], labels) == pytest.approx(
        np.mean((scores.astype(float) - labels) ** 2)
    )
    softmax = scipy.special.softmax
    p, q = softmax(BEFORE.astype(float), 1), softmax(SCORES.astype(float), 1)
    wanted = scipy.stats.entropy(p, q, axis=1).mean()
    assert value("kl", SCORES, before=BEFORE) == pytest.approx(wanted)
    assert value("kl", q.astype(np.float32), before=p.astype(np.float32)) == pytest.approx(wanted, rel=1e-3)
    cosine = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(SCORES, BEFORE, strict=True)]
    assert value("cosine", SCORES, before=BEFORE) == pytest.approx(np.mean(cosine), rel=1e-5)


@pytest.mark.parametrize("name", ["agreement", "cosine", "kl"])
def test_the_original_agrees_with_itself(name: str) -> None:
    perfect = 0.0 if name == "kl" else 1.0
    assert value(name, SCORES) == pytest.approx(perfect, abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "top5", "f1", "mcc", "agreement", "cosine", "kl"])
def test_worse_answers_have_a_positive_drop(name: str) -> None:
    metric, right = metric_named(name), np.eye(7, dtype=np.float32)[LABELS] + 0.01 * SCORES
    worse = {"y": np.roll(right, 1, axis=0)}
    assert metrics.drop(metric, {"y": right}, worse, LABELS) > 0.01
    if metric.per_sample is not None:
        assert metrics.sample_drops(metric, {"y": right}, worse, LABELS).mean() == pytest.approx(
            metrics.drop(metric, {"y": right}, worse, LABELS)
        )


def test_positions_count_by_sample_and_hidden_labels_not_at_all() -> None:
    outputs, labels = {"y": np.empty(3, object)}, np.empty(3, object)
    for i, length in enumerate((4, 2, 5)):
        outputs["y"][i] = RNG.standard_normal((length, 3)).astype(np.float32)
        labels[i] = outputs["y"][i].argmax(-1)
    labels[0][:2] = -100
    labels[1][0] = (labels[1][0] + 1) % 3
    accuracy = metric_named("accuracy")
    assert accuracy.per_sample is not None
    np.testing.assert_allclose(accuracy.per_sample(outputs, labels, outputs), [1, 0.5, 1])
    assert not metrics.single_answers(accuracy, outputs)
    pictures = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert value("accuracy", pictures, pictures.argmax(1)) == 1


@pytest.mark.parametrize("name", ["accuracy", "agreement", "f1", "mcc"])
@pytest.mark.parametrize("ragged", [False, True])
def test_positions_with_a_negative_label_do_not_count(name: str, ragged: bool) -> None:
    lengths = (4, 2, 5) if ragged else (4, 4, 4)
    scores, before, labels = ([RNG.standard_normal((n, 3)) for n in lengths] for _ in range(3))
    labels = [x.argmax(-1) for x in labels]
    shown = [np.arange(n) % 2 == 0 for n in lengths]
    hidden = [np.where(s, y, -100) for s, y in zip(shown, labels, strict=True)]

    def together(rows: list[np.ndarray]) -> np.ndarray:
        if not ragged:
            return np.stack(rows)
        joined = np.empty(len(rows), object)
        joined[:] = rows
        return joined

    def kept(rows: list[np.ndarray]) -> list[np.ndarray]:
        return [row[s] for row, s in zip(rows, shown, strict=True)]

    found = value(name, together(scores), together(hidden), together(before))
    if name in ("f1", "mcc"):
        rest = [np.concatenate(kept(rows)) for rows in (scores, labels, before)]
        assert found == value(name, *rest)
    else:
        triples = zip(*map(kept, (scores, labels, before)), strict=True)
        assert found == pytest.approx(np.mean([value(name, *triple) for triple in triples]))


@pytest.mark.parametrize("name", ["accuracy", "top5", "f1", "mcc"])
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (7, "label 7 is no class of the model, which has 7, numbered from 0 to 6"),
        (-1, "label -1 is no class of the model, .*: leave out samples without a label"),
        (1.5, "label 1.5 is no whole number"),
    ],
)
def test_labels_that_are_no_classes(name: str, label: float, said: str) -> None:
    labels = LABELS.astype(np.asarray(label).dtype)
    labels[17] = label
    with pytest.raises(MetricError, match=said):
        value(name, SCORES, labels)
    with pytest.raises(DataError, match=f"sample 17: {said}"):
        check_labels(labels, 7)


def test_a_label_of_nothing_in_a_picture_is_told_how_to_hide() -> None:
    scores, labels = RNG.standard_normal((2, 3, 4, 4)), np.zeros((2, 4, 4), int)
    labels[1, 2, 3] = 255
    with pytest.raises(MetricError, match=r"label 255 is no class .*, hides a position"):
        value("accuracy", scores, labels)
    labels[labels == 255] = -1
    assert 0 < value("accuracy", scores, labels) < 1


def test_classes_of_any_number_where_outputs_are_classes() -> None:
    right, said = np.array([1, -1, -1, 1, 1]), np.array([1, -1, 1, -1, 1])
    assert value("accuracy", said, right) == 0.6
    for name in ("f1", "mcc"):  # class 1 of -1 and 1, like that of 0 and 1
        assert value(name, said, right) == value(name, np.maximum(said, 0), np.maximum(right, 0))
    far = {0: 0, 1: 40, 2: 1000}
    renamed = [np.vectorize(far.get)(x) for x in (SCORES[:, :3].argmax(1), LABELS % 3)]
    assert value("f1", *renamed) == value("f1", SCORES[:, :3].argmax(1), LABELS % 3)


def test_the_original_says_whether_scores_are_probabilities() -> None:
    p = scipy.special.softmax(BEFORE.astype(float), 1)
    coarse = np.maximum(np.round(p, 1), 0.02)  # rows no longer add up to 1
    shares = coarse / coarse.sum(1, keepdims=True)
    wanted = np.mean([scipy.stats.entropy(a, b) for a, b in zip(p, shares, strict=True)])
    assert value("kl", coarse, before=p) == pytest.approx(wanted)
    sure = np.eye(7)[LABELS]
    assert value("kl", sure, before=sure) == 0
    assert value("kl", np.log(sure + 1e-9), before=np.log(p)) > 1  # logits stay logits
    assert value("kl", p, before=np.log(p) + 3) == pytest.approx(
        scipy.stats.entropy(p, scipy.special.softmax(p, 1), axis=1).mean()
    )


def test_a_function_with_its_direction() -> None:
    metric = metric_named(lambda outputs, labels: float(outputs["y"].mean()), larger_is_better=False)
    assert metrics.drop(metric, {"y": np.zeros(3)}, {"y": np.full(3, 0.5)}, None) == 0.5
    with pytest.raises(OptionError, match="larger_is_better"):
        metric_named(lambda outputs, labels: 0.0)


def broken(outputs: metrics.Outputs, labels: object) -> float:
    raise ValueError("no such column")


@pytest.mark.parametrize(
    ("metric", "scores", "labels", "said"),
    [
        ("accuracy", SCORES, None, "needs labels"),
        ("accuracy", SCORES, LABELS[:9], "200 samples and labels of 9"),
        ("accuracy", SCORES[:, :1], LABELS, "one number for each answer"),
        ("accuracy", np.zeros((200, 4, 7), np.float32), LABELS, "name the output"),
        ("agreement", np.where(SCORES > 2, np.nan, SCORES), None, r"NaN \(first at"),
        (broken, SCORES, None, "broken.* raised ValueError: no such column"),
        (lambda outputs, labels: float("nan"), SCORES, None, "is NaN"),
    ],
)
def test_what_has_no_value(metric: object, scores: np.ndarray, labels: np.ndarray | None, said: str) -> None:
    made = metric_named(metric, larger_is_better=True)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match=said):
        metrics.evaluate(made, {"y": scores}, labels, {"y": scores})


def test_names_and_outputs() -> None:
    with pytest.raises(OptionError, match=r"unknown metric 'auc': choose from accuracy, top5"):
        metric_named("auc")
    with pytest.raises(MetricError, match="the model has y"):
        metrics.evaluate(metric_named("agreement", output="z"), {"y": SCORES}, None, {"y": SCORES})
    assert metrics.looked_at(metric_named("f1"), ["a", "b"]) == "f1 of output 'a', the first of 2"


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("lone", ["logit", "probability"])
def test_a_lone_score_counts_as_two_classes(shape: tuple[int, ...], lone: Lone) -> None:
    logits = np.array([-2.0, 0.4, 1.5, -0.1, 3.0])
    labels = np.array([0, 1, 0, 0, 1])
    values = logits if lone == "logit" else 1 / (1 + np.exp(-logits))
    outputs = {"y": values.reshape(shape).astype(np.float32)}
    both = {"y": np.stack([np.zeros(5), logits], axis=1)}
    moved = {"y": np.stack([np.zeros(5), logits + 0.2], axis=1)}
    close = logits + 0.2 if lone == "logit" else 1 / (1 + np.exp(-logits - 0.2))
    candidate = {"y": close.reshape(shape).astype(np.float32)}
    for name in ("accuracy", "f1", "mcc", "agreement", "kl"):
        single, double = metric_named(name, lone=lone), metric_named(name)
        for found, right in ((outputs, both), (candidate, moved)):
            expected = evaluate(double, right, labels, both)
            assert evaluate(single, found, labels, outputs) == pytest.approx(expected, abs=1e-6)
    assert evaluate(metric_named("agreement", lone=lone), candidate, None, outputs) == 0.8


def test_metrics_that_a_lone_score_says_nothing_about() -> None:
    outputs = {"y": np.ones((3, 1), np.float32)}
    for name in ("cosine", "kl", "accuracy"):
        with pytest.raises(MetricError, match=r"single numbers|several classes|one number for each answer"):
            evaluate(metric_named(name), outputs, np.zeros(3, np.int64), outputs)
