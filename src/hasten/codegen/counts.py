"""What a kernel amounts to: floating-point operations of its products, and bytes that it moves.

Counted is what the definition asks for, once: a multiply-add is two operations, wherever it is a term of a
sum of products (matrix product, convolution, attention, variance); other arithmetic is not counted, as is
usual for figures of whole models. Each tensor that is read counts once, and only as far as it is read.

Where padding is left out, only the tokens that are computed count: an amount may depend on a measured size,
or be a sum over what a tensor of the run holds, such as the squares of the sequences' lengths.
"""

from __future__ import annotations

from collections.abc import Iterable

from hasten.codegen.layout import Layouts
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import (
    Attention,
    Forest,
    Gemm,
    Greedy,
    Order,
    Prefix,
    RankSelect,
    Recurrence,
    Scatter,
    operands,
)
from hasten.loops.dtypes import BYTES, DType
from hasten.loops.expr import Expr, Load, Op, Reduce, Var, binary, const, free_vars, reduce, walk
from hasten.loops.simplify import spell


def stage_flops(stage: Stage) -> Expr:
    """Floating-point operations of the sums of products of a stage."""
    body = stage.body
    if isinstance(body, Gemm):
        return _product((*body.batch, *body.rows, body.column, *body.taps, body.depth)) * 2
    if isinstance(body, Attention):
        if body.start is None or body.stop is None:
            scores = _product((body.batch, body.head, body.row, body.key))
        else:
            length = body.stop - body.start
            scores = _product((body.head,)) * reduce("sum", (body.batch,), length * length)
        return scores * (_product((body.depth,)) + _product((body.column,))) * 2
    if isinstance(body, RankSelect | Prefix | Order | Forest | Greedy | Scatter):
        return const(0)
    if isinstance(body, Recurrence):
        lanes = _product((*body.lanes, body.step, body.unit))
        sums = [n for e in body.bodies for n in dict.fromkeys(walk(e)) if isinstance(n, Reduce)]
        terms = [_product(n.vars) * 2 for n in sums if n.op == "sum" and _multiplies(n.body)]
        return sum((lanes * n for n in terms), start=const(0))
    total: Expr = const(0)
    for node in dict.fromkeys(walk(body)):
        if isinstance(node, Reduce) and node.op == "sum" and _multiplies(node.body):
            total = total + _product((*free_vars(node), *node.vars)) * 2
    return total


def stage_bytes(stage: Stage, layouts: Layouts) -> Expr:
    """Bytes that a stage reads and writes, each element that it touches once."""
    read: dict[str, Expr] = {}
    for e in stage.expressions():
        for node in dict.fromkeys(walk(e)):
            if isinstance(node, Load) and node.buffer in layouts:
                known = read.get(node.buffer, const(0))
                read[node.buffer] = known + _touched(node, layouts)
    out = layouts[stage.name]
    total = out.elements * out.dtype.bytes
    for name, touched in read.items():
        layout = layouts[name]
        total = total + _least(touched, layout.elements) * layout.dtype.bytes
    return total


def factor_type(stage: Stage, layouts: Layouts) -> DType:
    """The element type in which a stage multiplies, f32 if it has no product."""
    if isinstance(stage.body, Gemm | Attention):
        if isinstance(stage.body, Gemm) and stage.body.a.dtype in BYTES:
            return DType.U8
        loads = [n for e in operands(stage.body).values() for n in walk(e) if isinstance(n, Load)]
        types = [layouts[n.buffer].dtype for n in loads if layouts[n.buffer].dtype.is_float]
        return max(types, key=lambda t: t.bytes, default=DType.F32)
    return DType.F32


def _touched(load: Load, layouts: Layouts) -> Expr:
    """Elements that a load reads for all values of its variables."""
    layout = layouts[load.buffer]
    if not load.index:  # a packed operand
        return layout.elements
    return _least(_product({v for i in load.index for v in free_vars(i)}), layout.elements)


def _least(a: Expr, b: Expr) -> Expr:
    return a if spell(a) == spell(b) else binary("min", a, b)


def _product(variables: Iterable[Var]) -> Expr:
    total: Expr = const(1)
    for v in sorted(variables, key=lambda v: v.name):
        # A variable of one value may have no extent.
        total = total * (const(1) if v.extent is None else v.extent)
    return total


def _multiplies(e: Expr) -> bool:
    """Whether a term of a sum is a product of floats, if need be inside a window."""
    if not isinstance(e, Op) or not e.dtype.is_float:
        return False
    if e.op == "select":
        return any(_multiplies(a) for a in e.args[1:])
    return e.op == "mul"
