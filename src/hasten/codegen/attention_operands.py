"""Operands of the attention kernel: what its pieces share, and keys and values packed into panels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hasten.codegen.c_amx import PAIR
from hasten.codegen.domain import Domain
from hasten.codegen.kernel import scratch_view
from hasten.codegen.layout import Layouts, flatten
from hasten.codegen.maps import inner_loop
from hasten.codegen.reductions import Names
from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tiles import PANEL, Tile, group
from hasten.codegen.transpose import transpose_name
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import Attention
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Address,
    Expr,
    Load,
    Op,
    Var,
    binary,
    const,
    constant_int,
    round_up,
    substitute,
    transform,
)
from hasten.loops.nest import Call, Comment, For, Let, Stmt, Store


@dataclass(frozen=True)
class Parts:
    """What the pieces of one attention kernel share.

    `step` has the groups of depth that a tile register of matrices takes of queries and keys, and `pitch` the
    elements from one query to the next, or None where the register tile multiplies.
    """

    stage: Stage
    a: Attention
    layouts: Layouts
    tiles: tuple[Tile, ...]
    buffers: dict[str, str]
    names: Names
    step: int | None
    pitch: Expr | None

    @property
    def rows(self) -> int:
        """Queries of a tile."""
        return self.tiles[0].rows if self.step is None else PAIR

    @property
    def lanes(self) -> int:
        """Sums in a vector."""
        return self.tiles[0].lanes

    @property
    def first(self) -> Expr:
        """Where the rows and keys of a task's batch entry begin."""
        return const(0) if self.a.start is None else Var(INDEX, "start", extent_of(self.a.row))

    @property
    def queries(self) -> Expr:
        """Rows of a task's batch entry."""
        return extent_of(self.a.row) if self.a.longest is None else self.keys

    @property
    def keys(self) -> Expr:
        """Keys of a task's batch entry."""
        longest = self.a.longest
        return extent_of(self.a.key) if longest is None else Var(INDEX, "length", longest + 1)

    @property
    def dtype(self) -> DType:
        """Element type of what is multiplied."""
        return self.tiles[0].dtype

    @property
    def group(self) -> int:
        """Elements that share 32 bits."""
        return group(self.dtype)

    @property
    def packed(self) -> str:
        """The buffer that holds packed operands: the scratch memory, behind the scores."""
        return scratch_view(self.dtype).name

    def keys_at(self, pitch: Expr) -> Expr:
        """Where packed keys begin in it: behind the scores."""
        return pitch * (self.rows * self.group)

    def weights_at(self, pitch: Expr) -> Expr:
        """Where the weights of the values begin: in f32 they replace the scores."""
        return const(0) if self.group == 1 else self.keys_at(pitch) + extent_of(self.a.depth) * pitch

    def values_at(self, pitch: Expr) -> Expr:
        """Where packed values begin: behind everything else."""
        keys = self.keys_at(pitch) + extent_of(self.a.depth) * pitch
        return keys if self.group == 1 else keys + pitch * self.rows

    @property
    def summed_keys(self) -> Expr:
        """Keys that the weighted sum goes over: as many as it takes at once, and weights beyond are zero."""
        return round_up(self.keys, self.group if self.step is None else PANEL)


def extent_of(v: Var) -> Expr:
    """The extent of a variable, which has one."""
    assert v.extent is not None
    return v.extent


def value_panels(a: Attention) -> Expr:
    """Panels that the columns of the values fill."""
    return (extent_of(a.column) + (PANEL - 1)) // PANEL


def operand(p: Parts, e: Expr, label: str) -> Load:
    """The load of an operand at its address, its buffer renamed to the parameter."""
    load = flatten(e, p.layouts)
    assert isinstance(load, Load)
    p.buffers[label] = load.buffer
    return replace(load, buffer=label)


def renamed(p: Parts, e: Expr) -> Expr:
    """A mask or an epilogue at addresses, its buffers renamed to parameters."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer == ACCUMULATOR:
            return None
        known = {tensor: param for param, tensor in p.buffers.items() if param.startswith("mask")}
        label = known.get(node.buffer, f"mask{len(known)}")
        p.buffers[label] = node.buffer
        return Load(node.dtype, label, tuple(transform(i, visit) for i in node.index))

    return transform(flatten(e, p.layouts), visit)


def bound(p: Parts) -> dict[Expr, Expr]:
    """Batch and head as the locals that hold them."""
    return {v: Var(INDEX, v.name) for v in (p.a.batch, p.a.head)}


def pack_keys(p: Parts, pitch: Var) -> tuple[Stmt, ...]:
    """packed[panel][depth / group][key in panel][group] = k[key][depth].

    Keys beyond the last repeat it; their scores are not used.
    """
    a, size, lanes = p.a, p.group, p.lanes
    steps = extent_of(a.depth) // size
    panel, j, d = Var(INDEX, "panel"), Var(INDEX, "j", const(PANEL)), Var(INDEX, "d", steps)
    load = operand(p, a.k, "keys")
    contiguous = constant_int(coefficient(load.index[0], a.depth) or const(0)) == 1
    assert contiguous or size == 1
    # Whole blocks are transposed in registers, the rest of the depth goes one group at a time.
    whole = steps // lanes * lanes if contiguous else const(0)
    into = p.keys_at(pitch) + panel * (extent_of(a.depth) * PANEL) + j * size

    def key(at: Expr) -> dict[Expr, Expr]:
        return {**bound(p), a.key: p.first + binary("min", panel * PANEL + at, p.keys - 1)}

    i = Var(INDEX, "i", const(lanes))
    row = substitute(load, {**key(j + i), a.depth: const(0)})
    assert isinstance(row, Load)
    block = Call(
        transpose_name(lanes, p.dtype),
        (Address(p.dtype, "table", (const(0),)), d * size,
         Address(p.dtype, p.packed, (into + d * (PANEL * size),)), const(PANEL * size)),
    )  # fmt: skip
    blocks = (
        For(i, const(0), const(lanes), (Store("table", (i,), Address(p.dtype, "keys", row.index)),)),
        For(d, const(0), whole, (block,), step=lanes),
    )
    single = substitute(load, {**key(j), a.depth: d * size})
    assert isinstance(single, Load)
    moved = Store(p.packed, (into + d * (PANEL * size),), replace(single, lanes=size))
    body: list[Stmt] = []
    if whole != const(0):
        body.append(For(j, const(0), const(PANEL), blocks, step=lanes))
    if whole != steps:
        body.append(For(j, const(0), const(PANEL), (For(d, whole, steps, (moved,)),)))
    return (
        Comment("keys, transposed into panels"),
        For(panel, const(0), pitch // const(PANEL), tuple(body)),
    )


def pack_values(p: Parts, pitch: Var) -> tuple[Stmt, ...]:
    """packed[panel][key / group][column in panel][group] = v[key][column]; missing last keys are zero."""
    return _copy_values(p, pitch) if p.group == 1 else _pair_values(p, pitch)


def _copy_values(p: Parts, pitch: Var) -> tuple[Stmt, ...]:
    """Panels of values: in place their rows often lie so far apart that few fit the first-level cache."""
    a = p.a
    panel, key, j, width = (Var(INDEX, n) for n in ("panel", "key", "j", "width"))
    load = operand(p, a.v, "values")
    assert constant_int(coefficient(load.index[0], a.column) or const(0)) == 1
    value = substitute(load, {**bound(p), a.key: p.first + key, a.column: panel * PANEL + j})
    at = p.values_at(pitch) + panel * (pitch * PANEL) + key * PANEL + j
    row = inner_loop(Domain((j,), value, at), const(0), width, p.lanes, p.names, frozenset(), p.packed)
    return (
        Comment("values, in panels"),
        For(
            panel,
            const(0),
            value_panels(a),
            (
                Let(width, binary("min", extent_of(a.column) - panel * PANEL, const(PANEL))),
                For(key, const(0), p.keys, row),
            ),
        ),
    )


def _pair_values(p: Parts, pitch: Var) -> tuple[Stmt, ...]:
    """Panels of values in pairs of keys."""
    a = p.a
    panel, pair, j = Var(INDEX, "panel"), Var(INDEX, "pair"), Var(INDEX, "j", const(PANEL))
    load = operand(p, a.v, "values")
    values = {**bound(p), a.column: panel * PANEL + j}
    even, odd = (
        _or_zero(
            Op(DType.BOOL, "lt", (pair * 2 + half, p.keys)),
            replace(substitute(load, {**values, a.key: p.first + pair * 2 + half}), lanes=p.lanes),
        )
        for half in (0, 1)
    )
    value = Op(p.dtype, "interleave", (even, odd), lanes=2 * p.lanes)
    at = p.values_at(pitch) + panel * (pitch * PANEL) + pair * (2 * PANEL) + j * 2
    inner = For(j, const(0), const(PANEL), (Store(p.packed, (at,), value),), step=p.lanes)
    pairs = p.summed_keys // 2
    return (
        Comment("values, two keys side by side"),
        For(panel, const(0), value_panels(a), (For(pair, const(0), pairs, (inner,)),)),
    )


def _or_zero(condition: Expr, value: Expr) -> Expr:
    """What is loaded where a condition holds, else 0."""
    zero = Op(value.dtype, "broadcast", (const(0.0, value.dtype),), lanes=value.lanes)
    return Op(value.dtype, "select", (condition, value, zero), lanes=value.lanes)
