"""Quantized graphs of other tools in the one form that the code generator compiles to sums of bytes.

ONNX has several ways to write a product of bytes. All of them become DequantizeLinear of both operands, an
operator of floats, and QuantizeLinear of the result:

- QLinearMatMul and QLinearConv of ONNX, and the operators of com.microsoft that ONNX Runtime's quantizer
  writes in its format QOperator, which hold scales and zero points as inputs (`passes.qlinear`);
- MatMulInteger and ConvInteger, whose sums are cast to float and scaled by nodes that follow, as ONNX
  Runtime's dynamic quantization writes them (`passes.integer_products`);
- MatMulNBits of com.microsoft, weights in blocks of few bits (`passes.matmul_nbits`);
- weights with a zero point: codes less their zero point where those are bytes too, with sign;
- QuantizeLinear and DequantizeLinear in the domain com.microsoft.

What does not fit (scales of other shapes, layouts with channels last) stays as it was.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.facts import QUANTIZATION, Facts
from hasten.passes.integer_products import INTEGER_PRODUCTS, integer_product
from hasten.passes.matmul_nbits import matmul_nbits
from hasten.passes.qlinear import CONTRIB, QLINEAR
from hasten.passes.quantized_operand import attributes_of, signed_codes
from hasten.passes.rule import Builder, commit

CONTRIB_QUANTIZED = frozenset(
    {name for domain, name in QLINEAR if domain == CONTRIB}
    | {"QuantizeLinear", "DequantizeLinear", "MatMulNBits"}
)
"""Quantized operators of com.microsoft that are rewritten."""


def normalize_qdq(graph: ir.Graph, around: Facts | None = None) -> int:
    """Rewrite quantized operators in place.

    Results are the same up to rounding before they are quantized again: where another engine scales its sums
    in integers or in another order, up to one step.

    Args:
        graph: at the internal opset; inner values need no types. The bodies in it are left alone.
        around: of the graph in which it stands as a body.

    Returns:
        The number of places that were changed.
    """
    if not any(_is_quantized(node) for node in graph):
        return 0
    facts = Facts(graph, around)
    changed = 0
    for node in list(graph):
        if node.graph is not graph:
            continue  # it went with another one
        build = Builder()
        facts.write_shapes(v for v in node.inputs if v is not None and v.shape is None)
        found = _rewritten(node, build)
        if found is None or found[0].graph is not graph:
            facts.infer(node)  # types that were not known before something else was rewritten
        else:
            root, result = found
            commit(graph, root, result, build, facts)
            changed += 1
    return changed


def _is_quantized(node: ir.Node) -> bool:
    if node.domain == CONTRIB:
        return node.op_type in CONTRIB_QUANTIZED
    return (node.domain, node.op_type) in QLINEAR or (
        node.domain == "" and node.op_type in INTEGER_PRODUCTS | QUANTIZATION
    )


def _rewritten(node: ir.Node, build: Builder) -> tuple[ir.Node, ir.Value] | None:
    """The node whose output is replaced, and what replaces it; None where nothing is to be done."""
    result: ir.Value | None = None
    if node.domain == CONTRIB and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        result = build.op(node.op_type, list(node.inputs), attributes_of(node))
    elif (form := QLINEAR.get((node.domain, node.op_type))) is not None:
        result = form(node, build)
    elif (node.domain, node.op_type) == (CONTRIB, "MatMulNBits"):
        result = matmul_nbits(node, build)
    elif node.domain == "" and node.op_type in INTEGER_PRODUCTS:
        return integer_product(node, build)
    elif node.domain == "" and node.op_type == "DequantizeLinear":
        result = _signed_weight(node, build)
    return None if result is None else (node, result)


def _signed_weight(node: ir.Node, build: Builder) -> ir.Value | None:
    """DequantizeLinear of signed codes without zero point, for constant ones with a zero point."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    offsets, codes = constant_value(zero), constant_value(node.inputs[0])
    if codes is None or offsets is None or attributes_of(node).get("block_size", 0):
        return None
    if codes.dtype == np.int8 and not offsets.any():
        return None
    axis = attributes_of(node).get("axis", 1)
    signed = signed_codes(codes, offsets, axis if isinstance(axis, int) else 1)
    if signed is None:
        return None
    return build.op(
        "DequantizeLinear", [build.constant(signed, "codes"), node.inputs[1]], attributes_of(node)
    )
