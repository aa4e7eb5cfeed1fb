"""The rules that every tensor program keeps; whatever builds or rewrites one can be checked by them."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    REDUCTIONS,
    Bounded,
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    Var,
    children,
    free_vars,
)
from hasten.loops.operations import OPERATIONS
from hasten.loops.program import Attention, Definition, Gemm, Program, TensorInfo
from hasten.loops.simplify import spell


class InvalidProgramError(AssertionError):
    """A tensor program breaks a rule: a bug in the code that built it, never in a user's model."""


def verify(program: Program) -> None:
    """Checks that a program is well-formed.

    Every load names an input, a constant or an earlier definition and has an index for each of its
    dimensions; types agree; variables are bound; sizes are those of the inputs or derived from
    earlier ones; operations and reductions are known; names are unique; outputs exist.

    Raises:
        InvalidProgramError: a rule is broken; the message names the definition and the expression.
    """
    sizes = {n.name for info in program.inputs.values() for n in info.shape if isinstance(n, Size)}
    for name, value in program.derived.items():
        _require(name not in sizes, f"derived size {name} is defined twice")
        _check_size(value, sizes, f"derived size {name}")
        sizes.add(name)
    for guard in program.guards:
        for side in (guard.left, guard.right):
            _check_size(side, sizes, f"a guard of {guard.origin}")
    for info in program.inputs.values():
        for extent in info.shape:
            _check_size(extent, sizes, f"the shape of input {info.name}")
    for name in program.inputs.keys() & program.constants.keys():
        raise InvalidProgramError(f"{name} is both an input and a constant")
    tensors = {name: program.info(name) for name in (*program.inputs, *program.constants)}
    for name, definition in program.definitions.items():
        _require(name == definition.name, f"definition {definition.name} is filed under {name}")
        _require(name not in tensors, f"tensor {name} is defined twice")
        _check_definition(definition, tensors, sizes)
        tensors[name] = program.info(name)
    for name in program.outputs:
        _require(name in tensors, f"output {name} is not a tensor of the program")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidProgramError(message)


def _check_size(e: Expr, sizes: set[str], where: str) -> None:
    checker = _Checker({}, sizes, where)
    checker.check(e, frozenset())
    _require(e.dtype is INDEX, f"{where}: {spell(e)} is {e.dtype}, a size is {INDEX}")


def _check_definition(d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str]) -> None:
    where = f"{d.name} ({d.origin})" if d.origin else d.name
    _require(len(set(d.vars)) == len(d.vars), f"{where}: two dimensions have the same variable")
    for v in d.vars:
        _require(v.extent is not None, f"{where}: variable {v.name} has no extent")
        if v.extent is not None:
            _check_size(v.extent, sizes, f"{where}: extent of {v.name}")
    if isinstance(d.body, Gemm):
        _check_gemm(d.body, d, where)
    elif isinstance(d.body, Attention):
        a = d.body
        own = {a.batch, a.head, a.row, a.column}
        _require(
            len(d.vars) == len(own) and set(d.vars) == own,
            f"{where}: an attention's batch, head, row and column are not the definition's variables",
        )
    checker = _Checker(tensors, sizes, where)
    checker.check(d.expr, frozenset(d.vars))
    _require(d.expr.dtype is d.dtype, f"{where}: the body is {d.expr.dtype}, the tensor {d.dtype}")


def _check_gemm(g: Gemm, d: Definition, where: str) -> None:
    outer = (*g.batch, *g.rows, g.column)
    _require(
        len(outer) == len(d.vars) and set(outer) == set(d.vars),
        f"{where}: a contraction's batch, rows and column are not the definition's variables",
    )
    summed = {*g.taps, g.depth}
    _require(not summed & set(outer), f"{where}: a summed variable is also one of the output")
    for side, operand, allowed in (("a", g.a, {*g.batch, *g.rows}), ("b", g.b, {*g.batch, g.column})):
        extra = free_vars(operand) - allowed - summed
        names = ", ".join(v.name for v in extra)
        _require(not extra, f"{where}: operand {side} of a contraction depends on {names}")


class _Checker:
    """Checks expressions; each sub-expression once for each set of bound variables."""

    def __init__(self, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str) -> None:
        self.tensors, self.sizes, self.where = tensors, sizes, where
        self.seen: set[tuple[Expr, frozenset[Var]]] = set()

    def check(self, e: Expr, bound: frozenset[Var]) -> None:
        """Checks an expression and all below it."""
        if (e, bound) in self.seen:
            return
        self.seen.add((e, bound))
        self.require(e.lanes == 1, e, "has more than one lane")
        match e:
            case Const():
                fits = isinstance(e.value, bool) == (e.dtype is DType.BOOL)
                fits = fits and isinstance(e.value, float) == e.dtype.is_float
                self.require(fits, e, f"is a {type(e.value).__name__} but has type {e.dtype}")
            case Var():
                self.require(e in bound, e, "is not bound here")
            case Size():
                self.require(e.name in self.sizes, e, "is not a size of the inputs or an earlier one")
            case Op():
                self._operation(e)
            case Load():
                self._load(e)
            case Reduce():
                self._reduce(e, bound)
                return
            case Bounded():
                self.require(e.index.dtype is INDEX and e.limit.dtype is INDEX, e, "is not of indices")
            case _:
                self.require(False, e, f"is a {type(e).__name__}, which belongs to loop nests only")
        for child in children(e):
            self.check(child, bound)

    def require(self, condition: bool, e: Expr, problem: str) -> None:
        _require(condition, f"{self.where}: {spell(e)} {problem}")

    def _operation(self, e: Op) -> None:
        types = [a.dtype for a in e.args]
        if e.op == "cast":
            self.require(len(types) == 1, e, f"has {len(types)} operands")
        elif e.op == "select":
            self.require(len(types) == 3, e, f"has {len(types)} operands")
            self.require(types[0] is DType.BOOL, e, f"has a condition of type {types[0]}")
            self.require(types[1] is types[2] is e.dtype, e, f"chooses {types[1]} or {types[2]} as {e.dtype}")
        else:
            known = OPERATIONS.get(e.op)
            self.require(known is not None, e, f"has an unknown operation '{e.op}'")
            if known is None:
                return
            self.require(len(types) == known.arity, e, f"has {len(types)} operands, not {known.arity}")
            listing = ", ".join(types)
            self.require(len(set(types)) == 1, e, f"has operands of types {listing}")
            self.require(known.accepts.allows(types[0]), e, f"has operands of type {types[0]}")
            result = DType.BOOL if known.compares else types[0]
            self.require(e.dtype is result, e, f"has type {e.dtype}, not {result}")

    def _load(self, e: Load) -> None:
        info = self.tensors.get(e.buffer)
        self.require(info is not None, e, "reads a tensor that is not defined before")
        if info is None:
            return
        self.require(e.dtype is info.dtype, e, f"has type {e.dtype}, the tensor {info.dtype}")
        rank = len(info.shape)
        self.require(len(e.index) == rank, e, f"has {len(e.index)} indices for {rank} dimensions")
        for i in e.index:
            self.require(i.dtype is INDEX, e, f"has an index of type {i.dtype}")

    def _reduce(self, e: Reduce, bound: frozenset[Var]) -> None:
        self.require(e.op in REDUCTIONS, e, f"has an unknown reduction '{e.op}'")
        self.require(e.body.dtype is e.dtype, e, f"has type {e.dtype}, its body {e.body.dtype}")
        arithmetic = e.op in ("max", "min") or e.dtype is not DType.BOOL
        self.require(arithmetic, e, "adds or multiplies booleans")
        for v in e.vars:
            self.require(v.extent is not None, e, f"has a variable {v.name} without extent")
            self.require(v not in bound, e, f"binds {v.name}, which is bound around it")
            if v.extent is not None:
                self.check(v.extent, frozenset())
        self.check(e.body, bound | frozenset(e.vars))
