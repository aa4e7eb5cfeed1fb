"""Algorithms of convolutions: what each costs, how far rounding takes it, and which suits a shape."""

from __future__ import annotations

import math
from enum import StrEnum

from hasten.codegen.tiles import HALF_PANEL
from hasten.loops.dtypes import DType


class Algorithm(StrEnum):
    """How the sums are formed."""

    DIRECT = "direct"
    """As the definition says, tap by tap."""
    WINOGRAD_2 = "winograd 2"
    """F(2x2, 3x3): tiles of 2 x 2 results from 16 products where the definition takes 36."""
    WINOGRAD_4 = "winograd 4"
    """F(4x4, 3x3): tiles of 4 x 4 results from 36 products where the definition takes 144."""


WINDOW = 3
"""Taps along each axis of a window that Winograd's algorithms take."""

RESULTS = {Algorithm.WINOGRAD_2: 2, Algorithm.WINOGRAD_4: 4}
"""Results along each axis of a tile."""

WEIGHT_COST = 9
"""Multiply-adds that one weight of float32 costs beside those it takes part in: the weights of a network do
not stay in the cache from one run to the next. Measured on ResNet-50, batches of 1 and 8: with 9, F(4x4) is
taken at 14x14x256, and the whole is 0.9% faster than with 16; with 2 at 7x7x512 too, 5% slower at batch 1."""

TRANSFORM_COST = 7
"""Multiply-adds that take as long as the transform of one element, of an input or of a product."""

ROUNDING = 2.3e-8
"""Root mean square error of one rounding to float32, as a share of the numbers: their last places by the root
of 12."""

GAIN = {Algorithm.WINOGRAD_2: 5 / 3, Algorithm.WINOGRAD_4: 4.78}
"""By how much what the products of an algorithm are off by counts more in its results, as shares of both:
for inputs and weights that are independent, along one axis, the mean over the results i of

    sum over points p of (A[i, p] |B[p]| |G[p]|)^2 / 3

with the rows B[p] and G[p] of the matrices that transform inputs and weights, and A that of the results."""

TRANSFORM_ROUNDINGS = 6
"""Roundings that the transforms of inputs, weights and results add to each product, all together."""

MOST_ERROR = 3e-6
"""Largest estimate of a relative error (root mean square) up to which an algorithm of Winograd's is taken."""

LOWEST_TILE = 4
"""Rows that the register tile needs to be busy; fewer take as long."""


def suited_algorithm(
    images: int, height: int, width: int, depth: int, columns: int, factor: DType = DType.F32
) -> Algorithm:
    """The algorithm of the least cost whose error is small enough, the plain one where several are equal.

    Args:
        images: number of images.
        height: of the result.
        width: of the result.
        depth: channels of the input.
        columns: channels of the result.
        factor: element type that the plain algorithm multiplies; Winograd's multiply f32 in any case. Half
            the bytes are half the time, and half the weights.
    """
    direct = _direct_cost(images * height * width, depth, columns)
    costs: dict[Algorithm, float] = {Algorithm.DIRECT: direct * factor.bytes / DType.F32.bytes}
    for algorithm, results in precise_enough(depth).items():
        tiles = images * -(-height // results) * -(-width // results)
        costs[algorithm] = _winograd_cost((results + WINDOW - 1) ** 2, tiles, depth, columns)
    return min(costs, key=lambda a: costs[a])


def rounding_error(algorithm: Algorithm, depth: int) -> float:
    """An estimate of what rounding makes of a convolution with a 3x3 window, before anything is computed.

    Sums of independent numbers grow with the root of their count, and so do their last places: after n terms
    the errors of n roundings are n / 2 times as large, squared, as one of the whole. Winograd's sums are
    shorter by the 9 taps, and their errors grow when they are transformed back.

    Args:
        algorithm: how the sums are formed.
        depth: channels of the input.

    Returns:
        Root mean square of the errors as a share of that of the results, for independent inputs and weights.
    """
    if algorithm is Algorithm.DIRECT:
        return ROUNDING * math.sqrt(WINDOW**2 * depth / 2)
    return GAIN[algorithm] * ROUNDING * math.sqrt(depth / 2 + TRANSFORM_ROUNDINGS)


def precise_enough(depth: int) -> dict[Algorithm, int]:
    """Winograd's algorithms that may be taken for a depth, as `RESULTS` has them."""
    return {a: results for a, results in RESULTS.items() if rounding_error(a, depth) <= MOST_ERROR}


def _direct_cost(rows: int, depth: int, columns: int) -> int:
    weights = WINDOW**2 * depth * _whole(columns)
    return weights * (max(rows, LOWEST_TILE) + WEIGHT_COST)


def _winograd_cost(points: int, tiles: int, depth: int, columns: int) -> int:
    weights = points * depth * _whole(columns)
    # What is left over from whole vectors is transformed one channel at a time.
    vectors = depth // HALF_PANEL + depth % HALF_PANEL
    elements = tiles * points * (vectors * HALF_PANEL + _whole(columns))
    return weights * (max(tiles, LOWEST_TILE) + WEIGHT_COST) + elements * TRANSFORM_COST


def _whole(columns: int) -> int:
    """Columns as they are packed."""
    return -(-columns // HALF_PANEL) * HALF_PANEL
