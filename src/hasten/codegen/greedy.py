"""The kernel that chooses positions greedily: those that may be chosen are tried, the first in order first.

They come from a heap, so that no more are put in order than are tried.
"""

from __future__ import annotations

from hasten.codegen.domain import decode, extent, share
from hasten.codegen.heap import Heap
from hasten.codegen.kernel import Kernel
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import finish_kernel, renamed_buffers
from hasten.codegen.order import Lane, number
from hasten.codegen.stage import Stage
from hasten.loops.descriptions import Greedy
from hasten.loops.dtypes import INDEX
from hasten.loops.expr import Load, Var, cast, const
from hasten.loops.nest import Comment, Declare, For, If, Let, Store


def greedy_kernel(stage: Stage, layouts: Layouts, name: str) -> Kernel:
    """The kernel of a `Greedy`, each lane by one thread.

    The heap is in the second plane, what is chosen goes to the first.
    """
    c = stage.body
    assert isinstance(c, Greedy) and c.position.extent is not None and c.at.extent is not None
    found: dict[str, str] = {}
    eligible, before, excluded, most = (
        renamed_buffers(flatten(e, layouts), found) for e in (c.eligible, c.before, c.excluded, c.most)
    )
    buffers = {param: tensor for tensor, param in found.items()}
    lanes = extent(c.lanes)
    task, count = Var(INDEX, "task", lanes), c.position.extent
    zero, one = const(0), const(1)
    tried, left = Var(INDEX, "tried"), Var(INDEX, "left")
    number_left, chosen, free = (Load(INDEX, n, ()) for n in ("to_try", "chosen", "free"))
    to_compare = Load(INDEX, "to_compare", ())
    limit, earlier, last = Var(INDEX, "limit"), Var(INDEX, "earlier"), Var(INDEX, "last")
    lane = Lane(layouts[stage.name], c.lanes, c.position, c.other, before, left)
    heap = Heap(lane, left, plane=1, first=True)
    collect = (
        heap.write(number_left, c.position),
        Store("to_try", (), number("add", number_left, cast(eligible, INDEX))),
    )
    out = (Store("free", (), zero), Store("to_compare", (), zero))
    compare = (Let(c.other, lane.read(zero, earlier)), If(excluded, out))
    enough = If(number("le", limit, chosen), (Store("to_try", (), zero),))
    take = (lane.write(zero, chosen, c.position), Store("chosen", (), number("add", chosen, one)), enough)
    attempt = (
        Let(c.position, heap.read(zero)),
        Let(last, number("sub", number("sub", left, one), tried)),
        *heap.take_top(last),
        Declare("free", INDEX, value=one),
        Declare("to_compare", INDEX, value=chosen),
        For(earlier, zero, to_compare, compare),
        If(number("eq", free, one), take),
    )
    body = (
        *decode(task, c.lanes),
        Declare("to_try", INDEX, value=zero),
        For(c.position, zero, count, collect),
        Let(left, number_left),
        Comment("a heap, the first in order on top"),
        *heap.arrange(),
        Declare("chosen", INDEX, value=zero),
        Let(limit, most),
        If(number("le", limit, zero), (Store("to_try", (), zero),)),
        For(tried, zero, number_left, attempt),
        lane.write(zero, count, chosen),
    )
    work = lanes * c.at.extent * 64
    return finish_kernel(name, (For(task, *share(lanes, one), body),), buffers, layouts, stage, work=work)
