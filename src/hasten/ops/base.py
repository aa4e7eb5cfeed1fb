"""What every operator family is written against: `Op`, tensors being lowered, and shape helpers.

`lower` receives a `Lowering` and the node's inputs as `Tensor`s and defines its outputs:

    def lower_relu(ctx: Lowering, node: ir.Node, inputs: Inputs) -> list[Tensor]:
        x = required(inputs, 0)
        return [ctx.define(x.shape, lambda *i: maximum(x.at(*i), zero(x.dtype)), x.dtype)]

Where an operator cannot be expressed it raises `Declined` with the reason; the node then runs on the
host, and the reason is shown to the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.loops.descriptions import Attention, Description, Gemm, expression
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Const,
    Expr,
    Size,
    Var,
    as_expr,
    binary,
    cast,
    const,
    constant_int,
    load,
    size,
    substitute,
    walk,
)
from hasten.loops.program import Definition, Element, Guard, Program
from hasten.loops.simplify import infix, spell, to_poly
from hasten.ops.indices import product
from hasten.ops.lengths import ShortAxis, is_at_most, short_axes
from hasten.ops.pruning import PruningFacts
from hasten.ops.resolve import SMALL_TENSOR, is_arithmetic, resolved


class Declined(Exception):  # noqa: N818 - not an error: the node runs on the host instead
    """A node cannot be lowered; the message says why, in words for the user."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program being built: its name, type and symbolic shape."""

    name: str
    dtype: DType
    shape: tuple[Expr, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def at(self, *index: Expr | int) -> Expr:
        """The element at an index with one entry for each dimension.

        Raises:
            Declined: there are more or fewer, as in a model that contradicts itself where ONNX does not look.
        """
        if len(index) != len(self.shape):
            raise Declined(f"'{self.name}' has rank {self.rank} and is indexed as if it had {len(index)}")
        return load(self.name, index, self.dtype)


Inputs = Sequence[Tensor | None]
Lower = Callable[["Lowering", ir.Node, Inputs], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Op:
    """Everything hasten knows about one operator.

    Attributes:
        name: operator type.
        domain: operator domain; "" is ONNX.
        lower: defines the outputs, or None where the operator runs on the host.
        pruning: which axes of its operands can lose indices together; None keeps them all.
    """

    name: str
    domain: str = ""
    lower: Lower | None = None
    pruning: PruningFacts | None = None


@dataclass
class Lowering:
    """Builds a `Program` node by node.

    Attributes:
        program: what has been built.
        origin: description of the node being lowered.
        names: names of its outputs in the graph, used for the definitions.
        reserved: names that temporaries must not take, because values of the graph have them.
    """

    program: Program
    origin: str = ""
    names: tuple[str, ...] = ()
    reserved: frozenset[str] = frozenset()
    _next: int = 0
    _dims: dict[Expr, Expr] = field(default_factory=dict)

    def begin(self, origin: str, names: tuple[str, ...]) -> None:
        """Starts a node: definitions made from now on come from it."""
        self.origin, self.names, self._next = origin, names, 0

    def mark(self) -> Callable[[], None]:
        """A function that takes back everything which is added to the program from now on."""
        program = self.program
        tables: tuple[dict[str, Any], ...] = (program.definitions, program.constants, program.inputs)
        counts, guards = [len(t) for t in tables], len(program.guards)

        def undo() -> None:
            for table, count in zip(tables, counts, strict=True):
                for name in list(table)[count:]:
                    del table[name]
            del program.guards[guards:]

        return undo

    def fresh(self, hint: str) -> str:
        """A tensor name that is not taken yet."""
        taken = (self.program.definitions, self.program.inputs, self.program.constants, self.reserved)
        name, n = hint, 1
        while any(name in group for group in taken):
            n += 1
            name = f"{hint}_{n}"
        return name

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name in the program."""
        info = self.program.info(name)
        return Tensor(name, info.dtype, info.shape)

    def define(
        self,
        shape: Sequence[Expr | int],
        body: Callable[..., Expr | Description],
        dtype: DType,
        *,
        name: str | None = None,
        vars: Sequence[str] = (),  # noqa: A002 - the field's word
    ) -> Tensor:
        """Adds a definition.

        Args:
            shape: its extents.
            body: receives one `Var` for each dimension and gives the element or a contraction.
            dtype: element type of the result.
            name: name of the tensor; by default the next output of the node, then a temporary.
            vars: names of the variables, by default i0, i1, ...

        Returns:
            The defined tensor.
        """
        if name is None and self._next < len(self.names):
            name = self.names[self._next]  # unique in the graph, and reserved for this node
            self._next += 1
        else:
            name = self.fresh(name or f"{self.names[0]}_t")
        extents = [self.dim(n) for n in shape]
        labels = vars or [f"i{d}" for d in range(len(extents))]
        variables = tuple(Var(INDEX, v, n) for v, n in zip(labels, extents, strict=True))
        element = body(*variables)
        if isinstance(element, Gemm | Attention) and element.dtype is DType.F64:
            element = expression(element)  # register tiles have floats of 32 bits at the most, or bytes
        if isinstance(element, Expr) and element.dtype is not dtype:
            raise TypeError(f"{self.origin}: body of {name} is {element.dtype}, declared {dtype}")
        made = Definition(name, dtype, variables, element, self.origin)
        for axis in (a for e in made.expressions() for a in short_axes(e, self._shape)):
            self._require_long(axis, extents)
        self.program.definitions[name] = made
        return Tensor(name, dtype, tuple(extents))

    def temporary(
        self,
        shape: Sequence[Expr | int],
        body: Callable[..., Expr | Description],
        dtype: DType,
        suffix: str,
        *,
        vars: Sequence[str] = (),  # noqa: A002
    ) -> Tensor:
        """Adds a definition that is not an output of the node, named after its first output."""
        return self.define(shape, body, dtype, name=f"{self.names[0]}_{suffix}", vars=vars)

    def constant(self, array: np.ndarray, suffix: str = "constant") -> Tensor:
        """Adds an array known now."""
        name = self.fresh(f"{self.names[0] if self.names else 'c'}_{suffix}")
        self.program.constants[name] = array
        return self.tensor(name)

    def dim(self, extent: Expr | int) -> Expr:
        """An extent in its simplest form; one with several terms gets a name of its own.

        Named sizes keep later shape arithmetic (products, divisions) to single terms.
        """
        e = as_expr(extent)
        poly = to_poly(e)
        if not poly:
            return const(0)
        single = len(poly) == 1 and all(isinstance(a, Size) and not a.signed for m in poly for a in m)
        if single:
            return e
        known = self._dims.get(e)
        if known is None:
            name = f"size_{len(self.program.derived)}"
            while name in self.program.derived or name in self.program.elements or self._is_input_size(name):
                name = f"{name}_"
            self.program.derived[name] = e
            known = self._dims[e] = size(name)
        return known

    def _is_input_size(self, name: str) -> bool:
        return any(size(name) in info.shape for info in self.program.inputs.values())

    def same_size(self, a: Expr, b: Expr) -> Expr:
        """The size that two equal ones are: the literal, if one of them is.

        Raises:
            Declined: they are provably different.
        """
        self.require_equal(a, b)
        return b if isinstance(b, Const) else a

    def require_equal(self, a: Expr, b: Expr) -> None:
        """States that two sizes are equal: checked now if possible, at each call otherwise.

        Raises:
            Declined: they are provably different.
        """
        difference = a - b
        value = constant_int(difference)
        if value == 0:
            return
        if value is not None:
            raise Declined(f"sizes {spell(a)} and {spell(b)} must be equal")
        guard = Guard(a, b, self.origin)
        if guard not in self.program.guards:
            self.program.guards.append(guard)

    def require_some(self, extent: Expr, reading: Sequence[Expr]) -> None:
        """States that an axis is not empty where a tensor of shape `reading` has elements that read it.

        Raises:
            Declined: it is, and they do.
        """
        count = product([self.dim(n) for n in reading])
        length, elements = constant_int(extent), constant_int(count)
        if length == 0 and elements:
            raise Declined("an empty axis is indexed")
        if length or elements == 0:
            return
        guard = Guard(extent, count, self.origin, "some")
        if guard not in self.program.guards:
            self.program.guards.append(guard)

    def require(self, condition: Expr, says: str) -> None:
        """States that a condition on sizes holds: checked now if possible, at each call otherwise.

        Args:
            condition: of BOOL, of sizes.
            says: the condition in words.

        Raises:
            Declined: it provably does not hold.
        """
        if isinstance(condition, Const):
            if not condition.value:
                raise Declined(f"it needs {says}")
            return
        guard = Guard(cast(condition, INDEX), const(1), self.origin, says=says)
        if guard not in self.program.guards:
            self.program.guards.append(guard)

    def _require_long(self, axis: ShortAxis, reading: Sequence[Expr]) -> None:
        """States that an axis is as long as what a tensor of shape `reading` reads of it, if it has elements.

        Raises:
            Declined: it provably is not.
        """
        given, wanted = axis.length, axis.wanted
        pairs = [(g.left, g.right) for g in self.program.guards if g.kind == "equal"]
        equal = {*(b for a, b in pairs if a == given), *(a for a, b in pairs if b == given)}
        if wanted in equal or any(
            (constant_int(n) or 0) >= (constant_int(wanted) or math.inf) for n in equal
        ):
            return
        if constant_int(wanted) == 1:
            self.require_some(given, reading)
            return
        if is_at_most(self.spelled_out(wanted), self.spelled_out(given)):
            return
        texts = [infix(n, self.program.derived) for n in (wanted, given)]
        says = f"axis {axis.number} of '{axis.tensor}' to have {texts[0]} elements or more: {texts[1]}"
        long = binary("le", wanted, given)
        none = binary("eq", product([self.dim(n) for n in reading]), const(0))
        self.require(binary("or", long, none) if isinstance(wanted, Const) else long, says)

    def _shape(self, name: str) -> tuple[Expr, ...] | None:
        program = self.program
        known = name in program.definitions or name in program.inputs or name in program.constants
        return self.tensor(name).shape if known else None

    def spelled_out(self, e: Expr) -> Expr:
        """A size in terms of free sizes alone."""
        derived = self.program.derived
        while True:
            named: dict[Expr, Expr] = {
                n: derived[n.name] for n in walk(e) if isinstance(n, Size) and n.name in derived
            }
            if not named:
                return e
            e = substitute(e, named)

    def constant_of(self, t: Tensor | None) -> np.ndarray | None:
        """The array behind a tensor that is known now, or None."""
        if t is None:
            return None
        known = self.program.constants.get(t.name)
        if known is not None:
            return known
        values = self.values(t, read=False)
        if values is None or not all(isinstance(v, Const) for v in values.flat):
            return None
        return np.array([v.value for v in values.flat], t.dtype.numpy).reshape(values.shape)

    def values(self, t: Tensor, *, read: bool = True) -> np.ndarray | None:
        """The elements of a small tensor as expressions of sizes (array of `Expr`), or None.

        Args:
            t: the tensor.
            read: whether whole numbers that depend on data are read at each call (`element`).

        Returns:
            None where the shape is not constant, the tensor is large, or an element depends on data
            that cannot be read.
        """
        dims = [constant_int(n) for n in t.shape]
        if any(n is None for n in dims):
            return None
        shape = tuple(n for n in dims if n is not None)
        if math.prod(shape) > SMALL_TENSOR:
            return None
        result = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            element = self.evaluate(t.at(*index), read)
            if read and (element is None or not is_arithmetic(element)):
                element = self.element(t, index)
            if element is None:
                return None
            result[index] = element
        return result

    def element(self, t: Tensor, index: tuple[int, ...]) -> Expr | None:
        """A whole number that is read from a tensor at each call, as a signed size.

        What uses it runs after the tensor is known (`loops.program.Element`).

        Returns:
            None for a tensor of floats.
        """
        if t.dtype.is_float:
            return None
        name = f"{t.name}[{', '.join(map(str, index))}]" if index else t.name
        while self._is_input_size(name) or name in self.program.derived:
            name += "'"
        self.program.elements[name] = Element(t.name, index)
        return cast(size(name, signed=True), t.dtype)

    def evaluate(self, e: Expr, read: bool = False) -> Expr | None:
        """An expression with every load resolved through constants and definitions, or None.

        Where `read`, integers of small inputs are signed sizes.
        """

        def reading(buffer: str, index: tuple[int, ...]) -> Expr | None:
            return self.element(self.tensor(buffer), index)

        return resolved(self.program, e, reading if read else None)


def required(inputs: Inputs, position: int) -> Tensor:
    """An input that must be there.

    Raises:
        Declined: it is missing.
    """
    t = inputs[position] if position < len(inputs) else None
    if t is None:
        raise Declined(f"input {position} is missing")
    return t


def optional(inputs: Inputs, position: int) -> Tensor | None:
    """An input that may be left out."""
    return inputs[position] if position < len(inputs) else None


def constant_ints(ctx: Lowering, t: Tensor | None, what: str) -> list[int]:
    """The integers of an input that must be known at compile time.

    Raises:
        Declined: they depend on data or on symbolic sizes.
    """
    array = ctx.constant_of(t)
    if array is None:
        raise Declined(f"{what} is not a constant")
    return [int(v) for v in np.asarray(array).reshape(-1)]


def symbolic_ints(ctx: Lowering, t: Tensor, what: str) -> list[Expr]:
    """The integers of an input as expressions of symbolic sizes.

    Raises:
        Declined: they depend on data.
    """
    values = ctx.values(t)
    if values is None:
        raise Declined(f"{what} depends on data")
    return [as_expr(v) for v in values.reshape(-1)]


IndexMap = Callable[[tuple[Expr, ...]], Sequence[Expr]]


def moved(ctx: Lowering, x: Tensor, shape: Sequence[Expr], source: IndexMap) -> list[Tensor]:
    """One output whose element is that of x at `source(index)`."""
    return [ctx.define(shape, lambda *i: x.at(*source(i)), x.dtype)]


def normalize_axis(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        Declined: it lies outside the rank.
    """
    if not -rank <= axis < max(rank, 1):
        raise Declined(f"axis {axis} is outside a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis
