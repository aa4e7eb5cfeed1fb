"""Rewrites definitions so that tensors by entry and position are kept by token (see `codegen.padding`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hasten.codegen.padding_mask import TRUE, SeenKeys, inlined, is_at
from hasten.loops.descriptions import Attention, Description, Gemm, RankSelect, map_operands, operands
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Expr,
    Load,
    Op,
    Size,
    Var,
    binary,
    cast,
    const,
    free_vars,
    reduce,
    select,
    substitute,
    transform,
    unary,
    walk,
)
from hasten.loops.program import Definition, Measured, Program

Axes = tuple[int, int]
"""Where the batch entry and the position stand among a tensor's dimensions."""


@dataclass(frozen=True)
class Tokens:
    """Access to the index of the needed positions.

    Attributes:
        batch, length: the sizes of the mask.
        size: name of the measured size.
        ranks: the tensor of the `RankSelect` over the flattened positions.
    """

    batch: Expr
    length: Expr
    size: str
    ranks: str

    @property
    def measured(self) -> Measured:
        """How many positions are needed: the last rank."""
        total = self.batch * self.length
        return Measured(self.ranks, (const(0), total), total)

    def var(self, name: str) -> Var:
        """A variable over all needed positions."""
        return Var(INDEX, name, Size(INDEX, self.size))

    def rank(self, entry: Expr, position: Expr) -> Expr:
        """How many needed positions there are before one: its place in packed tensors."""
        return Load(INDEX, self.ranks, (const(0), entry * self.length + position))

    def needed(self, entry: Expr, position: Expr) -> Expr:
        """Whether a position is needed."""
        return binary("lt", self.rank(entry, position), self.rank(entry, position + 1))

    def place(self, token: Expr) -> tuple[Expr, Expr]:
        """Entry and position of a token."""
        flat = Load(INDEX, self.ranks, (const(1), token))
        return flat // self.length, flat % self.length


def unused_name(program: Program, name: str) -> str:
    """A name that no size and no tensor of the program has."""
    sizes = {n.name for i in program.inputs.values() for n in i.shape if isinstance(n, Size)}
    taken = {*sizes, *program.derived, *program.measured}
    taken |= {*program.inputs, *program.constants, *program.definitions}
    while name in taken:
        name += "_"
    return name


def sources(program: Program, expressions: Iterable[Expr]) -> set[str]:
    """All tensors that expressions depend on, directly or not."""
    found: set[str] = set()
    stack = [n.buffer for e in expressions for n in walk(e) if isinstance(n, Load)]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            d = program.definitions.get(name)
            stack.extend(() if d is None else d.reads())
    return found


@dataclass(frozen=True)
class Place:
    """The position that an expression is evaluated for: its entry, its position, and its token."""

    entry: Expr
    position: Expr
    token: Expr


@dataclass(frozen=True)
class Outside:
    """What an element is at hidden positions: it is needed where `needed` holds, else it is `value`."""

    needed: Expr
    value: Expr


def _gathers(a: Attention) -> bool:
    """Whether an operand is read at indices that are read: its kernel walks, and looks nothing up."""
    loads = (n for e in (a.q, a.k, a.v) for n in walk(e) if isinstance(n, Load))
    return any(isinstance(i, Load) for n in loads for index in n.index for i in walk(index))


@dataclass
class Rewrite:
    """One attempt to rewrite a program with some tensors packed; what cannot be packed is noted.

    Attributes:
        program: as it was.
        tokens: the index of needed positions.
        seen: the mask.
        attentions: names of the attentions with that mask.
        packed: the tensors to pack.
        blocked: those of them that something reads at positions that are not known to be needed, and what
            does so first.
        positions: constant positions that are read.
        conditions: what else makes a position needed, in terms of the variables of `seen`.
        per_token: masks of keys by token, by their expression.
    """

    program: Program
    tokens: Tokens
    seen: SeenKeys
    attentions: frozenset[str]
    packed: Mapping[str, Axes]
    blocked: dict[str, str] = field(default_factory=dict)
    positions: dict[Expr, None] = field(default_factory=dict)
    conditions: dict[Expr, None] = field(default_factory=dict)
    per_token: dict[Expr, Definition] = field(default_factory=dict)
    _reader: str = ""

    def definition(self, d: Definition) -> Definition:
        """A definition that reads packed tensors, and is packed itself if it should be."""
        self._reader = d.name
        if d.name not in self.packed:
            if isinstance(d.body, Expr):
                return replace(d, body=self.read(d.body))
            return replace(
                d, body=map_operands(d.body, {n: self.read(e) for n, e in operands(d.body).items()})
            )
        entry, position = (d.vars[axis] for axis in self.packed[d.name])
        token = self.tokens.var("token")
        variables = (token, *(v for v in d.vars if v not in (entry, position)))
        place = Place(entry, position, token)
        body: Expr | Description
        match d.body:
            case Gemm() if {entry, position} <= set(d.body.rows):
                rows = (token, *(v for v in d.body.rows if v not in (entry, position)))
                a, b = self.at_token(d.body.a, place), self.read(d.body.b)
                body = replace(d.body, rows=rows, a=a, b=b)
            case Attention() if d.name in self.attentions and (entry, position) == (d.body.batch, d.body.row):
                body = self.attention(d.body, place)
            case Expr():
                body = self.at_token(d.body, place)
            case _:
                self.blocked[d.name] = d.name
                return d
        if isinstance(body, Attention) and _gathers(body):
            self.blocked[d.name] = d.name
            return d
        return replace(d, name=self.name_of(d.name), vars=variables, body=body)

    def attention(self, a: Attention, row: Place) -> Attention:
        """The same over the tokens of each entry."""
        key = Place(a.batch, a.key, self.tokens.var("token_key"))
        assert isinstance(row.token, Var) and isinstance(key.token, Var)
        changed: dict[str, Expr] = {}
        for name, e in operands(a).items():
            if name in ("bias", "keep"):
                changed[name] = self.mask(a, e, row, key)
            else:
                changed[name] = self.at_token(e, row if name == "q" else key, entry=a.batch)
        return replace(
            a,
            **changed,  # type: ignore[arg-type]  # the names of operands
            row=row.token,
            key=key.token,
            start=self.tokens.rank(a.batch, const(0)),
            stop=self.tokens.rank(a.batch, self.tokens.length),
            longest=self.tokens.length,
        )

    def mask(self, a: Attention, e: Expr, row: Place, key: Place) -> Expr:
        """A mask at tokens; one that depends on the key alone is written by token first."""
        plain = inlined(self.program, e)
        if not free_vars(plain) <= {a.batch, a.key} or self.depends_on_packed(plain):
            entry = self.at_token(self.read(e), row, entry=a.batch)
            return self.at_token(entry, key, entry=a.batch)
        token = self.tokens.var("token")
        body = self.at_token(plain, Place(a.batch, a.key, token))
        if body not in self.per_token:
            name = unused_name(self.program, f"positions/mask_{len(self.per_token)}")
            self.per_token[body] = Definition(name, e.dtype, (token,), body, "mask of the tokens")
        return Load(e.dtype, self.per_token[body].name, (key.token,))

    def at_token(self, e: Expr, place: Place, entry: Expr | None = None) -> Expr:
        """An expression at a token; `entry` stands for its batch entry where something does already."""
        own, position = self.tokens.place(place.token)
        return substitute(self.read(e, place), {place.entry: entry or own, place.position: position})

    def read(self, e: Expr, place: Place | None = None) -> Expr:
        """An expression with loads of packed tensors at their tokens."""

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Load) and node.buffer in self.packed:
                return self.load(node, place)
            if isinstance(node, Op) and node.op in ("mul", "select"):
                return self.guarded(node, place)
            return None

        return transform(e, visit)

    def load(self, node: Load, place: Place | None) -> Expr:
        """A load of a packed tensor."""
        axes = self.packed[node.buffer]
        rest = tuple(self.read(i, place) for d, i in enumerate(node.index) if d not in axes)
        entry, position = (node.index[axis] for axis in axes)

        def at(token: Expr) -> Load:
            return Load(node.dtype, self.name_of(node.buffer), (token, *rest))

        if place is not None and self.is_here(node, place):
            return at(place.token)
        entry, position = self.read(entry, place), self.read(position, place)
        if not free_vars(position) and not any(isinstance(n, Load) for n in walk(position)):
            self.positions[position] = None
            return at(self.tokens.rank(entry, position))
        outside = self.outside(node.buffer)
        if outside is None:
            self.blocked.setdefault(node.buffer, self._reader)
            return node
        self.conditions[outside.needed] = None
        own = self.program.definitions[node.buffer].vars
        index: dict[Expr, Expr] = dict(zip(own, (self.read(i, place) for i in node.index), strict=True))
        token = self.tokens.rank(entry, position)
        return select(self.tokens.needed(entry, position), at(token), substitute(outside.value, index))

    def is_here(self, node: Load, place: Place) -> bool:
        """Whether a packed tensor is read at the position itself."""
        entry, position = (node.index[axis] for axis in self.packed[node.buffer])
        return is_at(entry, place.entry) and is_at(position, place.position)

    def guarded(self, node: Op, place: Place | None) -> Expr | None:
        """A product or choice that is known at hidden positions without the packed tensors that it reads."""
        loads = [n for n in walk(node) if isinstance(n, Load) and n.buffer in self.packed]
        if not loads or (place is not None and all(self.is_here(n, place) for n in loads)):
            return None
        places = {tuple(n.index[axis] for axis in self.packed[n.buffer]) for n in loads}
        if len(places) != 1:
            return None
        ((entry, position),) = places
        if not isinstance(entry, Var) or not isinstance(position, Var):
            return None
        outside = self.outside_of(node, entry, position)
        if outside is None:
            return None
        self.conditions[outside.needed] = None
        there = Place(entry, position, self.tokens.rank(entry, position))
        inner = replace(node, args=tuple(self.read(a, there) for a in node.args))
        return select(self.tokens.needed(entry, position), inner, outside.value)

    def outside(self, name: str) -> Outside | None:
        """What a packed tensor is at hidden positions, in terms of its definition's variables."""
        d = self.program.definitions[name]
        entry, position = (d.vars[axis] for axis in self.packed[name])
        return self.outside_of(d.body, entry, position) if isinstance(d.body, Expr) else None

    def outside_of(self, e: Expr, entry: Var, position: Var) -> Outside | None:
        """What an expression is at hidden positions, if it is known without packed tensors."""
        if isinstance(e, Load) and e.buffer in self.packed:
            inner = self.outside(e.buffer)
            if inner is None or not self.is_here(e, Place(entry, position, entry)):
                return None
            own = self.program.definitions[e.buffer].vars
            return replace(inner, value=substitute(inner.value, dict(zip(own, e.index, strict=True))))
        if isinstance(e, Op) and e.op == "mul":
            for factor in e.args:
                known = self.by_position(factor, entry, position)
                if known is not None:
                    zero = const(0, e.dtype)
                    return Outside(binary("ne", known, zero), zero)
        if isinstance(e, Op) and e.op == "select":
            condition = self.by_position(e.args[0], entry, position)
            if condition is not None and not self.depends_on_packed(e.args[2]):
                return Outside(condition, e.args[2])
            if condition is not None and not self.depends_on_packed(e.args[1]):
                return Outside(unary("not", condition), e.args[1])
        return None

    def by_position(self, e: Expr, entry: Var, position: Var) -> Expr | None:
        """An expression of entry and position in terms of the variables of the mask, if it is one."""
        plain = inlined(self.program, e)
        if not free_vars(plain) <= {entry, position} or self.depends_on_packed(plain):
            return None
        if position not in free_vars(plain):
            return None
        return substitute(plain, {entry: self.seen.batch, position: self.seen.key})

    def depends_on_packed(self, e: Expr) -> bool:
        """Whether an expression can be known only after the index of the tokens."""
        return bool(sources(self.program, [inlined(self.program, e)]) & self.packed.keys())

    def name_of(self, name: str) -> str:
        """A packed tensor's name; that of an output is taken by the unpacked one."""
        return unused_name(self.program, f"{name}/packed") if name in self.program.outputs else name

    def unpacked(self, name: str) -> Definition:
        """An output in its padded shape."""
        d = self.program.definitions[name]
        entry, position = (d.vars[axis] for axis in self.packed[name])
        outside = self.outside(name)
        if outside is not None:
            self.conditions[outside.needed] = None
        hidden = const(0, d.dtype) if outside is None else outside.value
        index = (self.tokens.rank(entry, position), *(v for v in d.vars if v not in (entry, position)))
        value = Load(d.dtype, self.name_of(name), index)
        body = select(self.tokens.needed(entry, position), value, hidden)
        return replace(d, body=body, origin="tokens to their positions")

    def index_definitions(self) -> list[Definition]:
        """The needed positions, and their index."""
        entry, position = self.seen.batch, self.seen.key
        needed = self.seen.condition
        for p in self.positions:
            needed = binary("or", needed, binary("eq", position, p))
        for c in self.conditions:
            needed = needed if c == needed else binary("or", needed, c)
        result: list[Definition] = []
        if self.seen.plain != TRUE:
            name = unused_name(self.program, "positions/any_plain")
            other = Var(INDEX, "other", position.extent)
            some = reduce("max", (other,), cast(self.seen.at(entry, other).plain, DType.U8))
            result.append(Definition(name, DType.U8, (entry,), some, "entries with tokens"))
            needed = binary("or", needed, binary("eq", Load(DType.U8, name, (entry,)), const(0, DType.U8)))
        name = unused_name(self.program, "positions/needed")
        result.append(Definition(name, DType.BOOL, (entry, position), needed, "positions that are needed"))
        which, at = Var(INDEX, "which", const(2)), Var(INDEX, "at", self.tokens.measured.bound + 1)
        flat = Var(INDEX, "flat", self.tokens.measured.bound)
        place = (flat // self.tokens.length, flat % self.tokens.length)
        body = RankSelect(which, at, flat, Load(DType.BOOL, name, place))
        result.append(Definition(self.tokens.ranks, INDEX, (which, at), body, "index of the tokens"))
        return result
