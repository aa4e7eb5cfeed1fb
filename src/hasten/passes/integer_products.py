"""MatMulInteger and ConvInteger as products of floats: sums of whole numbers that later nodes scale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph.constants import constant_value
from hasten.passes.quantized_operand import Attributes, Operand, attributes_of, input_at, is_single
from hasten.passes.rule import Builder

INTEGER_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})


def integer_product(node: ir.Node, build: Builder) -> tuple[ir.Node, ir.Value] | None:
    """The product whose sums are only read as floats, as one of DequantizeLinear of both operands.

    Where the sums are multiplied by the product of both scales, those go into the operands; otherwise scales
    are 1 and what follows stays.

    Returns:
        The node whose output is replaced, and the replacement; None where the sums are read as integers or
        zero points have shapes that DequantizeLinear does not take.
    """
    data, weight = node.inputs[0], node.inputs[1]
    cast = _only_reader(node)
    if data is None or weight is None or cast is None or cast.op_type != "Cast":
        return None
    if attributes_of(cast).get("to") != ir.DataType.FLOAT.value:
        return None
    root, scales = _scaled(cast)
    if scales is None:
        one = build.constant(np.ones((), np.float32), "one")
        scales = one, one
    zero = input_at(node, 2)
    padded, attributes = _padded(node, data, zero, build)
    axis = 0 if node.op_type == "ConvInteger" else -1
    a = Operand(padded, scales[0], zero).dequantized(build, 1 if zero is None or is_single(zero) else -2)
    b = Operand(weight, scales[1], input_at(node, 3)).dequantized(build, axis)
    if a is None or b is None:
        return None
    return root, build.op(node.op_type.removesuffix("Integer"), [a, b], attributes)


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads a node's output, once."""
    (output,) = node.outputs
    uses = list(output.uses())
    reader = uses[0].node if len(uses) == 1 and not output.is_graph_output() else None
    return reader if reader is not None and reader.domain == "" and reader.graph is node.graph else None


def _scaled(cast: ir.Node) -> tuple[ir.Node, tuple[ir.Value, ir.Value] | None]:
    """The last node that only scales the sums, and the scales of the data and the weights."""
    scaled = _only_reader(cast)
    if scaled is None or scaled.op_type != "Mul":
        return cast, None
    (factor,) = (v for v in scaled.inputs if v is not cast.outputs[0])
    product = None if factor is None else factor.producer()
    if product is None or product.domain or product.op_type != "Mul":
        return cast, None
    for left, right in (product.inputs, tuple(reversed(product.inputs))):
        known = constant_value(right)
        if left is None or right is None or known is None or not is_single(left):
            continue
        # A vector that is multiplied with rows of sums holds one scale for each column, as wanted of MatMul.
        if known.size == 1 or (known.ndim == 1 and _sums(cast) == "MatMulInteger"):
            return scaled, (left, right)
    return cast, None


def _sums(cast: ir.Node) -> str:
    source = cast.inputs[0]
    producer = None if source is None else source.producer()
    return "" if producer is None else producer.op_type


def _padded(
    node: ir.Node, data: ir.Value, zero: ir.Value | None, build: Builder
) -> tuple[ir.Value, Attributes]:
    """Data with borders of its zero point where that is computed, and the attributes that are left."""
    attributes = attributes_of(node)
    pads = attributes.get("pads")
    if (
        zero is None
        or constant_value(zero) is not None
        or not isinstance(pads, (list, tuple))
        or not any(pads)
    ):
        return data, attributes
    attributes = attributes_of(node, ("pads",))
    half = len(pads) // 2
    widths = build.integers([*(0, 0), *pads[:half], *(0, 0), *pads[half:]], "pads")
    return build.op("Pad", [data, widths, zero]), attributes
