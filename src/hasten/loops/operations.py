"""The operations of `Op` and their meaning, as NumPy functions on arrays of one element type.

`select` and `cast` are not in the table: they take operands of several types and are part of the
expression language itself. Where NumPy leaves a result undefined, so does the table: a float
converted to an integer type that cannot hold it, an integer divided by zero (here 0) or the smallest
integer by -1, and a shift by as many bits as the type has or more. A `lower` rules such operands out.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from hasten.loops.dtypes import DType

Array = np.ndarray[Any, np.dtype[Any]]


class Accepts(enum.Enum):
    """The element types that an operation's operands may have."""

    NUMBER = "number"
    FLOAT = "float"
    INTEGER = "integer"
    LOGICAL = "logical"
    ANY = "any"

    def allows(self, dtype: DType) -> bool:
        """True where an operand may have this element type."""
        match self:
            case Accepts.NUMBER:
                return dtype is not DType.BOOL
            case Accepts.FLOAT:
                return dtype.is_float
            case Accepts.INTEGER:
                return dtype is not DType.BOOL and not dtype.is_float
            case Accepts.LOGICAL:
                return dtype is DType.BOOL
            case Accepts.ANY:
                return True


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: its name in `Op.op`.
        arity: number of operands, all of one element type.
        accepts: the element types it is defined for.
        apply: its meaning; operands broadcast, the result has the operands' element type.
        compares: the result is BOOL whatever the operands are.
    """

    name: str
    arity: int
    accepts: Accepts
    apply: Callable[..., Array]
    compares: bool = False


def _truncdiv(a: Array, b: Array) -> Array:
    # The remainder of C has the sign of the dividend, so that what is left divides exactly.
    quotient: Array = np.floor_divide(a - np.fmod(a, b), b)
    return quotient


def _sigmoid(x: Array) -> Array:
    one = x.dtype.type(1)
    result: Array = one / (one + np.exp(-x))
    return result


def _erf(x: Array) -> Array:
    flat = (math.erf(v) for v in x.reshape(-1).tolist())
    return np.fromiter(flat, x.dtype, x.size).reshape(x.shape)


def _gelu(x: Array) -> Array:
    """X Phi(x) in float64, rounded once; Phi(-inf) is 0 and takes the product with it."""
    wide = x.astype(np.float64)
    cdf = 0.5 * _erfc(-wide * math.sqrt(0.5))
    return np.where(np.isneginf(wide), 0.0, wide * cdf).astype(x.dtype)


def _erfc(x: Array) -> Array:
    flat = (math.erfc(v) for v in x.reshape(-1).tolist())
    return np.fromiter(flat, x.dtype, x.size).reshape(x.shape)


def _table() -> Mapping[str, Operation]:
    number, floating, integer = Accepts.NUMBER, Accepts.FLOAT, Accepts.INTEGER
    operations = (
        Operation("add", 2, number, np.add),
        Operation("sub", 2, number, np.subtract),
        Operation("mul", 2, number, np.multiply),
        Operation("div", 2, floating, np.divide),
        Operation("truncdiv", 2, integer, _truncdiv),
        Operation("floordiv", 2, integer, np.floor_divide),
        Operation("mod", 2, integer, np.mod),
        Operation("fmod", 2, number, np.fmod),
        Operation("pow", 2, floating, np.power),
        # NaN in either operand gives NaN.
        Operation("min", 2, number, np.minimum),
        Operation("max", 2, number, np.maximum),
        Operation("lt", 2, number, np.less, compares=True),
        Operation("le", 2, number, np.less_equal, compares=True),
        Operation("eq", 2, Accepts.ANY, np.equal, compares=True),
        Operation("ne", 2, Accepts.ANY, np.not_equal, compares=True),
        Operation("and", 2, Accepts.LOGICAL, np.logical_and),
        Operation("or", 2, Accepts.LOGICAL, np.logical_or),
        Operation("xor", 2, Accepts.LOGICAL, np.logical_xor),
        Operation("not", 1, Accepts.LOGICAL, np.logical_not),
        Operation("bitand", 2, integer, np.bitwise_and),
        Operation("bitor", 2, integer, np.bitwise_or),
        Operation("bitxor", 2, integer, np.bitwise_xor),
        Operation("bitnot", 1, integer, np.bitwise_not),
        Operation("shl", 2, integer, np.left_shift),
        Operation("shr", 2, integer, np.right_shift),
        Operation("neg", 1, number, np.negative),
        Operation("abs", 1, number, np.abs),
        Operation("sign", 1, number, np.sign),
        Operation("sqrt", 1, floating, np.sqrt),
        Operation("exp", 1, floating, np.exp),
        Operation("log", 1, floating, np.log),
        Operation("erf", 1, floating, _erf),
        Operation("gelu", 1, floating, _gelu),
        Operation("tanh", 1, floating, np.tanh),
        Operation("sigmoid", 1, floating, _sigmoid),
        Operation("floor", 1, floating, np.floor),
        Operation("ceil", 1, floating, np.ceil),
        # Ties go to the even neighbour.
        Operation("round", 1, floating, np.rint),
        Operation("sin", 1, floating, np.sin),
        Operation("cos", 1, floating, np.cos),
        Operation("tan", 1, floating, np.tan),
        Operation("asin", 1, floating, np.arcsin),
        Operation("acos", 1, floating, np.arccos),
        Operation("atan", 1, floating, np.arctan),
        Operation("sinh", 1, floating, np.sinh),
        Operation("cosh", 1, floating, np.cosh),
        Operation("asinh", 1, floating, np.arcsinh),
        Operation("acosh", 1, floating, np.arccosh),
        Operation("atanh", 1, floating, np.arctanh),
    )
    return MappingProxyType({o.name: o for o in operations})


OPERATIONS: Mapping[str, Operation] = _table()
