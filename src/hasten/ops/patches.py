"""Col2Im: columns of patches added up to a picture."""

from __future__ import annotations

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Var, binary, const, constant_int, reduce, select, var
from hasten.ops.attributes import attribute_ints
from hasten.ops.axes import index_values
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, required
from hasten.ops.indices import linear_index, product


def lower_col2im(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Each element is the sum of the patches' elements that lie on it.

    Patches are the columns of the input, which has [batch, channels * elements of a patch, patches].
    """
    x = required(inputs, 0)
    image = [ctx.dim(n) for n in index_values(ctx, required(inputs, 1), "the picture's shape")]
    block = [ctx.dim(n) for n in index_values(ctx, required(inputs, 2), "the patches' shape")]
    rank = len(image)
    if len(block) != rank or x.rank != 3:
        raise Declined(f"a picture of {rank} axes and patches of {len(block)} do not fit")
    strides = attribute_ints(node, "strides", [1] * rank)
    dilations = attribute_ints(node, "dilations", [1] * rank)
    pads = attribute_ints(node, "pads", [0] * (2 * rank))
    counts = []
    for d in range(rank):
        reach = (block[d] - 1) * dilations[d] + 1
        counts.append(ctx.dim((image[d] + (pads[d] + pads[rank + d]) - reach) // strides[d] + 1))
    ctx.require_equal(product(counts), x.shape[2])
    channels = ctx.dim(x.shape[1] // product(block))
    ctx.require_equal(channels * product(block), x.shape[1])

    def element(*index: Expr) -> Expr:
        n, c, *position = index
        taps = [var(f"k{d}", m) if constant_int(m) != 1 else const(0) for d, m in enumerate(block)]
        inside: Expr = const(True, DType.BOOL)
        patch = []
        for d, (i, t) in enumerate(zip(position, taps, strict=True)):
            start = i + pads[d] - t * dilations[d]
            at = start // strides[d]
            for condition in (
                binary("le", const(0), start),
                binary("eq", at * strides[d], start),
                binary("lt", at, counts[d]),
            ):
                inside = binary("and", inside, condition)
            patch.append(at)
        row = c * product(block) + linear_index(taps, block)
        value = select(inside, x.at(n, row, linear_index(patch, counts)), const(0, x.dtype))
        return reduce("sum", tuple(t for t in taps if isinstance(t, Var)), value)

    return [ctx.define([x.shape[0], channels, *image], element, x.dtype)]


OPS: tuple[Op, ...] = (Op(name="Col2Im", lower=lower_col2im),)
