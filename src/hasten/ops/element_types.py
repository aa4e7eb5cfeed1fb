"""Element types that are computed in wider ones: 16-bit, 8-bit and 4-bit floats, 4-bit and 2-bit integers.

A value of such a type is a tensor of the wider type that holds only numbers which the narrow one has. Each
operator's result is rounded (or wrapped) as soon as it is made, so that the answers are those of arithmetic
in the narrow type. Where arrays enter and leave, the runtime converts them, which changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Load, binary, cast, const, reduce, select, unary, var
from hasten.ops.attributes import attribute_int, attribute_str
from hasten.ops.base import Lowering, Tensor

_T = ir.DataType
_FLOATS = (_T.FLOAT8E4M3FN, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2, _T.FLOAT8E5M2FNUZ, _T.FLOAT4E2M1, _T.FLOAT8E8M0)
_BITS = {_T.INT4: 4, _T.UINT4: 4, _T.INT2: 2, _T.UINT2: 2}

COMPUTED: Mapping[ir.DataType, DType] = MappingProxyType(
    dict.fromkeys((_T.FLOAT16, _T.BFLOAT16, *_FLOATS), DType.F32)
    | {_T.INT4: DType.I8, _T.INT2: DType.I8, _T.UINT4: DType.U8, _T.UINT2: DType.U8}
)
"""The types, and those that they are computed in."""


def element_type(dtype: ir.DataType | np.dtype[np.generic]) -> DType | None:
    """The element type in which values of a type are computed; None where they are not compiled."""
    if isinstance(dtype, np.dtype):
        try:
            dtype = ir.DataType.from_numpy(dtype)
        except TypeError:
            return None
    if dtype in COMPUTED:
        return COMPUTED[dtype]
    try:
        return DType.of(np.dtype(dtype.numpy()))
    except TypeError:
        return None


def integer_range(dtype: ir.DataType) -> tuple[int, int] | None:
    """The least and the greatest integer of a type; None for floats."""
    bits = _BITS.get(dtype)
    if bits is not None:
        signed = dtype in (_T.INT4, _T.INT2)
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    known = element_type(dtype)
    if known is None or known.is_float or known is DType.BOOL:
        return None
    info = np.iinfo(known.numpy.name)
    return int(info.min), int(info.max)


def rounded(ctx: Lowering, t: Tensor, dtype: ir.DataType, node: ir.Node) -> Tensor:
    """The next output of a node: what it computed, with numbers of the type that the graph gives it."""
    function = _rounding(ctx, dtype, node)
    return ctx.define(t.shape, lambda *i: cast(function(t.at(*i)), COMPUTED[dtype]), COMPUTED[dtype])


def _rounding(ctx: Lowering, dtype: ir.DataType, node: ir.Node) -> Callable[[Expr], Expr]:
    if dtype in (_T.FLOAT16, _T.BFLOAT16):
        stored = DType.F16 if dtype is _T.FLOAT16 else DType.BF16
        return lambda x: cast(cast(x, stored), DType.F32)
    if dtype in _BITS:
        unused = const(8 - _BITS[dtype], COMPUTED[dtype])
        return lambda x: binary("shr", binary("shl", x, unused), unused)
    return _to_table(ctx, _table(dtype, node), saturate=attribute_int(node, "saturate", 1) != 0)


@dataclass(frozen=True)
class _Table:
    """The numbers of a small float type.

    Attributes:
        values: those that are not negative, in order.
        starts: for each but the first the least f32 that is rounded to it.
        beyond: the least f32 that is too large, without saturation.
        overflow: what such a one becomes then.
        signed: whether there are negative numbers.
    """

    values: np.ndarray
    starts: np.ndarray
    beyond: float
    overflow: float
    signed: bool


def _table(dtype: ir.DataType, node: ir.Node) -> _Table:
    every = np.arange(1 << (4 if dtype is _T.FLOAT4E2M1 else 8), dtype=np.uint8).view(dtype.numpy())
    numbers = every.astype(np.float32)
    kept = np.isfinite(numbers) & ~np.signbit(numbers)
    values = np.unique(numbers[kept])
    middle = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    above = np.nextafter(values[:-1], np.float32(np.inf))
    if dtype is _T.FLOAT8E8M0:
        mode = attribute_str(node, "round_mode", "up")
        starts = {"up": above, "down": values[1:], "nearest": middle}[mode]
        return _Table(values, starts, np.inf, np.nan, signed=False)
    # Of two neighbours at the same distance that with an even code: the one before, for every other.
    odd = np.arange(len(middle)) % 2 == 1
    starts = np.where(odd, middle, np.nextafter(middle, np.float32(np.inf)))
    last = values[-1] + (values[-1] - values[-2]) / 2
    infinite = bool(np.isinf(numbers).any())
    return _Table(values, starts, float(last), np.inf if infinite else np.nan, signed=True)


def _to_table(ctx: Lowering, table: _Table, *, saturate: bool) -> Callable[[Expr], Expr]:
    starts, values = ctx.constant(table.starts, "starts"), ctx.constant(table.values, "values")

    def function(x: Expr) -> Expr:
        zero = const(0.0, DType.F32)
        size = unary("abs", x) if table.signed else x
        k = var("code", starts.shape[0])
        reached = select(binary("le", starts.at(k), size), const(1), const(0))
        code = reduce("sum", (k,), reached)
        found: Expr = Load(DType.F32, values.name, (code,))
        if not saturate:
            too_large = binary("le", const(table.beyond, DType.F32), size)
            found = select(too_large, const(table.overflow, DType.F32), found)
        if table.signed:
            found = select(binary("lt", x, zero), unary("neg", found), found)
        return select(binary("ne", x, x), const(float("nan"), DType.F32), found)

    return function
