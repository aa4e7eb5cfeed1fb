"""How good a model's answers are: metrics by name, or the user's own.

A metric looks at one output of the model, whose first axis counts samples. Those that need labels compare
with what is right; `agreement`, `cosine` and `kl` compare with the original model's own answers and need
none.

The *drop* of a candidate is in the metric's own units (0.01 is one point of accuracy) and positive where the
candidate is worse than the original, whichever direction of the metric is the better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import MetricError, OptionError
from hasten.search.blocks import blocks
from hasten.search.lone_score import Lone, both_classes
from hasten.search.metric_kinds import KINDS, Kind, PerSample

Array = NDArray[Any]
Outputs = Mapping[str, Array]
"""Outputs by name; the first axis of each counts samples. Where samples differ in shape: arrays of arrays."""

UserMetric = Callable[[Outputs, Array | None], float]


@dataclass(frozen=True)
class Metric:
    """A measure of answers.

    Attributes:
        name: what it is called.
        needs_labels: it compares with labels; otherwise with the answers of the original model.
        larger_is_better: the direction.
        whole: outputs, labels and the original's outputs to one number.
        per_sample: the same to a number for each sample, of which `whole` is the mean; None where the metric
            is no mean of samples.
        zero_one: the number of a sample with a single answer is 0 or 1.
        drops: the least and the greatest drop that one sample can have; None where nothing bounds it.
        output: the output that it looks at; None for the first.
        classes_alone: only the class of the highest score matters, and a number from 0 to 1 comes of it.
        of_classes: its labels are classes.
        over_classes: it compares scores of classes.
        any_output: a function of all outputs.
    """

    name: str
    needs_labels: bool
    larger_is_better: bool
    whole: Callable[[Outputs, Array | None, Outputs], float]
    per_sample: Callable[[Outputs, Array | None, Outputs], Array] | None = None
    zero_one: bool = False
    drops: tuple[float, float] | None = None
    output: str | None = None
    classes_alone: bool = False
    of_classes: bool = False
    over_classes: bool = False
    any_output: bool = False


def metric_named(
    metric: str | UserMetric,
    *,
    output: str | None = None,
    larger_is_better: bool | None = None,
    lone: Lone | None = None,
) -> Metric:
    """A metric by its name, or made of a function.

    | name | what |
    |---|---|
    | accuracy | share of answers whose class of the highest score is the label |
    | top5 | share of answers with the label among the five highest scores |
    | f1 | F1 of class 1 where there are two classes, else the mean of the classes' F1 |
    | mcc | Matthews' correlation coefficient, for any number of classes (Gorodkin 2004) |
    | spearman | rank correlation of a score with the labels |
    | mse | mean squared error against the labels |
    | agreement | share of answers with the same class as the original's |
    | cosine | mean cosine with the original's answers |
    | kl | mean Kullback-Leibler divergence of the classes' probabilities from the original's |

    Outputs of class metrics hold scores `[samples, classes]`, or integer classes `[samples]`. Of answers at
    several positions, `[samples, ..., classes]` (`[samples, classes, height, width]` for pictures), accuracy,
    agreement and kl take the mean over the positions of a sample, and f1 and mcc all positions together;
    positions with a negative label do not count, nor for mse those whose label is NaN. Samples of a single
    answer need a label that is a class.
    A model of two classes may have a single score, `[samples]` or `[samples, 1]`; `lone` says what it is.

    Args:
        metric: a name of the table, or a function of all outputs by name and the labels.
        output: which output a named metric looks at; None for the model's first.
        larger_is_better: the direction of a function; a named metric knows its own.
        lone: what the only score of an answer is; None where answers have several.

    Raises:
        OptionError: an unknown name; a function without its direction.
    """
    if isinstance(metric, str):
        found = KINDS.get(metric)
        if found is None:
            raise OptionError(
                f"unknown metric {metric!r}: choose from {', '.join(KINDS)}, or give a function"
            )
        if larger_is_better not in (None, found.larger_is_better):
            better = "larger" if found.larger_is_better else "smaller"
            raise OptionError(f"metric {metric!r} knows its direction: {better} is better; leave it out")
        return _of_kind(metric, found, output, lone)
    if not callable(metric):
        raise OptionError(
            f"metric is {type(metric).__name__}: give a name or a function of (outputs, labels)"
        )
    if larger_is_better is None:
        raise OptionError("metric is a function: say larger_is_better=True, or False for an error or a loss")
    return _of_function(metric, larger_is_better)


def evaluate(metric: Metric, outputs: Outputs, labels: Array | None, original: Outputs) -> float:
    """The metric of some answers.

    Args:
        metric: what to measure.
        outputs: the answers.
        labels: one for each sample; None only where the metric needs none.
        original: the original model's answers to the same samples.

    Raises:
        MetricError: NaN in what it looks at or as the result; shapes that do not fit; a function that raised.
    """
    _check_labels(metric, labels)
    value = metric.whole(outputs, labels, original)
    if math.isnan(value):
        raise MetricError(
            f"metric {metric.name} is NaN on these answers: it must be a number for every set of them"
        )
    return value


def drop(metric: Metric, original: Outputs, candidate: Outputs, labels: Array | None) -> float:
    """How much worse a candidate is than the original, in the metric's units; negative where it is better.

    Raises:
        MetricError: as `evaluate`.
    """
    before = evaluate(metric, original, labels, original)
    after = evaluate(metric, candidate, labels, original)
    return before - after if metric.larger_is_better else after - before


def sample_drops(metric: Metric, original: Outputs, candidate: Outputs, labels: Array | None) -> Array:
    """The drop of each sample, float64 `[samples]`, for a metric that has `per_sample`.

    Raises:
        MetricError: as `evaluate`.
    """
    if metric.per_sample is None:
        raise MetricError(f"metric {metric.name} is no mean over samples")
    _check_labels(metric, labels)
    before = metric.per_sample(original, labels, original)
    after = metric.per_sample(candidate, labels, original)
    return before - after if metric.larger_is_better else after - before


def single_answers(metric: Metric, outputs: Outputs) -> bool:
    """Whether each sample has one answer, so that a 0/1 metric is 0 or 1 for it.

    That is a class, the scores of several, or the only score of two (`lone_score`).
    """
    array = _chosen(outputs, metric.name, metric.output)
    if array.dtype.kind in "iub":
        return array.size == len(array)
    return array.dtype != object and array.ndim <= 2


def count(original: Outputs, candidate: Outputs) -> int:
    """The number of samples that both answered.

    Raises:
        MetricError: there are none, or not as many of both.
    """
    lengths = {len(array) for array in (*original.values(), *candidate.values())}
    if len(lengths) != 1 or lengths == {0}:
        raise MetricError(
            f"answers to {' or '.join(map(str, sorted(lengths))) or 'no'} samples: no pairs to compare"
        )
    return lengths.pop()


def relevant(metric: Metric, outputs: Outputs) -> Outputs:
    """The outputs that a metric looks at."""
    if metric.output is None:
        return outputs if metric.any_output else dict([next(iter(outputs.items()))])
    _check_output(metric.output, outputs)
    return {metric.output: outputs[metric.output]}


def looked_at(metric: Metric, outputs: Iterable[str]) -> str:
    """In words: the metric and the output that it looks at, for reports.

    Raises:
        MetricError: the model has no output of that name.
    """
    names = list(outputs)
    if metric.any_output:
        return f"{metric.name} of all outputs"
    if metric.output is not None:
        _check_output(metric.output, names)
        return f"{metric.name} of output {metric.output!r}"
    others = f", the first of {len(names)}" if len(names) > 1 else ""
    return f"{metric.name} of output {names[0]!r}{others}"


def take(outputs: Outputs, samples: Array) -> dict[str, Array]:
    """The outputs of some samples, by index."""
    return {name: array[samples] for name, array in outputs.items()}


def _check_labels(metric: Metric, labels: Array | None) -> None:
    if metric.needs_labels and labels is None:
        raise MetricError(
            f"metric {metric.name} needs labels and the data have none: add them (pairs of inputs and "
            "label, or a 'labels' column), or choose agreement, cosine or kl, which compare with the "
            "original's answers"
        )


def _check_output(output: str, names: Iterable[str]) -> None:
    if output not in names:
        raise MetricError(
            f"the metric looks at output {output!r}; the model has {', '.join(names) or 'none'}"
        )


def _chosen(outputs: Outputs, metric: str, output: str | None) -> Array:
    """The output that a named metric looks at, without NaN."""
    name = next(iter(outputs)) if output is None else output
    _check_output(name, outputs)
    array = outputs[name]
    for some in blocks(array):
        part = array[some.start] if array.dtype == object else array[some]
        if part.dtype.kind == "f" and np.isnan(part).any():
            where = np.argwhere(np.isnan(part))[0].tolist()
            where = where if array.dtype == object else [some.start + where[0], *where[1:]]
            raise MetricError(f"output {name!r} has NaN (first at {where}): metric {metric} has no value")
    return array


def _check_samples(scores: Array, other: Array, what: str) -> None:
    if len(scores) != len(other):
        raise MetricError(f"answers of {len(scores)} samples and {what} of {len(other)}")


def _of_kind(name: str, kind: Kind, output: str | None, lone: Lone | None) -> Metric:
    def chosen(outputs: Outputs) -> Array:
        scores = _chosen(outputs, name, output)
        return both_classes(scores, lone) if kind.spread and lone is not None else scores

    def per_sample(outputs: Outputs, labels: Array | None, original: Outputs) -> Array:
        assert kind.per_sample is not None
        scores, before = chosen(outputs), chosen(original)
        _check_samples(scores, before, "the original's answers")
        if labels is not None:
            _check_samples(scores, labels, "labels")
        return _each(kind.per_sample, scores, labels, before)

    def whole(outputs: Outputs, labels: Array | None, original: Outputs) -> float:
        if kind.whole is None:
            return float(per_sample(outputs, labels, original).mean())
        assert labels is not None
        scores = chosen(outputs)
        _check_samples(scores, labels, "labels")
        if scores.dtype == object and not kind.of_classes:
            raise MetricError(f"metric {name} needs one answer for each sample; these differ in shape")
        return kind.whole(scores, labels)

    return Metric(
        name,
        kind.needs_labels,
        kind.larger_is_better,
        whole,
        per_sample if kind.whole is None else None,
        kind.zero_one,
        kind.drops,
        output,
        classes_alone=kind.of_classes and kind.whole is not None,
        of_classes=kind.of_classes,
        over_classes=kind.of_classes or kind.spread,
    )


def _of_function(function: UserMetric, larger_is_better: bool) -> Metric:
    name = getattr(function, "__name__", type(function).__name__) + "()"

    def whole(outputs: Outputs, labels: Array | None, original: Outputs) -> float:
        try:
            return float(function(outputs, labels))
        except Exception as error:
            # The user's code may raise anything; the search goes on without this candidate and says why.
            raise MetricError(
                f"metric {name} raised {type(error).__name__}: {error} (outputs "
                f"{', '.join(f'{n} {list(a.shape)}' for n, a in outputs.items())})"
            ) from error

    return Metric(name, False, larger_is_better, whole, any_output=True)


def _each(function: PerSample, scores: Array, labels: Array | None, before: Array) -> Array:
    """Applies a function to all samples, some megabytes at a time; one by one where they differ in shape."""
    if scores.dtype != object:
        found = [
            function(scores[some], None if labels is None else labels[some], before[some])
            for some in blocks(scores)
        ]
    else:
        found = [
            function(
                scores[i][None], None if labels is None else np.asarray(labels[i])[None], before[i][None]
            )
            for i in range(len(scores))
        ]
    return np.concatenate(found).astype(np.float64)
