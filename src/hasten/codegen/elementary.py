"""Operations that C has no operator for, as expressions of those that it has."""

from __future__ import annotations

import math

from hasten.codegen.vector_math import exp_for_bf16, exp_nonpositive, expand, expand2, gelu_erf
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, const, unary


def expand_operation(op: str, arguments: tuple[Expr, ...]) -> Expr | None:
    """The expression to print for an operation, or None where a helper or the C library has it.

    Args:
        op: an operation of the loop IR, or `exp_nonpositive` and `exp_for_bf16`, which kernels use where
            x <= 0 is known.
        arguments: its operands, of any number of lanes.
    """
    if len(arguments) == 2:
        return expand2(op, *arguments)
    if len(arguments) != 1:
        return None
    (x,) = arguments
    if op == "exp_for_bf16":
        return exp_for_bf16(x)
    if op == "exp_nonpositive":
        return exp_nonpositive(x)
    if op == "gelu":
        return gelu_erf(x) if x.dtype is DType.F32 else _gelu(x)
    return expand(op, x)


def _gelu(x: Expr) -> Expr:
    erf = unary("erf", binary("mul", x, const(math.sqrt(0.5), x.dtype)))
    half = binary("mul", const(0.5, x.dtype), x)
    return binary("mul", half, binary("add", erf, const(1.0, x.dtype)))
