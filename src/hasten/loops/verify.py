"""The rules that tensor programs and loop nests keep; whatever builds or rewrites one is checked by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import (
    GROUPS,
    REDUCTIONS,
    Address,
    Bounded,
    Const,
    Expr,
    Load,
    Op,
    Ramp,
    Reduce,
    Size,
    Var,
    children,
    free_vars,
)
from hasten.loops.nest import (
    Call,
    Comment,
    Declare,
    For,
    Function,
    If,
    Let,
    Param,
    Prefetch,
    Stmt,
    Store,
    size_parameter,
)
from hasten.loops.operations import OPERATIONS
from hasten.loops.program import (
    Attention,
    Definition,
    Forest,
    Gemm,
    Measured,
    Program,
    RankSelect,
    Recurrence,
    TensorInfo,
)
from hasten.loops.simplify import spell


class InvalidProgramError(AssertionError):
    """A program or a nest breaks a rule: a bug in the code that built it, never in a user's model."""


def verify(program: Program) -> None:
    """Checks that a program is well-formed.

    Every load names an input, a constant or an earlier definition and has an index for each of its
    dimensions; types agree; variables are bound; sizes are those of the inputs or derived from
    earlier ones, or measured by an earlier definition; operations and reductions are known; names are
    unique; outputs exist and their shapes are known before a run.

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
    for name, m in program.measured.items():
        _check_measured(program, name, m, sizes)
    known: set[str] = set()
    tensors = {name: program.info(name) for name in (*program.inputs, *program.constants)}
    for name, definition in program.definitions.items():
        _require(name == definition.name, f"definition {definition.name} is filed under {name}")
        _require(name not in tensors, f"tensor {name} is defined twice")
        _check_definition(definition, tensors, sizes | known)
        tensors[name] = program.info(name)
        known |= {size for size, m in program.measured.items() if m.tensor == name}
    for name in program.outputs:
        _require(name in tensors, f"output {name} is not a tensor of the program")
        for extent in tensors[name].shape:
            _check_size(extent, sizes, f"the shape of output {name}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidProgramError(message)


def _check_size(e: Expr, sizes: set[str], where: str) -> None:
    checker = _Checker({}, sizes, where)
    checker.check(e, frozenset())
    _require(e.dtype is INDEX, f"{where}: {spell(e)} is {e.dtype}, a size is {INDEX}")


def _check_measured(program: Program, name: str, m: Measured, sizes: set[str]) -> None:
    where = f"measured size {name}"
    _require(name not in sizes, f"{where} is defined twice")
    _require(m.tensor in program.definitions, f"{where}: {m.tensor} is not a definition")
    d = program.definitions[m.tensor]
    _require(d.dtype is INDEX, f"{where}: {m.tensor} is of {d.dtype}")
    _require(len(m.index) == len(d.vars), f"{where}: {len(m.index)} indices for {len(d.vars)} dimensions")
    for e in (*m.index, m.bound, *d.shape):
        _check_size(e, sizes, where)


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
        _check_attention(d.body, d, where)
    elif isinstance(d.body, RankSelect):
        own = (d.body.which, d.body.at)
        _require(d.vars == own, f"{where}: the variables of a rank are not the definition's")
        extra = free_vars(d.body.condition) - {d.body.position}
        _require(not extra, f"{where}: the condition of a rank depends on more than the position")
    if isinstance(d.body, Recurrence):
        _check_recurrence(d.body, d, tensors, sizes, where)
        return
    if isinstance(d.body, Forest):
        _check_forest(d.body, d, tensors, sizes, where)
        return
    checker = _Checker(tensors, sizes, where)
    checker.check(d.expr, frozenset(d.vars))
    _require(d.expr.dtype is d.dtype, f"{where}: the body is {d.expr.dtype}, the tensor {d.dtype}")


def _check_recurrence(
    c: Recurrence, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    own = (c.which, *c.lanes, c.position, c.unit)
    _require(d.vars == own, f"{where}: the variables of a recurrence are not the definition's")
    _require(not c.local & tensors.keys(), f"{where}: a state has the name of a tensor")
    shape = tuple(v.extent for v in (*c.lanes, c.unit) if v.extent is not None)
    known = dict(tensors)
    lanes = frozenset(c.lanes)
    _Checker(known, sizes, where).check(c.length, lanes)
    _Checker(known, sizes, where).check(c.at, lanes | {c.step})
    for name, e in zip(c.states, c.initial, strict=True):
        _Checker(known, sizes, where).check(e, lanes | {c.unit})
        known[name] = TensorInfo(name, e.dtype, shape)
    for name, e in zip(c.values, c.bodies, strict=True):
        checker = _Checker(known, sizes, where)
        checker.check(e, lanes | {c.step, c.unit})
        known[name] = TensorInfo(name, e.dtype, shape)
    _require(set(c.carried) <= set(c.values), f"{where}: a state becomes what no step computes")


def _check_forest(
    c: Forest, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    _require(d.vars == (c.part, c.row, c.target), f"{where}: the variables of a forest are not its own")
    _require(c.op in ("sum", "min", "max"), f"{where}: a forest combines by '{c.op}'")
    checker = _Checker(tensors, sizes, where)
    terms: tuple[tuple[Expr, set[Var], DType], ...] = (
        (c.x, {c.row, c.feature}, d.dtype),
        (c.root, {c.part, c.tree}, INDEX),
        (c.split, {c.node}, INDEX),
        (c.limit, {c.node}, d.dtype),
        (c.below, {c.node}, INDEX),
        (c.end, {c.node}, INDEX),
        (c.value, {c.leaf, c.target}, d.dtype),
    )
    for e, variables, dtype in terms:
        checker.check(e, frozenset(variables))
        _require(e.dtype is dtype, f"{where}: {spell(e)} of a forest is {e.dtype}, not {dtype}")


def _check_attention(a: Attention, d: Definition, where: str) -> None:
    _require(
        len(d.vars) == len(a.outer) and set(d.vars) == set(a.outer),
        f"{where}: an attention's batch, head, row and column are not the definition's variables",
    )
    ragged = (a.start, a.stop, a.longest)
    _require(
        all(e is None for e in ragged) or all(e is not None for e in ragged),
        f"{where}: an attention has some of start, stop and longest",
    )
    for e in (a.start, a.stop):
        extra = free_vars(e) - {a.batch} if e is not None else ()
        _require(not extra, f"{where}: where an attention's entries lie depends on more than the entry")


def _check_gemm(g: Gemm, d: Definition, where: str) -> None:
    outer = (*g.batch, *g.rows, g.column)
    _require(
        len(outer) == len(d.vars) and set(outer) == set(d.vars),
        f"{where}: a contraction's batch, rows and column are not the definition's variables",
    )
    types = (g.a.dtype, g.b.dtype)
    _require(
        types[0] is types[1] or types == BYTES, f"{where}: a contraction multiplies {' by '.join(types)}"
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
        elif e.op == "bitcast":
            self.require(len(types) == 1, e, f"has {len(types)} operands")
            self.require(types[0].bytes == e.dtype.bytes, e, f"reads {types[0]} as {e.dtype}")
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


def verify_function(f: Function, callees: Iterable[Function] = ()) -> None:
    """Checks that a loop nest is well-formed.

    Variables are set before they are used and declared once in a block; no local hides a buffer.
    Buffers are parameters or local arrays, have one index for each dimension, and only writable ones are
    stored to. Types and lanes agree; what is left to schedule (a reduction) is an error; calls fit the
    functions that they name.

    Args:
        f: the function.
        callees: functions that it may call.

    Raises:
        InvalidProgramError: a rule is broken; the message names the function and the expression.
    """
    names = [p.name for p in f.params]
    _require(len(set(names)) == len(names), f"{f.name}: two parameters have the same name")
    values = {p.name: (p.dtype, 1) for p in f.params if p.depth == 0}
    buffers: dict[str, Param | Declare] = {p.name: p for p in f.params if p.depth}
    _Nest(f.name, {c.name: c for c in callees}, values, buffers).block(f.body)


_UNARY_OF_NESTS = frozenset(
    {"total_sum", "total_prod", "total_max", "total_min", "exp_nonpositive", "broadcast", "apart"}
)


@dataclass
class _Nest:
    """Checks the statements of one block.

    Attributes:
        where: name of the function.
        callees: functions that may be called.
        values: type and lanes of the scalars and vectors that are visible.
        buffers: parameters and local arrays that are visible.
        own: names declared in this very block.
    """

    where: str
    callees: Mapping[str, Function]
    values: dict[str, tuple[DType, int]]
    buffers: dict[str, Param | Declare]
    own: set[str] = field(default_factory=set)

    def block(self, body: Sequence[Stmt], loop: Var | None = None) -> None:
        """Checks the statements of a block inside this one, whose loop variable is `loop`."""
        inner = _Nest(self.where, self.callees, dict(self.values), dict(self.buffers))
        if loop is not None:
            inner.define(loop.name, loop.dtype, 1)
            inner.own.clear()  # the body of a loop is a block of its own in C
        for s in body:
            inner.statement(s)

    def define(self, name: str, dtype: DType, lanes: int) -> None:
        _require(name not in self.own, f"{self.where}: {name} is declared twice in a block")
        _require(name not in self.buffers, f"{self.where}: {name} hides a buffer")
        self.own.add(name)
        self.values[name] = (dtype, lanes)

    def require(self, condition: bool, e: Expr, problem: str) -> None:
        _require(condition, f"{self.where}: {spell(e)} {problem}")

    def statement(self, s: Stmt) -> None:
        match s:
            case Let(v, value):
                self.check(value)
                same = (v.dtype, v.lanes) == (value.dtype, value.lanes)
                self.require(same, v, f"is {v.dtype}x{v.lanes}, its value {value.dtype}x{value.lanes}")
                self.define(v.name, v.dtype, v.lanes)
            case Declare():
                self.declare(s)
            case Store(buffer, index, value):
                self.store(buffer, index, value)
            case For(v, start, stop, body):
                self.check_index(start)
                self.check_index(stop)
                _require(s.step > 0, f"{self.where}: the loop over {v.name} has step {s.step}")
                self.require(v.dtype is INDEX and v.lanes == 1, v, "is a loop variable and not an index")
                self.block(body, v)
            case If(condition, then, otherwise):
                self.check(condition)
                scalar = condition.dtype is DType.BOOL and condition.lanes == 1
                self.require(scalar, condition, "is a condition and not a boolean scalar")
                self.block(then)
                self.block(otherwise)
            case Call():
                self.call(s)
            case Prefetch(buffer, index):
                self.place(buffer, index)
            case Comment():
                pass

    def declare(self, s: Declare) -> None:
        if s.value is not None:
            self.check(s.value)
            _require(not s.dims, f"{self.where}: array {s.name} has an initial value")
            fits = s.value.dtype is s.dtype and s.value.lanes in (1, s.lanes)
            self.require(fits, s.value, f"is not a value of {s.name}, {s.dtype}x{s.lanes}")
        self.define(s.name, s.dtype, s.lanes)
        if s.dims:
            del self.values[s.name]
            self.buffers[s.name] = s
        _require(s.lanes == 1 or not s.pointer, f"{self.where}: {s.name} is of pointers with lanes")

    def store(self, buffer: str, index: Sequence[Expr], value: Expr) -> None:
        self.check(value)
        if not index:
            _require(buffer in self.values, f"{self.where}: {buffer} is set and not declared before")
            dtype, lanes = self.values[buffer]
            fits = value.dtype is dtype and value.lanes in (1, lanes)
            self.require(fits, value, f"is not a value of {buffer}, {dtype}x{lanes}")
            return
        dtype, lanes, pointer = self.place(buffer, index)
        held = self.buffers[buffer]
        _require(isinstance(held, Declare) or held.writable, f"{self.where}: {buffer} is not writable")
        self.require(value.dtype is dtype, value, f"is {value.dtype}, {buffer} is of {dtype}")
        self.require(lanes == 1 or value.lanes in (1, lanes), value, f"has other lanes than {buffer}")
        is_pointer = self.is_pointer(value)
        self.require(is_pointer == pointer, value, "is a pointer or is not, unlike what it is stored to")

    def call(self, s: Call) -> None:
        f = self.callees.get(s.function)
        _require(f is not None, f"{self.where}: calls {s.function}, which is not known")
        if f is None:
            return
        count = (len(s.arguments), len(f.params))
        _require(count[0] == count[1], f"{self.where}: gives {s.function} {count[0]} of {count[1]} arguments")
        for p, a in zip(f.params, s.arguments, strict=True):
            self.check(a)
            self.require(a.dtype is p.dtype, a, f"is {a.dtype}, parameter {p.name} is {p.dtype}")
            self.require(a.lanes == 1, a, "is an argument with lanes")
            self.require(self.is_pointer(a) == (p.depth > 0), a, f"does not fit parameter {p.name}")

    def place(self, buffer: str, index: Sequence[Expr]) -> tuple[DType, int, bool]:
        """Checks an access; type and lanes of the element, and whether it is a pointer."""
        held = self.buffers.get(buffer)
        _require(held is not None, f"{self.where}: {buffer} is neither a parameter nor a local array")
        assert held is not None
        for i in index:
            self.check(i)
            self.require(i.dtype is INDEX, i, f"is an index of type {i.dtype}")
        rank = 1 if isinstance(held, Param) else len(held.dims)
        through = isinstance(held, Declare) and held.pointer and len(index) == rank + 1
        fits = len(index) == rank or through
        _require(fits, f"{self.where}: {buffer} has {len(index)} indices for {rank} dimensions")
        if isinstance(held, Param):
            return held.dtype, 1, held.depth == 2
        return held.dtype, held.lanes, held.pointer and not through

    def check_index(self, e: Expr) -> None:
        self.check(e)
        self.require(e.dtype is INDEX and e.lanes == 1, e, "is a bound and not an index")

    def check(self, e: Expr) -> None:
        """Checks an expression and all below it."""
        match e:
            case Var() | Size():
                name = size_parameter(e.name) if isinstance(e, Size) else e.name
                self.require(name in self.values, e, "is not set before it is used")
                self.require(self.values[name] == (e.dtype, e.lanes), e, "has another type or other lanes")
            case Load():
                self.load(e)
                return
            case Address():
                self.place(e.buffer, e.index)
                return
            case Op():
                self.operation(e)
            case Ramp():
                scalar = e.base.lanes == e.stride.lanes == 1
                self.require(scalar and e.lanes > 1, e, "is a ramp of the wrong lanes")
            case Bounded():
                self.require(e.lanes == e.index.lanes == e.limit.lanes == 1, e, "has more than one lane")
                reports = "kernel" in self.values and "fault" in self.buffers
                self.require(reports, e, "has nowhere to report a fault")
            case Reduce():
                self.require(False, e, "is a reduction that was not scheduled")
        for c in children(e):
            self.check(c)

    def load(self, e: Load) -> None:
        if not e.index:
            self.require(self.values.get(e.buffer) == (e.dtype, e.lanes), e, "is not a variable of its type")
            return
        dtype, lanes, _ = self.place(e.buffer, e.index)
        self.require(e.dtype is dtype, e, f"has type {e.dtype}, the buffer {dtype}")
        self.require(lanes in (1, e.lanes), e, f"has {e.lanes} lanes, the array {lanes}")
        self.require(all(i.lanes == 1 for i in e.index[:-1]), e, "has an outer index with lanes")
        self.require(e.index[-1].lanes in (1, e.lanes), e, "has an index with other lanes")

    def operation(self, e: Op) -> None:
        types, lanes = [a.dtype for a in e.args], {a.lanes for a in e.args} - {1}
        folds = e.op.startswith("total_")
        if folds:
            self.require(e.lanes == 1 and len(lanes) == 1, e, "does not fold a vector to a scalar")
        elif e.op == "broadcast":
            self.require(e.lanes > 1 and not lanes, e, "does not make a vector of a scalar")
        elif e.op in GROUPS:
            self.group(e)
            return
        else:
            self.require(lanes <= {e.lanes}, e, f"has {e.lanes} lanes, its operands {sorted(lanes)}")
            self.require(e.lanes == 1 or bool(lanes), e, "has lanes, none of its operands has")
        if e.op == "cast":
            return
        if e.op == "bitcast":
            self.require(types[0].bytes == e.dtype.bytes, e, f"reads {types[0]} as {e.dtype}")
        elif e.op == "select":
            self.require(types[0] is DType.BOOL, e, f"has a condition of type {types[0]}")
            self.require(types[1] is types[2] is e.dtype, e, f"chooses {types[1]} or {types[2]} as {e.dtype}")
        elif e.op in _UNARY_OF_NESTS:
            self.require(types == [e.dtype], e, f"has type {e.dtype}")
        else:
            known = OPERATIONS.get(e.op)
            self.require(known is not None, e, f"has an unknown operation '{e.op}'")
            assert known is not None
            self.require(len(types) == known.arity, e, f"has {len(types)} operands, not {known.arity}")
            self.require(len(set(types)) == 1, e, f"has operands of types {', '.join(types)}")
            result = DType.BOOL if known.compares else types[0]
            self.require(e.dtype is result, e, f"has type {e.dtype}, not {result}")

    def group(self, e: Op) -> None:
        """Checks an operation on groups of elements that share 32 bits."""
        types, lanes = [a.dtype for a in e.args], [a.lanes for a in e.args]
        if e.op == "dot":
            size = 4 // types[1].bytes
            same = (types[1] is types[2] and types[0] is DType.F32) or tuple(types[1:]) == BYTES
            fits = types[0] is e.dtype and same and e.dtype.bytes == 4 and size > 1
            self.require(fits, e, f"has operands of types {', '.join(types)}")
            self.require(
                lanes == [e.lanes, size * e.lanes, size * e.lanes], e, f"has operands of {lanes} lanes"
            )
            return
        self.require(set(types) == {e.dtype}, e, f"has operands of types {', '.join(types)}")
        if e.op == "repeat":
            self.require(e.lanes % lanes[0] == 0 and lanes[0] * e.dtype.bytes == 4, e, "repeats no group")
        elif e.op in ("zip_low", "zip_high"):
            self.require(lanes == [e.lanes, e.lanes], e, f"has operands of {lanes} lanes")
        else:
            self.require(lanes[0] == lanes[1] and e.lanes == 2 * lanes[0], e, "does not pair two vectors")

    def is_pointer(self, e: Expr) -> bool:
        """Whether an expression is the address of an element."""
        match e:
            case Address():
                return True
            case Load(buffer=buffer, index=index) if index:
                return self.place(buffer, index)[2]
            case Op(op="select", args=(_, a, b)):
                return self.is_pointer(a) and self.is_pointer(b)
        return False
