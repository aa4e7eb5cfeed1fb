"""Weights that stay codes of 8 or 4 bits in memory, and are widened where a product needs them.

A constant second operand (code - zero) * scale, whose zero points and scales hold for blocks of depth, is
kept in panels like any other (`codegen.tiles`): in words of 32 bits with four or eight codes of one column,
one behind the other in depth, the first one lowest. Zero points and scales of a block lie in panels too.
What is widened is what DequantizeLinear of ONNX defines, to the last bit, so that a product has the same
answer whether its weights are kept as codes or as floats.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hasten.codegen.panels import pack_constant
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import Const, Expr, Load, Op, Var, const, constant_int, walk
from hasten.loops.tabulate import tabulate

WORD = 32
"""Bits of a word of codes."""

SHORTEST = 16
"""Depth that shares a scale below which floats take hardly more memory, and much less work."""


@dataclass(frozen=True)
class Dequantized:
    """An element (code - zero) * scale.

    Attributes:
        code: load of a whole number of at most 8 bits.
        zero: as F32, or None for 0.
        scale: the scale.
    """

    code: Load
    zero: Expr | None
    scale: Expr


@dataclass(frozen=True)
class Codes:
    """A packed operand of codes.

    Attributes:
        bits: of a code: 8 or 4.
        block: depth that shares a scale, a multiple of the codes in a word.
        words: in panels `[block][step][column]`, I32.
        scales: in panels `[block][column]`, F32.
        zeros: what a code must be for 0, likewise; None where it is 0 everywhere.
    """

    bits: int
    block: int
    words: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


def dequantized(e: Expr) -> Dequantized | None:
    """An expression as a de-quantized element, or None if it is anything else."""
    if not isinstance(e, Op) or e.op != "mul" or e.dtype is not DType.F32:
        return None
    difference, scale = e.args
    zero: Expr | None = None
    if isinstance(difference, Op) and difference.op == "sub":
        difference, zero = difference.args
    if not isinstance(difference, Op) or difference.op != "cast" or difference.args[0].dtype not in BYTES:
        return None
    (code,) = difference.args
    return Dequantized(code, zero, scale) if isinstance(code, Load) else None


def kept_as_codes(g: Gemm, known: Collection[str]) -> Dequantized | None:
    """The second operand of a matrix product where it is de-quantized and constant, else None.

    Convolutions are bound by arithmetic, and have Winograd's algorithm for floats.
    """
    parts = dequantized(g.b)
    if parts is None or g.taps or g.batch or g.a.dtype not in (DType.F32, DType.BF16):
        return None
    if not {n.buffer for n in walk(g.b) if isinstance(n, Load)} <= set(known):
        return None
    return None if constant_int(g.depth.extent) is None or constant_int(g.column.extent) is None else parts


def find_codes(g: Gemm, constants: Mapping[str, np.ndarray]) -> Codes | None:
    """The second operand of a matrix product in packed codes; None where it is better kept in floats."""
    parts = kept_as_codes(g, constants.keys())
    if parts is None:
        return None
    at = (g.column, g.depth)
    codes = tabulate(parts.code, at, constants).astype(np.int16)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    bits = 4 if (low >= -8 and high < 8) or (low >= 0 and high < 16) else 8
    # Words hold numbers with sign: codes without are moved, and their zero points with them.
    half = 1 << (bits - 1)
    shift = half if high >= half else 0
    scales = _varying(parts.scale, at, constants)
    zeros = _varying(const(0.0, DType.F32) if parts.zero is None else parts.zero, at, constants) - shift
    depth = codes.shape[1]
    block = math.gcd(_block(scales, depth), _block(zeros, depth))
    if block < SHORTEST or block % (WORD // bits):
        return None
    first = slice(None, None, block)
    return Codes(
        bits,
        block,
        _panels(_words(codes - shift, bits)),
        _panels(np.broadcast_to(scales, codes.shape)[:, first].astype(np.float32)),
        _panels(np.broadcast_to(zeros, codes.shape)[:, first].astype(np.float32)) if zeros.any() else None,
    )


def _varying(e: Expr, at: tuple[Var, Var], constants: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values `[column, depth]`, in 1 instead of all where nothing depends on them."""
    one = Const(INDEX, 1)
    used = [v if any(n == v for n in walk(e)) else Var(INDEX, v.name, one) for v in at]
    return tabulate(e, used, constants)


def _block(values: np.ndarray, depth: int) -> int:
    """The greatest length of equal blocks of depth, each with one value for a column."""
    if values.shape[1] == 1:
        return depth
    changes = np.flatnonzero((values[:, 1:] != values[:, :-1]).any(axis=0)) + 1
    return math.gcd(depth, *(int(n) for n in changes))


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes `[column, depth]` in words `[column, depth / together]`."""
    together = WORD // bits
    grouped = codes.reshape(codes.shape[0], -1, together).astype(np.int64) & ((1 << bits) - 1)
    words: np.ndarray = (grouped << (bits * np.arange(together))).sum(axis=2).astype(np.uint32)
    return words.view(np.int32)


def _panels(array: np.ndarray) -> np.ndarray:
    """`[column, step]` in panels `[step][column]`."""
    return pack_constant(np.ascontiguousarray(array)[None, :, None, :])
