"""All operators that hasten knows, by domain and type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hasten.ops import (
    activations,
    attention,
    contraction,
    convolution,
    deformable,
    detection,
    determinant,
    elementwise,
    encoders,
    features,
    indexing,
    integer_products,
    linear_models,
    logic,
    movement,
    normalization,
    ordering,
    padding,
    patches,
    pooling,
    quantization,
    recurrent,
    reductions,
    resize,
    sampling,
    scans,
    scatter,
    selection,
    spectral,
    tree_ensembles,
)
from hasten.ops.base import Op

_FAMILIES: tuple[tuple[Op, ...], ...] = (
    elementwise.OPS,
    activations.OPS,
    logic.OPS,
    movement.OPS,
    padding.OPS,
    indexing.OPS,
    scatter.OPS,
    scans.OPS,
    resize.OPS,
    sampling.OPS,
    reductions.OPS,
    normalization.OPS,
    contraction.OPS,
    convolution.OPS,
    pooling.OPS,
    attention.OPS,
    quantization.OPS,
    recurrent.OPS,
    tree_ensembles.OPS,
    linear_models.OPS,
    features.OPS,
    encoders.OPS,
    selection.OPS,
    detection.OPS,
    deformable.OPS,
    determinant.OPS,
    integer_products.OPS,
    ordering.OPS,
    spectral.OPS,
    patches.OPS,
)


def _table() -> Mapping[tuple[str, str], Op]:
    table: dict[tuple[str, str], Op] = {}
    for op in (op for family in _FAMILIES for op in family):
        key = (op.domain, op.name)
        assert key not in table, f"{op.name} is defined by two families"
        table[key] = op
    return MappingProxyType(table)


OPERATORS: Mapping[tuple[str, str], Op] = _table()


def find_op(domain: str, op_type: str) -> Op | None:
    """What hasten knows about an operator; None where it only runs on the host."""
    return OPERATORS.get((domain, op_type))
