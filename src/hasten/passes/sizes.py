"""Arithmetic with sizes that may be names: what shapes become, as far as that can be proved.

A size is a number or a name, and a name is never negative. A sum of sizes has a name made of its terms, so
that equal sums are equal names and terms cancel: with a cache of `past` tokens, keys have `past + tokens`
positions, and a mask from `past` on has `tokens` rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Dim = int | str
Dims = tuple[Dim, ...]

_SUM = "?+("
_END = 2**31 - 1
"""An end of a slice that is this or more is that of the axis."""


def is_private(dim: Dim) -> bool:
    """Whether a dimension's name was made up here rather than read from the model."""
    return isinstance(dim, str) and dim.startswith("?")


def total(sizes: Iterable[Dim]) -> Dim | None:
    """The sum of sizes; None where it may be negative."""
    terms: Counter[str] = Counter()
    number = 0
    for size in sizes:
        names, constant = _terms(size)
        terms += names
        number += constant
    return _named(terms, number)


def less(size: Dim, other: Dim) -> Dim | None:
    """A size less another one; None where that is not known, or may be negative."""
    names, number = _terms(size)
    taken, constant = _terms(other)
    names.subtract(taken)
    return None if min(names.values(), default=0) < 0 else _named(names, number - constant)


def _terms(size: Dim) -> tuple[Counter[str], int]:
    """The names in a sum, and its number."""
    if isinstance(size, int):
        return Counter(), size
    if not size.startswith(_SUM):
        return Counter([size]), 0
    names: list[str] = []
    depth = 0
    for piece in size[len(_SUM) : -1].split("+"):
        if depth:
            names[-1] += f"+{piece}"
        else:
            names.append(piece)
        depth += piece.count("(") - piece.count(")")
    number = int(names.pop()) if names[-1].isdecimal() else 0
    return Counter(names), number


def _named(names: Counter[str], number: int) -> Dim | None:
    terms = sorted(names.elements())
    if number < 0:
        return None
    if not terms:
        return number
    if len(terms) == 1 and number == 0:
        return terms[0]
    return f"{_SUM}{'+'.join([*terms, *([str(number)] if number else [])])})"


def reshaped(source: Dims | None, target: Dims, *, allow_zero: bool) -> Dims | None:
    """Dimensions after a `Reshape` of `source` to `target`; None where a part stays unknown.

    A -1 is solved by cancelling equal factors of both sides.
    """
    result: list[Dim] = list(target)
    for axis, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            if source is None or axis >= len(source):
                return None
            result[axis] = source[axis]
    if -1 not in result:
        return tuple(result)
    hole = result.index(-1)
    if source is None:
        return None
    left = list(source)
    right = [dim for axis, dim in enumerate(result) if axis != hole]
    for dim in [d for d in right if isinstance(d, str)]:
        if dim in left:
            left.remove(dim)
            right.remove(dim)
    left_names = [d for d in left if isinstance(d, str)]
    if any(isinstance(d, str) for d in right) or len(left_names) > 1:
        return _with_private_hole(result, hole, source)
    above = math.prod(d for d in left if isinstance(d, int))
    below = math.prod(d for d in right if isinstance(d, int))
    if below == 0 or above % below:
        return _with_private_hole(result, hole, source)
    factor = above // below
    if left_names and factor != 1:
        return _with_private_hole(result, hole, source)
    result[hole] = left_names[0] if left_names else factor
    return tuple(result)


def _with_private_hole(result: Sequence[Dim], hole: int, source: Dims) -> Dims:
    """Name an unsolved -1 after what determines it, so that equal reshapes agree."""
    others = ",".join(str(d) for axis, d in enumerate(result) if axis != hole)
    name = f"?({'*'.join(map(str, source))})/({others})"
    return tuple(name if axis == hole else dim for axis, dim in enumerate(result))


def broadcast(left: Dims, right: Dims) -> Dims | None:
    """Dimensions of a broadcast of two shapes; None where two names cannot be compared."""
    rank = max(len(left), len(right))
    padded = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    result: list[Dim] = []
    for a, b in padded:
        if b in (a, 1):
            result.append(a)
        elif a == 1 or isinstance(b, int):
            result.append(b)
        elif isinstance(a, int):
            result.append(a)
        else:
            return None
    return tuple(result)


def concatenated(parts: Sequence[Dims | None], axis: int) -> Dims | None:
    """Dimensions of a concatenation; None where a part has no known rank."""
    known = [dims for dims in parts if dims is not None]
    if len(known) < len(parts) or len({len(dims) for dims in known}) != 1:
        return None
    rank = len(known[0])
    if not -rank <= axis < rank:
        return None
    # What one part states in numbers holds for all.
    across = list(zip(*known, strict=True))
    result: list[Dim] = [next((d for d in sizes if isinstance(d, int)), sizes[0]) for sizes in across]
    along = total(across[axis])
    if along is None:
        return None
    result[axis] = along
    return tuple(result)


def sliced(size: Dim, start: Dim, end: Dim) -> Dim | None:
    """Length of a slice of an axis in steps of 1; None where it is not known."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end).indices(size)))
    first = less(size, -start) if isinstance(start, int) and start < 0 else start
    last: Dim | None = end
    if end == size or (isinstance(end, int) and end >= _END):
        last = size
    elif isinstance(end, int) and end < 0:
        last = less(size, -end)
    elif less(size, end) is None:
        return None  # the axis may be shorter
    return None if first is None or last is None else less(last, first)
