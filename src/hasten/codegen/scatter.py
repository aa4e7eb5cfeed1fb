"""The kernel of a scatter: each thread copies rows of the output and applies the updates that go to them."""

from __future__ import annotations

from hasten.codegen.domain import OUTPUT, Domain, decode, extent, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, inner_loop, renamed_buffers
from hasten.codegen.reductions import Names
from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import Scatter
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Var, const, constant_int, free_vars
from hasten.loops.nest import Comment, For, If, Let, Stmt, Store

_FIRST, _LAST, _ROW = Var(INDEX, "first"), Var(INDEX, "last"), Var(INDEX, "row")


def scatter_kernel(stage: Stage, layouts: Layouts, vector_bytes: int, name: str) -> Kernel:
    """The kernel of a `Scatter`.

    Updates are gone through in their order by every thread, so what several of them do to one element has one
    order as well.
    """
    c = stage.body
    assert isinstance(c, Scatter)
    found: dict[str, str] = {}
    old, new, *at = (renamed_buffers(flatten(e, layouts), found) for e in (c.old, c.new, *c.at))
    buffers = {param: tensor for tensor, param in found.items()}
    lanes, layout = vector_bytes // max(4, stage.dtype.bytes), layouts[stage.name]
    outer = c.vars[:-1]
    first, last = share(extent(outer), const(1))
    body = (
        Let(_FIRST, first),
        Let(_LAST, last),
        *_copy(c, old, layout.address(c.vars), lanes),
        Comment("updates in order; those that go to rows of other threads are left to them"),
        *_updates(c, new, at, layout.address(at), lanes),
    )
    work = extent(c.vars) * 2 + extent(c.updates) * 8
    return finish_kernel(name, body, buffers, layouts, stage, work=work)


def _copy(c: Scatter, old: Expr, address: Expr, lanes: int) -> tuple[Stmt, ...]:
    """Elements as they were, in this thread's rows."""
    *outer, inner = c.vars
    row = inner_loop(
        Domain((inner,), old, address), const(0), inner.extent or const(1), lanes, Names(), frozenset(outer)
    )
    return (For(_ROW, _FIRST, _LAST, (*decode(_ROW, outer), *row)),)


def _updates(c: Scatter, new: Expr, at: list[Expr], address: Expr, lanes: int) -> tuple[Stmt, ...]:
    """All updates; the innermost ones at once where they are a slice of a row."""
    row: Expr = const(0)
    for v, place in zip(c.vars[:-1], at[:-1], strict=True):
        assert v.extent is not None
        row = Op(INDEX, "add", (Op(INDEX, "mul", (row, v.extent)), place))
    here = Op(DType.BOOL, "and", (Op(DType.BOOL, "le", (_FIRST, _ROW)), Op(DType.BOOL, "lt", (_ROW, _LAST))))
    there = Load(new.dtype, OUTPUT, (address,))
    value = Op(new.dtype, c.op, (there, new)) if c.op else new
    inner = c.updates[-1] if c.updates else None
    slices = inner is not None and not any(inner in free_vars(e) for e in at[:-1])
    if inner is not None and slices and constant_int(coefficient(address, inner) or const(0)) == 1:
        loops = list(c.updates[:-1])
        domain = Domain((inner,), value, address)
        change = inner_loop(
            domain, const(0), inner.extent or const(1), lanes, Names(), frozenset(c.updates[:-1])
        )
    else:
        loops = list(c.updates)
        change = (Store(OUTPUT, (address,), value),)
    body: tuple[Stmt, ...] = (Let(_ROW, row), If(here, change))
    for v in reversed(loops):
        assert v.extent is not None
        body = (For(v, const(0), v.extent, body),)
    return body
