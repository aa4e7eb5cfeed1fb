"""Do answers agree? Exactly where nothing is rounded, else within what rounding makes of the two others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """How far answers may lie apart.

    Attributes:
        exact: not at all.
        epsilon: relative rounding error of the least precise arithmetic on the way.
    """

    exact: bool
    epsilon: float

    def absolute(self, scale: float) -> float:
        """For numbers of which the largest is `scale`."""
        steps = 4 if self.epsilon > 1e-4 else 64
        return steps * max(self.epsilon, 2.0**-24) * scale


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; infinite where types, shapes or what is no number differ."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind in "biu":
        if np.array_equal(a, b):
            return 0.0
        return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    same = finite | (np.isnan(x) & np.isnan(y)) | (x == y)
    if not same.all():
        return float("inf")
    return float(np.abs(x[finite] - y[finite]).max(initial=0.0))


def scale_of(a: np.ndarray) -> float:
    """The largest finite magnitude, and at least 1: inputs are that large, and may have cancelled."""
    x = np.abs(a.astype(np.float64))
    return float(x[np.isfinite(x)].max(initial=1.0))


def agree(a: np.ndarray, b: np.ndarray, tolerance: Tolerance, spread: float = 0.0) -> bool:
    """Whether two answers are the same but for rounding, which is known to reach `spread`."""
    found = difference(a, b)
    if a.dtype.kind in "biu" or tolerance.exact:
        return found == 0.0
    return found <= tolerance.absolute(scale_of(b)) + spread


def judge(
    found: np.ndarray,
    peers: Sequence[np.ndarray],
    tolerance: Tolerance,
    sensitivity: Callable[[], float],
) -> str:
    """ "" where two of three agree and hasten is one of them; else what differs.

    Args:
        found: hasten's answer.
        peers: the other answers, up to two.
        tolerance: of one answer to another.
        sensitivity: how much the answer changes with the last bits of the inputs; asked where it matters.
    """
    if any(agree(found, p, tolerance) for p in peers):
        return ""
    spread = 0.0
    if not tolerance.exact and found.dtype.kind not in "biu":
        if len(peers) == 2:
            between = difference(*peers)
            spread = 8 * between if np.isfinite(between) else 0.0
        spread += 16 * sensitivity()
        # What is more sensitive cannot be judged by others' roundings: that would excuse anything.
        spread = min(spread, max(0.02, 16 * tolerance.epsilon) * scale_of(peers[0]))
        if any(agree(found, p, tolerance, spread) for p in peers):
            return ""
    apart = ", ".join(f"{difference(found, p):.3g}" for p in peers)
    text = f"differs by {apart} of {scale_of(peers[0]):.3g}"
    if not all(found.shape == p.shape and found.dtype == p.dtype for p in peers):
        text += f"; {found.dtype}{list(found.shape)} where they have " + ", ".join(
            f"{p.dtype}{list(p.shape)}" for p in peers
        )
    if len(peers) == 2 and not agree(peers[0], peers[1], tolerance, spread):
        text += f" (and they by {difference(*peers):.3g})"
    return text
