"""What is known of elements when a model is compiled: expressions of sizes, through all that defines them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hasten.loops.expr import (
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    binary,
    const,
    constant_int,
    substitute,
    transform,
    walk,
)
from hasten.loops.program import Program

SMALL_TENSOR = 64
"""Largest number of elements for which a tensor's symbolic values are worked out."""

Read = Callable[[str, tuple[int, ...]], Expr | None]
"""Gives the whole number that is read from an input at each call, at an index."""

_ARITHMETIC = frozenset(
    ["add", "sub", "mul", "floordiv", "mod", "min", "max",
     "select", "cast", "lt", "le", "eq", "ne", "and", "or"]
)  # fmt: skip
"""What a plan computes of numbers that it reads; a kernel computes the rest."""


def resolved(program: Program, e: Expr, read: Read | None = None) -> Expr | None:
    """An expression with every load resolved through constants and definitions, or None.

    Args:
        program: that the buffers are of.
        e: the expression.
        read: for integers of small inputs; None where nothing may be read.
    """
    missing = False

    def visit(node: Expr) -> Expr | None:
        nonlocal missing
        if isinstance(node, Op) and node.op == "select":
            # Only the branch taken is looked at: the other may index outside its tensor.
            condition = resolved(program, node.args[0], read)
            if isinstance(condition, Const):
                taken = resolved(program, node.args[1] if condition.value else node.args[2], read)
                missing = missing or taken is None
                return taken if taken is not None else node
        if not isinstance(node, Load | Reduce):
            return None
        found = _loaded(program, node, read) if isinstance(node, Load) else _unrolled(program, node, read)
        missing = missing or found is None
        return found if found is not None else node

    result = transform(e, visit)
    return None if missing else result


def is_arithmetic(e: Expr) -> bool:
    """Whether a plan can compute an expression of sizes; true for all that reads no numbers."""
    nodes = list(walk(e))
    if not any(is_signed(n) for n in nodes):
        return True
    return all(
        isinstance(n, Const | Size) or (isinstance(n, Op) and n.op in _ARITHMETIC and not n.dtype.is_float)
        for n in nodes
    )


def is_signed(e: Expr) -> bool:
    """Whether an expression is a number that is read from a tensor, which may be negative."""
    return isinstance(e, Size) and e.signed


def _loaded(program: Program, node: Load, read: Read | None) -> Expr | None:
    """The element that a load reads, if it does not depend on data, or is an integer of a small input."""
    index: list[Expr] = []
    for i in node.index:
        known = resolved(program, i, read)
        if known is None:
            return None
        index.append(known)
    at = tuple(int(i.value) for i in index if isinstance(i, Const))
    if node.buffer in program.constants:
        array = program.constants[node.buffer]
        return const(array[at].item(), node.dtype) if len(at) == len(index) else None
    if node.buffer in program.inputs:
        dims = [constant_int(n) or 0 for n in program.inputs[node.buffer].shape]
        inside = len(at) == len(index) and all(0 <= i < n for i, n in zip(at, dims, strict=True))
        if read is None or not inside or math.prod(dims) > SMALL_TENSOR:
            return None
        return read(node.buffer, at)
    definition = program.definitions.get(node.buffer)
    if definition is None or not isinstance(definition.body, Expr):
        return None
    places: dict[Expr, Expr] = dict(zip(definition.vars, index, strict=True))
    return resolved(program, substitute(definition.body, places), read)


def _unrolled(program: Program, node: Reduce, read: Read | None) -> Expr | None:
    """A reduction over few constant indices, as of a shape's dimensions, term by term."""
    extents = [constant_int(v.extent) for v in node.vars]
    counts = [n for n in extents if n is not None]
    if len(counts) != len(extents) or math.prod(counts) > SMALL_TENSOR:
        return None
    op = {"sum": "add", "prod": "mul"}.get(node.op, node.op)
    result: Expr | None = None
    for index in np.ndindex(*counts):
        at: dict[Expr, Expr] = {v: const(i) for v, i in zip(node.vars, index, strict=True)}
        term = resolved(program, substitute(node.body, at), read)
        if term is None:
            return None
        result = term if result is None else binary(op, result, term)
    if result is None and node.op in ("sum", "prod"):
        return const(int(node.op == "prod"), node.dtype)
    return result
