"""Loop nests: the statements that kernels are made of, over the expressions of `loops.expr`.

A nest reads and writes flat buffers (one index: the element's offset) and local arrays. Vectors are
expressions with lanes; a vector stored at a scalar offset goes to consecutive elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hasten.loops.dtypes import DType
from hasten.loops.expr import Address, Const, Expr, Size, Var, const, walk


@dataclass(frozen=True)
class Comment:
    """A line for the reader of the generated code."""

    text: str


@dataclass(frozen=True)
class Let:
    """A named value that does not change."""

    var: Var
    value: Expr


@dataclass(frozen=True)
class Declare:
    """A local variable (no dims) or array, of scalars, vectors or pointers to elements.

    Attributes:
        name: its name.
        dtype: element type.
        dims: literal extents; empty for a single variable.
        lanes: width of each element.
        pointer: the elements are pointers to `dtype`.
        value: initial value of a single variable.
    """

    name: str
    dtype: DType
    dims: tuple[int, ...] = ()
    lanes: int = 1
    pointer: bool = False
    value: Expr | None = None


@dataclass(frozen=True)
class Store:
    """buffer[index] = value; the index is empty for a single local variable."""

    buffer: str
    index: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True)
class For:
    """Counts `var` from start up to stop (exclusive) in steps; `unroll` asks for full unrolling.

    Where `stop` reads a local variable that the body changes, its value before each step counts.
    """

    var: Var
    start: Expr
    stop: Expr
    body: tuple[Stmt, ...]
    step: int = 1
    unroll: bool = False


@dataclass(frozen=True)
class If:
    """Runs `then` where the condition holds, else `otherwise`."""

    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Call:
    """Calls a `Function`; buffers and pointers are passed as `Address`."""

    function: str
    arguments: tuple[Expr, ...]


@dataclass(frozen=True)
class Prefetch:
    """Asks for the cache line that holds buffer[index]; has no effect on results."""

    buffer: str
    index: tuple[Expr, ...]


Stmt = Comment | Let | Declare | Store | For | If | Call | Prefetch


_BEGINNING = const(0)


@dataclass(frozen=True)
class Param:
    """A parameter: a scalar, a buffer (`depth` 1) or a table of pointers into buffers (`depth` 2).

    Buffers lie apart, except those that are `shared`, which may be the same memory as one another.
    """

    name: str
    dtype: DType
    depth: int = 0
    writable: bool = False
    shared: bool = False

    def passed_on(self, offset: Expr = _BEGINNING) -> Expr:
        """What its function gives to another for the same parameter; of a buffer from an element on."""
        return Address(self.dtype, self.name, (offset,)) if self.depth else Var(self.dtype, self.name)


@dataclass(frozen=True)
class Function:
    """A named piece of code with parameters; a kernel's last two are `thread` and `threads`.

    Attributes:
        name: its name in C.
        params: parameters in order.
        body: statements.
        comment: what it computes and where it came from.
        inline: small helper that must be inlined.
        native: C statements to compile instead of the body, which defines what they do: for instructions
            that no expression stands for.
    """

    name: str
    params: tuple[Param, ...]
    body: tuple[Stmt, ...]
    comment: str = ""
    inline: bool = False
    native: str = ""


def choose(condition: Expr, then: tuple[Stmt, ...], otherwise: tuple[Stmt, ...] = ()) -> tuple[Stmt, ...]:
    """An `If`, or the side that is taken where that is known now."""
    if isinstance(condition, Const):
        return then if condition.value else otherwise
    return (If(condition, then, otherwise),)


def unrolled(v: Var, *body: Stmt) -> For:
    """A loop over all values of a variable that leaves no loop behind."""
    assert v.extent is not None
    return For(v, const(0), v.extent, body, unroll=True)


def size_parameter(name: str) -> str:
    """Name of the parameter that holds a symbolic size, whose own name may be any text."""
    return "size_" + re.sub(r"\W", lambda c: f"_{ord(c[0]):x}_", name, flags=re.ASCII)


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements of a nest, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, For):
            yield from statements(s.body)
        elif isinstance(s, If):
            yield from statements(s.then)
            yield from statements(s.otherwise)


def rename_calls(body: tuple[Stmt, ...], names: Mapping[str, str]) -> tuple[Stmt, ...]:
    """A nest that calls functions by other names, where `names` has one."""

    def renamed(s: Stmt) -> Stmt:
        match s:
            case Call(function):
                return replace(s, function=names.get(function, function))
            case For():
                return replace(s, body=rename_calls(s.body, names))
            case If():
                return replace(
                    s, then=rename_calls(s.then, names), otherwise=rename_calls(s.otherwise, names)
                )
        return s

    return tuple(renamed(s) for s in body) if names else body


def expressions(body: tuple[Stmt, ...]) -> Iterator[Expr]:
    """All expressions that occur in a nest, without their parts."""
    for s in statements(body):
        match s:
            case Let(value=value):
                yield value
            case Declare(value=value) if value is not None:
                yield value
            case Store(index=index, value=value):
                yield from index
                yield value
            case For(start=start, stop=stop):
                yield start
                yield stop
            case If(condition=condition):
                yield condition
            case Call(arguments=arguments):
                yield from arguments
            case Prefetch(index=index):
                yield from index
            case _:
                pass


def sizes_of(body: tuple[Stmt, ...]) -> list[str]:
    """Names of the symbolic sizes that a nest reads, in order of first use."""
    found: dict[str, None] = {}
    for e in expressions(body):
        for node in walk(e):
            if isinstance(node, Size):
                found.setdefault(node.name)
    return list(found)
