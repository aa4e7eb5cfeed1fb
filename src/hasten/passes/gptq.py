"""Weights rounded one input after another, each error made good by the inputs that follow.

Frantar et al., GPTQ (2022), with the order of the inputs as it is and a scale for each output channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.passes.quantize_weights import Codes, WeightScale, channel_scales, rounded

DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean, so that rare inputs do not decide much."""

_BLOCK = 128  # inputs whose errors are passed on beyond the block together, as one product


def gptq(
    weight: NDArray[np.float32],
    axis: int,
    hessian: NDArray[np.float64],
    scale: WeightScale = "absmax",
    damping: float = DAMPING,
) -> Codes:
    """Codes for which the squared error of the layer's results, rather than of its weights, is small.

    Args:
        weight: float32; all axes but that of the output channels are inputs, in the order of `hessian`.
        axis: of the output channels.
        hessian: [inputs, inputs], the sum of the outer products of the layer's inputs with themselves.
        scale: as for `quantize_weight`.
        damping: share of the diagonal's mean that is added to it.
    """
    moved = np.moveaxis(weight, axis, 0)
    rows = moved.reshape(weight.shape[axis], -1)
    steps = channel_scales(rows, scale)
    left = rows.T.astype(np.float64)  # [inputs, outputs]
    factor = _inverse_factor(hessian, damping)
    codes = np.zeros(left.shape, np.int8)
    count = len(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.zeros((stop - start, left.shape[1]))
        for k in range(start, stop):
            codes[k] = rounded(left[k] / steps)
            errors[k - start] = (left[k] - codes[k] * steps.astype(np.float64)) / factor[k, k]
            left[k + 1 : stop] -= np.outer(factor[k, k + 1 : stop], errors[k - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return Codes(np.ascontiguousarray(np.moveaxis(codes.T.reshape(moved.shape), 0, axis)), steps)


def _inverse_factor(hessian: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """The upper triangular U with U^T U = the inverse of the damped Hessian."""
    damped = hessian.astype(np.float64)
    diagonal = np.diagonal(damped)
    least = damping * float(diagonal.mean())
    # An input that is always 0 constrains nothing.
    np.fill_diagonal(damped, diagonal + (least if least > 0 else 1.0))
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
