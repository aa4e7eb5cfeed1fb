"""Elementary functions as branch-free expressions: one definition for scalars, vectors and the interpreter.

An expansion uses add, sub, mul, div, abs, sqrt, comparisons, select, round, floor, cast, bitcast and
integer add, sub, shifts and bit operations. Bounds, with and without fused multiply-add, are held by
tests/codegen/test_vector_math.py; docs/decisions/0003-vector-math.md lists them and the costs.

Integer sums and left shifts may overflow and then wrap: where x is NaN or infinite, bits that are not
used hold anything.
"""

from __future__ import annotations

from hasten.codegen.math.exponential import exp, exp_for_bf16, exp_nonpositive, sigmoid
from hasten.codegen.math.gelu import gelu_erf
from hasten.codegen.math.logarithm import log_f32, log_f64
from hasten.codegen.math.power import pow_f32
from hasten.codegen.math.saturating import erf_f32, tanh
from hasten.codegen.math.trigonometric import cos_f32, sin_f32
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr

__all__ = ["exp_for_bf16", "exp_nonpositive", "expand", "expand2", "gelu_erf"]


def expand(op: str, x: Expr) -> Expr | None:
    """The function of x in elementary operations, within 4 units in the last place.

    Args:
        op: exp, log, tanh, sigmoid, erf, sin or cos.
        x: float32 or, except for erf, sin and cos, float64; of any number of lanes.

    Returns:
        The expression, or None where there is no expansion: call the C library instead.
    """
    match op, x.dtype:
        case "exp", DType.F32 | DType.F64:
            return exp(x)
        case "sigmoid", DType.F32 | DType.F64:
            return sigmoid(x)
        case "log", DType.F32:
            return log_f32(x)
        case "log", DType.F64:
            return log_f64(x)
        case "tanh", DType.F32 | DType.F64:
            return tanh(x)
        case "erf", DType.F32:
            return erf_f32(x)
        case "sin", DType.F32:
            return sin_f32(x)
        case "cos", DType.F32:
            return cos_f32(x)
        case _:
            return None


def expand2(op: str, x: Expr, y: Expr) -> Expr | None:
    """The function of x and y in elementary operations: `pow` of float32, else None."""
    return pow_f32(x, y) if op == "pow" and x.dtype is DType.F32 and y.dtype is DType.F32 else None
