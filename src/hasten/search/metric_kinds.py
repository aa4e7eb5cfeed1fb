"""What the metrics by name compute, of one output whose first axis counts samples.

Of answers at several positions, those whose label is negative do not count, as is usual for tokens (-100).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import MetricError
from hasten.search.data_labels import wrong_label

Array = NDArray[Any]

PerSample = Callable[[Array, Array | None, Array], Array]
Whole = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Kind:
    """A metric by name, of each sample (scores, labels, the original's scores) or of all (scores, labels).

    Attributes:
        needs_labels: it compares with labels; otherwise with the original's answers.
        per_sample: a number for each sample; None where the metric is no mean of samples.
        whole: a number for all samples; None where it is the mean of `per_sample`.
        larger_is_better: the direction.
        zero_one: the number of a sample with a single answer is 0 or 1.
        drops: the least and the greatest drop of a sample; None where nothing bounds it.
        of_classes: its labels are classes.
        spread: over classes, also where there is a single score.
    """

    needs_labels: bool
    per_sample: PerSample | None = None
    whole: Whole | None = None
    larger_is_better: bool = True
    zero_one: bool = False
    drops: tuple[float, float] | None = None
    of_classes: bool = False
    spread: bool = False


def classes(scores: Array, *, like: Array | None = None) -> Array:
    """The class of the highest score; the lowest of several that share it.

    Args:
        scores: integer classes, which are returned as they are, or scores with an axis of classes: the last
            one, or the second of pictures `[samples, classes, height, width]`.
        like: labels, whose shape tells which axis has the classes.

    Raises:
        MetricError: there is a single score, which does not say where one class ends.
    """
    if scores.dtype.kind in "iub":
        return scores
    axis = _class_axis(scores, like)
    if scores.ndim < 2 or scores.shape[axis] < 2:
        raise MetricError(
            f"scores of shape {list(scores.shape)} are one number for each answer: a class metric needs "
            "one for each class, or one that is known to be a logit or a probability; give a function"
        )
    result: Array = np.argmax(scores, axis=axis)
    return result


def _class_axis(scores: Array, like: Array | None) -> int:
    picture = scores.ndim == 4 and (like is None or scores.shape[:1] + scores.shape[2:] == like.shape)
    return 1 if picture else scores.ndim - 1


def _compared(scores: Array, labels: Array) -> tuple[Array, Array]:
    """The class of each answer, and the one that its label names, in the same shape.

    Raises:
        MetricError: shapes do not fit, or a label is none of the output's classes.
    """
    answers = classes(scores, like=labels)
    _check_shape(answers, labels)
    count = None if answers is scores else scores.shape[_class_axis(scores, labels)]
    wrong = wrong_label(labels, count)
    if wrong is not None:
        raise MetricError(wrong.why)
    return answers, labels.astype(np.int64)


def _counted(labels: Array | None, answers: Array) -> Array:
    """Which answers count: of several for a sample, not those with a negative label."""
    several = labels is not None and labels.shape == answers.shape and answers.ndim > 1
    if labels is None or not several or labels.dtype.kind != "i":
        return np.ones(answers.shape, bool)
    counted: Array = labels >= 0
    return counted


def _accuracy(scores: Array, labels: Array | None, before: Array) -> Array:
    assert labels is not None
    answers, right = _compared(scores, labels)
    return _mean_of_samples(answers == right, _counted(right, answers))


def _top5(scores: Array, labels: Array | None, before: Array) -> Array:
    assert labels is not None
    if scores.ndim != 2 or scores.dtype.kind != "f":
        raise MetricError(f"top5 needs scores [samples, classes]; the output is {list(scores.shape)}")
    _, named = _compared(scores, labels)
    right = np.take_along_axis(scores, named[:, None], axis=1)
    # Of equal scores the lower class comes first, as for the class of the highest score.
    earlier = (scores == right) & (np.arange(scores.shape[1]) < named[:, None])
    result: Array = ((scores > right) | earlier).sum(axis=1) < 5
    return result


def _agreement(scores: Array, labels: Array | None, before: Array) -> Array:
    if scores.shape != before.shape:
        raise MetricError(f"answers of shape {list(scores.shape)}, the original's {list(before.shape)}")
    like = labels if labels is not None and labels.ndim == scores.ndim - 1 else None
    same = classes(scores, like=like) == classes(before, like=like)
    return _mean_of_samples(same, _counted(labels, same))


def _cosine(scores: Array, labels: Array | None, before: Array) -> Array:
    if scores.size == len(scores):
        raise MetricError(
            "the cosine of single numbers is their sign alone: choose mse, spearman or agreement, or name "
            "another output"
        )
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (scores, before))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosine = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return np.where(both_zero, 1.0, np.clip(cosine, -1, 1))


def _mse(scores: Array, labels: Array | None, before: Array) -> Array:
    assert labels is not None
    right = np.asarray(labels, np.float64)
    if scores.ndim == right.ndim + 1 and scores.shape[-1] == 1:
        scores = scores[..., 0]
    _check_shape(scores, right)
    return _mean_of_samples((scores.astype(np.float64) - right) ** 2, ~np.isnan(right), 0.0)


def _kl(scores: Array, labels: Array | None, before: Array) -> Array:
    if scores.ndim < 2 or scores.shape[-1] < 2:
        raise MetricError(
            f"scores of shape {list(scores.shape)} have no probabilities of several classes: choose mse, or "
            "name another output"
        )
    # What the original gives says what the candidate means: its own rows may have lost their sum of 1.
    counted = _counted(labels, scores[..., 0])
    given = _are_probabilities(before[counted])
    p, q = (_log_probabilities(x, given=given) for x in (before, scores))
    never = np.isneginf(p)  # 0 * log(0 / q) is 0 by convention
    terms = np.exp(p) * (np.where(never, 0.0, p) - np.where(never, 0.0, q))
    return _mean_of_samples(np.maximum(terms.sum(axis=-1), 0), counted, 0.0)


def _are_probabilities(scores: Array) -> bool:
    """Whether scores are classes' probabilities, and not logits."""
    x = scores.astype(np.float64)
    return bool((x >= 0).all()) and np.allclose(x.sum(axis=-1), 1, atol=1e-3)


def _log_probabilities(scores: Array, *, given: bool) -> Array:
    """The logarithm of classes' probabilities, of scores that are some (`given`) or of logits."""
    x = scores.astype(np.float64)
    if given:
        x = np.maximum(x, 0)
        total = x.sum(axis=-1, keepdims=True)
        shares = np.divide(x, total, out=np.zeros_like(x), where=total > 0)
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(shares)
        return logarithms
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _f1(scores: Array, labels: Array) -> float:
    table = _confusion(scores, labels)
    hits, wrong = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    present = wrong > 0
    f1 = np.divide(2 * hits, wrong, out=np.zeros(len(table)), where=present)
    if len(table) == 2:
        return float(f1[1])
    return float(f1[present].mean()) if present.any() else 0.0


def _mcc(scores: Array, labels: Array) -> float:
    table = _confusion(scores, labels)
    total, right = table.sum(), np.trace(table)
    guessed, true = table.sum(axis=0), table.sum(axis=1)
    scale = math.sqrt(total**2 - guessed @ guessed) * math.sqrt(total**2 - true @ true)
    return float(right * total - guessed @ true) / scale if scale > 0 else 0.0


def _confusion(scores: Array, labels: Array) -> Array:
    """How often each class (row) was answered as each (column); float64 `[classes, classes]`.

    Classes are those of the output, or those that occur where it is classes itself: in order, and two at the
    least, so that the second of two is class 1.
    """
    answers, right, count = [], [], 0
    for part, of_part in _parts(scores, labels):
        said, named = _compared(part, of_part)
        counted = _counted(named, said)
        answers.append(said[counted])
        right.append(named[counted])
        count = 0 if said is part else part.shape[_class_axis(part, of_part)]
    said, named = np.concatenate(answers).astype(np.int64), np.concatenate(right)
    known = np.arange(count) if count else np.union1d(said, named)
    if not count:
        negative = -1 in known and 0 not in known  # one of -1 and 1, as some classifiers have it
        known = np.union1d(known, [-1 if negative else 0, 1])
    cells = np.searchsorted(known, named) * len(known) + np.searchsorted(known, said)
    table: Array = np.bincount(cells, minlength=len(known) ** 2).astype(np.float64)
    return table.reshape(len(known), len(known))


def _parts(scores: Array, labels: Array) -> list[tuple[Array, Array]]:
    """All samples together, or each alone where they differ in shape."""
    if "O" not in (scores.dtype.kind, labels.dtype.kind):
        return [(scores, labels)]
    return [(s[None], np.asarray(y)[None]) for s, y in zip(scores, labels, strict=True)]


def _spearman(scores: Array, labels: Array) -> float:
    flat, known = (x.reshape(-1) if x.size == len(x) else x for x in (scores, labels))
    _check_shape(flat, known)
    if flat.ndim != 1:
        raise MetricError(
            f"spearman ranks one number of each sample, not answers of shape {list(scores.shape)}"
        )
    a, b = (ranks - ranks.mean() for ranks in (_ranks(flat), _ranks(known)))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0


def _ranks(values: Array) -> Array:
    """Ranks from 1, equal values sharing their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _mean_of_samples(values: Array, counted: Array, empty: float = 1.0) -> Array:
    """The mean of what counts in each sample; `empty` where nothing does."""
    rows, weights = (x.reshape(len(values), -1) for x in (np.where(counted, values, 0), counted))
    total = weights.sum(axis=1)
    result: Array = np.divide(
        rows.sum(axis=1), total, out=np.full(len(values), empty), where=total > 0, dtype=np.float64
    )
    return result


def _check_shape(answers: Array, labels: Array) -> None:
    if answers.shape != labels.shape:
        raise MetricError(
            f"answers of shape {list(answers.shape)} do not fit labels of shape {list(labels.shape)}: name "
            "the output that the labels are for, or give a function"
        )


KINDS: Mapping[str, Kind] = {
    "accuracy": Kind(True, _accuracy, zero_one=True, drops=(-1, 1), of_classes=True, spread=True),
    "top5": Kind(True, _top5, zero_one=True, drops=(-1, 1), of_classes=True),
    "f1": Kind(True, whole=_f1, of_classes=True, spread=True),
    "mcc": Kind(True, whole=_mcc, of_classes=True, spread=True),
    "spearman": Kind(True, whole=_spearman),
    "mse": Kind(True, _mse, larger_is_better=False),
    "agreement": Kind(False, _agreement, zero_one=True, drops=(0, 1), spread=True),
    "cosine": Kind(False, _cosine, drops=(0, 2)),
    "kl": Kind(False, _kl, larger_is_better=False, spread=True),
}
"""All metrics by name."""
