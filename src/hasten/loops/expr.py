"""Expressions of the loop IR: frozen nodes and the constructors that keep them simple.

The same nodes describe an element of a tensor (`Load` at a multi-dimensional index), an address in a
buffer, a symbolic size and, with more than one lane, a vector in a register. Index arithmetic (type
`INDEX`) is simplified on construction by `loops.simplify`; arithmetic on data is left as written,
so that floating-point results keep the order of operations that the model asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.loops.dtypes import INDEX, DType

COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
REDUCTIONS = frozenset({"sum", "prod", "max", "min"})
GROUPS = frozenset({"dot", "repeat", "interleave", "zip_low", "zip_high", "lower"})
"""Operations of loop nests on groups of narrow elements that share 32 bits (a pair of bf16, four bytes).

repeat(group): a vector of copies of one group. interleave(a, b): a0, b0, a1, b1, ... of single elements.
zip_low(a, b), zip_high(a, b): the same of whole groups, from the lower and upper halves of both.
lower(a): the lower half of a vector.
dot(sums, a, b): each 32-bit sum plus the products of the group of `a` with the group of `b` in its place;
f32 for pairs of bf16, i32 for unsigned (`a`) by signed (`b`) bytes.
"""


@dataclass(frozen=True, eq=False)
class Expr:
    """Base of all expressions; `dtype` is the element type, `lanes` the vector width."""

    dtype: DType
    lanes: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        key = (type(self).__name__, *(getattr(self, f) for f in self.__dataclass_fields__))
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_hash", hash(key))

    def __hash__(self) -> int:
        return int(self._hash)  # type: ignore[attr-defined]  # set once in __post_init__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Expr) or hash(self) != hash(other):
            return False
        return bool(self._key == other._key)  # type: ignore[attr-defined]

    def __add__(self, other: Expr | int) -> Expr:
        return binary("add", self, other)

    def __radd__(self, other: int) -> Expr:
        return binary("add", other, self)

    def __sub__(self, other: Expr | int) -> Expr:
        return binary("sub", self, other)

    def __rsub__(self, other: int) -> Expr:
        return binary("sub", other, self)

    def __mul__(self, other: Expr | int) -> Expr:
        return binary("mul", self, other)

    def __rmul__(self, other: int) -> Expr:
        return binary("mul", other, self)

    def __floordiv__(self, other: Expr | int) -> Expr:
        return binary("floordiv", self, other)

    def __mod__(self, other: Expr | int) -> Expr:
        return binary("mod", self, other)


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A literal."""

    value: int | float | bool

    def __post_init__(self) -> None:
        # 0.0 and -0.0 are different constants, and so are 1 and True: tell them apart by spelling.
        key = ("Const", self.dtype, repr(self.value))
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "_hash", hash(key))


@dataclass(frozen=True, eq=False)
class Var(Expr):
    """A loop variable that counts from 0 up to `extent` (exclusive), or a local when it is None."""

    name: str
    extent: Expr | None = None


@dataclass(frozen=True, eq=False)
class Size(Expr):
    """A symbolic size, at least 1 wherever an element is computed; bound at each call.

    A signed one is any whole number: an element of a small tensor (`loops.program.Element`).
    """

    name: str
    signed: bool = False


@dataclass(frozen=True, eq=False)
class Op(Expr):
    """An operation on `args`, all of one type except for `select`, `cast` and comparisons."""

    op: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """An element of a tensor or buffer.

    In a tensor program `index` has one entry for each dimension; in a loop nest one, the element's
    offset, except for local arrays. With `lanes` > 1 and a scalar last index the elements are
    contiguous from there; with a vector index they are gathered.
    """

    buffer: str
    index: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """`op` over `body` for all values of `vars`; an empty range gives the neutral element."""

    op: str
    vars: tuple[Var, ...]
    body: Expr


@dataclass(frozen=True, eq=False)
class Ramp(Expr):
    """The index vector base, base + stride, base + 2 stride, ..."""

    base: Expr
    stride: Expr


@dataclass(frozen=True, eq=False)
class Address(Expr):
    """A pointer to an element of a buffer; only stored in local pointer arrays."""

    buffer: str
    index: tuple[Expr, ...]


@dataclass(frozen=True, eq=False)
class Bounded(Expr):
    """A data-dependent index into `limit` elements: negatives count from the end, others must fit.

    An index outside [-limit, limit) reads element 0 and makes the run fail with a fault that names it.
    """

    index: Expr
    limit: Expr


def const(value: int | float | bool, dtype: DType = INDEX) -> Const:
    """A literal of the given type."""
    if dtype is DType.BOOL:
        return Const(dtype, bool(value))
    return Const(dtype, float(value) if dtype.is_float else int(value))


def size(name: str, *, signed: bool = False) -> Size:
    """A symbolic size, or a whole number of any sign."""
    return Size(INDEX, name, signed)


def var(name: str, extent: Expr | int | None = None) -> Var:
    """A loop variable of [0, extent)."""
    return Var(INDEX, name, as_expr(extent) if extent is not None else None)


def as_expr(value: Expr | int, like: DType = INDEX) -> Expr:
    """An expression for a Python number, or the expression itself."""
    return value if isinstance(value, Expr) else const(value, like)


def load(buffer: str, index: tuple[Expr | int, ...], dtype: DType, lanes: int = 1) -> Load:
    """An element of a buffer."""
    return Load(dtype, buffer, tuple(as_expr(i) for i in index), lanes=lanes)


def binary(op: str, a: Expr | int, b: Expr | int) -> Expr:
    """`op` on two operands of one type; comparisons and logic give BOOL.

    Raises:
        TypeError: the operands' types differ.
    """
    from hasten.loops.simplify import simplify_index

    if not isinstance(a, Expr):
        a = as_expr(a, b.dtype if isinstance(b, Expr) else INDEX)
    if not isinstance(b, Expr):
        b = as_expr(b, a.dtype)
    if a.dtype is not b.dtype:
        raise TypeError(f"{op}: operands have types {a.dtype} and {b.dtype}; cast one of them")
    dtype = DType.BOOL if op in COMPARISONS else a.dtype
    node = Op(dtype, op, (a, b), lanes=max(a.lanes, b.lanes))
    if node.lanes == 1 and (a.dtype is INDEX or a.dtype is DType.BOOL):
        return simplify_index(node)
    return node


def unary(op: str, a: Expr) -> Expr:
    """`op` on one operand; the result has the operand's type."""
    if op == "not" and isinstance(a, Const):
        return const(not a.value, DType.BOOL)
    return Op(a.dtype, op, (a,), lanes=a.lanes)


def round_up(e: Expr, multiple: int) -> Expr:
    """The next multiple of a number from an index on."""
    return (e + (multiple - 1)) // multiple * multiple


def cast(a: Expr, dtype: DType) -> Expr:
    """The value converted as C does; to BOOL it is `a != 0`."""
    if a.dtype is dtype:
        return a
    if isinstance(a, Const) and (dtype.is_float or not a.dtype.is_float or dtype is DType.BOOL):
        return const(a.value, dtype)
    return Op(dtype, "cast", (a,), lanes=a.lanes)


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    """`a` where the condition holds, else `b`; the one not chosen is not evaluated."""
    if isinstance(condition, Const):
        return a if condition.value else b
    if a == b:
        return a
    return Op(a.dtype, "select", (condition, a, b), lanes=max(condition.lanes, a.lanes, b.lanes))


def bounded(index: Expr, limit: Expr | int) -> Expr:
    """A data-dependent index that is checked at run time, unless it provably lies in [0, limit)."""
    from hasten.loops.simplify import is_nonnegative

    limit = as_expr(limit)
    known, size_ = constant_int(index), constant_int(limit)
    if known is not None and size_ is not None and -size_ <= known < size_:
        return const(known % size_)
    if is_nonnegative(index) and is_nonnegative(limit - index - 1):
        return index
    return Bounded(INDEX, index, limit)


def reduce(op: str, variables: tuple[Var, ...], body: Expr) -> Expr:
    """A reduction of `body` over `variables`."""
    return Reduce(body.dtype, op, variables, body) if variables else body


def children(e: Expr) -> tuple[Expr, ...]:
    """The sub-expressions that an expression is made of (loop extents are not among them)."""
    match e:
        case Op():
            return e.args
        case Load() | Address():
            return e.index
        case Reduce():
            return (e.body,)
        case Ramp():
            return (e.base, e.stride)
        case Bounded():
            return (e.index, e.limit)
        case _:
            return ()


def rebuild(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """The same node over other sub-expressions, simplified again."""
    match e:
        case Op(op="select"):
            return select(*new)
        case Op(op="cast"):
            return cast(new[0], e.dtype)
        case Op(op=op) if op in GROUPS:
            return replace(e, args=new)
        case Op(op="bitcast"):
            return Op(e.dtype, "bitcast", new, lanes=new[0].lanes)
        case Op(op=op) if len(new) == 1:
            return unary(op, new[0])
        case Op(op=op) if len(new) == 2:
            return binary(op, new[0], new[1])
        case Op():
            return replace(e, args=new, lanes=max(n.lanes for n in new))
        case Load():
            return replace(e, index=new)
        case Address():
            return replace(e, index=new)
        case Reduce():
            return replace(e, body=new[0])
        case Ramp():
            return replace(e, base=new[0], stride=new[1])
        case Bounded():
            return bounded(new[0], new[1])
        case _:
            return e


def transform(e: Expr, visit: Callable[[Expr], Expr | None]) -> Expr:
    """Rewrites an expression from the top: where `visit` returns a node it replaces the whole subtree.

    Shared sub-expressions are visited once.
    """
    memo: dict[Expr, Expr] = {}

    def go(node: Expr) -> Expr:
        found = memo.get(node)
        if found is not None:
            return found
        result = visit(node)
        if result is None:
            old = children(node)
            new = tuple(go(c) for c in old)
            result = node if all(a is b for a, b in zip(old, new, strict=True)) else rebuild(node, new)
        memo[node] = result
        return result

    return go(e)


def substitute(e: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """Replaces variables and sizes. Extents of reductions inside are replaced too."""
    if not values:
        return e

    def visit(node: Expr) -> Expr | None:
        if node in values:
            return values[node]
        if isinstance(node, Reduce):
            renamed = {v: Var(v.dtype, v.name, substitute(v.extent, values)) for v in node.vars if v.extent}
            inner: dict[Expr, Expr] = dict(values)
            inner.update({a: b for a, b in renamed.items() if a != b})
            body = substitute(node.body, inner)
            variables = tuple(renamed.get(v, v) for v in node.vars)
            return replace(node, vars=variables, body=body, lanes=max(node.lanes, body.lanes))
        return None

    return transform(e, visit)


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct sub-expression, parents before children."""
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(reversed(children(node)))


def free_vars(e: Expr) -> frozenset[Var]:
    """The loop variables that an expression depends on, without those its reductions bind."""
    known: frozenset[Var] | None = getattr(e, "_free", None)
    if known is not None:
        return known
    found: frozenset[Var] = frozenset({e}) if isinstance(e, Var) else frozenset()
    for c in children(e):
        found |= free_vars(c)
    if isinstance(e, Reduce):
        found -= frozenset(e.vars)
    object.__setattr__(e, "_free", found)  # derived data, kept with the frozen node
    return found


def constant_int(e: Any) -> int | None:
    """The value of a literal index, or None for anything else."""
    return int(e.value) if isinstance(e, Const) and not e.dtype.is_float else None
