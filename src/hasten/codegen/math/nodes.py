"""Short constructors for the expressions of elementary functions.

They build the nodes as written, where `loops.expr.binary` would simplify 64-bit integers as index
arithmetic. A Python number takes the type of the first operand that has one.
"""

from __future__ import annotations

from hasten.loops.dtypes import DType
from hasten.loops.expr import COMPARISONS, Expr, Op, const

Operand = Expr | float

INTEGER_OF = {DType.F32: DType.I32, DType.F64: DType.I64}
FLOAT_OF = {integer: real for real, integer in INTEGER_OF.items()}
SIGN_BIT = {DType.I32: -(1 << 31), DType.I64: -(1 << 63)}
INFINITY = float("inf")
NAN = float("nan")


def node(op: str, *operands: Operand) -> Expr:
    """`op` on operands of one type; comparisons give BOOL, everything else the operands' type."""
    like = next(a for a in operands if isinstance(a, Expr))
    args = tuple(a if isinstance(a, Expr) else const(a, like.dtype) for a in operands)
    dtype = DType.BOOL if op in COMPARISONS else like.dtype
    return Op(dtype, op, args, lanes=max(a.lanes for a in args))


def add(a: Operand, b: Operand) -> Expr:
    """The sum."""
    return node("add", a, b)


def sub(a: Operand, b: Operand) -> Expr:
    """The difference a - b."""
    return node("sub", a, b)


def mul(a: Operand, b: Operand) -> Expr:
    """The product."""
    return node("mul", a, b)


def div(a: Operand, b: Operand) -> Expr:
    """The quotient a / b."""
    return node("div", a, b)


def less(a: Operand, b: Operand) -> Expr:
    """Whether a < b, false for NaN."""
    return node("lt", a, b)


def equal(a: Operand, b: Operand) -> Expr:
    """Whether a == b, false for NaN."""
    return node("eq", a, b)


def choose(condition: Expr, a: Operand, b: Operand) -> Expr:
    """`a` where the condition holds, else `b`; one of them at least is an expression."""
    dtype = next(v.dtype for v in (a, b) if isinstance(v, Expr))
    return choose_of(dtype, condition, a, b)


def choose_of(dtype: DType, condition: Expr, a: Operand, b: Operand) -> Expr:
    """`a` where the condition holds, else `b`; numbers become constants of the type."""
    arms = tuple(v if isinstance(v, Expr) else const(v, dtype) for v in (a, b))
    return Op(dtype, "select", (condition, *arms), lanes=max(condition.lanes, *(v.lanes for v in arms)))


def bitcast(x: Expr, dtype: DType) -> Expr:
    """The bits of x read as another type of the same width."""
    return Op(dtype, "bitcast", (x,), lanes=x.lanes)


def bits(x: Expr) -> Expr:
    """The bits of a float as an integer of its width."""
    return bitcast(x, INTEGER_OF[x.dtype])


def real(x: Expr) -> Expr:
    """The float whose bits an integer holds."""
    return bitcast(x, FLOAT_OF[x.dtype])


def convert(x: Expr, dtype: DType) -> Expr:
    """The value of x in another type, rounded to nearest (to an integer: toward zero)."""
    return Op(dtype, "cast", (x,), lanes=x.lanes)


# A comparison whose false arm is x keeps NaN, and compilers make one minimum or maximum instruction of it.
def at_most(x: Expr, limit: float) -> Expr:
    """min(x, limit); NaN stays NaN."""
    return choose(less(limit, x), limit, x)


def at_least(x: Expr, limit: float) -> Expr:
    """max(x, limit); NaN stays NaN."""
    return choose(less(x, limit), limit, x)


def magnitude(x: Expr) -> Expr:
    """|x|, also of NaN and -0."""
    return node("abs", x)


def with_sign_of(x: Expr, source: Expr) -> Expr:
    """x, whose sign bit is clear, with the sign bit of another float."""
    sign = node("bitand", bits(source), SIGN_BIT[INTEGER_OF[x.dtype]])
    return real(node("bitor", bits(x), sign))


def horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The polynomial with these coefficients, the highest power first (at least two)."""
    total: Operand = coefficients[0]
    for c in coefficients[1:]:
        total = add(mul(total, x), c)
    assert isinstance(total, Expr)
    return total
