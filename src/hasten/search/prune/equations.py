"""Linear equations from samples, and how far to trust them.

Weights W and a bias b that give y from what is read, x:

    minimize |x W + b - y|^2 + ridge * mean(diag x'x) * |W - W0|^2

with W0 the weights before. A ridge that is too small fits the samples and nothing else, one too large
leaves what could be mended. So the samples are taken in two halves, and the ridge is the one with which
weights from each half are best on the other (two-fold cross-validation); if none is better than W0, W0 stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.search.prune.loss import wide

GATHERED = 8192
"""Positions of several runs that are multiplied at once."""
RIDGE = 1e-3
"""How strongly weights stay what they were where no other samples can tell."""
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ROWS = 32768  # most positions of a run that equations are made from
_FEW_ROWS = 256  # of each group, which have few unknowns and together many rows
_ENOUGH = 4  # equations to an unknown, from which on they say more than the weights before


@dataclass
class Sums:
    """Sums of the normal equations of x W + b = y, in double precision.

    There may be several systems at once, the groups of a convolution, along first axes of everything.
    """

    inner: Tensor
    cross: Tensor
    sum_x: Tensor
    sum_y: Tensor
    count: int = 0

    @staticmethod
    def of(unknowns: int, outputs: int, groups: Sequence[int] = ()) -> Sums:
        """No equations yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros((*groups, *shape), dtype=torch.float64)

        return Sums(zeros(unknowns, unknowns), zeros(unknowns, outputs), zeros(unknowns), zeros(outputs))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes rows of x and y in."""
        x, y = wide(x), wide(y)
        self.inner += (x.mT @ x).double()
        self.cross += (x.mT @ y).double()
        self.sum_x += x.sum(-2).double()
        self.sum_y += y.sum(-2).double()
        self.count += x.shape[-2]

    def with_(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            self.inner + other.inner,
            self.cross + other.cross,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            self.count + other.count,
        )

    def moments(self, *, centered: bool) -> tuple[Tensor, Tensor]:
        """Products x'x and x'y, about the means if a bias makes up for those."""
        if not centered or not self.count:
            return self.inner, self.cross
        column = self.sum_x.unsqueeze(-1) / self.count
        inner = self.inner - column * self.sum_x.unsqueeze(-2)
        return inner, self.cross - column * self.sum_y.unsqueeze(-2)


@dataclass
class Equations:
    """Equations of samples in two halves.

    Attributes:
        halves: their sums.
        waiting: rows of x and y of each half that are not in its sums yet.
        runs: that were taken in.
    """

    halves: tuple[Sums, Sums]
    waiting: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = field(
        default_factory=lambda: ([], [])
    )
    runs: int = 0

    @staticmethod
    def of(unknowns: int, outputs: int, groups: Sequence[int] = ()) -> Equations:
        """No equations yet."""
        return Equations((Sums.of(unknowns, outputs, groups), Sums.of(unknowns, outputs, groups)))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes the rows of x and y of a run in; `finish` comes after the last of them."""
        most = _ROWS if x.dim() == 2 else _FEW_ROWS
        every = -(-x.shape[-2] // most)
        half = self.runs % 2
        self.waiting[half].append((x[..., ::every, :], y[..., ::every, :]))
        self.runs += 1
        if sum(x.shape[-2] for x, _ in self.waiting[half]) >= min(GATHERED, most):
            self._multiply(half)

    def finish(self) -> None:
        """Multiplies what is waiting."""
        self._multiply(0)
        self._multiply(1)

    def _multiply(self, half: int) -> None:
        if self.waiting[half]:
            x, y = (torch.cat(parts, -2) for parts in zip(*self.waiting[half], strict=True))
            self.waiting[half].clear()
            self.halves[half].add(x, y)

    @property
    def total(self) -> Sums:
        """The sums of all samples."""
        return self.halves[0].with_(self.halves[1])

    @property
    def enough(self) -> bool:
        """Whether there are so many that a product which lost nothing gains by them."""
        return sum(half.count for half in self.halves) >= _ENOUGH * self.halves[0].inner.shape[-1]

    def system(self, ridge: float, *, centered: bool) -> Tensor:
        """The matrix of the equations."""
        return _system(self.total.moments(centered=centered)[0], torch.tensor(ridge))

    def solve(self, before: Tensor, *, centered: bool) -> Tensor:
        """New weights, as near to the weights before as the samples advise."""
        before = before.double()
        inner, cross = self.total.moments(centered=centered)
        ridges = self.ridges(before, centered=centered)
        trusted = torch.isfinite(ridges)
        system = _system(inner, torch.where(trusted, ridges, 1.0))
        change: Tensor = torch.linalg.solve(system, cross - inner @ before)
        return before + torch.where(trusted[..., None, None], change, 0.0)

    def ridges(self, before: Tensor, *, centered: bool) -> Tensor:
        """The ridge of each group with which each half foretells the other best; infinite: nothing does."""
        groups = self.halves[0].inner.shape[:-2]
        if not all(half.count for half in self.halves):
            return torch.full(groups, RIDGE, dtype=torch.float64)
        before = before.double()
        known = [half.moments(centered=centered) for half in self.halves]
        errors = torch.zeros((len(_RIDGES), *groups), dtype=torch.float64)
        for (inner, cross), (other, crossed) in (known, known[::-1]):
            left, unseen = cross - inner @ before, crossed - other @ before
            for k, ridge in enumerate(_RIDGES):
                change = torch.linalg.solve(_system(inner, torch.tensor(ridge)), left)
                errors[k] += ((other @ change - 2 * unseen) * change).sum((-2, -1))
        least, best = errors.min(0)
        return torch.where(least < 0, torch.tensor(_RIDGES, dtype=torch.float64)[best], torch.inf)

    def bias(self, weights: Tensor) -> Tensor:
        """The bias that goes with weights."""
        total = self.total
        return (total.sum_y - (total.sum_x.unsqueeze(-2) @ weights).squeeze(-2)) / total.count


def _system(inner: Tensor, ridges: Tensor) -> Tensor:
    """The matrix of the equations, with a ridge for each group."""
    strength = ridges * inner.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-12
    return inner + strength[..., None, None] * torch.eye(inner.shape[-1], dtype=torch.float64)


_SHRINKAGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def shrunk(one: Tensor, other: Tensor) -> Tensor:
    """Second moments whose inverse can be trusted, from those of two halves of the samples.

    Where samples are fewer than unknowns, or little more, each unknown seems to follow from the others. So
    the moments between different unknowns are taken for less than they are: by the share with which each
    half is the likeliest for the other, as moments of a normal distribution. Schaefer and Strimmer 2005, "A
    Shrinkage Approach to Large-Scale Covariance Matrix Estimation", shrink towards the diagonal.

    Args:
        one: means of x'x over the positions of a half.
        other: those of the other half.
    """

    def unlikely(share: float) -> float:
        total = 0.0
        for known, unseen in ((one, other), (other, one)):
            factor = torch.linalg.cholesky(_towards_diagonal(known, share))
            inverse = torch.cholesky_inverse(factor)
            total += float(2 * factor.diagonal().log().sum() + (inverse * unseen).sum())
        return total

    return _towards_diagonal((one + other) / 2, min(_SHRINKAGES, key=unlikely))


def _towards_diagonal(moments: Tensor, share: float) -> Tensor:
    """Moments with those between different unknowns made less; what never varies gets a little variance."""
    diagonal = moments.diagonal().clamp_min(0)
    least = RIDGE * float(diagonal.mean()) + 1e-12
    return (1 - share) * moments + torch.diag(share * diagonal + least)
