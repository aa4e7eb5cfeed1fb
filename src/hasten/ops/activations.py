"""Activation functions, composed from the operations of the loop IR."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, binary, cast, const, select, unary
from hasten.ops.attributes import attribute_float, attribute_str
from hasten.ops.base import Declined, Inputs, Lower, Lowering, Op, Tensor, required
from hasten.ops.elementwise import elementwise, unary_lower
from hasten.ops.pruning import ELEMENTWISE, alike


def lower_relu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """max(x, 0)."""
    x = required(inputs, 0)
    return elementwise(ctx, [x], lambda a: binary("max", a, const(0, x.dtype)), x.dtype)


def activation_lower(function: Callable[..., Expr], **defaults: float) -> Lower:
    """Lowering of a function of one element and of float attributes with these defaults."""

    def lower(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x = required(inputs, 0)
        work = x.dtype if x.dtype.is_float else DType.F64  # Shrink takes integers, and its numbers are none
        values = {
            name: const(attribute_float(node, name, default), work) for name, default in defaults.items()
        }
        return elementwise(ctx, [x], lambda a: cast(function(cast(a, work), **values), x.dtype), x.dtype)

    return lower


def lower_prelu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X where it is not negative, else slope * x; the slope broadcasts to x."""
    x, slope = required(inputs, 0), required(inputs, 1)
    return elementwise(ctx, [x, slope], leaky_relu, x.dtype)


def lower_gelu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """X * Phi(x), or its approximation by tanh (Hendrycks and Gimpel, 2016)."""
    x = required(inputs, 0)
    approximate = attribute_str(node, "approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Declined(f"approximate is '{approximate}', not none or tanh")
    return elementwise(ctx, [x], gelu if approximate == "none" else gelu_tanh, x.dtype)


def _k(e: Expr, value: float) -> Expr:
    return const(value, e.dtype)


def _mul(*factors: Expr) -> Expr:
    result = factors[0]
    for f in factors[1:]:
        result = binary("mul", result, f)
    return result


def _add(a: Expr, b: Expr) -> Expr:
    return binary("add", a, b)


def gelu(x: Expr) -> Expr:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return unary("gelu", x)


def gelu_tanh(x: Expr) -> Expr:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    cubic = _add(x, _mul(_k(x, 0.044715), x, x, x))
    inner = unary("tanh", _mul(_k(x, math.sqrt(2 / math.pi)), cubic))
    return _mul(_mul(_k(x, 0.5), x), _add(inner, _k(x, 1)))


def leaky_relu(x: Expr, alpha: Expr) -> Expr:
    """X where it is not negative, else alpha * x."""
    return select(binary("lt", x, _k(x, 0)), _mul(alpha, x), x)


def elu(x: Expr, alpha: Expr) -> Expr:
    """X where it is not negative, else alpha (exp(x) - 1)."""
    below = _mul(alpha, binary("sub", unary("exp", x), _k(x, 1)))
    return select(binary("lt", x, _k(x, 0)), below, x)


def selu(x: Expr, alpha: Expr, gamma: Expr) -> Expr:
    """Gamma times ELU."""
    return _mul(gamma, elu(x, alpha))


def celu(x: Expr, alpha: Expr) -> Expr:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    below = _mul(alpha, binary("sub", unary("exp", binary("div", x, alpha)), _k(x, 1)))
    return _add(binary("max", x, _k(x, 0)), binary("min", below, _k(x, 0)))


def thresholded_relu(x: Expr, alpha: Expr) -> Expr:
    """X where it exceeds alpha, else 0."""
    return select(binary("lt", alpha, x), x, _k(x, 0))


def hard_sigmoid(x: Expr, alpha: Expr, beta: Expr) -> Expr:
    """max(0, min(1, alpha x + beta))."""
    line = _add(_mul(alpha, x), beta)
    return binary("max", binary("min", line, _k(x, 1)), _k(x, 0))


def hard_swish(x: Expr) -> Expr:
    """X times the hard sigmoid with alpha 1/6 and beta 1/2."""
    return _mul(x, hard_sigmoid(x, _k(x, 1 / 6), _k(x, 0.5)))


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)), as max(x, 0) + log1p(exp(-|x|)), which neither overflows nor cancels."""
    small = unary("exp", unary("neg", unary("abs", x)))
    return _add(binary("max", x, _k(x, 0)), log1p(small))


def log1p(e: Expr) -> Expr:
    """log(1 + e) with small relative error: e log(u) / (u - 1) for u the rounded 1 + e.

    Source: W. Kahan; theorem 4 in D. Goldberg, "What every computer scientist should know about
    floating-point arithmetic", 1991.
    """
    u = _add(e, _k(e, 1))
    exact = binary("sub", u, _k(e, 1))
    corrected = _mul(unary("log", u), binary("div", e, exact))
    return select(binary("eq", u, _k(e, 1)), e, corrected)


def softsign(x: Expr) -> Expr:
    """X / (1 + |x|)."""
    return binary("div", x, _add(unary("abs", x), _k(x, 1)))


def mish(x: Expr) -> Expr:
    """X tanh(softplus(x)) (Misra, 2019)."""
    return _mul(x, unary("tanh", softplus(x)))


def swish(x: Expr, alpha: Expr) -> Expr:
    """X sigmoid(alpha x)."""
    return _mul(x, unary("sigmoid", _mul(alpha, x)))


def shrink(x: Expr, bias: Expr, lambd: Expr) -> Expr:
    """X + bias below -lambd, x - bias above lambd, 0 between."""
    above = select(binary("lt", lambd, x), binary("sub", x, bias), _k(x, 0))
    return select(binary("lt", x, unary("neg", lambd)), _add(x, bias), above)


_ALL: tuple[Op, ...] = (
    Op(name="Relu", lower=lower_relu),
    Op(name="PRelu", lower=lower_prelu),
    Op(name="Gelu", lower=lower_gelu),
    Op(name="Sigmoid", lower=unary_lower("sigmoid")),
    Op(name="Tanh", lower=unary_lower("tanh")),
    Op(name="LeakyRelu", lower=activation_lower(leaky_relu, alpha=0.01)),
    Op(name="Elu", lower=activation_lower(elu, alpha=1.0)),
    Op(
        name="Selu",
        lower=activation_lower(selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    ),
    Op(name="Celu", lower=activation_lower(celu, alpha=1.0)),
    Op(name="ThresholdedRelu", lower=activation_lower(thresholded_relu, alpha=1.0)),
    Op(name="HardSigmoid", lower=activation_lower(hard_sigmoid, alpha=0.2, beta=0.5)),
    Op(name="HardSwish", lower=activation_lower(hard_swish)),
    Op(name="Softplus", lower=activation_lower(softplus)),
    Op(name="Softsign", lower=activation_lower(softsign)),
    Op(name="Mish", lower=activation_lower(mish)),
    Op(name="Swish", lower=activation_lower(swish, alpha=1.0)),
    Op(name="Shrink", lower=activation_lower(shrink, bias=0.0, lambd=0.5)),
)

OPS = alike(ELEMENTWISE, _ALL)
