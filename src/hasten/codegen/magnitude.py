"""How large a size can get, worked out in floating point: sizes of 64 bits wrap where they are too large."""

from __future__ import annotations

from collections.abc import Callable

from hasten.loops.expr import Const, Expr, Op, Size

MOST = 2.0**62
"""Elements or bytes of one value beyond which plans are refused: addresses are integers of 64 bits."""


def magnitude(e: Expr, of_size: Callable[[str], str]) -> str:
    """C text of a `double` that no value of a size expression exceeds, its intermediate values included.

    Args:
        e: an expression of sizes, which are 0 or more.
        of_size: the text of a size's own magnitude.
    """
    match e:
        case Const():
            return f"{abs(float(e.value))!r}"
        case Size():
            return of_size(e.name)
        case Op(op="mul"):
            return "(" + " * ".join(magnitude(a, of_size) for a in e.args) + ")"
        case Op(op="floordiv"):
            return magnitude(e.args[0], of_size)
        case Op():
            return "(" + " + ".join(magnitude(a, of_size) for a in e.args) + ")"
    raise TypeError(f"{type(e).__name__} in a size")
