"""The kernel that finds the first places of an order: a heap of the best so far, each lane by one thread.

The positions that are kept form a heap whose root comes last of them (Williams, Algorithm 232: Heapsort,
1964). A position that does not come before the root is passed over by one comparison, which is what happens
to most of them; in the end the heap is taken apart in order. n positions and k places take
n + k log k log(n / k) comparisons on random data, n log k at the worst, and no memory but the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.domain import decode, extent, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, name_buffers
from hasten.codegen.order import PASSES, Lane, number
from hasten.codegen.reductions import hoist
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Order
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Expr, Load, Var, binary, cast, const, constant_int, substitute, unary
from hasten.loops.nest import Comment, Declare, For, If, Let, Stmt, Store


def first_places_kernel(stage: Stage, layouts: Layouts, name: str) -> Kernel:
    """The kernel of an `Order` of which only the first places are wanted."""
    c = stage.body
    assert isinstance(c, Order) and c.at.extent is not None and c.position.extent is not None
    before, buffers = name_buffers(flatten(c.before, layouts))
    lanes = extent(c.lanes)
    task, kept, count = Var(INDEX, "task", lanes), c.at.extent, c.position.extent
    lane = Lane(layouts[stage.name], c.lanes, c.position, c.other, before, kept)
    heap = Heap(lane, kept)
    work = (*heap.fill(), *heap.arrange(), *heap.pass_over(count), *heap.sort())
    body = (*decode(task, c.lanes), If(number("lt", const(0), kept), work))
    loop = For(task, *share(lanes, const(1)), body)
    return finish_kernel(name, (loop,), buffers, layouts, stage, work=lanes * (count * 4 + kept * 64))


@dataclass(frozen=True)
class Heap:
    """The statements of a heap in a plane of a lane's output.

    Attributes:
        lane: what is compared, and where it is written.
        kept: how many positions it has at first; an expression that stays the same.
        plane: number of the plane.
        first: whether the root is what comes first, rather than last.
    """

    lane: Lane
    kept: Expr
    plane: int = 0
    first: bool = False

    def read(self, at: Expr) -> Load:
        """The position at a place of the heap."""
        return self.lane.read(const(self.plane), at)

    def write(self, at: Expr, position: Expr) -> Store:
        """Puts a position at a place of the heap."""
        return self.lane.write(const(self.plane), at, position)

    def _count_levels(self) -> tuple[Stmt, ...]:
        """Declares how many levels are below the root."""
        known = constant_int(self.kept)
        if known is not None:
            return (Declare("levels", INDEX, value=const(known.bit_length() - 1)),)
        level = Var(INDEX, "level")
        fits = binary("le", number("shl", const(2), level), self.kept)
        one_more = number("add", level, const(1))
        return (
            Declare("levels", INDEX, value=const(0)),
            For(level, const(0), const(PASSES), (If(fits, (Store("levels", (), one_more),)),)),
        )

    def fill(self) -> tuple[Stmt, ...]:
        """Takes the first positions."""
        at = Var(INDEX, "at")
        return (
            Comment("a heap of the first ones, the last in order on top"),
            For(at, const(0), self.kept, (self.write(at, at),)),
        )

    def arrange(self) -> tuple[Stmt, ...]:
        """Makes a heap of the positions that are there."""
        turn, start, moved = (Var(INDEX, n) for n in ("turn", "start", "moved"))
        half = number("truncdiv", self.kept, const(2))
        sink = (
            Let(start, number("sub", number("sub", half, const(1)), turn)),
            Let(moved, self.read(start)),
            *self._sink(moved, start, self.kept),
        )
        return (*self._count_levels(), For(turn, const(0), half, sink))

    def pass_over(self, count: Expr) -> tuple[Stmt, ...]:
        """Takes in each of the other positions that comes before the top."""
        position, other = self.lane.position, self.lane.other
        found, better = self._hoisted(self.lane.before)
        take = If(better, self._sink(position, const(0), self.kept))
        return (
            Comment("the others: most come behind the top"),
            For(position, self.kept, count, (Let(other, self.read(const(0))), *found, take)),
        )

    def take_top(self, last: Expr) -> tuple[Stmt, ...]:
        """Takes the root out; `last` is the place that is free then."""
        moved = Var(INDEX, "moved")
        return (Let(moved, self.read(last)), *self._sink(moved, const(0), last))

    def sort(self) -> tuple[Stmt, ...]:
        """Puts the heap in order."""
        turn, last, moved = (Var(INDEX, n) for n in ("turn", "last", "moved"))
        body = (
            Let(last, number("sub", number("sub", self.kept, const(1)), turn)),
            Let(moved, self.read(last)),
            self.write(last, self.read(const(0))),
            *self._sink(moved, const(0), last),
        )
        return (
            Comment("in order: the top goes behind the others"),
            For(turn, const(0), number("sub", self.kept, const(1)), body),
        )

    def _sink(self, moved: Expr, start: Expr, size: Expr) -> tuple[Stmt, ...]:
        """Puts a position in the place of another one, below all that come after it."""
        level, left, right = (Var(INDEX, n) for n in ("level", "left", "right"))
        below, upper = (Var(INDEX, n) for n in ("below", "upper"))
        place, child = Load(INDEX, "place", ()), Load(INDEX, "child", ())
        first, later = self._above(right, left)
        second, lower = self._above(below, moved)
        beside = number("add", child, const(1))
        choose_right = (
            Let(left, self.read(child)),
            Let(right, self.read(beside)),
            *first,
            # No branch: which of the two comes last is anybody's guess.
            Store("child", (), number("add", child, cast(later, INDEX))),
        )
        descend = (
            If(number("lt", beside, size), choose_right),
            Let(below, self.read(child)),
            *second,
            If(lower, (self.write(place, below), Store("place", (), child))),
        )
        twice = number("add", number("add", place, place), const(1))
        step = (Declare("child", INDEX, value=twice), If(number("lt", child, size), descend))
        return (
            Let(upper, moved),
            Declare("place", INDEX, value=start),
            For(level, const(0), Load(INDEX, "levels", ()), step),
            self.write(place, upper),
        )

    def _above(self, one: Expr, other: Expr) -> tuple[list[Stmt], Expr]:
        """Whether a position belongs above another one: by what is compared, else by where it stood."""
        return self._after(other, one) if self.first else self._after(one, other)

    def _after(self, one: Expr, other: Expr) -> tuple[list[Stmt], Expr]:
        position, second = self.lane.position, self.lane.other
        behind = substitute(self.lane.before, {position: other, second: one})
        ahead = substitute(self.lane.before, {position: one, second: other})
        found, a = self._hoisted(behind, one, other)
        more, b = self._hoisted(ahead, one, other)
        tie = binary("and", unary("not", b), number("lt", other, one))
        return [*found, *more], binary("or", a, tie)

    def _hoisted(self, e: Expr, *bound: Expr) -> tuple[list[Stmt], Expr]:
        lane = self.lane
        known = frozenset((*lane.lanes, lane.position, lane.other, *(v for v in bound if isinstance(v, Var))))
        return hoist(e, known, lane.names, 1)
