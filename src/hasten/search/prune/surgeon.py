"""Weights become zero one input after another, and those of later inputs make up for them.

With H the second moments of what a product reads, a weight that goes costs w^2 / (H^-1)_jj, and the best
change of the weights of its output is along the row j of H^-1. Taking inputs in one order for all outputs
makes all those inverses rows of one Cholesky factor: Frantar and Alistarh 2023, "SparseGPT: Massive Language
Models Can Be Accurately Pruned in One-Shot".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from hasten.passes.prune.remove import Kept
from hasten.search.prune.cost import Feeds
from hasten.search.prune.equations import Equations
from hasten.search.prune.repair import Site, linear, put_matrix, put_weights, reconstruct
from hasten.search.prune.sparsity import Mask, Pattern, Sparsity, rows_of, sparse_product, worth_of

_RIDGE = 1e-2
_BLOCK = 128  # inputs whose changes reach later ones at once, and among which weights are compared


def operate(
    original: ir.Model,
    small: ir.Model,
    sparsity: Sparsity,
    samples: Sequence[Feeds],
    kept: Kept,
    *,
    until: float = math.inf,
) -> tuple[str, ...]:
    """Makes weights of a graph zero in place.

    Args:
        original: the graph before.
        small: a copy of it, or what pruning left of it.
        sparsity: which weights, and whether others make up for them.
        samples: inputs by name.
        kept: what has stayed of values that have lost something.
        until: a time by `time.monotonic` after which products stay as they are.

    Returns:
        The products that were left as they are, with reasons.
    """
    rng = np.random.default_rng(sparsity.seed)

    def at_site(site: Site) -> str:
        if site.node.op_type not in ("MatMul", "Gemm", "Conv") or sparse_product(site.node) is None:
            return ""  # which the description of the graph says
        found = linear(site)
        if isinstance(found, str):
            return found
        product, matrix, equations = found
        order = torch.from_numpy(rows_of(product, len(matrix)))
        changed = torch.empty_like(matrix, dtype=torch.float64)
        changed[order] = _sparse(matrix, equations, order, sparsity, site, rng)
        if sparsity.repair:
            put_weights(site, product, equations, changed)
        else:
            put_matrix(site, product, changed)
        return ""

    return tuple(reconstruct(original, small, kept, samples, solve=at_site, everywhere=True, until=until))


def _sparse(
    matrix: Tensor,
    equations: Equations,
    order: Tensor,
    sparsity: Sparsity,
    site: Site,
    rng: np.random.Generator,
) -> Tensor:
    """New weights with zeros, unknowns in the order given."""
    centered = site.has_bias
    start = matrix.double()
    if sparsity.repair and equations.enough:
        start = equations.solve(matrix, centered=centered)
    start = start[order]
    system = equations.system(_RIDGE, centered=centered)[order][:, order]
    gone: Mask | None = None
    if sparsity.criterion == "activation":
        norms = equations.total.inner.diagonal()[order].sqrt()
        gone = sparsity.pattern.lowest((start.abs() * norms[:, None]).numpy(), by_output=True)
    elif sparsity.criterion != "obs":
        gone = sparsity.pattern.lowest(worth_of(start.numpy(), sparsity.criterion, rng))
    if not sparsity.repair and gone is not None:
        return torch.where(torch.from_numpy(gone), 0.0, start)
    found, gone = removed(start, system, sparsity.pattern, gone)
    return found if sparsity.repair else torch.where(torch.from_numpy(gone), 0.0, start)


def removed(
    weights: Tensor, system: Tensor, pattern: Pattern, gone: Mask | None = None
) -> tuple[Tensor, Mask]:
    """Takes weights out, and changes those of later inputs.

    Args:
        weights: [unknowns, outputs], in double precision.
        system: second moments of the unknowns, positive definite.
        pattern: which share goes.
        gone: the weights that go; None for those that cost the least.

    Returns:
        The new weights, and which of them are gone.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weights, count = weights.clone(), len(weights)
    mask = torch.zeros(weights.shape, dtype=torch.bool) if gone is None else torch.from_numpy(gone)
    group = pattern.group or 1
    block = max(1, _BLOCK // group) * group
    for first in range(0, count, block):
        last = min(first + block, count)
        rows, factor = weights[first:last], upper[first:last, first:last]
        scale = factor.diagonal()[:, None]
        if gone is None and pattern.group is None:
            mask[first:last] = torch.from_numpy(pattern.lowest((rows / scale).abs().numpy()))
        errors = torch.zeros_like(rows)
        for j in range(last - first):
            if gone is None and pattern.group is not None and j % group == 0:
                several = slice(j, min(j + group, last - first))
                worth = (rows[several] / scale[several]).abs().numpy()
                mask[first:last][several] = torch.from_numpy(pattern.lowest(worth))
            errors[j] = torch.where(mask[first + j], rows[j], 0.0) / factor[j, j]
            rows[j:] -= torch.outer(factor[j, j:], errors[j])
            rows[j][mask[first + j]] = 0.0
        weights[last:] -= upper[first:last, last:].T @ errors
    return weights, mask.numpy()
