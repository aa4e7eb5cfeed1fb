"""The loss whose derivatives say how much units matter.

With labels it is the cross-entropy of the first output. Without, it is the distance to the original's
outputs, whose gradient is zero at the original; its curvature is not. With J the derivative of the outputs
by the masks of units, each output in units of its norm, the distance is m' J' J m to second order, and for
random v of independent standard normal elements the mean of (v' J)^2 is the diagonal of J' J. So v' times
the outputs stands for the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from hasten.errors import OptionError
from hasten.search.prune.joined import Batch

if TYPE_CHECKING:
    from torch import Tensor

_SAME = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators behind a choice that leave it what it is."""
_CHOICES = ("ArgMax", "ArgMin")


def judged(model: ir.Model) -> tuple[ir.Value, ...]:
    """The values that answers are judged by: the outputs that are floats.

    Where there are none, what `ArgMax` and `ArgMin` choose from at the end: whole numbers have no gradient.
    """
    floats, before = [], []
    for value in model.graph.outputs:
        chosen = _chosen_from(value)
        if chosen is not None:
            before.append(chosen)
        elif value.dtype is None or value.dtype.is_floating_point():
            floats.append(value)
    return tuple(dict.fromkeys(floats or before))


def _chosen_from(value: ir.Value) -> ir.Value | None:
    """What a choice at the end is made from, or None if there is none."""
    node = value.producer()
    while node is not None and node.op_type in _SAME and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node.inputs[0] if node is not None and node.op_type in _CHOICES and node.domain == "" else None


def scores_of(model: ir.Model) -> ir.Value | None:
    """The scores of classes by which labels are judged: the first of what answers are judged by.

    Where that is probabilities, what `Softmax` makes them from; None where nothing is judged.
    """
    found = judged(model)
    if not found:
        return None
    node = found[0].producer()
    while node is not None and node.op_type in _SAME and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or (node.domain, node.op_type) != ("", "Softmax"):
        return found[0]
    scores = node.inputs[0]
    shape = None if scores is None else scores.shape
    if scores is None or shape is None or len(shape) < 2:
        return found[0]
    axis = node.attributes.get_int("axis", -1) % len(shape)
    others = [size for place, size in enumerate(shape) if place not in (0, axis)]
    return scores if axis and all(size == 1 for size in others) else found[0]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Of each sample the cross-entropy of its label, by scores of classes, [samples, classes]."""
    import torch

    rows = wide(scores).reshape(len(labels), -1)
    return torch.nn.functional.cross_entropy(rows, labels, reduction="none")


@dataclass(frozen=True)
class Loss:
    """What is differentiated, added up over some samples.

    Attributes:
        names: of the values that it reads.
        labels: the class of each sample by the first of them, scores; None for the distance to the model's
            own.
        rng: of the random numbers that stand for the distance.
    """

    names: tuple[str, ...]
    labels: Sequence[int] | None
    rng: np.random.Generator

    @staticmethod
    def of(model: ir.Model, labels: Sequence[int] | None, rng: np.random.Generator) -> Loss:
        """The loss of a model.

        Raises:
            OptionError: all that it gives are whole numbers.
        """
        names = tuple(value.name or "" for value in judged(model))
        if not names:
            raise OptionError(
                "all outputs of the model are whole numbers that no choice (ArgMax) ends in, so there is no "
                "gradient: choose criterion='magnitude' or 'activation'"
            )
        scores = scores_of(model)
        if labels is not None and scores is not None:
            names = (scores.name or "",)
        return Loss(names, labels, rng)

    def __call__(self, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            values: by name, those in `names` among them.
            batch: what was run.

        Raises:
            OptionError: no gradient reaches it.
        """
        found = self._loss(values, batch)
        if not found.requires_grad:
            raise OptionError(
                f"{', '.join(self.names)}: no gradient reaches what the model gives, so that nothing can be "
                "ranked by it: choose criterion='magnitude' or 'activation'"
            )
        return found

    def _loss(self, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
        import torch

        if self.labels is not None:
            right = torch.tensor([self.labels[k] for k in batch.members])
            return cross_entropy(values[self.names[0]], right).sum()
        total = torch.zeros(())
        for name in self.names:
            if values[name].is_floating_point():
                value = wide(values[name]).reshape(len(batch) if len(batch) > 1 else 1, -1)
                v = torch.from_numpy(self.rng.standard_normal(tuple(value.shape))).to(value.dtype)
                total = total + ((v * value).sum(1) / value.detach().norm(dim=1).clamp_min(1e-12)).sum()
        return total


def wide(x: Tensor) -> Tensor:
    """Floats of 16 bits as 32, in which sums do not overflow; all else as it is."""
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x
