"""The kernel of a recurrence: all steps of a lane by one thread, states in memory that stays in its cache."""

from __future__ import annotations

import math

from hasten.codegen.counts import stage_flops
from hasten.codegen.kernel import SCRATCH, Kernel
from hasten.codegen.layout import Layout, Layouts, flatten
from hasten.codegen.maps import (
    OUTPUT,
    Domain,
    decode,
    finish_kernel,
    inner_loop,
    renamed_buffers,
    share,
)
from hasten.codegen.reductions import Names, hoist
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Recurrence
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Var, const, round_up, transform
from hasten.loops.nest import For, Let, Stmt


def recurrence_kernel(stage: Stage, layouts: Layouts, vector_bytes: int, name: str) -> Kernel:
    """The kernel of a `Recurrence` of f32; threads take lanes.

    States and the values of a step are vectors in the thread's scratch memory. Each is computed like a row
    of a map: whole vectors of units, sums with the columns of a weight that lies depth by unit.
    """
    c = stage.body
    assert isinstance(c, Recurrence) and c.dtype is DType.F32
    build = _Builder(stage, c, layouts, vector_bytes // DType.F32.bytes)
    total = math.prod((v.extent for v in c.lanes if v.extent is not None), start=const(1))
    task = Var(INDEX, "task", total)
    body = For(task, *share(total, const(1)), (*decode(task, c.lanes), *build.lane()))
    buffers = {param: tensor for tensor, param in build.buffers.items()}
    count = len(c.states) + len(c.values)
    return finish_kernel(
        name,
        (body,),
        buffers,
        layouts,
        stage,
        work=stage_flops(stage),
        scratch=build.width * (count * DType.F32.bytes),
    )


class _Builder:
    """The statements of one lane."""

    def __init__(self, stage: Stage, c: Recurrence, layouts: Layouts, lanes: int) -> None:
        assert c.unit.extent is not None
        self.c, self.lanes, self.names = c, lanes, Names()
        self.out = layouts[stage.name]
        self.width = round_up(c.unit.extent, 16)
        self.places = {n: self.width * i for i, n in enumerate((*c.states, *c.values))}
        scratch = Layout(SCRATCH, DType.F32, (self.width * len(self.places),), (0,))
        self.layouts = {**layouts, SCRATCH: scratch}
        self.buffers: dict[str, str] = {}
        self.bound = frozenset(c.lanes)

    def addressed(self, e: Expr) -> Expr:
        """An expression with its loads at addresses, of local vectors in scratch memory."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Load) or node.buffer not in self.places:
                return None
            return Load(node.dtype, SCRATCH, (self.places[node.buffer] + node.index[-1],))

        return renamed_buffers(flatten(transform(e, visit), self.layouts), self.buffers)

    def lane(self) -> tuple[Stmt, ...]:
        c = self.c
        assert c.step.extent is not None and c.position.extent is not None
        start = [
            s
            for name, e in zip(c.states, c.initial, strict=True)
            for s in self.vector(self.addressed(e), SCRATCH, self.places[name] + c.unit)
        ]
        found, length = hoist(self.addressed(c.length), self.bound, self.names, self.lanes)
        steps = Var(INDEX, "steps")
        rest = [
            s
            for number in range(len(c.states))
            for s in self.vector(const(0.0, DType.F32), OUTPUT, self.address(number, c.position))
        ]
        return (
            *start,
            *found,
            Let(steps, length),
            For(c.step, const(0), steps, tuple(self.step())),
            For(c.position, steps, c.position.extent, tuple(rest)),
        )

    def step(self) -> list[Stmt]:
        c = self.c
        at = Var(INDEX, "at")
        body: list[Stmt] = [Let(at, self.addressed(c.at))]
        self.bound |= {c.step}
        for name, e in zip(c.values, c.bodies, strict=True):
            body += self.vector(self.addressed(e), SCRATCH, self.places[name] + c.unit)
        for number, (state, name) in enumerate(zip(c.states, c.carried, strict=True)):
            value = Load(DType.F32, SCRATCH, (self.places[name] + c.unit,))
            body += self.vector(value, SCRATCH, self.places[state] + c.unit)
            body += self.vector(value, OUTPUT, self.address(number, at))
        return body

    def address(self, number: int, position: Expr) -> Expr:
        return self.out.address((const(number), *self.c.lanes, position, self.c.unit))

    def vector(self, value: Expr, output: str, address: Expr) -> tuple[Stmt, ...]:
        """Computes `value` for all units and writes it at `address`."""
        unit = self.c.unit
        assert unit.extent is not None
        found, value = hoist(value, self.bound, self.names, self.lanes)
        domain = Domain((unit,), value, address)
        loop = inner_loop(domain, const(0), unit.extent, self.lanes, self.names, self.bound, output)
        return (*found, *loop)
