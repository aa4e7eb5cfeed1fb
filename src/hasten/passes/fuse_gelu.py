"""GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415) from its arithmetic.

Both forms are x/2 + x/2 * f(u), with f = erf and u = x / sqrt(2), or f = tanh and
u = sqrt(2/pi) * (x + 0.044715 x^3). Exporters write them in many orders, so instead of listing
spellings, the expression is expanded as a polynomial and its coefficients are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from hasten.passes.facts import Facts
from hasten.passes.rule import Builder, Declined, Match, Op, Rule, used_elsewhere
from hasten.passes.scalars import scalar_value, wider

Polynomial = dict[tuple[int, int], float]  # (power of x, power of f(u)) -> coefficient

_DEPTH = 6  # no spelling nests deeper
_TOLERANCE = 2e-4  # exporters write 0.7071, 0.7979 and 0.0447
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_HALF = {(1, 0): 0.5, (1, 1): 0.5}
_INNER = {
    "Erf": {(1, 0): math.sqrt(0.5)},
    "Tanh": {(1, 0): math.sqrt(2 / math.pi), (3, 0): math.sqrt(2 / math.pi) * 0.044715},
}


def expand(
    value: ir.Value | None, x: ir.Value, f: ir.Value | None, nodes: list[ir.Node], depth: int
) -> Polynomial | None:
    """Write `value` as a polynomial in `x` and `f`; the nodes on the way are appended to `nodes`.

    Returns:
        None where anything but arithmetic, constants, `x` and `f` takes part.
    """
    if value is x:
        return {(1, 0): 1.0}
    if f is not None and value is f:
        return {(0, 1): 1.0}
    constant = scalar_value(value)
    if constant is not None:
        return {(0, 0): constant}
    node = None if value is None else value.producer()
    if node is None or depth == 0 or node.op_type not in _ARITHMETIC or node.domain:
        return None
    left = expand(node.inputs[0], x, f, nodes, depth - 1)
    right = expand(node.inputs[1], x, f, nodes, depth - 1)
    if left is None or right is None:
        return None
    nodes.append(node)
    return _combine(node.op_type, left, right)


def _combine(kind: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if kind in ("Add", "Sub"):
        sign = 1.0 if kind == "Add" else -1.0
        result = dict(left)
        for power, factor in right.items():
            result[power] = result.get(power, 0.0) + sign * factor
        return result
    if kind == "Mul":
        return _product(left, right)
    constant = right.get((0, 0)) if set(right) == {(0, 0)} else None
    if constant is None:
        return None
    if kind == "Div":
        return None if constant == 0 else _product(left, {(0, 0): 1 / constant})
    if constant not in (2.0, 3.0):
        return None
    result = left
    for _ in range(int(constant) - 1):
        result = _product(result, left)
    return result


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for (a, b), first in left.items():
        for (c, d), second in right.items():
            result[a + c, b + d] = result.get((a + c, b + d), 0.0) + first * second
    return result


def _equal(found: Polynomial | None, expected: Polynomial) -> bool:
    if found is None:
        return False
    terms = {power for power, factor in found.items() if abs(factor) > 1e-7}
    return terms == set(expected) and all(
        abs(found[p] - expected[p]) <= _TOLERANCE * abs(expected[p]) for p in expected
    )


def _inner_function(value: ir.Value | None, depth: int) -> ir.Node | None:
    """The Erf or Tanh from which a product or sum is computed."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _INNER:
        return node
    if depth == 0 or node.op_type not in _ARITHMETIC:
        return None
    for source in node.inputs:
        found = _inner_function(source, depth - 1)
        if found is not None:
            return found
    return None


def _candidates(value: ir.Value | None, depth: int) -> Iterator[ir.Value]:
    """Values from which the argument of erf or tanh may be computed, nearest first."""
    node = None if value is None else value.producer()
    if depth == 0 or node is None or node.op_type not in _ARITHMETIC or node.domain:
        return
    sources = [v for v in node.inputs if v is not None and scalar_value(v) is None]
    yield from sources
    for source in sources:
        yield from _candidates(source, depth - 1)


def _rewrite(match: Match, facts: Facts, build: Builder) -> ir.Value | Declined | None:
    inner = _inner_function(match.output, depth=4)
    if inner is None:
        return None
    for x in dict.fromkeys(_candidates(inner.inputs[0], _DEPTH)):
        nodes: list[ir.Node] = [inner]
        if not _equal(expand(match.output, x, inner.outputs[0], nodes, _DEPTH), _HALF):
            continue
        argument = expand(inner.inputs[0], x, None, nodes, _DEPTH)
        if not _equal(argument, _INNER[inner.op_type]):
            return Declined(
                f"the argument of {inner.op_type} is not that of a GELU: "
                f"coefficients {argument} for (power of x, 0)"
            )
        reason = used_elsewhere(nodes, match.root) or wider(facts, match.output, x)
        if reason is not None:
            return Declined(reason)
        approximate = "none" if inner.op_type == "Erf" else "tanh"
        return build.op("Gelu", [x], {"approximate": approximate})
    return None


GELU = Rule("fuse Gelu", Op(("Mul", "Add", "Div")), _rewrite)
