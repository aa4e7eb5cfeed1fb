"""The kernel that puts positions in order: a merge sort from the bottom up, each lane by one thread."""

from __future__ import annotations

from hasten.codegen.domain import OUTPUT, decode, extent, share
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layout, Layouts, flatten
from hasten.codegen.maps import finish_kernel, name_buffers
from hasten.codegen.reductions import Names, hoist
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Order
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Var, const
from hasten.loops.nest import Comment, Declare, For, If, Let, Stmt, Store

PASSES = 62
"""Doublings of the sorted runs' length that any number of positions needs at the most."""


def order_kernel(stage: Stage, layouts: Layouts, name: str) -> Kernel:
    """The kernel of an `Order` of which all places are wanted.

    Both planes of the output serve as memory: a pass merges runs of one into runs of twice the length in the
    other. At the end the first has the positions in order, the second the inverse.
    """
    c = stage.body
    assert isinstance(c, Order) and c.at.extent is not None
    before, buffers = name_buffers(flatten(c.before, layouts))
    lanes = extent(c.lanes)
    task = Var(INDEX, "task", lanes)
    zero, one, at = const(0), const(1), c.at
    lane = Lane(layouts[stage.name], c.lanes, c.position, c.other, before, c.at.extent)
    body = (
        *decode(task, c.lanes),
        For(at, zero, c.at.extent, (lane.write(zero, at, at),)),
        *lane.sort(),
        Comment("the inverse: the place of each position"),
        For(at, zero, c.at.extent, (lane.write(one, lane.read(zero, at), at),)),
    )
    loop = For(task, *share(lanes, one), body)
    return finish_kernel(name, (loop,), buffers, layouts, stage, work=lanes * c.at.extent * 64)


def number(op: str, a: Expr, b: Expr) -> Expr:
    """An operation on numbers of which nothing is proved."""
    return Op(DType.BOOL if op in ("lt", "eq") else INDEX, op, (a, b))


class Lane:
    """The statements that sort the positions which stand in the first plane of a lane's output."""

    def __init__(
        self, out: Layout, lanes: tuple[Var, ...], position: Var, other: Var, before: Expr, count: Expr
    ) -> None:
        """Says what is sorted.

        Args:
            out: of the output [plane, lanes, at].
            lanes: variables of the lane.
            position: what `before` is in terms of.
            other: the same.
            before: whether `position` comes before `other`.
            count: how many there are, an expression that stays the same.
        """
        self.out, self.lanes, self.position, self.other = out, lanes, position, other
        self.before, self.count = before, count
        self.names = Names()

    def place(self, plane: Expr, at: Expr) -> Expr:
        """The address of an element of a plane."""
        return self.out.address((plane, *self.lanes, at))

    def read(self, plane: Expr, at: Expr) -> Load:
        """An element of a plane."""
        return Load(INDEX, OUTPUT, (self.place(plane, at),))

    def write(self, plane: Expr, at: Expr, value: Expr) -> Store:
        """Writes an element of a plane."""
        return Store(OUTPUT, (self.place(plane, at),), value)

    def sort(self) -> tuple[Stmt, ...]:
        """Sorts; the second plane is overwritten."""
        zero, one = const(0), const(1)
        at, turn, width = Var(INDEX, "copied"), Var(INDEX, "turn"), Var(INDEX, "width")
        plane = Load(INDEX, "plane", ())
        run = Var(INDEX, "run")
        double = number("add", width, width)
        runs = number("truncdiv", number("sub", number("add", self.count, double), one), double)
        merge = For(run, zero, runs, self.merge(run, width, plane))
        flip = Store("plane", (), number("sub", one, plane))
        one_pass = (Let(width, number("shl", one, turn)), If(number("lt", width, self.count), (merge, flip)))
        copy = For(at, zero, self.count, (self.write(zero, at, self.read(one, at)),))
        return (
            Declare("plane", INDEX, value=zero),
            For(turn, zero, const(PASSES), one_pass),
            If(number("eq", plane, one), (copy,)),
        )

    def merge(self, run: Expr, width: Expr, plane: Expr) -> tuple[Stmt, ...]:
        """Merges two neighbouring runs of a plane into one of the other."""
        low, middle, high = (Var(INDEX, n) for n in ("low", "middle", "high"))
        left, right = Load(INDEX, "left", ()), Load(INDEX, "right", ())
        to, at = Var(INDEX, "to"), Var(INDEX, "merged")
        from_left = Load(INDEX, "from_left", ())
        take = Store("from_left", (), const(1))
        bound = frozenset((*self.lanes, self.position, self.other))
        found, goes_first = hoist(self.before, bound, self.names, 1)
        compare = (
            Let(self.position, self.read(plane, right)),
            Let(self.other, self.read(plane, left)),
            *found,
            If(goes_first, (), (take,)),
        )
        choose = If(number("lt", left, middle), (If(number("lt", right, high), compare, (take,)),))
        move = If(
            number("eq", from_left, const(1)),
            (self.write(to, at, self.read(plane, left)), Store("left", (), number("add", left, const(1)))),
            (self.write(to, at, self.read(plane, right)), Store("right", (), number("add", right, const(1)))),
        )
        start = number("mul", run, number("add", width, width))
        return (
            Let(low, start),
            Let(middle, number("min", number("add", low, width), self.count)),
            Let(high, number("min", number("add", middle, width), self.count)),
            Let(to, number("sub", const(1), plane)),
            Declare("left", INDEX, value=low),
            Declare("right", INDEX, value=middle),
            For(at, low, high, (Declare("from_left", INDEX, value=const(0)), choose, move)),
        )
