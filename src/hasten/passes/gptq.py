"""Weights rounded one input after another, each error made good by the inputs that follow.

Frantar et al., GPTQ (2022), with the order of the inputs as it is. Scales are those of output channels, or of
blocks of inputs, which are then found when the block's turn comes, of what the inputs before it have left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hasten.passes.quantize_weights import Codes, WeightScale, channel_scales, rounded
from hasten.passes.weight_blocks import (
    BlockCodes,
    WeightBlocks,
    block_codes,
    block_scales,
    codes_type,
    fitted,
)

DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean, so that rare inputs do not decide much."""

_BLOCK = 128  # inputs whose errors are passed on beyond them together, as one product; whole blocks of scales


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
    codes = np.zeros(left.shape, np.int8)

    def round_row(k: int) -> NDArray[np.float64]:
        codes[k] = rounded(left[k] / steps)
        result: NDArray[np.float64] = codes[k] * steps.astype(np.float64)
        return result

    _spread_errors(left, hessian, damping, round_row)
    return Codes(np.ascontiguousarray(np.moveaxis(codes.T.reshape(moved.shape), 0, axis)), steps)


def gptq_blocks(
    weight: NDArray[np.float32],
    how: WeightBlocks,
    hessian: NDArray[np.float64],
    damping: float = DAMPING,
) -> BlockCodes:
    """The same for a weight `[inputs, outputs]` with a scale for each block of inputs.

    Args:
        weight: float32; its inputs divide into blocks (`fitted`).
        how: bits, blocks and zero points.
        hessian: as for `gptq`.
        damping: as for `gptq`.
    """
    how = fitted(how, len(weight))
    left = weight.astype(np.float64)
    codes = np.zeros(weight.shape, codes_type(how))
    scale = np.zeros((len(weight) // how.block, weight.shape[1]), np.float32)
    zero = np.zeros_like(scale)

    def round_row(k: int) -> NDArray[np.float64]:
        block = k // how.block
        if k % how.block == 0:
            scale[block], zero[block] = block_scales(left[k : k + how.block].astype(np.float32), how)
        found = block_codes(left[k].astype(np.float32), scale[block], zero[block], how)
        codes[k] = found.astype(codes.dtype)
        result: NDArray[np.float64] = (found - zero[block]) * scale[block].astype(np.float64)
        return result

    _spread_errors(left, hessian, damping, round_row)
    return BlockCodes(codes, scale, zero.astype(codes.dtype) if how.zero_points else None)


def _spread_errors(
    left: NDArray[np.float64],
    hessian: NDArray[np.float64],
    damping: float,
    round_row: Callable[[int], NDArray[np.float64]],
) -> None:
    """Lets each row of `[inputs, outputs]` be rounded, and makes up for its error in the rows that follow.

    Args:
        left: what is still to be rounded; changes.
        hessian: of the inputs.
        damping: as for `gptq`.
        round_row: rounds a row of `left` as it is now; returns what it became.
    """
    factor = _inverse_factor(hessian, damping)
    count = len(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.zeros((stop - start, left.shape[1]))
        for k in range(start, stop):
            errors[k - start] = (left[k] - round_row(k)) / factor[k, k]
            left[k + 1 : stop] -= np.outer(factor[k, k + 1 : stop], errors[k - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors


def _inverse_factor(hessian: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """The upper triangular U with U^T U = the inverse of the damped Hessian."""
    damped = hessian.astype(np.float64)
    diagonal = np.diagonal(damped)
    least = damping * float(diagonal.mean())
    # An input that is always 0 constrains nothing.
    np.fill_diagonal(damped, diagonal + (least if least > 0 else 1.0))
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
