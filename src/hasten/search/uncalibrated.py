"""Quantization that needs no data: scales of activations computed in the run, or weights alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from hasten.errors import OptionError
from hasten.passes.facts import is_quantized
from hasten.passes.quantize import Layer
from hasten.passes.quantize_dynamic import insert_dynamic, rowwise_layers
from hasten.passes.quantize_tables import quantize_tables
from hasten.passes.weight_blocks import WeightBlocks, block_layers, insert_weight_codes
from hasten.search.quantization import Quantization, Quantized

WEIGHTS = {"int8-weights": WeightBlocks(8, 128), "int4-weights": WeightBlocks(4, 32, zero_points=True)}
"""Precisions of weights alone."""


def quantize_dynamic(model: ir.Model, how: Quantization) -> Quantized:
    """A model whose matrix products are in int8, with a scale for each row that is found in the run.

    Args:
        model: after `optimize_graph`; it is left as it is.
        how: which layers, whether tables are in int8 too, and what the rest computes in.

    Raises:
        OptionError: there is nothing to quantize, no layer of a name that was given, or the model is
            quantized already.
    """
    layers = _chosen(model, rowwise_layers(model), how.layers, "int8 without data quantizes MatMul and Gemm")
    result = insert_dynamic(model, layers)
    tables = quantize_tables(result.graph) if how.tables else []
    report = {"layers": layers, "scales": "dynamic", "tables": tables, "rest": how.rest}
    return Quantized(result, report)


def quantize_weights_only(
    model: ir.Model, how: WeightBlocks, layers: Collection[str] | None = None
) -> Quantized:
    """A model whose matrix products have weights of few bits, and compute in floats.

    Args:
        model: after `optimize_graph`; it is left as it is.
        how: bits, blocks and zero points.
        layers: names; None for all MatMul and Gemm whose weights divide into blocks.

    Raises:
        OptionError: as for `quantize_dynamic`.
    """
    possible = block_layers(model, how)
    needs = f"weights alone are quantized of MatMul and Gemm whose inputs divide into blocks of {how.block}"
    chosen = _chosen(model, possible, layers, needs)
    result = insert_weight_codes(model, chosen, how)
    tables = quantize_tables(result.graph)
    report = {
        "layers": chosen,
        "weights_only": {"bits": how.bits, "block": how.block, "zero_points": how.zero_points},
        "tables": tables,
    }
    return Quantized(result, report)


def _chosen(
    model: ir.Model, possible: Sequence[Layer], wanted: Collection[str] | None, needs: str
) -> list[str]:
    """The names of the layers to quantize, in order."""
    names = [layer.name for layer in possible]
    if is_quantized(model):
        raise OptionError("the model is quantized already: compile it as it is, with precision='f32'")
    if not names:
        raise OptionError(
            f"there is nothing to quantize: {needs} with constant weights, of which the model has none; give "
            "precision='int8' with data=, or another precision"
        )
    missing = sorted(set(wanted or ()) - set(names))
    if missing:
        raise OptionError(f"{needs}: {missing[0]!r} is none of them; there are {', '.join(names)}")
    return names if wanted is None else [n for n in names if n in set(wanted)]
