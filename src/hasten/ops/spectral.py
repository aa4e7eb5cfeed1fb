"""The discrete Fourier transform.

It is computed as the sum that defines it, over a table of sines and cosines: in time quadratic in the length.
"""

from __future__ import annotations

import math
from functools import partial

import onnx_ir as ir

from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Var, binary, cast, const, constant_int, reduce, select, unary, var
from hasten.ops.attributes import attribute_int
from hasten.ops.axes import axis_numbers, index_values, listed
from hasten.ops.base import Declined, Inputs, Lowering, Op, Tensor, optional, required


def _roots(ctx: Lowering, length: Expr, dtype: DType) -> Tensor:
    """The table [cosine or sine, k] of the angles 2 pi k / length."""

    def root(which: Expr, k: Expr) -> Expr:
        turn = binary("div", cast(k, DType.F64), cast(length, DType.F64))
        angle = binary("mul", turn, const(2 * math.pi, DType.F64))
        is_cosine = binary("eq", which, const(0))
        return cast(select(is_cosine, unary("cos", angle), unary("sin", angle)), dtype)

    return ctx.temporary([const(2), length], root, dtype, "roots")


def lower_dft(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The transform along an axis; the last axis is the real part alone, or real and imaginary.

    The inverse of one side has a real signal, of which the other side is the conjugate.
    """
    x, given = required(inputs, 0), optional(inputs, 1)
    inverse, one_sided = attribute_int(node, "inverse", 0) != 0, attribute_int(node, "onesided", 0) != 0
    parts = constant_int(x.shape[-1])
    if parts not in (1, 2) or not x.dtype.is_float:
        raise Declined("the last axis of the signal is not of 1 or 2 floats")
    flags = listed(axis_numbers(ctx, optional(inputs, 2), x.rank, [x.rank - 2]), x.rank)
    n = ctx.dim(_where(flags, x.shape))
    length = n if not (inverse and one_sided) else ctx.dim((n - 1) * 2)
    if given is not None:
        length = ctx.dim(index_values(ctx, given, "the length of the transform")[0])
    half = length // 2 + 1
    made = half if one_sided and not inverse else length
    terms = half if one_sided and inverse else length
    table = _roots(ctx, length, x.dtype)
    real_result = one_sided and inverse

    def element(*index: Expr) -> Expr:
        k, t = _where(flags, index), var("t", ctx.dim(terms))
        at = [select(f, t, i) for f, i in zip(flags[:-1], index[:-1], strict=True)]
        there, zero = binary("lt", t, n), const(0.0, x.dtype)
        real = select(there, x.at(*at, 0), zero)
        imaginary = select(there, x.at(*at, 1), zero) if parts == 2 else zero
        phase = k * t % length
        cosine, sine = table.at(0, phase), table.at(1, phase)
        if not inverse:
            sine = unary("neg", sine)
        # (real + i imaginary) (cosine + i sine)
        first = binary("sub", binary("mul", real, cosine), binary("mul", imaginary, sine))
        second = binary("add", binary("mul", real, sine), binary("mul", imaginary, cosine))
        term = first if real_result else select(binary("eq", index[-1], const(0)), first, second)
        if real_result:
            alone = binary("or", binary("eq", t, const(0)), binary("eq", t * 2, length))
            term = binary("mul", term, select(alone, const(1.0, x.dtype), const(2.0, x.dtype)))
        total = reduce("sum", (t,), term)
        return binary("div", total, cast(length, x.dtype)) if inverse else total

    shape = [select(f, made, m) for f, m in zip(flags[:-1], x.shape[:-1], strict=True)]
    return [ctx.define([*shape, const(1 if real_result else 2)], element, x.dtype)]


def _where(flags: list[Expr], values: tuple[Expr, ...]) -> Expr:
    """The value at the axis that is flagged."""
    result: Expr = const(0)
    for flag, value in zip(flags, values, strict=True):
        result = select(flag, value, result)
    return result


def lower_stft(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
    """The transforms of stretches of a signal, [batch, stretch, frequency, real or imaginary part].

    It is a product of the stretches, which overlap where the signal lies, and of the window's waves.
    """
    x, step = required(inputs, 0), index_values(ctx, required(inputs, 1), "the step between stretches")[0]
    window, given = optional(inputs, 2), optional(inputs, 3)
    parts = 1 if x.rank == 2 else constant_int(x.shape[-1])
    if x.rank not in (2, 3) or parts not in (1, 2) or not x.dtype.is_float:
        raise Declined("the signal is not [batch, time, 1 or 2 floats]")
    if given is None:
        length = x.shape[1] if window is None else window.shape[0]
    else:
        length = ctx.dim(index_values(ctx, given, "the length of a stretch")[0])
    if window is not None:
        length = ctx.same_size(length, window.shape[0])
    one_sided = attribute_int(node, "onesided", 1) != 0
    ctx.require(binary("lt", const(0), step), "a step that is positive")
    ctx.require(binary("le", length, x.shape[1]), "a signal that is at least as long as a stretch")
    made = ctx.dim(length // 2 + 1 if one_sided else length)
    stretches = ctx.dim((x.shape[1] - length) // step + 1)
    roots, depth = _roots(ctx, length, x.dtype), var("t", length)

    def wave(part: Expr, t: Expr, column: Expr) -> Expr:
        """What a part of the signal at a time gives to the real or imaginary part of a frequency."""
        phase, imaginary = column // 2 * t % length, binary("eq", column % 2, const(1))
        cosine, sine = roots.at(0, phase), roots.at(1, phase)
        real_part = select(imaginary, unary("neg", sine), cosine)
        value = select(binary("eq", part, const(0)), real_part, select(imaginary, cosine, sine))
        return value if window is None else binary("mul", value, cast(window.at(t), x.dtype))

    columns = ctx.dim(made * 2)
    waves = ctx.temporary([const(parts), length, columns], wave, x.dtype, "waves")

    def stretched(part: int, b: Var, f: Var, column: Var) -> Gemm:
        at = [b, f * step + depth, *([const(part)] if x.rank == 3 else [])]
        return Gemm((), (b, f), column, (), depth, x.at(*at), waves.at(part, depth, column))

    shape, labels = [x.shape[0], stretches, columns], ("b", "f", "column")
    sums = [
        ctx.temporary(shape, partial(stretched, k), x.dtype, f"part{k}", vars=labels) for k in range(parts)
    ]

    def body(b: Expr, f: Expr, k: Expr, part: Expr) -> Expr:
        values = [s.at(b, f, k * 2 + part) for s in sums]
        return values[0] if len(values) == 1 else binary("add", *values)

    return [ctx.define([x.shape[0], stretches, made, const(2)], body, x.dtype)]


OPS: tuple[Op, ...] = (Op(name="DFT", lower=lower_dft), Op(name="STFT", lower=lower_stft))
