"""The rules that tensor programs and loop nests keep; whatever builds or rewrites one is checked by them."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.loops.descriptions import (
    Attention,
    Forest,
    Gemm,
    Greedy,
    Order,
    Prefix,
    RankSelect,
    Recurrence,
    Scatter,
)
from hasten.loops.dtypes import BYTES, INDEX, DType
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
    constant_int,
    free_vars,
)
from hasten.loops.operations import OPERATIONS
from hasten.loops.program import Definition, Measured, Program, TensorInfo
from hasten.loops.simplify import spell
from hasten.loops.sizes import size_names


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
    sizes = _all_sizes(program)
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
    late = _late_sizes(program)
    known: set[str] = set()
    tensors = {name: program.info(name) for name in (*program.inputs, *program.constants)}
    for name, definition in program.definitions.items():
        require(name == definition.name, f"definition {definition.name} is filed under {name}")
        require(name not in tensors, f"tensor {name} is defined twice")
        usable = {s for s in sizes if late.get(s, set()) <= tensors.keys()}
        _check_definition(definition, tensors, usable | known)
        tensors[name] = program.info(name)
        known |= {size for size, m in program.measured.items() if m.tensor == name}
    for name in program.outputs:
        require(name in tensors, f"output {name} is not a tensor of the program")
        for extent in tensors[name].shape:
            _check_size(extent, sizes, f"the shape of output {name}")


def _all_sizes(program: Program) -> set[str]:
    """The sizes of a program but for measured ones, after checking those that are elements or derived."""
    sizes = {n.name for info in program.inputs.values() for n in info.shape if isinstance(n, Size)}
    for name, e in program.elements.items():
        where = f"size {name}, an element of {e.tensor},"
        require(name not in sizes, f"{where} is defined twice")
        require(e.tensor in {**program.inputs, **program.definitions}, f"{where} is of no such tensor")
        info = program.info(e.tensor)
        require(not info.dtype.is_float, f"{where} is of {info.dtype}")
        dims = [constant_int(n) for n in info.shape]
        inside = len(dims) == len(e.index) and all(
            n is not None and 0 <= i < n for i, n in zip(e.index, dims, strict=True)
        )
        require(inside, f"{where} is at {e.index}, which its shape may not have")
    sizes |= program.elements.keys()
    for name, value in program.derived.items():
        require(name not in sizes, f"derived size {name} is defined twice")
        _check_size(value, sizes, f"derived size {name}")
        sizes.add(name)
    return sizes


def _late_sizes(program: Program) -> dict[str, set[str]]:
    """The tensors that the program must compute before a size is known, by size."""
    late = {n: {e.tensor} for n, e in program.elements.items() if e.tensor in program.definitions}
    for name, value in program.derived.items():
        late[name] = set().union(*(late.get(s, set()) for s in size_names(value)))
    return late


def require(condition: bool, message: str) -> None:
    """Raises `InvalidProgramError` unless the condition holds."""
    if not condition:
        raise InvalidProgramError(message)


def _check_size(e: Expr, sizes: set[str], where: str) -> None:
    checker = _Checker({}, sizes, where)
    checker.check(e, frozenset())
    require(e.dtype is INDEX, f"{where}: {spell(e)} is {e.dtype}, a size is {INDEX}")


def _check_measured(program: Program, name: str, m: Measured, sizes: set[str]) -> None:
    where = f"measured size {name}"
    require(name not in sizes, f"{where} is defined twice")
    require(m.tensor in program.definitions, f"{where}: {m.tensor} is not a definition")
    d = program.definitions[m.tensor]
    require(d.dtype is INDEX, f"{where}: {m.tensor} is of {d.dtype}")
    require(len(m.index) == len(d.vars), f"{where}: {len(m.index)} indices for {len(d.vars)} dimensions")
    for e in (*m.index, m.bound, *d.shape):
        _check_size(e, sizes, where)


def _check_definition(d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str]) -> None:
    where = f"{d.name} ({d.origin})" if d.origin else d.name
    require(len(set(d.vars)) == len(d.vars), f"{where}: two dimensions have the same variable")
    for v in d.vars:
        require(v.extent is not None, f"{where}: variable {v.name} has no extent")
        if v.extent is not None:
            _check_size(v.extent, sizes, f"{where}: extent of {v.name}")
    if isinstance(d.body, Gemm):
        _check_gemm(d.body, d, where)
    elif isinstance(d.body, Attention):
        _check_attention(d.body, d, where)
    elif isinstance(d.body, RankSelect):
        own = (d.body.which, d.body.at)
        require(d.vars == own, f"{where}: the variables of a rank are not the definition's")
        extra = free_vars(d.body.condition) - {d.body.position}
        require(not extra, f"{where}: the condition of a rank depends on more than the position")
    elif isinstance(d.body, Prefix):
        p = d.body
        require(
            {p.at, *p.lanes} == set(d.vars), f"{where}: the variables of a prefix are not the definition's"
        )
        require(
            p.at.extent == p.position.extent,
            f"{where}: the elements of a prefix are not as many as its places",
        )
        extra = free_vars(p.term) - {*p.lanes, p.position}
        require(not extra, f"{where}: an element of a prefix depends on more than its lanes and its position")
    elif isinstance(d.body, Order):
        o = d.body
        require(d.vars == (o.which, *o.lanes, o.at), f"{where}: the variables of an order are not its own")
        same = o.position.extent == o.other.extent and (o.partial or o.at.extent == o.position.extent)
        require(same, f"{where}: the positions of an order are not as many as its places")
        extra = free_vars(o.before) - {*o.lanes, o.position, o.other}
        require(not extra, f"{where}: what comes before in an order depends on more than two positions")
    if isinstance(d.body, Recurrence):
        _check_recurrence(d.body, d, tensors, sizes, where)
        return
    if isinstance(d.body, Scatter):
        _check_scatter(d.body, d, tensors, sizes, where)
        return
    if isinstance(d.body, Greedy):
        _check_greedy(d.body, d, tensors, sizes, where)
        return
    if isinstance(d.body, Forest):
        _check_forest(d.body, d, tensors, sizes, where)
        return
    checker = _Checker(tensors, sizes, where)
    checker.check(d.expr, frozenset(d.vars))
    require(d.expr.dtype is d.dtype, f"{where}: the body is {d.expr.dtype}, the tensor {d.dtype}")


def _check_recurrence(
    c: Recurrence, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    own = (c.which, *c.lanes, c.position, c.unit)
    require(d.vars == own, f"{where}: the variables of a recurrence are not the definition's")
    require(not c.local & tensors.keys(), f"{where}: a state has the name of a tensor")
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
    require(set(c.carried) <= set(c.values), f"{where}: a state becomes what no step computes")


def _check_scatter(
    c: Scatter, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    require(d.vars == c.vars, f"{where}: the variables of a scatter are not its own")
    require(len(c.at) == len(c.vars), f"{where}: an update of a scatter has not an index for each dimension")
    require(c.op in ("", "add", "mul", "max", "min"), f"{where}: a scatter combines by '{c.op}'")
    checker = _Checker(tensors, sizes, where)
    checker.check(c.old, frozenset(c.vars))
    for e in (c.new, *c.at):
        checker.check(e, frozenset(c.updates))
    require(c.old.dtype is c.new.dtype is d.dtype, f"{where}: a scatter mixes element types")


def _check_greedy(
    c: Greedy, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    require(d.vars == (c.which, *c.lanes, c.at), f"{where}: the variables of a choice are not its own")
    require(c.position.extent == c.other.extent, f"{where}: the positions of a choice are not as many")
    checker = _Checker(tensors, sizes, where)
    both = {c.position, c.other}
    terms: tuple[tuple[Expr, set[Var], DType], ...] = (
        (c.eligible, {c.position}, DType.BOOL),
        (c.before, both, DType.BOOL),
        (c.excluded, both, DType.BOOL),
        (c.most, set(), INDEX),
    )
    for e, variables, dtype in terms:
        checker.check(e, frozenset({*c.lanes, *variables}))
        require(e.dtype is dtype, f"{where}: {spell(e)} of a choice is {e.dtype}, not {dtype}")


def _check_forest(
    c: Forest, d: Definition, tensors: Mapping[str, TensorInfo], sizes: set[str], where: str
) -> None:
    require(d.vars == (c.part, c.row, c.target), f"{where}: the variables of a forest are not its own")
    require(c.op in ("sum", "min", "max"), f"{where}: a forest combines by '{c.op}'")
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
        require(e.dtype is dtype, f"{where}: {spell(e)} of a forest is {e.dtype}, not {dtype}")


def _check_attention(a: Attention, d: Definition, where: str) -> None:
    require(
        len(d.vars) == len(a.outer) and set(d.vars) == set(a.outer),
        f"{where}: an attention's batch, head, row and column are not the definition's variables",
    )
    ragged = (a.start, a.stop, a.longest)
    require(
        all(e is None for e in ragged) or all(e is not None for e in ragged),
        f"{where}: an attention has some of start, stop and longest",
    )
    for e in (a.start, a.stop):
        extra = free_vars(e) - {a.batch} if e is not None else ()
        require(not extra, f"{where}: where an attention's entries lie depends on more than the entry")


def _check_gemm(g: Gemm, d: Definition, where: str) -> None:
    outer = (*g.batch, *g.rows, g.column)
    require(
        len(outer) == len(d.vars) and set(outer) == set(d.vars),
        f"{where}: a contraction's batch, rows and column are not the definition's variables",
    )
    types = (g.a.dtype, g.b.dtype)
    require(types[0] is types[1] or types == BYTES, f"{where}: a contraction multiplies {' by '.join(types)}")
    summed = {*g.taps, g.depth}
    require(not summed & set(outer), f"{where}: a summed variable is also one of the output")
    for side, operand, allowed in (("a", g.a, {*g.batch, *g.rows}), ("b", g.b, {*g.batch, g.column})):
        extra = free_vars(operand) - allowed - summed
        names = ", ".join(v.name for v in extra)
        require(not extra, f"{where}: operand {side} of a contraction depends on {names}")


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
        require(condition, f"{self.where}: {spell(e)} {problem}")

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
