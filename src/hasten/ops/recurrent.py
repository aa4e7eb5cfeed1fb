"""RNN, GRU and LSTM: one product over all time steps, and a recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from hasten.loops.descriptions import Gemm, Recurrence
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Expr, Var, binary, cast, const, reduce, select, unary, var
from hasten.ops.activations import (
    elu,
    hard_sigmoid,
    leaky_relu,
    softplus,
    softsign,
    thresholded_relu,
)
from hasten.ops.attributes import attribute_float, attribute_int, attribute_str
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required
from hasten.ops.indices import clamp

Activation = Callable[[Expr], Expr]


def _relu(x: Expr) -> Expr:
    return binary("max", x, const(0.0, x.dtype))


def _affine(x: Expr, alpha: Expr, beta: Expr) -> Expr:
    return binary("add", binary("mul", alpha, x), beta)


def _scaled_tanh(x: Expr, alpha: Expr, beta: Expr) -> Expr:
    return binary("mul", alpha, unary("tanh", binary("mul", beta, x)))


_FUNCTIONS: dict[str, tuple[Callable[..., Expr], tuple[float, ...]]] = {
    "sigmoid": (lambda x: unary("sigmoid", x), ()),
    "tanh": (lambda x: unary("tanh", x), ()),
    "relu": (_relu, ()),
    "softsign": (softsign, ()),
    "softplus": (softplus, ()),
    "affine": (_affine, (1.0, 0.0)),
    "leakyrelu": (leaky_relu, (0.01,)),
    "thresholdedrelu": (thresholded_relu, (1.0,)),
    "scaledtanh": (_scaled_tanh, (1.0, 1.0)),
    "hardsigmoid": (hard_sigmoid, (0.2, 0.5)),
    "elu": (elu, (1.0,)),
}
"""Activations by name in lower case, and the defaults of alpha and beta where they take them."""


@dataclass(frozen=True)
class _Cell:
    """One node, its tensors indexed as if the layout were the default one.

    Attributes:
        ctx: the program being built.
        node: the node.
        gates: number of gates.
        x: input, [time, batch, features], or [batch, time, features] with `batchwise`.
        weights: recurrent weights for [direction, gate, depth, unit].
        bias: bias of input and recurrence, [direction, 2 * gates * units], or None.
        lengths: steps of each sequence, or None.
        batchwise: layout 1.
        directions: number of directions.
        backward: only one direction, the reverse one.
        units: number of units.
        functions: for each direction its activations.
        clip: bound of what activations get, or None.
    """

    ctx: Lowering
    node: ir.Node
    gates: int
    x: Tensor
    projected: Tensor
    weights: Tensor
    bias: Tensor | None
    lengths: Tensor | None
    batchwise: bool
    directions: int
    backward: bool
    units: Expr
    functions: tuple[tuple[Activation, ...], ...]
    clip: float | None

    @property
    def steps(self) -> Expr:
        return self.x.shape[1 if self.batchwise else 0]

    @property
    def batch(self) -> Expr:
        return self.x.shape[0 if self.batchwise else 1]

    def activate(self, number: int, direction: Expr, value: Expr) -> Expr:
        """An activation, with what it gets clipped."""
        if self.clip is not None:
            limit = const(self.clip, value.dtype)
            value = clamp(value, const(-self.clip, value.dtype), limit)
        results = [functions[number](value) for functions in self.functions]
        if len(results) == 1 or results[0] == results[1]:
            return results[0]
        return select(binary("eq", direction, const(0)), results[0], results[1])

    def length(self, batch: Expr) -> Expr:
        if self.lengths is None:
            return self.steps
        return clamp(cast(self.lengths.at(batch), INDEX), const(0), self.steps)

    def position(self, direction: Expr, batch: Expr, step: Expr) -> Expr:
        """Where in the sequence a step of a direction is."""
        back = self.length(batch) - 1 - step
        if self.directions == 1:
            return back if self.backward else step
        return select(binary("eq", direction, const(0)), step, back)


def _cell(ctx: Lowering, node: ir.Node, inputs: Inputs, gates: int, defaults: Sequence[str]) -> _Cell:
    """Reads what the three operators have in common, and projects the input."""
    x, w, r = required(inputs, 0), required(inputs, 1), required(inputs, 2)
    bias, lengths = optional(inputs, 3), optional(inputs, 4)
    if x.dtype is not DType.F32:
        raise Declined(f"{node.op_type} of {x.dtype}")
    direction = attribute_str(node, "direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Declined(f"direction is '{direction}', not forward, reverse or bidirectional")
    directions = 2 if direction == "bidirectional" else 1
    batchwise = attribute_int(node, "layout", 0) == 1
    if (lengths is not None and lengths.rank != 1) or any(t.rank != 3 for t in (x, w, r)):
        raise Declined(f"{node.op_type} whose input or weights have not 3 axes, or whose lengths have not 1")
    units = r.shape[2]
    ctx.require_equal(w.shape[1], units * gates)
    ctx.require_equal(r.shape[1], units * gates)
    ctx.require_equal(w.shape[2], x.shape[2])
    for t in (w, r):
        ctx.require_equal(t.shape[0], const(directions))
    if lengths is not None:
        ctx.require_equal(lengths.shape[0], x.shape[0 if batchwise else 1])
    clip = attribute_float(node, "clip", -1.0)
    return _Cell(
        ctx,
        node,
        gates,
        x,
        _projected(ctx, x, w, units * (gates * directions)),
        _by_depth(ctx, r, gates, units),
        bias,
        lengths,
        batchwise,
        directions,
        direction == "reverse",
        units,
        _activations(node, directions, defaults),
        clip if clip > 0 else None,
    )


def _projected(ctx: Lowering, x: Tensor, w: Tensor, columns: Expr) -> Tensor:
    """The product of all inputs with the weights of all directions and gates: [.., .., column]."""

    def body(i: Var, j: Var, column: Var) -> Gemm:
        depth = var("k", x.shape[2])
        height = w.shape[1]
        weight = w.at(column // height, column % height, depth)
        return Gemm((), (i, j), column, (), depth, x.at(i, j, depth), weight)

    return ctx.temporary([*x.shape[:2], columns], body, x.dtype, "projected", vars=("i", "j", "n"))


def _by_depth(ctx: Lowering, r: Tensor, gates: int, units: Expr) -> Tensor:
    """Recurrent weights as [direction, gate, depth, unit], in memory: units are computed side by side."""
    known = ctx.constant_of(r)
    if known is not None:
        count, rows, width = known.shape
        turned = known.reshape(count, gates, rows // gates, width).transpose(0, 1, 3, 2)
        return ctx.constant(np.ascontiguousarray(turned), "recurrent")

    def body(d: Expr, g: Expr, k: Expr, j: Expr) -> Expr:
        return r.at(d, g * units + j, k)

    return ctx.temporary([r.shape[0], const(gates), units, units], body, r.dtype, "recurrent")


def _activations(
    node: ir.Node, directions: int, defaults: Sequence[str]
) -> tuple[tuple[Activation, ...], ...]:
    attribute = node.attributes.get("activations")
    names = list(defaults) * directions if attribute is None else [str(n) for n in attribute.as_strings()]
    if len(names) != directions * len(defaults):
        raise Declined(f"{len(names)} activations for {directions} directions")
    given = [node.attributes.get(key) for key in ("activation_alpha", "activation_beta")]
    queues = [[] if a is None else list(a.as_floats()) for a in given]
    made: list[Activation] = []
    for name in names:
        found = _FUNCTIONS.get(name.lower())
        if found is None:
            raise Declined(f"the activation {name} is not known")
        function, fallback = found
        # alpha and beta are listed for the functions that take them, in order.
        numbers = [q.pop(0) if q else f for q, f in zip(queues, fallback, strict=False)]
        made.append(_bound(function, numbers))
    size = len(defaults)
    return tuple(tuple(made[d * size : (d + 1) * size]) for d in range(directions))


def _bound(function: Callable[..., Expr], numbers: Sequence[float]) -> Activation:
    return lambda x: function(x, *(const(float(n), x.dtype) for n in numbers))


@dataclass(frozen=True)
class _Step:
    """What the bodies of a step are written in terms of."""

    cell: _Cell
    direction: Var
    batch: Var
    step: Var
    unit: Var

    def local(self, name: str, unit: Expr) -> Expr:
        lanes = Tensor(name, DType.F32, (const(self.cell.directions), self.cell.batch, self.cell.units))
        return lanes.at(self.direction, self.batch, unit)

    def state(self, name: str) -> Expr:
        return self.local(name, self.unit)

    def input(self, gate: int) -> Expr:
        """The projected input of a gate with its bias."""
        cell = self.cell
        time = cell.position(self.direction, self.batch, self.step)
        column = (self.direction * cell.gates + gate) * cell.units + self.unit
        first, second = (self.batch, time) if cell.batchwise else (time, self.batch)
        value = cell.projected.at(first, second, column)
        return self.biased(value, gate)

    def biased(self, value: Expr, gate: int) -> Expr:
        if self.cell.bias is None:
            return value
        return binary("add", value, self.cell.bias.at(self.direction, self.cell.units * gate + self.unit))

    def recurrent(self, name: str, gate: int, number: int) -> Expr:
        """The sum over all units of a local vector times the weights of a gate, with its bias."""
        depth = var(f"k{number}", self.cell.units)
        weight = self.cell.weights.at(self.direction, const(gate), depth, self.unit)
        total = reduce("sum", (depth,), binary("mul", self.local(name, depth), weight))
        return self.biased(total, self.cell.gates + gate)

    def gate(self, name: str, gate: int, number: int) -> Expr:
        return binary("add", self.input(gate), self.recurrent(name, gate, number))

    def activate(self, number: int, value: Expr) -> Expr:
        return self.cell.activate(number, self.direction, value)


def _run(
    cell: _Cell,
    initial: Sequence[Tensor | None],
    bodies: Callable[[_Step], dict[str, Expr]],
    states: Sequence[str],
) -> list[Tensor]:
    """Defines the recurrence and the outputs Y, Y_h and, with two states, Y_c.

    Args:
        cell: the node.
        initial: the first states; None for zeros.
        bodies: what a step computes, by name; next states are named like the states with a "'".
        states: names of the states.
    """
    ctx = cell.ctx
    lanes = (Var(INDEX, "d", const(cell.directions)), Var(INDEX, "b", ctx.dim(cell.batch)))
    step = Var(INDEX, "s", cell.steps)
    shape = [const(len(states)), *(v.extent for v in lanes if v.extent is not None), cell.steps, cell.units]
    prefix = ctx.names[0]
    name = {s: f"{prefix}.{s}" for s in states}

    def first(t: Tensor | None, direction: Expr, batch: Expr, unit: Expr) -> Expr:
        if t is None:
            return const(0.0, DType.F32)
        return t.at(batch, direction, unit) if cell.batchwise else t.at(direction, batch, unit)

    def body(which: Var, d: Var, b: Var, position: Var, unit: Var) -> Recurrence:
        made = bodies(_Step(cell, d, b, step, unit))
        return Recurrence(
            which,
            (d, b),
            position,
            unit,
            step,
            tuple(name.values()),
            tuple(first(t, d, b, unit) for t in initial),
            tuple(f"{prefix}.{n}" for n in made),
            tuple(made.values()),
            tuple(f"{name[s]}'" for s in states),
            cell.length(b),
            cell.position(d, b, step),
        )

    out = ctx.temporary(shape, body, DType.F32, "states", vars=("which", "d", "b", "p", "j"))

    def last(number: int, d: Expr, b: Expr, j: Expr) -> Expr:
        length = cell.length(b)
        end = length - 1
        forward = binary("max", end, const(0))
        if cell.directions == 2:
            at = select(binary("eq", d, const(0)), forward, const(0))
        else:
            at = const(0) if cell.backward else forward
        found = out.at(const(number), d, b, at, j)
        return select(binary("eq", length, const(0)), first(initial[number], d, b, j), found)

    d_, b_ = const(cell.directions), cell.batch
    if cell.batchwise:
        every = ctx.define(
            [b_, cell.steps, d_, cell.units], lambda b, t, d, j: out.at(const(0), d, b, t, j), DType.F32
        )
        ends = [
            ctx.define([b_, d_, cell.units], lambda b, d, j, n=n: last(n, d, b, j), DType.F32)
            for n in range(len(states))
        ]
    else:
        every = ctx.define(
            [cell.steps, d_, b_, cell.units], lambda t, d, b, j: out.at(const(0), d, b, t, j), DType.F32
        )
        ends = [
            ctx.define([d_, b_, cell.units], lambda d, b, j, n=n: last(n, d, b, j), DType.F32)
            for n in range(len(states))
        ]
    return [every, *ends]


def lower_rnn(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """H' = f(x W + h R + b) (Elman, Finding structure in time, 1990)."""
    cell = _cell(ctx, node, inputs, 1, ("Tanh",))

    def bodies(s: _Step) -> dict[str, Expr]:
        return {"h'": s.activate(0, s.gate(_h(ctx), 0, 0))}

    return _run(cell, [optional(inputs, 5)], bodies, ["h"])


def lower_gru(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Gates z, r and h (Cho et al., Learning phrase representations using RNN encoder-decoder, 2014)."""
    cell = _cell(ctx, node, inputs, 3, ("Sigmoid", "Tanh"))
    after = attribute_int(node, "linear_before_reset", 0) != 0

    def bodies(s: _Step) -> dict[str, Expr]:
        h = _h(ctx)
        made: dict[str, Expr] = {}
        z = s.activate(0, s.gate(h, 0, 0))
        r = s.activate(0, s.gate(h, 1, 1))
        if after:
            inner = binary("add", s.input(2), binary("mul", r, s.recurrent(h, 2, 2)))
        else:
            made["reset"] = binary("mul", r, s.state(h))
            inner = s.gate(f"{ctx.names[0]}.reset", 2, 2)
        new = s.activate(1, inner)
        one = const(1.0, DType.F32)
        kept = binary("mul", z, s.state(h))
        made["h'"] = binary("add", binary("mul", binary("sub", one, z), new), kept)
        return made

    return _run(cell, [optional(inputs, 5)], bodies, ["h"])


def lower_lstm(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """Gates i, o, f and c (Hochreiter and Schmidhuber, 1997; peepholes: Gers and Schmidhuber, 2000)."""
    cell = _cell(ctx, node, inputs, 4, ("Sigmoid", "Tanh", "Tanh"))
    peepholes = optional(inputs, 7)
    coupled = attribute_int(node, "input_forget", 0) != 0

    def bodies(s: _Step) -> dict[str, Expr]:
        h, c, new = _h(ctx), f"{ctx.names[0]}.c", f"{ctx.names[0]}.c'"

        def gate(number: int, peephole: int, state: str) -> Expr:
            value = s.gate(h, number, number)
            if peepholes is not None:
                weight = peepholes.at(s.direction, cell.units * peephole + s.unit)
                value = binary("add", value, binary("mul", weight, s.state(state)))
            return s.activate(0, value)

        i = gate(0, 0, c)
        f = binary("sub", const(1.0, DType.F32), i) if coupled else gate(2, 2, c)
        candidate = s.activate(1, s.gate(h, 3, 3))
        carried = binary("add", binary("mul", f, s.state(c)), binary("mul", i, candidate))
        shown = _unclipped(cell, 2, s.direction, s.state(new))
        return {"c'": carried, "h'": binary("mul", gate(1, 1, new), shown)}

    return _run(cell, [optional(inputs, 5), optional(inputs, 6)], bodies, ["h", "c"])


def _unclipped(cell: _Cell, number: int, direction: Expr, value: Expr) -> Expr:
    """An activation of a state, which is no input of a gate and so not clipped."""
    return replace(cell, clip=None).activate(number, direction, value)


def _h(ctx: Lowering) -> str:
    return f"{ctx.names[0]}.h"


OPS: tuple[Op, ...] = (
    Op(name="RNN", lower=lower_rnn),
    Op(name="GRU", lower=lower_gru),
    Op(name="LSTM", lower=lower_lstm),
)
