"""Whole models in int8 with scales computed in the run, or with weights alone in few bits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from hasten.errors import OptionError
from hasten.passes.facts import is_quantized
from hasten.passes.quantize import Layer, products
from hasten.passes.quantize_dynamic import insert_dynamic, rowwise_layers
from hasten.passes.quantize_tables import quantize_tables
from hasten.passes.weight_blocks import GROUPS, fitted
from hasten.search.calibration import Feeds
from hasten.search.formats import Format, blocks_of, in_formats, layers_for
from hasten.search.quantization import Quantization, Quantized, Rounding, prepare


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
    left, warnings = _left(model, layers, how, "int8", "need data (--data)")
    report = {"layers": layers, "left": left, "scales": "dynamic", "tables": tables, "rest": how.rest}
    return Quantized(result, report, warnings)


def quantize_weights_only(
    model: ir.Model,
    form: Format,
    feeds: Sequence[Feeds] = (),
    how: Quantization | None = None,
    *,
    threads: int | None = None,
    cache: Path | None = None,
) -> Quantized:
    """A model whose matrix products have weights of few bits, and compute in floats.

    Without data weights are rounded to the nearest codes. With data they are rounded by what they do to the
    results (GPTQ), after outliers of activations have moved into them, unless `how` says otherwise.

    Args:
        model: after `optimize_graph`; it is left as it is.
        form: one of `formats.WEIGHTS`.
        feeds: calibration data; none for rounding to the nearest.
        how: the choices; None for the usual ones, of all MatMul and Gemm that divide into blocks.
        threads: threads to use; None for all cores.
        cache: folder of compiled objects, or None.

    Raises:
        OptionError: as for `quantize_dynamic`.
        CalibrationError: the data gives NaN or infinity.
    """
    how = how or Quantization()
    least = min(GROUPS)
    needs = f"weights alone are quantized of MatMul and Gemm whose inputs divide into blocks of {least}"
    possible = layers_for(model, form)
    chosen = _chosen(model, possible, how.layers, needs)
    formats = dict.fromkeys(chosen, form)
    rounding: Rounding = "nearest"
    if feeds:
        rounding = how.rounding or "gptq"
        choices = replace(how, layers=chosen, ranges="minmax", rounding=rounding, tables=False)
        ready = prepare(model, feeds, choices, [form], threads=threads, cache=cache)
        result = ready.quantized(formats, {})
    else:
        result = in_formats(model, formats, {}, how.scheme)
    blocks = blocks_of(form, how.scheme)
    sizes = {i.name: fitted(blocks, i.depth).block for i in possible if i.name in formats}
    left, warnings = _left(model, chosen, how, form, "stay as they are")
    report = {
        "layers": chosen,
        "left": left,
        "weights_only": {"bits": blocks.bits, "block": blocks.block, "zero_points": blocks.zero_points},
        "smaller_blocks": {name: size for name, size in sizes.items() if size < blocks.block},
        "rounding": rounding,
        "samples": len(feeds),
        "tables": quantize_tables(result.graph) if how.tables else [],
        "rest": how.rest,
    }
    return Quantized(result, report, warnings)


def _left(
    model: ir.Model, chosen: Collection[str], how: Quantization, form: str, convolutions: str
) -> tuple[list[str], tuple[str, ...]]:
    """Names of the layers that are left as they are, and a warning of them unless they were chosen so."""
    every = products(model)
    left = [layer for layer in every if layer.name not in set(chosen)]
    if not left or how.layers is not None:
        return [layer.name for layer in left], ()
    count = sum(layer.op_type == "Conv" for layer in left)
    parts = [f"convolutions ({count}) {convolutions}"] if count else []
    if len(left) > count:
        parts.append(f"products ({len(left) - count}) have inputs that {min(GROUPS)} does not divide")
    said = f"{form}: {len(chosen)} of {len(every)} layers; {', '.join(parts)}"
    return [layer.name for layer in left], (said,)


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
