"""The kernel that puts positions in order: a merge sort from the bottom up, each lane by one thread."""

from __future__ import annotations

import math

from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import OUTPUT, decode, finish_kernel, name_buffers, share
from hasten.codegen.reductions import Names, hoist
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Order
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Load, Op, Var, const
from hasten.loops.nest import Comment, Declare, For, If, Let, Stmt, Store

PASSES = 62
"""Doublings of the sorted runs' length that any number of positions needs at the most."""


def order_kernel(stage: Stage, layouts: Layouts, name: str) -> Kernel:
    """The kernel of an `Order`.

    Both planes of the output serve as memory: a pass merges runs of one into runs of twice the length in the
    other. At the end the first has the positions in order, the second the inverse.
    """
    c = stage.body
    assert isinstance(c, Order) and c.at.extent is not None
    before, buffers = name_buffers(flatten(c.before, layouts))
    lanes = math.prod((v.extent for v in c.lanes if v.extent is not None), start=const(1))
    task = Var(INDEX, "task", lanes)
    body = _Lane(stage, c, layouts, before).body()
    own = decode(task, c.lanes) if c.lanes else []
    loop = For(task, *share(lanes, const(1)), (*own, *body))
    return finish_kernel(name, (loop,), buffers, layouts, stage, work=lanes * c.at.extent * 64)


def _op(op: str, a: Expr, b: Expr) -> Expr:
    """An operation on numbers of which nothing is proved."""
    return Op(DType.BOOL if op in ("lt", "eq") else INDEX, op, (a, b))


class _Lane:
    """The statements that sort one lane."""

    def __init__(self, stage: Stage, c: Order, layouts: Layouts, before: Expr) -> None:
        assert c.at.extent is not None
        self.c, self.before, self.count = c, before, c.at.extent
        self.out = layouts[stage.name]
        self.names = Names()

    def place(self, plane: Expr, at: Expr) -> Expr:
        """The address of an element of a plane."""
        return self.out.address((plane, *self.c.lanes, at))

    def read(self, plane: Expr, at: Expr) -> Load:
        return Load(INDEX, OUTPUT, (self.place(plane, at),))

    def write(self, plane: Expr, at: Expr, value: Expr) -> Store:
        return Store(OUTPUT, (self.place(plane, at),), value)

    def body(self) -> tuple[Stmt, ...]:
        zero, one = const(0), const(1)
        at, turn, width = self.c.at, Var(INDEX, "turn"), Var(INDEX, "width")
        plane = Load(INDEX, "plane", ())
        run = Var(INDEX, "run")
        double = _op("add", width, width)
        runs = _op("truncdiv", _op("sub", _op("add", self.count, double), one), double)
        merge = For(run, zero, runs, self.merge(run, width, plane))
        flip = Store("plane", (), _op("sub", one, plane))
        one_pass = (Let(width, _op("shl", one, turn)), If(_op("lt", width, self.count), (merge, flip)))
        copy = For(at, zero, self.count, (self.write(zero, at, self.read(one, at)),))
        return (
            Declare("plane", INDEX, value=zero),
            For(at, zero, self.count, (self.write(zero, at, at),)),
            For(turn, zero, const(PASSES), one_pass),
            If(_op("eq", plane, one), (copy,)),
            Comment("the inverse: the place of each position"),
            For(at, zero, self.count, (self.write(one, self.read(zero, at), at),)),
        )

    def merge(self, run: Expr, width: Expr, plane: Expr) -> tuple[Stmt, ...]:
        """Merges two neighbouring runs of a plane into one of the other."""
        low, middle, high = (Var(INDEX, n) for n in ("low", "middle", "high"))
        left, right = Load(INDEX, "left", ()), Load(INDEX, "right", ())
        to, at = Var(INDEX, "to"), Var(INDEX, "merged")
        from_left = Load(INDEX, "from_left", ())
        take = Store("from_left", (), const(1))
        c = self.c
        bound = frozenset((*c.lanes, c.position, c.other))
        found, goes_first = hoist(self.before, bound, self.names, 1)
        compare = (
            Let(c.position, self.read(plane, right)),
            Let(c.other, self.read(plane, left)),
            *found,
            If(goes_first, (), (take,)),
        )
        choose = If(_op("lt", left, middle), (If(_op("lt", right, high), compare, (take,)),))
        move = If(
            _op("eq", from_left, const(1)),
            (self.write(to, at, self.read(plane, left)), Store("left", (), _op("add", left, const(1)))),
            (self.write(to, at, self.read(plane, right)), Store("right", (), _op("add", right, const(1)))),
        )
        start = _op("mul", run, _op("add", width, width))
        return (
            Let(low, start),
            Let(middle, _op("min", _op("add", low, width), self.count)),
            Let(high, _op("min", _op("add", middle, width), self.count)),
            Let(to, _op("sub", const(1), plane)),
            Declare("left", INDEX, value=low),
            Declare("right", INDEX, value=middle),
            For(at, low, high, (Declare("from_left", INDEX, value=const(0)), choose, move)),
        )
