"""The criterion `obs`: what the loss would lose if a unit went and all who read its group made up for it.

The optimal brain surgeon (Hassibi and Stork 1993) for whole units, as in Kurtic et al. 2023, "ZipLM:
Inference-Aware Structured Pruning of Language Models". A product Y = X W that reads units knows from the
second moments H of X how well what is left can stand for a unit u: with the best new weights the error is

    trace(W_u' ((H^-1)_uu)^-1 W_u)

so the unit of the least error goes, W and H^-1 become those of what is left, and so on. What a unit is worth
is what its turn adds to the error. Errors of columns of Y count by the mean square of the loss's gradient
there, which makes products in different places of the graph comparable.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.backends.torch_graph import TorchGraph
from hasten.passes.prune.units import Group
from hasten.search.prune.equations import Equations, shrunk
from hasten.search.prune.joined import Batch
from hasten.search.prune.loss import Loss
from hasten.search.prune.products import Product, bias_of, readings

Values = NDArray[np.float64]
_STEPS = 128  # a group of more units loses several at a time


@dataclass
class _Reader:
    """A product that reads a group, and what is known of it.

    Attributes:
        node: its index.
        output: the name of its output.
        product: how it is a linear equation.
        matrix: its weights, [unknowns, outputs].
        units: the unit of each unknown, or -1.
        centered: whether a bias behind it can make up for means.
        equations: of what is read, without a right side.
        slopes: sum of squared gradients of the loss by each output, over all positions.
        positions: that were read.
    """

    node: int
    output: str
    product: Product
    matrix: Tensor
    units: NDArray[np.int64]
    centered: bool
    equations: Equations
    slopes: Tensor
    positions: int = 0

    def take(self, x: Tensor) -> Tensor:
        """Takes in what is read, for the moments."""
        with torch.no_grad():
            rows = self.product.rows(x.detach())
            self.positions += len(rows)
            self.equations.add(rows, rows[:, :0])
        return x

    def second_moments(self) -> Tensor:
        """Means of squares and products of what is read, about the mean if a bias can make up for that."""
        self.equations.finish()
        sums = self.equations.halves
        halves = [half.moments(centered=self.centered)[0] / max(1, half.count) for half in sums]
        return shrunk(halves[0], halves[1] if sums[1].count else halves[0])


def obs_scores(
    model: ir.Model, groups: Sequence[Group], batches: Iterable[Batch], loss: Loss, until: float = math.inf
) -> dict[Group, Values]:
    """What each unit is worth; groups that no product with constant weights reads are left out.

    Args:
        model: the graph that was analysed.
        groups: of the analysis.
        batches: samples.
        loss: of some samples.
        until: a time by `time.monotonic`, of which each group has its part; what is left of it by then is
            worth what the loss would lose if it went next.
    """
    graph = TorchGraph(model)
    readers = {group: found for group in groups if (found := _readers(graph, group))}
    every = [reader for found in readers.values() for reader in found]
    if not every:
        return {}
    samples = 0
    for batch in batches:
        taps: dict[tuple[int, int], list[Callable[[Tensor], Tensor]]] = defaultdict(list)
        for reader in every:
            one = torch.ones((), requires_grad=True)
            taps[reader.node, 0] += [reader.take, partial(torch.mul, one)]
        values = graph.run(batch.feeds, taps=taps, keep=[*loss.names, *(reader.output for reader in every)])
        outputs = [values[reader.output] for reader in every]
        slopes = torch.autograd.grad(loss(values, batch), outputs, allow_unused=True)
        for reader, slope in zip(every, slopes, strict=True):
            if slope is not None:
                reader.slopes = reader.slopes + reader.product.outputs(slope).double().square().sum(0)
        samples += len(batch)
    scores = {}
    for number, (group, found) in enumerate(readers.items()):
        now = time.monotonic()
        stop = now + (until - now) / (len(readers) - number)
        scores[group] = _eliminated(found, group.count, samples, stop)
    return scores


def _readers(graph: TorchGraph, group: Group) -> list[_Reader]:
    known = readings(graph.nodes, group)
    found = []
    for consumer, product in () if isinstance(known, str) else known:
        node = graph.nodes[consumer.node]
        weight = node.inputs[1]
        assert weight is not None and weight.name is not None
        matrix: Tensor = product.matrix(graph.weights[weight.name]).double()
        members = group.members[consumer.value]
        units = np.repeat(members, len(matrix) // len(members))
        slopes = torch.zeros(matrix.shape[1], dtype=torch.float64)
        centered = bias_of(node) is not None
        output = node.outputs[0].name or ""
        equations = Equations.of(len(matrix), 0)
        found.append(_Reader(consumer.node, output, product, matrix, units, centered, equations, slopes))
    return found


@dataclass
class _System:
    """A reader while units go: its weights, the inverse of its moments, and where each unit lies."""

    weights: Tensor
    inverse: Tensor
    rows: list[NDArray[np.int64]]

    @staticmethod
    def of(reader: _Reader, count: int, samples: int) -> _System:
        """Before anything went."""
        inverse = torch.linalg.inv(reader.second_moments() * (reader.positions / max(1, samples)))
        columns = (reader.slopes / max(1, reader.positions)).sqrt()
        order = np.argsort(reader.units, kind="stable")
        first = np.searchsorted(reader.units[order], np.arange(count + 1))
        return _System(reader.matrix * columns, inverse, [order[a:b] for a, b in pairwise(first)])

    def errors(self, units: NDArray[np.int64]) -> Values:
        """What would be lost with each of some units."""
        sizes = {len(self.rows[unit]) for unit in units}
        if len(sizes) > 1:
            return np.concatenate([self.errors(np.array([unit])) for unit in units])
        rows = torch.from_numpy(np.stack([self.rows[unit] for unit in units]))
        if rows.shape[1] == 1:
            flat = rows[:, 0]
            single: Values = (self.weights[flat].square().sum(1) / self.inverse.diagonal()[flat]).numpy()
            return single
        blocks, parts = self.inverse[rows[:, :, None], rows[:, None, :]], self.weights[rows]
        found: Values = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2)).numpy()
        return found

    def remove(self, units: NDArray[np.int64]) -> float:
        """Takes units out; what that loses."""
        rows = torch.from_numpy(np.concatenate([self.rows[unit] for unit in units]))
        if not len(rows):
            return 0.0
        block = self.inverse[rows][:, rows]
        moved = torch.linalg.solve(block, torch.cat([self.weights[rows], self.inverse[rows]], 1))
        width = self.weights.shape[1]
        lost = float((self.weights[rows] * moved[:, :width]).sum())
        column = self.inverse[:, rows]
        self.weights.addmm_(column, moved[:, :width], alpha=-1)  # in place: both are megabytes
        self.inverse.addmm_(column, moved[:, width:], alpha=-1)
        return lost


def _eliminated(readers: Sequence[_Reader], count: int, samples: int, until: float) -> Values:
    """What each unit adds to the error in its turn; when time is up, all that are left have theirs."""
    systems = [_System.of(reader, count, samples) for reader in readers]
    worth = np.zeros(count)
    left = np.arange(count)
    together = max(1, count // _STEPS)
    reached = 0.0
    for _ in range(count):
        errors = np.sum([system.errors(left) for system in systems], axis=0)
        if time.monotonic() >= until:
            worth[left] = np.maximum(errors, reached * (1 + 1e-9))
            break
        chosen = left[np.argsort(errors, kind="stable")[:together]]
        lost = sum(system.remove(chosen) for system in systems) / len(chosen)
        reached = max(reached * (1 + 1e-9), lost)
        worth[chosen] = reached
        left = np.setdiff1d(left, chosen)
        if not len(left):
            break
    return worth
