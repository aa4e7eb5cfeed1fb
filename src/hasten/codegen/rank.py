"""The kernel that counts and collects the positions at which a condition holds."""

from __future__ import annotations

from hasten.codegen.domain import OUTPUT
from hasten.codegen.kernel import THREAD, Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, name_buffers
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import RankSelect
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Load, Op, Var, cast, const
from hasten.loops.nest import Declare, For, If, Stmt, Store


def rank_kernel(stage: Stage, layouts: Layouts, name: str) -> Kernel:
    """The kernel of a `RankSelect`: one pass of one thread.

    A position is written behind those that hold before it, whether it holds or not; the next one that is
    written there replaces it if it does not. What is left behind the last one is cleared.
    """
    c = stage.body
    assert isinstance(c, RankSelect) and c.position.extent is not None and c.at.extent is not None
    condition, buffers = name_buffers(flatten(c.condition, layouts))
    total, width = c.position.extent, c.at.extent
    count, rest = Load(INDEX, "count", ()), Var(INDEX, "rest")
    more = Op(INDEX, "add", (count, cast(condition, INDEX)))
    each = (
        Store(OUTPUT, (c.position,), count),
        Store(OUTPUT, (width + count,), c.position),
        Store("count", (), more),
    )
    body: tuple[Stmt, ...] = (
        Declare("count", INDEX, value=const(0)),
        For(c.position, const(0), total, each),
        Store(OUTPUT, (total,), count),
        For(rest, count, width, (Store(OUTPUT, (width + rest,), const(0)),)),
    )
    alone = If(Op(DType.BOOL, "eq", (THREAD, const(0, DType.I32))), body)
    return finish_kernel(name, (alone,), buffers, layouts, stage, work=4 * total)
