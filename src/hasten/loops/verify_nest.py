"""The rules that loop nests keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import GROUPS, Address, Bounded, Expr, Load, Op, Ramp, Reduce, Size, Var, children
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
from hasten.loops.simplify import spell
from hasten.loops.verify import require


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
    require(len(set(names)) == len(names), f"{f.name}: two parameters have the same name")
    values = {p.name: (p.dtype, 1) for p in f.params if p.depth == 0}
    buffers: dict[str, Param | Declare] = {p.name: p for p in f.params if p.depth}
    _Nest(f.name, {c.name: c for c in callees}, values, buffers).block(f.body)


_UNARY_OF_NESTS = frozenset(
    {
        "total_sum", "total_prod", "total_max", "total_min", "total_peak",
        "exp_nonpositive", "exp_for_bf16", "broadcast", "apart",
    }
)  # fmt: skip


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
        require(name not in self.own, f"{self.where}: {name} is declared twice in a block")
        require(name not in self.buffers, f"{self.where}: {name} hides a buffer")
        self.own.add(name)
        self.values[name] = (dtype, lanes)

    def require(self, condition: bool, e: Expr, problem: str) -> None:
        require(condition, f"{self.where}: {spell(e)} {problem}")

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
                require(s.step > 0, f"{self.where}: the loop over {v.name} has step {s.step}")
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
            require(not s.dims, f"{self.where}: array {s.name} has an initial value")
            fits = s.value.dtype is s.dtype and s.value.lanes in (1, s.lanes)
            self.require(fits, s.value, f"is not a value of {s.name}, {s.dtype}x{s.lanes}")
        self.define(s.name, s.dtype, s.lanes)
        if s.dims:
            del self.values[s.name]
            self.buffers[s.name] = s
        require(s.lanes == 1 or not s.pointer, f"{self.where}: {s.name} is of pointers with lanes")

    def store(self, buffer: str, index: Sequence[Expr], value: Expr) -> None:
        self.check(value)
        if not index:
            require(buffer in self.values, f"{self.where}: {buffer} is set and not declared before")
            dtype, lanes = self.values[buffer]
            fits = value.dtype is dtype and value.lanes in (1, lanes)
            self.require(fits, value, f"is not a value of {buffer}, {dtype}x{lanes}")
            return
        dtype, lanes, pointer = self.place(buffer, index)
        held = self.buffers[buffer]
        require(isinstance(held, Declare) or held.writable, f"{self.where}: {buffer} is not writable")
        self.require(value.dtype is dtype, value, f"is {value.dtype}, {buffer} is of {dtype}")
        self.require(lanes == 1 or value.lanes in (1, lanes), value, f"has other lanes than {buffer}")
        is_pointer = self.is_pointer(value)
        self.require(is_pointer == pointer, value, "is a pointer or is not, unlike what it is stored to")

    def call(self, s: Call) -> None:
        f = self.callees.get(s.function)
        require(f is not None, f"{self.where}: calls {s.function}, which is not known")
        if f is None:
            return
        count = (len(s.arguments), len(f.params))
        require(count[0] == count[1], f"{self.where}: gives {s.function} {count[0]} of {count[1]} arguments")
        for p, a in zip(f.params, s.arguments, strict=True):
            self.check(a)
            self.require(a.dtype is p.dtype, a, f"is {a.dtype}, parameter {p.name} is {p.dtype}")
            self.require(a.lanes == 1, a, "is an argument with lanes")
            self.require(self.is_pointer(a) == (p.depth > 0), a, f"does not fit parameter {p.name}")

    def place(self, buffer: str, index: Sequence[Expr]) -> tuple[DType, int, bool]:
        """Checks an access; type and lanes of the element, and whether it is a pointer."""
        held = self.buffers.get(buffer)
        require(held is not None, f"{self.where}: {buffer} is neither a parameter nor a local array")
        assert held is not None
        for i in index:
            self.check(i)
            self.require(i.dtype is INDEX, i, f"is an index of type {i.dtype}")
        rank = 1 if isinstance(held, Param) else len(held.dims)
        through = isinstance(held, Declare) and held.pointer and len(index) == rank + 1
        fits = len(index) == rank or through
        require(fits, f"{self.where}: {buffer} has {len(index)} indices for {rank} dimensions")
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
        elif e.op == "lower":
            self.require(lanes == [2 * e.lanes], e, f"is not half of {lanes} lanes")
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
