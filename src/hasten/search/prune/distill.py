"""Repair with training: the pruned model learns to answer as the original does, on the user's data.

The loss of a sample is the squared distance to the original's outputs, and to its values between layers
where the pruned graph has them too, each in units of its squared norm (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network"; values in between: Romero et al. 2015, "FitNets"). No labels are needed; where
they are known and classes of the first output, their cross-entropy is added, in units of that of a guess.
What comes before everything that was pruned is as it was: it runs once for both graphs, and is not trained.
AdamW, with a rate that rises over the first steps and then falls to zero over the steps, or over the time if
that ends first.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from hasten.backends.torch_graph import TorchGraph
from hasten.backends.torch_node import DTYPES
from hasten.backends.torch_operators import to_array
from hasten.errors import OptionError
from hasten.passes.prune.layers import find_layers
from hasten.search.prune.cost import Feeds
from hasten.search.prune.joined import Batch, join
from hasten.search.prune.loss import cross_entropy, judged, scores_of, wide
from hasten.search.prune.training import Training

_HELD = 10  # one sample in so many is not trained on, but says whether training helped
_MOST_HELD = 128  # of those that are looked at, at most
_TOGETHER = 32  # samples that are run at once where nothing is trained
_KEPT = {"request", "weights", "optimizer", "steps", "epoch", "digest", "before", "after", "best"}
_WARM = 0.05  # share of the steps over which the rate rises


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        before: mean loss of the samples held out, before.
        after: the same afterwards; weights of the best epoch are kept, those from before if none was better.
        epochs: that were begun, those before a resumption included.
        seconds: of this training.
    """

    before: float
    after: float
    epochs: int
    seconds: float


def distill(  # noqa: PLR0913 - choices, each with a default
    original: ir.Model,
    pruned: ir.Model,
    samples: Sequence[Feeds],
    training: Training,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    request: str = "",
    identity: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train the weights of a pruned graph behind what is as before, in place; those that are zero stay so.

    Args:
        original: the graph before.
        pruned: the graph after; values that both have are called alike.
        samples: inputs by name, ten at least.
        training: how long, how fast, and where checkpoints are kept.
        labels: of the samples, classes of the first output; None to learn from the original alone.
        seed: of the order of samples.
        request: what tells what the user asked for from all else, as for `check_training`.
        identity: what tells this pruning of the original from others, so that a checkpoint of another is
            refused; None for the weights that training begins with.
        progress: is told of each epoch.

    Raises:
        OptionError: there are too few samples, or the checkpoint is of something else.
        UnsupportedModelError: a gradient cannot pass through an operator.
    """
    asked = check_training(original, samples, training, labels=labels, request=request)
    start = time.monotonic()
    every = _every(samples)
    pair = _Pair(original, pruned)
    held = _Known(samples, labels, range(0, len(samples), every))
    rest = _Known(samples, labels, [k for k in range(len(samples)) if k % every])
    names = _trainable(pair.student)
    state = _State(
        names, pair.trained(names), training, -(-len(rest.samples) // training.batch) * training.epochs
    )
    state.request = asked
    state.digest = _digest(pair, names, (asked, identity, seed), weights=identity is None)
    if not state.resume():
        state.before = pair.mean(held)
        state.keep(state.before)
    epoch = state.epoch
    while state.epoch < training.epochs and not state.over(start):
        epoch = state.epoch + 1
        if _epoch(pair, rest, training.batch, state, start, np.random.default_rng([seed, epoch])):
            state.complete(epoch)
        found = pair.mean(held)
        progress(f"epoch {epoch} of {training.epochs}: loss {found:.4g}, {state.before:.4g} at first")
        if found < state.after:
            state.keep(found)
        state.save()
    for name, weight in zip(names, state.best, strict=True):
        value = pruned.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(to_array(weight.to(DTYPES[value.const_value.dtype])), name=name)
    return Trained(state.before, state.after, epoch, time.monotonic() - start)


def check_training(
    original: ir.Model,
    samples: Sequence[Feeds],
    training: Training,
    *,
    labels: Sequence[int] | None = None,
    request: str = "",
) -> str:
    """Refuses what `distill` would refuse of the same arguments, before there is a pruned graph.

    Args:
        original: the graph before.
        samples: inputs by name.
        training: whose checkpoint is looked at, if it is there.
        labels: of the samples.
        request: what tells what the user asked for from all else.

    Returns:
        What tells a training of this model, these data and this request from others.

    Raises:
        OptionError: there are too few samples, or the checkpoint is of something else.
    """
    if len(samples) < _HELD:
        raise OptionError(f"distillation needs {_HELD} samples at least, got {len(samples)}")
    digest = hashlib.sha256(repr((request, len(samples), labels)).encode())
    for feeds in samples[:: _every(samples)]:
        for name in sorted(feeds):
            digest.update(name.encode() + np.ascontiguousarray(feeds[name]).tobytes())
    for name, value in original.graph.initializers.items():
        if value.const_value is not None:
            digest.update(name.encode() + value.const_value.tobytes())
    asked = digest.hexdigest()
    path = training.file
    if path is not None and path.exists() and _loaded(path)["request"] != asked:
        raise _of_another(path)
    return asked


def _every(samples: Sequence[Feeds]) -> int:
    """One sample in so many is held out."""
    return max(_HELD, -(-len(samples) // _MOST_HELD))


class _Known:
    """Some of the samples, with their labels if there are any."""

    def __init__(self, samples: Sequence[Feeds], labels: Sequence[int] | None, which: Sequence[int]) -> None:
        self.samples = [samples[k] for k in which]
        self._labels = None if labels is None else torch.tensor([labels[k] for k in which])

    def labels(self, part: Batch) -> Tensor | None:
        """Those of the members of a batch."""
        return None if self._labels is None else self._labels[torch.from_numpy(part.members)]


def _epoch(
    pair: _Pair, data: _Known, batch: int, state: _State, start: float, rng: np.random.Generator
) -> bool:
    """One pass over the samples; whether it came to its end before the time was up."""
    parts = join(pair.model, data.samples, batch, rng.permutation(len(data.samples)).tolist())
    gathered = 0
    for place in rng.permutation(len(parts)):
        if state.over(start):
            return False
        part = parts[place]
        loss = pair.losses(part, data.labels(part)).sum() / batch
        loss.backward()  # type: ignore[no-untyped-call]
        gathered += len(part)
        if gathered >= batch:
            state.step(start)
            gathered = 0
    if gathered:
        state.step(start)
    return True


class _Pair:
    """The original and the pruned graph, and the distance between their values."""

    def __init__(self, original: ir.Model, pruned: ir.Model) -> None:
        self.model = pruned
        shared = unchanged(original, pruned)
        if {v.name for v in pruned.graph.outputs} <= set(shared):
            shared = ()  # nothing was pruned: all of it is trained
        self.teacher, self.student = TorchGraph(original), TorchGraph(pruned).without(shared)
        if shared and not _trainable(self.student):
            shared = ()  # no weights behind what was pruned: those before it learn
            self.student = TorchGraph(pruned)
        self._given = [name for name in self.student.inputs if name in shared]
        made = {v.name for node in self.student.nodes for v in node.outputs}
        answers = [value.name or "" for value in judged(original)]
        between = [layer.exit for layer in find_layers(original)]
        self._names = tuple(n for n in dict.fromkeys([*answers, *between]) if n in made)
        if not self._names:
            raise OptionError(
                "there is nothing to learn from: the outputs are whole numbers; repair by "
                "least-squares instead"
            )
        scores = scores_of(pruned)
        self._scores = "" if scores is None else scores.name or ""
        self._others = [name for name in (*self._given, self._scores) if name and name not in made]
        self._own = [name for name in (*self._names, self._scores) if name and name in made]
        self._copies: dict[str, tuple[Tensor, torch.dtype]] = {}

    def trained(self, names: Sequence[str]) -> list[Tensor]:
        """What is trained: weights, or copies in 32 bits of those that have 16, whose steps would be lost."""
        for name in names:
            weight = self.student.weights[name]
            if weight.element_size() < 4:
                self._copies[name] = (weight.float().requires_grad_(), weight.dtype)
        return [
            self._copies[n][0] if n in self._copies else self.student.weights[n].requires_grad_()
            for n in names
        ]

    def losses(self, part: Batch, labels: Tensor | None) -> Tensor:
        """The loss of each of some samples."""
        with torch.no_grad():
            right = self.teacher.run(part.feeds, keep=(*self._names, *self._others))
        for name, (weight, dtype) in self._copies.items():
            self.student.weights[name] = weight.to(dtype)
        given = {name: right[name] for name in self._given}
        found = right | self.student.run({**part.feeds, **given}, keep=self._own)
        count = len(part)
        total = torch.zeros(count)
        for name in self._names:
            goal, got = wide(right[name]), wide(found[name])
            if goal.is_floating_point() and goal.shape == got.shape:
                apart = goal.dim() > 0 and len(goal) == count
                rows = (count, -1) if apart else (1, -1)
                distance = (got - goal).reshape(rows).square().sum(1)
                total = total + distance / goal.reshape(rows).square().sum(1).clamp_min(1e-12)
        if labels is not None:
            said = found[self._scores]
            total = total + cross_entropy(said, labels) / math.log(max(2, said.numel() // count))
        return total

    def mean(self, data: _Known) -> float:
        """The mean loss of some samples."""
        with torch.no_grad():
            parts = join(self.model, data.samples, _TOGETHER)
            losses = [self.losses(part, data.labels(part)) for part in parts]
        return float(torch.cat(losses).mean())


def unchanged(original: ir.Model, pruned: ir.Model) -> tuple[str, ...]:
    """The values of a pruned graph that are the original's, since nothing before them changed."""
    twins = {node.outputs[0].name: node for node in original.graph}
    same = {value.name for value in pruned.graph.inputs}
    found: list[str] = []
    for node in pruned.graph:
        twin = twins.get(node.outputs[0].name)
        if twin is not None and _alike(node, twin, same):
            made = [v.name for v in node.outputs if v.name]
            found += made
            same.update(made)
    return tuple(found)


def _alike(node: ir.Node, twin: ir.Node, same: Collection[str | None]) -> bool:
    """Whether two nodes compute the same, if some values are the same."""
    mine, other = ir.to_proto(node), ir.to_proto(twin)
    if (mine.op_type, mine.domain, len(mine.input)) != (other.op_type, other.domain, len(other.input)):
        return False
    if sorted(a.SerializeToString() for a in mine.attribute) != sorted(
        a.SerializeToString() for a in other.attribute
    ):
        return False
    for value, theirs in zip(node.inputs, twin.inputs, strict=True):
        constants = [None if v is None else v.const_value for v in (value, theirs)]
        if constants[0] is not None and constants[1] is not None:
            if not np.array_equal(constants[0].numpy(), constants[1].numpy()):
                return False
        elif value is not None and (theirs is None or value.name != theirs.name or value.name not in same):
            return False
    return True


def _trainable(graph: TorchGraph) -> list[str]:
    """Weights that are trained: those of floats, but for scalars, statistics and looked-up tables."""
    fixed = {"Gather": (0,), "BatchNormalization": (3, 4), "RotaryEmbedding": (1, 2)}
    left = {v.name for node in graph.nodes for k in fixed.get(node.op_type, ()) if (v := node.inputs[k])}
    used = {v.name for node in graph.nodes for v in node.inputs if v is not None}
    return [
        name
        for name, w in graph.weights.items()
        if w.is_floating_point() and w.numel() > 1 and name in used and name not in left
    ]


def _digest(pair: _Pair, names: Sequence[str], about: object, *, weights: bool) -> str:
    """What tells a training from others: of another original, pruning or data."""
    digest = hashlib.sha256(repr(about).encode())
    for name in names:
        weight = pair.student.weights[name]
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if weights:
            digest.update(to_array(weight).tobytes())
    return digest.hexdigest()


class _State:
    """Optimizer, steps and epochs, and their checkpoint."""

    def __init__(self, names: Sequence[str], weights: list[Tensor], training: Training, steps: int) -> None:
        self._names, self._weights, self._training, self._steps = names, weights, training, steps
        self._optimizer = torch.optim.AdamW(weights, lr=training.rate, weight_decay=0.0)
        self._done = self._whole = 0
        self.epoch = 0
        self.request = self.digest = ""
        self.before = self.after = math.inf
        self.best: list[Tensor] = []
        self._find_zeros()

    def _find_zeros(self) -> None:
        weights = [w for w in self._weights if w.dim() > 1]
        self._zeros = [(w, w.detach() != 0) for w in weights if bool((w.detach() == 0).any())]

    def keep(self, loss: float) -> None:
        """Remembers the weights as the best so far, with their loss on samples held out."""
        self.after, self.best = loss, [w.detach().clone() for w in self._weights]

    def complete(self, epoch: int) -> None:
        """Remembers that an epoch came to its end, and after how many steps."""
        self.epoch, self._whole = epoch, self._done

    def over(self, start: float) -> bool:
        """Whether the time is up."""
        limit = self._training.seconds
        return limit is not None and time.monotonic() - start >= limit

    def _rate(self, start: float) -> None:
        """Sets the rate of the next step."""
        share = self._done / max(1, self._steps)
        if self._training.seconds is not None:
            share = max(share, (time.monotonic() - start) / self._training.seconds)
        factor = min(1.0, (self._done + 1) / max(1.0, _WARM * self._steps)) * max(0.0, 1 - share)
        for group in self._optimizer.param_groups:
            group["lr"] = self._training.rate * factor

    def step(self, start: float) -> None:
        """Changes the weights by the gradients gathered."""
        self._rate(start)
        for weight, there in self._zeros:
            if weight.grad is not None:
                weight.grad *= there
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._done += 1

    def save(self) -> None:
        """Writes the checkpoint, if one is wanted; a run that is cut off leaves the one before."""
        path = self._training.file
        if path is None:
            return
        data = {
            "weights": dict(zip(self._names, [w.detach() for w in self._weights], strict=True)),
            "optimizer": self._optimizer.state_dict(),
            "steps": self._whole,  # what an epoch that was cut off did is done again
            "epoch": self.epoch,
            "request": self.request,
            "digest": self.digest,
            "before": self.before,
            "after": self.after,
            "best": dict(zip(self._names, self.best, strict=True)),
        }
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save(data, temporary)
        temporary.replace(path)

    def resume(self) -> bool:
        """Takes up what a checkpoint has; whether there is one.

        Raises:
            OptionError: it is of something else.
        """
        path = self._training.file
        if path is None or not path.exists():
            return False
        data = _loaded(path)
        if data["digest"] != self.digest:
            raise _of_another(path)
        with torch.no_grad():
            for name, weight in zip(self._names, self._weights, strict=True):
                weight.copy_(data["weights"][name])
        self._optimizer.load_state_dict(data["optimizer"])
        self._done = self._whole = int(data["steps"])
        self.epoch = int(data["epoch"])
        self.before, self.after = float(data["before"]), float(data["after"])
        self.best = [data["best"][name] for name in self._names]
        self._find_zeros()
        return True


def _of_another(path: Path) -> OptionError:
    return OptionError(
        f"{path} is the checkpoint of another pruning (of other units, data, labels, seed or model; a time "
        "limit that ends the ranking early may choose other units too): give another name, or delete it"
    )


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        found = torch.load(path, weights_only=True)
        if isinstance(found, dict) and set(found) >= _KEPT:
            return found
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        pass
    raise OptionError(f"{path} is no checkpoint of a distillation: give another name, or delete it")
