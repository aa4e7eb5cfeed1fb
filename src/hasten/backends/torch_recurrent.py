"""RNN, GRU and LSTM in PyTorch, step by step: PyTorch's own know no peepholes, clips or other activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from hasten.backends.torch_node import Inputs, Run, attribute, maybe, operand

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]
"""h, and c of an LSTM, each [batch, units]."""

_FUNCTIONS: Mapping[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "sigmoid": (torch.sigmoid, ()),
    "tanh": (torch.tanh, ()),
    "relu": (torch.relu, ()),
    "softsign": (F.softsign, ()),
    "softplus": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), ()),
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "thresholdedrelu": (lambda x, alpha: F.threshold(x, alpha, 0.0), (1.0,)),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (1.0, 1.0)),
    "hardsigmoid": (lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), (0.2, 0.5)),
    "elu": (F.elu, (1.0,)),
}
"""Activations by name in lower case, and the defaults of alpha and beta where they take them."""


@dataclass(frozen=True)
class _Cell:
    """One direction of a node.

    Attributes:
        weights: of the recurrence, [gates, units, units].
        bias: of the input and of the recurrence, [2, gates, units].
        peepholes: [3, units], of an LSTM that has some.
        functions: the activations.
        clip: bound of what gates get, or None.
        flag: GRU: whether the reset comes behind the product; LSTM: whether input and forgetting are coupled.
    """

    weights: Tensor
    bias: Tensor
    peepholes: Tensor | None
    functions: tuple[Activation, ...]
    clip: float | None
    flag: bool

    def gate(self, number: int, x: Tensor) -> Tensor:
        """An activation of what a gate gets, within bounds."""
        return self.functions[number](x if self.clip is None else x.clamp(-self.clip, self.clip))

    def recurrent(self, h: Tensor, gate: int) -> Tensor:
        """What a gate gets from the step before."""
        return h @ self.weights[gate].T + self.bias[1, gate]


def _rnn(cell: _Cell, x: Tensor, states: States) -> States:
    """H' = f(x W + h R + b)."""
    return (cell.gate(0, x[0] + cell.recurrent(states[0], 0)),)


def _gru(cell: _Cell, x: Tensor, states: States) -> States:
    """Gates z, r and h."""
    (h,) = states
    z, r = (cell.gate(0, x[k] + cell.recurrent(h, k)) for k in (0, 1))
    new = cell.gate(1, x[2] + (r * cell.recurrent(h, 2) if cell.flag else cell.recurrent(r * h, 2)))
    return ((1 - z) * new + z * h,)


def _lstm(cell: _Cell, x: Tensor, states: States) -> States:
    """Gates i, o, f and c; peepholes see the cell, that of o the new one."""
    h, c = states

    def gate(number: int, peephole: int, seen: Tensor) -> Tensor:
        value = x[number] + cell.recurrent(h, number)
        return cell.gate(0, value if cell.peepholes is None else value + cell.peepholes[peephole] * seen)

    i = gate(0, 0, c)
    f = 1 - i if cell.flag else gate(2, 2, c)
    carried = f * c + i * cell.gate(1, x[3] + cell.recurrent(h, 3))
    return gate(1, 1, carried) * cell.functions[2](carried), carried


def _run(gates: int, defaults: Sequence[str], flag: str, step: Callable[..., States]) -> Run:
    """A node of so many gates: all steps of each direction; gives Y, Y_h and, of an LSTM, Y_c."""

    def run(node: ir.Node, inputs: Inputs) -> Sequence[Tensor]:
        batchwise = bool(attribute(node, "layout", 0))
        x, w, r = operand(inputs), operand(inputs, 1), operand(inputs, 2)
        x = x.transpose(0, 1) if batchwise else x
        steps, batch, units, directions = *x.shape[:2], r.shape[2], len(w)
        given = [maybe(inputs, 5 + k) for k in range(2 if step is _lstm else 1)]
        given = [t.transpose(0, 1) if t is not None and batchwise else t for t in given]
        zeros = x.new_zeros(directions, batch, units)
        bias, holes = maybe(inputs, 3), maybe(inputs, 7) if step is _lstm else None
        bias = x.new_zeros(directions, 2 * gates * units) if bias is None else bias
        lengths = maybe(inputs, 4)
        ends = torch.full((batch,), steps) if lengths is None else lengths.long().clamp(0, steps)
        functions, clip = _activations(node, directions, defaults), attribute(node, "clip", 0.0)
        every, last = [], []
        for d in range(directions):
            cell = _Cell(
                r[d].reshape(gates, units, units),
                bias[d].reshape(2, gates, units),
                None if holes is None else holes[d].reshape(3, units),
                functions[d],
                clip if clip > 0 else None,
                bool(attribute(node, flag, 0)),
            )
            first = tuple((zeros if t is None else t)[d] for t in given)
            back = d == 1 or attribute(node, "direction", "forward") == "reverse"
            shown, states = _direction(cell, step, x @ w[d].T, first, ends, back)
            every.append(shown)
            last.append(states)
        y = torch.stack(every, 1)
        found = [torch.stack(states) for states in zip(*last, strict=True)]
        if batchwise:
            return [y.permute(2, 0, 1, 3), *(t.transpose(0, 1) for t in found)]
        return [y, *found]

    return run


def _direction(
    cell: _Cell, step: Callable[..., States], x: Tensor, states: States, ends: Tensor, back: bool
) -> tuple[Tensor, States]:
    """All steps of one direction: h after each, [steps, batch, units], and the states after the last.

    Args:
        cell: the direction.
        step: one step.
        x: products of what is read, [steps, batch, gates * units].
        states: before the first step.
        ends: steps of each sequence; behind them h is 0 and states stay.
        back: whether each sequence is read from its end.
    """
    count, (gates, units) = len(x), cell.bias.shape[1:]
    places = torch.arange(count)[:, None].expand(count, len(ends))
    there = places < ends
    if back:
        places = torch.where(there, ends - 1 - places, places)
        x = x.gather(0, places[..., None].expand_as(x))
    x = x.reshape(count, -1, gates, units).transpose(1, 2) + cell.bias[0][:, None]
    shown = []
    for k in range(count):
        stays = there[k][:, None]
        made = step(cell, x[k], states)
        states = tuple(torch.where(stays, new, old) for new, old in zip(made, states, strict=True))
        shown.append(torch.where(stays, made[0], torch.zeros_like(made[0])))
    y = torch.stack(shown)
    return (y.gather(0, places[..., None].expand_as(y)) if back else y), states


def _activations(node: ir.Node, directions: int, defaults: Sequence[str]) -> list[tuple[Activation, ...]]:
    """Those of each direction; alpha and beta are listed for the functions that take them, in order."""
    names = attribute(node, "activations", list(defaults) * directions)
    queues = [attribute(node, key, []) for key in ("activation_alpha", "activation_beta")]
    made: list[Activation] = []
    for name in names:
        if name.lower() not in _FUNCTIONS:
            raise NotImplementedError(f"the activation {name}")
        function, fallback = _FUNCTIONS[name.lower()]
        numbers = [q.pop(0) if q else f for q, f in zip(queues, fallback, strict=False)]
        made.append(_bound(function, numbers))
    size = len(defaults)
    return [tuple(made[d * size : (d + 1) * size]) for d in range(directions)]


def _bound(function: Callable[..., Tensor], numbers: Sequence[float]) -> Activation:
    return lambda x: function(x, *numbers)


RECURRENT: Mapping[str, Run] = {
    "RNN": _run(1, ("Tanh",), "", _rnn),
    "GRU": _run(3, ("Sigmoid", "Tanh"), "linear_before_reset", _gru),
    "LSTM": _run(4, ("Sigmoid", "Tanh", "Tanh"), "input_forget", _lstm),
}
