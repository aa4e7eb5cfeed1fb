"""Which units of a group go, once it is known how many: those that together matter least.

A ranking by the diagonal of the Fisher information takes each unit as if the others stayed. With all of it,
F = G'G / samples from the derivatives G of the loss by masks, the loss of removing a set R is 1_R' F 1_R, and
a unit that does what a removed one did is worth more than its own entry says. Starting from the ranking,
a unit that goes and one that stays change places as long as that lowers the loss (the "mask rearrangement" of
Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", which visits each unit once).
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

_DAMPING = 1.0
"""Weight of the diagonal beside F: samples are fewer than units, so some sets cancel by chance."""


def rearranged(
    gradients: NDArray[np.float64], removed: NDArray[np.int64], until: float = math.inf
) -> NDArray[np.int64]:
    """A set of as many units that matters no more, by the whole of the Fisher information.

    Args:
        gradients: derivatives of the loss by masks, [samples, units].
        removed: units to begin with.
        until: a time by `time.monotonic` after which no more units change places.

    Returns:
        The units in rising order.
    """
    if time.monotonic() >= until:
        return removed
    count = gradients.shape[1]
    fisher = gradients.T @ gradients / max(1, len(gradients))
    fisher[np.diag_indices(count)] *= 1 + _DAMPING
    gone = np.zeros(count, bool)
    gone[removed] = True
    pull = fisher @ gone
    diagonal = fisher.diagonal()
    for _ in range(2 * len(removed)):
        out, stay = np.flatnonzero(gone), np.flatnonzero(~gone)
        if not len(out) or not len(stay) or time.monotonic() >= until:
            break
        back = diagonal[out] - 2 * pull[out]
        forth = diagonal[stay] + 2 * pull[stay]
        change = back[:, None] + forth[None, :] - 2 * fisher[np.ix_(out, stay)]
        best = int(change.argmin())
        u, v = out[best // len(stay)], stay[best % len(stay)]
        if change.flat[best] >= -1e-12 * float(pull[gone].sum()):
            break
        gone[u], gone[v] = False, True
        pull += fisher[:, v] - fisher[:, u]
    return np.flatnonzero(gone)
