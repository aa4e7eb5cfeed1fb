"""One-sided upper confidence bounds on a mean, from samples. Plain statistics: nothing here knows of models.

The first three hold for every distribution and every number of samples: in at least `1 - alpha` of all draws
the bound is at or above the true mean. The bootstrap is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_NUISANCE = 0.02  # share of alpha that is spent on capping how many pairs differ
_CELLS = 3000  # of the nuisance parameter; a test that needs finer ones is given up, which widens the bound
_BLOCK = 1 << 20  # elements of working arrays


def binomial_upper(hits: int, samples: int, alpha: float) -> float:
    """Bound on a probability from `hits` in independent samples (Clopper and Pearson 1934).

    The least probability under which so few hits have probability `alpha` at most. With none it is
    `1 - alpha ** (1 / samples)`, about `3 / samples` at 95%: the rule of three.
    """
    from scipy.special import betaincinv

    return 1.0 if hits >= samples else float(betaincinv(hits + 1, samples - hits, 1 - alpha))


def paired_upper(losses: int, gains: int, samples: int, alpha: float) -> float:
    """Bound on P(loss) - P(gain) from pairs, each a loss, a gain or a tie.

    Buehler's (1957) bound: outcomes are ordered by an approximate limit, here Wilson's, `losses - gains + z *
    sqrt(losses + gains + z * z / 4)`. The bound is the least drop under which an outcome at or below the
    observed one has probability `alpha` at most, whatever the share of pairs that differ; that share is
    capped by its own bound at a small part of alpha (Berger and Boos 1994). The order grows with losses and
    falls with gains, so the probability falls with the drop, and the worst case lies where the drop is
    exactly the one tested. Lloyd and Moldovan (2008) compare such tests for paired answers. Two
    Clopper-Pearson bounds combined, or conditioning on the pairs that differ, are as valid and a half wider.

    The worst share is found with certainty, not on a grid: `arcsin(sqrt(p))` of the probability `p` of any
    event moves by at most half the Fisher length of a step of the parameters, so a cell of a grid is
    excluded or divided.

    Returns:
        The bound, in -1..1, rounded up by 0.5% of its distance from the measured drop; by a few percent where
        thousands of pairs differ.
    """
    if samples == 0:
        return 1.0
    from scipy.special import ndtri

    test = _PairedTest(losses, gains, samples, float(-ndtri(alpha)), alpha * _NUISANCE)
    level = alpha * (1 - _NUISANCE)
    measured = (losses - gains) / samples
    rejected = 1.0
    step = max(2.5 * math.sqrt(losses + gains + 1), -math.log(alpha)) / samples
    kept = measured
    while (tried := kept + step) < 1:
        if not test.may_exceed(tried, level):
            rejected = tried
            break
        kept, step = tried, step * 2
    while rejected - kept > 5e-3 * (rejected - measured):
        middle = (kept + rejected) / 2
        if test.may_exceed(middle, level):
            kept = middle
        else:
            rejected = middle
    return rejected


class _PairedTest:
    """The outcomes at or below an observed one, and their probability."""

    def __init__(self, losses: int, gains: int, samples: int, z: float, alpha_cap: float) -> None:
        self._samples = samples
        self._z, self._smooth = z, z * z / 4
        self._limit = losses - gains + z * math.sqrt(losses + gains + self._smooth)
        self._cap = binomial_upper(losses + gains, samples, alpha_cap)

    def may_exceed(self, drop: float, level: float) -> bool:
        """Whether for some share of pairs that differ the outcomes are likelier than `level`."""
        least = max(0.0, -drop)
        most = (self._cap - drop) / 2
        if most < least:
            return False  # so large a drop is beyond the cap on pairs that differ
        bar = math.asin(math.sqrt(level))
        # The square root of P(gain) is nearly the natural scale. One extra cell gives the ends.
        roots = np.linspace(math.sqrt(least), math.sqrt(most), 17)
        heights = self._heights(roots, drop)
        left, right = roots[:-1], roots[1:]
        finest = float(self._length(left, right, drop).sum()) / _CELLS
        low, high = heights[:-1], heights[1:]
        while left.size:
            if max(low.max(), high.max()) > bar:
                return True
            length = self._length(left, right, drop)
            open_ = (low + high) / 2 + length / 4 > bar
            if (length[open_] < finest).any():
                return True  # too close to tell
            left, right, low, high = (x[open_] for x in (left, right, low, high))
            middle = (left + right) / 2
            between = self._heights(middle, drop)
            left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
            low, high = np.concatenate([low, between]), np.concatenate([between, high])
        return False

    def _length(self, left: Array, right: Array, drop: float) -> Array:
        """No less than the Fisher lengths of the steps: those of the three outcomes, added."""
        total = np.zeros(left.size)
        for a, b in zip(_shares(left, drop), _shares(right, drop), strict=True):
            total += np.abs(np.sqrt(b) - np.sqrt(a))
        return 2 * math.sqrt(self._samples) * total

    def _heights(self, roots: Array, drop: float) -> Array:
        """arcsin(sqrt(probability of the outcomes)) for each square root of P(gain)."""
        # The number of pairs that differ is looked at in a window that holds all but a sliver of the
        # probability.
        spread = math.sqrt(self._samples * min(0.25, self._cap))
        wide = int(10 * spread + 30)
        parts = np.array_split(roots, 1 + roots.size * wide // _BLOCK)
        return np.concatenate([self._heights_of(part, drop, wide) for part in parts])

    def _heights_of(self, roots: Array, drop: float, wide: int) -> Array:
        from scipy.special import bdtr, gammaln

        n = self._samples
        loss, gain, _ = _shares(roots, drop)
        differ = (loss + gain)[:, None]
        # For each number of pairs that differ, the losses have a binomial distribution.
        first = np.maximum(0, np.floor(n * differ) - wide // 2)
        count = first + np.arange(wide + 1)
        inside = count <= n
        count = np.minimum(count, n)
        most = np.floor((self._limit - self._z * np.sqrt(count + self._smooth) + count) / 2 + 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_mass = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
            log_mass = log_mass + np.where(count > 0, count * np.log(differ), 0)
            log_mass = log_mass + np.where(count < n, (n - count) * np.log1p(-differ), 0)
            share = np.where(differ > 0, loss[:, None] / differ, 0)
        mass = np.where(inside, np.exp(log_mass), 0)
        losses = np.clip(most, 0, count)
        below = np.where(
            most < 0, 0, np.where(losses >= count, 1, bdtr(losses, count.astype(np.int64), share))
        )
        outside = np.maximum(0, 1 - mass.sum(axis=1))  # counted against the bound
        probability = np.clip((mass * below).sum(axis=1) + outside, 0, 1)
        result: Array = np.arcsin(np.sqrt(probability))
        return result


def _shares(roots: Array, drop: float) -> tuple[Array, Array, Array]:
    """P(loss), P(gain), P(tie) for square roots of P(gain) at a drop."""
    gain = roots**2
    loss = np.maximum(0, gain + drop)
    return loss, gain, np.maximum(0, 1 - loss - gain)


def betting_upper(values: Array, least: float, greatest: float, alpha: float) -> float:
    """Bound on the mean of bounded values, by betting against larger ones (Waudby-Smith and Ramdas 2024).

    A player who bets that values fall below `m` multiplies a stake of 1 by `1 + bet * (m - value)` at each
    of them. If the mean is `m` or more the stake grows past `1 / alpha` with probability `alpha` at most
    (Ville), so such an `m` is excluded. Bets are set from earlier values alone. Means are tested on a fixed
    grid, from the top, until one is not excluded; as the test at a point is valid for all means above it,
    the grid costs width, not coverage.

    The order of the values must have been chosen without looking at them.

    Args:
        values: float64 `[samples]`.
        least: no value can be smaller.
        greatest: no value can be greater.
        alpha: probability that the bound is below the true mean, at most.
    """
    count = len(values)
    if count == 0:
        return greatest
    x = (values - least) / (greatest - least)
    before = np.arange(1, count + 1)
    mean = (0.5 + np.cumsum(x)) / (before + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (before + 1)
    known = np.concatenate([[0.25], variance[:-1]])
    bets = np.sqrt(2 * math.log(1 / alpha) / (count * known))
    upper = 1.0
    for block in np.array_split(_grid(least, greatest, float(x.mean())), 64):
        if block.size == 0:
            continue
        stakes = np.empty(block.size)
        for index, m in enumerate(block):
            bet = np.minimum(bets, 0.9 / (1 - m)) if m < 1 else bets
            stakes[index] = np.cumsum(np.log1p(bet * (m - x))).max()
        kept = np.flatnonzero(stakes < math.log(1 / alpha))
        if kept.size:
            upper = float(block[kept[0] - 1]) if kept[0] else upper
            break
        upper = float(block[-1])
    return least + upper * (greatest - least)


def _grid(least: float, greatest: float, above: float) -> Array:
    """Means to test, scaled to 0..1, falling: 1% apart in distance from 0 of the original scale."""
    steps = 10.0 ** -np.arange(0, 5, 0.00432)
    marks = np.concatenate([steps * greatest, [0.0], steps * least])
    scaled = np.unique((np.clip(marks, least, greatest) - least) / (greatest - least))
    return scaled[scaled > above][::-1]


def bootstrap_upper(
    statistic: Callable[[Array], float],
    samples: int,
    alpha: float,
    *,
    resamples: int,
    seed: int,
    groups: int = 200,
) -> float:
    """Approximate bound on a statistic of all samples: the bootstrap BCa (Efron 1987).

    Args:
        statistic: its value on a selection of samples, given their indices (some more than once).
        samples: how many there are.
        alpha: probability that the bound is below the true value, about.
        resamples: how often to draw; at least `20 / alpha` for a steady result.
        seed: of the draws.
        groups: of samples that are left out in turn, for the skewness.
    """
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(seed)
    everything = np.arange(samples)
    measured = statistic(everything)
    drawn = np.sort([statistic(rng.integers(0, samples, samples)) for _ in range(resamples)])
    if drawn[0] == drawn[-1]:
        return float(drawn[-1])
    # Half of what equals the measured value counts as below it; never all or nothing.
    below = (np.count_nonzero(drawn < measured) + np.count_nonzero(drawn <= measured)) / 2
    bias = ndtri(np.clip(below / resamples, 1 / resamples, 1 - 1 / resamples))
    parts = np.array_split(rng.permutation(samples), min(samples, groups))
    left_out = np.array([statistic(np.setdiff1d(everything, part)) for part in parts])
    centred = left_out.mean() - left_out
    spread = (centred**2).sum() ** 1.5
    acceleration = (centred**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias - ndtri(alpha)
    place = 1.0 if acceleration * z >= 1 else float(ndtr(bias + z / (1 - acceleration * z)))
    return float(max(measured, drawn[min(resamples - 1, math.ceil(place * resamples))]))
