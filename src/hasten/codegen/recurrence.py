"""The kernel of a recurrence: all steps of some lanes by one thread, states in memory that stays in cache.

The weights of a step are more than a first-level cache holds, and their way from the second takes as long
as all multiply-adds of a lane. So lanes that take the same steps go side by side, and what was read serves
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.codegen.counts import stage_flops
from hasten.codegen.domain import OUTPUT, Domain, decode, extent, share
from hasten.codegen.kernel import SCRATCH, Kernel
from hasten.codegen.layout import Layout, Layouts, flatten
from hasten.codegen.maps import finish_kernel, inner_loop, renamed_buffers
from hasten.codegen.reductions import Names, hoist
from hasten.codegen.stage import Stage
from hasten.codegen.vectorize import coefficient, vectorizable, vectorize
from hasten.loops.descriptions import Recurrence
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    binary,
    const,
    constant_int,
    free_vars,
    round_up,
    substitute,
    transform,
    walk,
)
from hasten.loops.nest import Declare, For, Let, Stmt, Store, unrolled
from hasten.target import Target

F32 = DType.F32

ABREAST = 4
"""Lanes that go side by side."""

_LANE = Var(INDEX, "lane", const(ABREAST))


def recurrence_kernel(stage: Stage, layouts: Layouts, target: Target, name: str) -> Kernel:
    """The kernel of a `Recurrence` of f32; threads take lanes.

    States and the values of a step are vectors in the thread's scratch memory, computed some vectors of units
    at a time, which are sums with the columns of weights that lie depth by unit.
    """
    c = stage.body
    assert isinstance(c, Recurrence) and c.dtype is F32
    *outer, inner = c.lanes
    assert inner.extent is not None
    others = extent(outer)
    alike = inner not in free_vars(c.length) | free_vars(c.at)
    build = {n: _Builder(stage, c, layouts, target, n) for n in ((ABREAST, 1) if alike else (1,))}
    first, last = share(others * inner.extent, const(1))
    group, lane = Var(INDEX, "group", others), Var(INDEX, "first_lane", inner.extent)
    begin, end, whole = Var(INDEX, "begin"), Var(INDEX, "end"), Var(INDEX, "whole_lanes")
    before = group * inner.extent
    body: list[Stmt] = [
        *decode(group, outer),
        Let(begin, binary("min", binary("max", first - before, const(0)), inner.extent)),
        Let(end, binary("min", binary("max", last - before, const(0)), inner.extent)),
    ]
    start: Expr = begin
    if alike:
        body.append(Let(whole, begin + binary("truncdiv", end - begin, const(ABREAST)) * ABREAST))
        body.append(For(lane, begin, whole, build[ABREAST].lanes_from(lane), step=ABREAST))
        start = whole
    body.append(For(lane, start, end, build[1].lanes_from(lane)))
    found = {tensor: param for b in build.values() for tensor, param in b.buffers.items()}
    return finish_kernel(
        name,
        (For(group, const(0), others, tuple(body)),),
        {param: tensor for tensor, param in found.items()},
        layouts,
        stage,
        work=stage_flops(stage),
        scratch=build[1].room * (max(build) * F32.bytes),
    )


@dataclass(frozen=True)
class _Sum:
    """A sum over a local vector times weights, for a block of units of each lane.

    Attributes:
        reduce: what is computed.
        name: the local array of the sums.
        held: stands for its element in the value that it is a part of.
    """

    reduce: Reduce
    name: str
    held: Load


class _Builder:
    """The statements of some lanes that take the same steps."""

    def __init__(self, stage: Stage, c: Recurrence, layouts: Layouts, target: Target, count: int) -> None:
        assert c.unit.extent is not None
        self.c, self.names, self.count = c, Names(), count
        self.lanes = target.vector_bytes // F32.bytes
        # Sums of a block are all in registers: of one lane those of all gates, else one gate's of all lanes.
        self.block = self.lanes * (4 if target.registers >= 32 or count == 1 else 2)
        self.out = layouts[stage.name]
        self.width = round_up(c.unit.extent, 16)
        self.places = {n: self.width * i for i, n in enumerate((*c.states, *c.values))}
        self.room = self.width * len(self.places)
        scratch = Layout(SCRATCH, F32, (self.room * count,), (0,))
        self.layouts = {**layouts, SCRATCH: scratch}
        self.buffers: dict[str, str] = {}
        self.number: Expr = _LANE if count > 1 else const(0)
        self.bound = frozenset((*c.lanes, _LANE, Var(INDEX, "first_lane", c.lanes[-1].extent)))

    def addressed(self, e: Expr) -> Expr:
        """An expression with its loads at addresses, of local vectors in scratch memory."""

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Load) or node.buffer not in self.places:
                return None
            return Load(node.dtype, SCRATCH, (self.place(node.buffer) + node.index[-1],))

        flat = renamed_buffers(flatten(transform(e, visit), self.layouts), self.buffers)
        return substitute(flat, {self.c.lanes[-1]: self.lane})

    def place(self, name: str) -> Expr:
        """Where a local vector of a lane begins."""
        return self.number * self.room + self.places[name]

    def lanes_from(self, first: Var) -> tuple[Stmt, ...]:
        """All steps of `count` lanes."""
        c = self.c
        self.lane = first + self.number
        assert c.step.extent is not None and c.position.extent is not None
        start = [
            s
            for name, e in zip(c.states, c.initial, strict=True)
            for s in self.vector(self.addressed(e), SCRATCH, self.place(name) + c.unit)
        ]
        found, length = hoist(self.addressed(c.length), self.bound, self.names, self.lanes)
        steps = Var(INDEX, "steps")
        rest = [
            s
            for number in range(len(c.states))
            for s in self.vector(const(0.0, F32), OUTPUT, self.address(number, c.position))
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
            body += self.vector(self.addressed(e), SCRATCH, self.place(name) + c.unit)
        for number, (state, name) in enumerate(zip(c.states, c.carried, strict=True)):
            value = Load(F32, SCRATCH, (self.place(name) + c.unit,))
            body += self.vector(value, SCRATCH, self.place(state) + c.unit)
            body += self.vector(value, OUTPUT, self.address(number, at))
        return body

    def address(self, number: int, position: Expr) -> Expr:
        lanes = (*self.c.lanes[:-1], self.lane)
        return self.out.address((const(number), *lanes, position, self.c.unit))

    def vector(self, value: Expr, output: str, address: Expr) -> tuple[Stmt, ...]:
        """Computes `value` for all units of each lane and writes it at `address`."""
        unit = self.c.unit
        assert unit.extent is not None
        whole: Expr = const(0)
        blocks: tuple[Stmt, ...] = ()
        sums = self.sums_side_by_side(value, address)
        if sums:
            whole = unit.extent // self.block * self.block
            base = Var(INDEX, self.names.next("units"), unit.extent)
            blocks = (
                For(base, const(0), whole, self.units(sums, value, output, address, base), step=self.block),
            )
        if constant_int(unit.extent - whole) == 0:
            return blocks
        found, value = hoist(value, self.bound, self.names, self.lanes)
        domain = Domain((unit,), value, address)
        loop = (*found, *inner_loop(domain, whole, unit.extent, self.lanes, self.names, self.bound, output))
        if self.count == 1:
            return (*blocks, *loop)
        return (*blocks, For(_LANE, const(0), const(self.count), loop))

    def sums_side_by_side(self, value: Expr, address: Expr) -> tuple[_Sum, ...]:
        """The sums in a value if all can be computed by blocks of units, else none."""
        unit, found = self.c.unit, [n for n in dict.fromkeys(walk(value)) if isinstance(n, Reduce)]
        for n in found:
            nested = any(isinstance(m, Reduce) for m in walk(n.body))
            if n.op != "sum" or len(n.vars) != 1 or nested or not vectorizable(n.body, unit):
                return ()
            if n.vars[0].extent != found[0].vars[0].extent or unit not in free_vars(n.body):
                return ()
        rest = transform(value, lambda n: const(0.0, F32) if isinstance(n, Reduce) else None)
        contiguous = constant_int(coefficient(address, unit) or const(0)) == 1
        if not contiguous or not vectorizable(rest, unit):
            return ()
        names = [self.names.next("sum") for _ in found]
        held = [Load(F32, name, (self.number, unit)) for name in names]
        return tuple(_Sum(n, name, h) for n, name, h in zip(found, names, held, strict=True))

    def units(
        self, sums: Sequence[_Sum], value: Expr, output: str, address: Expr, base: Var
    ) -> tuple[Stmt, ...]:
        """A block of units of each lane: its sums in registers, then what follows from them."""
        unit, width = self.c.unit, self.block
        depth = Var(INDEX, self.names.next("depth"), sums[0].reduce.vars[0].extent)
        assert depth.extent is not None

        def kept(s: _Sum) -> Load:
            return Load(F32, s.name, (self.number,), lanes=width)

        def each(*body: Stmt) -> tuple[Stmt, ...]:
            return (unrolled(_LANE, *body),) if self.count > 1 else body

        begin: list[Stmt] = []
        updates: list[tuple[Stmt, ...]] = []
        for s in sums:
            begin += [
                Declare(s.name, F32, (self.count,), width),
                *each(Store(s.name, (self.number,), const(0.0, F32))),
            ]
            term = vectorize(substitute(s.reduce.body, {s.reduce.vars[0]: depth}), unit, base, width)
            summed = Op(F32, "add", (kept(s), term), lanes=width)
            updates.append(each(Store(s.name, (self.number,), summed)))
        together = [sum(updates, ())] if self.count == 1 else updates
        finished = substitute(value, {s.reduce: s.held for s in sums})
        registers: dict[Expr, Expr] = {
            Load(F32, s.name, (self.number, base), lanes=width): kept(s) for s in sums
        }
        result = substitute(vectorize(finished, unit, base, width), registers)
        return (
            *begin,
            *(For(depth, const(0), depth.extent, update) for update in together),
            *each(Store(output, (substitute(address, {unit: base}),), result)),
        )
