"""Sums and products of the elements up to each one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from hasten.loops.descriptions import Prefix
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Var, binary, bounded, cast, const, reduce, select, var
from hasten.ops.attributes import attribute_int
from hasten.ops.base import Inputs, Lower, Lowering, Op, Tensor, normalize_axis, required
from hasten.ops.elementwise import scalar


def _cumulative(op: str, neutral: int) -> Lower:
    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x, given = required(inputs, 0), required(inputs, 1)
        compare = "lt" if attribute_int(node, "exclusive", 0) == 1 else "le"
        backward = attribute_int(node, "reverse", 0) == 1

        def along(axis: int, index: Sequence[Expr]) -> Expr:
            j = var("j", x.shape[axis])
            counted = binary(compare, index[axis], j) if backward else binary(compare, j, index[axis])
            term = select(counted, x.at(*index[:axis], j, *index[axis + 1 :]), const(neutral, x.dtype))
            return reduce(op, (j,), term)

        known = ctx.constant_of(given)
        if known is not None:
            only = normalize_axis(int(known.reshape(-1)[0]), x.rank)

            def prefix(*index: Expr) -> Prefix:
                lanes = (*index[:only], *index[only + 1 :])
                own = tuple(v for v in lanes if isinstance(v, Var))
                at, position = index[only], Var(INDEX, "j", x.shape[only])
                assert isinstance(at, Var)
                term = x.at(*index[:only], position, *index[only + 1 :])
                return Prefix(op, own, at, position, term, compare == "le", backward)

            return [ctx.define(x.shape, prefix, x.dtype)]
        chosen = ctx.temporary([], lambda: bounded(cast(scalar(given), INDEX), x.rank), INDEX, "axis")

        def body(*index: Expr) -> Expr:
            result = along(x.rank - 1, index)
            for axis in range(x.rank - 1):
                result = select(binary("eq", chosen.at(), const(axis)), along(axis, index), result)
            return result

        return [ctx.define(x.shape, body, x.dtype)]

    return lower


OPS: tuple[Op, ...] = (
    Op(name="CumSum", lower=_cumulative("sum", 0)),
    Op(name="CumProd", lower=_cumulative("prod", 1)),
)
