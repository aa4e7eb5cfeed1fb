"""The distribution of a value that is seen piece by piece, and ranges for its quantization."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hasten.passes.quantize import Range

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

BINS = 2048
"""Bins on each side of zero; a histogram takes 32 KB."""

PERCENTILE = 99.99
"""Per cent of the elements that the percentile method leaves below the upper limit, and above the lower."""

_LEVELS = 256
_STEPS = 40  # ranges that a search tries in each round
_CENTRES = (np.arange(-BINS, BINS) + 0.5).astype(np.float64)


class Histogram:
    """Counts of elements in bins around zero, with exact limits.

    The width of a bin is a power of two. When an element lies outside, the width doubles and pairs of bins
    are joined, so that the counts do not depend on the order in which elements come.

    Attributes:
        low: least element, at most 0.
        high: greatest element, at least 0.
        width: of a bin.
        counts: of bins from -BINS * width on.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.width = float(np.finfo(np.float32).tiny)
        self.counts: NDArray[np.int64] = np.zeros(2 * BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Counts the elements of an array; all must be finite."""
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = max(-self.low, self.high)
        while largest >= BINS * self.width:
            self._widen()
        places = np.floor(values.reshape(-1) * np.float64(1 / self.width)).astype(np.int64) + BINS
        self.counts += np.bincount(places, minlength=2 * BINS)

    def _widen(self) -> None:
        joined = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts[:] = 0
        self.counts[BINS // 2 : BINS // 2 + BINS] = joined
        self.width *= 2

    def range(self, method: Method, percentile: float = PERCENTILE) -> Range:
        """The range that a method chooses; it holds 0.

        Args:
            method: "minmax": all that was seen; "percentile": all but few elements at both ends; "mse": the
                range for which the squares of the errors of quantization add up to the least; "entropy": the
                magnitude beyond which elements are clipped with the least loss of information (Kullback
                and Leibler's divergence, S. Migacz, 8-bit inference with TensorRT, 2017).
            percentile: for the method of that name.
        """
        if method == "minmax" or not self.counts.any():
            return Range(self.low, self.high)
        if method == "percentile":
            return self._percentile(percentile)
        return self._least_error() if method == "mse" else self._least_divergence()

    def _percentile(self, percent: float) -> Range:
        share = np.cumsum(self.counts) / self.counts.sum()
        outside = 1 - percent / 100
        last = min(int(np.searchsorted(share, 1 - outside)), 2 * BINS - 1)
        first = int(np.searchsorted(share, outside, side="right"))
        low, high = (first - BINS) * self.width, (last + 1 - BINS) * self.width
        return Range(max(min(low, 0.0), self.low), min(max(high, 0.0), self.high))

    def _least_error(self) -> Range:
        used = np.flatnonzero(self.counts)
        centres, counts = _CENTRES[used] * self.width, self.counts[used].astype(np.float64)
        centres = np.clip(centres, self.low, self.high)
        low, high = self.low, self.high
        shares = np.linspace(1.0, 0.1, _STEPS).tolist()
        # Both limits together, then each alone around what was found.
        candidates = [(low * s, high * s) for s in shares]
        low, high = _best(candidates, centres, counts)
        for _ in range(2):
            near = np.linspace(1.25, 0.5, _STEPS).tolist()
            low, high = _best([(max(low * s, self.low), high) for s in near], centres, counts)
            low, high = _best([(low, min(high * s, self.high)) for s in near], centres, counts)
        return Range(low, high)

    def _least_divergence(self) -> Range:
        folded = (self.counts[BINS:] + self.counts[:BINS][::-1]).astype(np.float64)
        # Zero has a code of its own: the many zeros behind a ReLU lose nothing in any range.
        folded[0] = folded[1]
        if not folded.any():
            return Range(self.low, self.high)
        last = int(np.flatnonzero(folded)[-1]) + 1
        # Codes are shared by both signs if there are both.
        levels = _LEVELS if self.low == 0 or self.high == 0 else _LEVELS // 2
        if last <= levels:
            return Range(self.low, self.high)
        stops = np.unique(np.linspace(levels, last, 2 * _STEPS).astype(int))
        divergences = [_divergence(folded, int(stop), levels) for stop in stops]
        limit = float(stops[int(np.argmin(divergences))]) * self.width
        return Range(max(self.low, -limit), min(self.high, limit))


def _best(
    candidates: list[tuple[float, float]], centres: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float, float]:
    """The candidate with the least squared error of quantization; the first of several."""
    errors = [_squared_error(low, high, centres, counts) for low, high in candidates]
    return candidates[int(np.argmin(errors))]


def _squared_error(
    low: float, high: float, centres: NDArray[np.float64], counts: NDArray[np.float64]
) -> float:
    scale, zero = (p.astype(np.float64) for p in Range(low, high).parameters())
    codes = np.clip(np.rint(centres / scale) + zero, 0, _LEVELS - 1)
    # Elements are spread over the step of their code: bins narrower than it show the error themselves.
    return float((counts * np.square((codes - zero) * scale - centres)).sum())


def _divergence(folded: NDArray[np.float64], stop: int, levels: int) -> float:
    """Information lost if elements beyond bin `stop` are clipped and the rest is told by `levels` codes."""
    kept = folded[:stop]
    reference = kept.copy()
    reference[-1] += folded[stop:].sum()
    codes = np.minimum(np.arange(stop) * levels // stop, levels - 1)
    present = kept > 0
    total = np.bincount(codes, kept, minlength=levels)
    number = np.bincount(codes, present, minlength=levels)
    spread = np.divide(total, number, out=np.zeros(levels), where=number > 0)[codes] * present
    p, q = reference / reference.sum(), spread / spread.sum() if spread.any() else spread
    # What the codes cannot tell has a small probability instead of none, which would make the loss infinite.
    q = np.maximum(q, 1e-12)
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())
