"""What a body may describe instead of spelling out: products, attention, counts, orders, choices and more.

`expression` gives each, but for choices, recurrences and trees, as a plain expression, which is its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hasten.loops.dtypes import BYTES, INDEX, DType
from hasten.loops.expr import (
    Expr,
    Var,
    binary,
    cast,
    const,
    constant_int,
    reduce,
    select,
    substitute,
    unary,
)


@dataclass(frozen=True)
class Gemm:
    """sum over taps and depth of a * b.

    Both operands have one type, which is the result's; or `a` is U8, `b` I8 and the result I32, for which
    they are widened before they are multiplied, so that the sum is exact.

    `a` depends on batch, rows, taps and depth; `b` on batch, column, taps and depth. A matrix product
    has one row variable and no taps; a convolution has image, height and width as rows, its window as
    taps and its input channels as depth. Groups are batch variables.

    Attributes:
        batch: variables that both operands depend on and that are not summed.
        rows: variables of `a` that are not summed.
        column: the variable of `b` that is not summed.
        taps: summed variables with few values, outer.
        depth: the summed variable along which memory is walked, inner.
        a: element of the first operand; may be a `select` between a load and what padding counts as:
            0, or for U8 any constant.
        b: element of the second operand, often a constant weight.
    """

    batch: tuple[Var, ...]
    rows: tuple[Var, ...]
    column: Var
    taps: tuple[Var, ...]
    depth: Var
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        """Element type of the sums."""
        return self.a.dtype

    @property
    def has_known_weight(self) -> bool:
        """Whether the range of `b` is known, so that a constant can be packed ahead of any run."""
        own = (*self.batch, self.column, *self.taps, self.depth)
        return all(constant_int(v.extent) is not None for v in own)


@dataclass(frozen=True)
class Attention:
    """softmax(scale * q k^T + bias) v for one batch entry and head at a time.

    With variables (batch, head, row, column): element of the output is the sum over `key` of
    p[row, key] * v[key, column], p the softmax over `key` of scale * sum over `depth` of q * k, plus
    `bias` where `keep` holds; keys where it does not hold have weight 0, and a row without any key
    is 0 throughout.

    Attributes:
        batch: batch variable.
        head: head variable.
        row: query position.
        column: position inside the head's value vector.
        key: key position (summed).
        depth: position inside the query and key vectors (summed).
        q, k, v: elements of the operands.
        scale: factor of the scores.
        bias: additive mask in terms of batch, head, row and key, or None.
        keep: boolean mask in the same terms, or None.
        start, stop: for batch entries of different lengths that lie one behind the other, in terms of
            `batch`: the rows and keys of an entry are start, start + 1, ... up to `stop` (exclusive). Then
            the output has no batch dimension, `row` and `key` run over all entries, and each row lies in one.
        longest: an upper bound of stop - start in terms of sizes.
    """

    batch: Var
    head: Var
    row: Var
    column: Var
    key: Var
    depth: Var
    q: Expr
    k: Expr
    v: Expr
    scale: float
    bias: Expr | None = None
    keep: Expr | None = None
    start: Expr | None = None
    stop: Expr | None = None
    longest: Expr | None = None

    @property
    def dtype(self) -> DType:
        """Element type of the output."""
        return self.q.dtype

    @property
    def outer(self) -> tuple[Var, ...]:
        """The variables of the output, in no order."""
        own = (self.head, self.row, self.column)
        return own if self.start is not None else (self.batch, *own)


@dataclass(frozen=True)
class RankSelect:
    """Which positions a condition holds at, both ways round.

    With variables (which, at): out[0, i] is how many positions before `i` hold (the rank of `i`), for
    i up to and including the number of positions, so that the last one is how many hold at all; out[1, n]
    is the n-th position that holds, 0 where there are fewer. Both names are those of succinct bit vectors
    (Jacobson, Space-efficient static trees and graphs, 1989).

    Attributes:
        which: 0 or 1.
        at: from 0 to the number of positions.
        position: what the condition is in terms of (counted).
        condition: whether a position holds.
    """

    which: Var
    at: Var
    position: Var
    condition: Expr


NEUTRAL = {"sum": 0, "prod": 1}
"""What changes nothing in a `Prefix`."""


@dataclass(frozen=True)
class Prefix:
    """The sum or product of all elements up to each one.

    Attributes:
        op: "sum" or "prod".
        lanes: the output's other variables, which are independent of each other.
        at: the output's variable along which elements are joined.
        position: counts the elements, with the same extent.
        term: an element, in terms of lanes and position.
        inclusive: whether the element at the place itself is in.
        backward: whether it is the elements from the place on, rather than up to it.
    """

    op: str
    lanes: tuple[Var, ...]
    at: Var
    position: Var
    term: Expr
    inclusive: bool
    backward: bool


@dataclass(frozen=True)
class Order:
    """Positions in order, both ways round; those of which neither comes before the other stay as they were.

    With variables (which, lanes, at): out[0, lanes, n] is the n-th position in order, out[1, lanes, p] is the
    place of position p in it. Where only the first places are wanted, `which` is always 0.

    Attributes:
        which: 0 or 1.
        lanes: what is independent of each other.
        at: from 0 up to the number of positions, or to that of the first places that are wanted: no more.
        position: a position, with the same extent.
        other: another one.
        before: whether `position` must come before `other`, in terms of lanes and both.
    """

    which: Var
    lanes: tuple[Var, ...]
    at: Var
    position: Var
    other: Var
    before: Expr

    @property
    def partial(self) -> bool:
        """Whether only the first places are wanted."""
        return self.which.extent == const(1)


@dataclass(frozen=True)
class Recurrence:
    """States that are carried over the steps of a sequence: what RNN, GRU and LSTM are.

    A *lane* (one direction of one sequence) takes its steps one after the other. A step computes `bodies`
    in order; each gives a vector over `unit`, by the name of the same place in `values`. Bodies may load
    states and earlier values of their own lane at [lanes, any unit], and sum over them. Then each state
    becomes the value that `carried` names, and is written. With variables (which, lanes, position, unit):
    out[which, lanes, p, unit] is state number `which` behind the step whose position is p, 0 where none is.

    Attributes:
        which: counts the states.
        lanes: what is independent of each other.
        position: where a step is written.
        unit: element of a state.
        step: counts the steps.
        states: names that bodies load the states by.
        initial: the states before the first step, in terms of lanes and unit.
        values: names of what a step computes.
        bodies: their elements, in terms of lanes, step and unit.
        carried: for each state the name of its next value.
        length: number of steps that a lane takes, in terms of lanes.
        at: position of a step, in terms of lanes and step; takes all of 0 to length - 1.
    """

    which: Var
    lanes: tuple[Var, ...]
    position: Var
    unit: Var
    step: Var
    states: tuple[str, ...]
    initial: tuple[Expr, ...]
    values: tuple[str, ...]
    bodies: tuple[Expr, ...]
    carried: tuple[str, ...]
    length: Expr
    at: Expr

    @property
    def dtype(self) -> DType:
        """Element type of the states."""
        return self.initial[0].dtype

    @property
    def local(self) -> frozenset[str]:
        """What bodies load that is no tensor of the program."""
        return frozenset((*self.states, *self.values))


@dataclass(frozen=True)
class Forest:
    """Decision trees that rows walk down, and what the leaves that they end at say together.

    A row begins at a root and takes `depth` steps. A step goes to `below`, or to the node behind that where
    not x <= limit, so for NaN too; `split` says which feature x is, from the number of features on their
    negatives in the same order. A leaf has the limit NaN and is itself the node behind its `below`, so that
    it is not left any more; node 0 is one that says nothing. With variables (part, row, target):
    out[part, row, target] combines value[leaf, target] over the trees of that part.

    Attributes:
        part: trees are divided into parts of equal number.
        row: a row of features.
        target: a number of a leaf.
        tree: counts the trees of a part.
        node, leaf, feature: count nodes, leaves and features.
        x: the features, in terms of row and feature.
        root: first node, in terms of part and tree.
        split, limit, below, end: of a node; `end` is its number as a leaf, if it is one.
        value: in terms of leaf and target.
        depth: steps after which every row is at a leaf.
        op: "sum", "min" or "max".
    """

    part: Var
    row: Var
    target: Var
    tree: Var
    node: Var
    leaf: Var
    feature: Var
    x: Expr
    root: Expr
    split: Expr
    limit: Expr
    below: Expr
    end: Expr
    value: Expr
    depth: int
    op: str = "sum"

    @property
    def dtype(self) -> DType:
        """Element type of features, limits and values."""
        return self.x.dtype


@dataclass(frozen=True)
class Greedy:
    """Positions that are chosen one after the other, each unless one that was chosen before excludes it.

    With variables (which, lanes, at): out[0, lanes, n] is the n-th position that is chosen, and
    out[0, lanes, number of positions] says how many are. What else is in the output is not defined: it is
    memory for the kernel.

    Attributes:
        which: 0 or 1.
        lanes: what is independent of each other.
        at: from 0 to the number of positions.
        position: a position.
        other: another one, with the same extent.
        eligible: whether `position` may be chosen, in terms of lanes and it.
        before: whether its turn comes before that of `other`, in terms of lanes and both; those of which
            neither does take their turns as they stand.
        excluded: whether `other`, if chosen, excludes it, in the same terms.
        most: how many are chosen at the most, in terms of lanes.
    """

    which: Var
    lanes: tuple[Var, ...]
    at: Var
    position: Var
    other: Var
    eligible: Expr
    before: Expr
    excluded: Expr
    most: Expr


@dataclass(frozen=True)
class Scatter:
    """A tensor in which updates replace elements, or are combined with them, one after the other.

    With the output's variables `vars`, out[vars] = old; then for all updates in row-major order of `updates`
    out[at] becomes `new`, or `op` of what is there and `new`.

    Attributes:
        vars: the output's variables.
        old: an element before, in terms of `vars`.
        updates: variables over the updates.
        at: where an update goes, an index for each dimension, in terms of `updates`.
        new: an update, in the same terms.
        op: "" to replace, else "add", "mul", "max" or "min".
    """

    vars: tuple[Var, ...]
    old: Expr
    updates: tuple[Var, ...]
    at: tuple[Expr, ...]
    new: Expr
    op: str


Contraction = Gemm | Attention
Whole = Recurrence | Forest | Greedy | Scatter
"""Descriptions that no expression stands for."""
Description = Contraction | RankSelect | Prefix | Order | Whole


def expression(c: Description) -> Expr:
    """A description as a plain expression of its output variables.

    Raises:
        TypeError: it is one that none stands for.
    """
    if isinstance(c, Whole):
        raise TypeError(f"a {type(c).__name__.lower()} is no expression")
    if isinstance(c, Gemm):
        a, b = (cast(e, DType.I32) if e.dtype in BYTES else e for e in (c.a, c.b))
        return reduce("sum", (*c.taps, c.depth), binary("mul", a, b))
    if isinstance(c, RankSelect):
        return _rank_select(c)
    if isinstance(c, Prefix):
        low, high = (c.at, c.position) if c.backward else (c.position, c.at)
        counted = binary("le" if c.inclusive else "lt", low, high)
        return reduce(c.op, (c.position,), select(counted, c.term, const(NEUTRAL[c.op], c.term.dtype)))
    if isinstance(c, Order):
        return _order(c)
    if c.start is None or c.stop is None:
        return _softmax_attention(c)
    inside = binary("and", binary("le", c.start, c.key), binary("lt", c.key, c.stop))
    keep = inside if c.keep is None else binary("and", inside, c.keep)
    entry = _softmax_attention(replace(c, keep=keep))
    here = binary("and", binary("le", c.start, c.row), binary("lt", c.row, c.stop))
    return reduce("sum", (c.batch,), select(here, entry, const(0.0, entry.dtype)))


def _order(c: Order) -> Expr:
    """Places by counting what comes before, and positions by looking for their places."""
    after = substitute(c.before, {c.position: c.other, c.other: c.position})
    kept = binary("and", unary("not", c.before), binary("lt", c.other, c.position))
    ahead = cast(binary("or", after, kept), INDEX)
    place = reduce("sum", (c.other,), ahead)
    here = select(binary("eq", place, c.at), c.position, const(0))
    return select(
        binary("eq", c.which, const(0)),
        reduce("sum", (c.position,), here),
        substitute(place, {c.position: c.at}),
    )


def _rank_select(c: RankSelect) -> Expr:
    """Counts the positions that hold before one; the n-th one is that which has n before it."""
    before = Var(c.position.dtype, c.position.name + "_before", c.position.extent)
    held = substitute(c.condition, {c.position: before})

    def rank(of: Expr) -> Expr:
        counted = binary("and", binary("lt", before, of), held)
        return reduce("sum", (before,), select(counted, const(1), const(0)))

    found = binary("and", c.condition, binary("eq", rank(c.position), c.at))
    selected = reduce("sum", (c.position,), select(found, c.position, const(0)))
    return select(binary("eq", c.which, 0), rank(c.at), selected)


def _softmax_attention(c: Attention) -> Expr:
    dtype = c.q.dtype
    dot = reduce("sum", (c.depth,), binary("mul", c.q, c.k))
    scores = binary("mul", dot, const(c.scale, dtype))
    if c.bias is not None:
        scores = binary("add", scores, c.bias)
    if c.keep is not None:
        scores = select(c.keep, scores, const(float("-inf"), dtype))
    other = Var(c.key.dtype, c.key.name + "_max", c.key.extent)
    peak = reduce("max", (other,), substitute(scores, {c.key: other}))
    dead = binary("eq", peak, const(float("-inf"), dtype))
    shifted = binary("sub", scores, select(dead, const(0.0, dtype), peak))
    weight = unary("exp", shifted)
    inner = Var(c.key.dtype, c.key.name + "_sum", c.key.extent)
    total = reduce("sum", (inner,), substitute(weight, {c.key: inner}))
    weighted = reduce("sum", (c.key,), binary("mul", weight, c.v))
    return select(dead, const(0.0, dtype), binary("div", weighted, total))


def map_operands(c: Description, rewrite: Mapping[str, Expr]) -> Description:
    """The same description with some operand expressions (by attribute name) replaced."""
    if isinstance(c, Recurrence):
        new = {**operands(c), **rewrite}
        initial = tuple(new[f"initial {n}"] for n in c.states)
        bodies = tuple(new[f"body {n}"] for n in c.values)
        return replace(c, initial=initial, bodies=bodies, length=new["length"], at=new["at"])
    if isinstance(c, Scatter):
        new = {**operands(c), **rewrite}
        at = tuple(new[f"at {d}"] for d in range(len(c.at)))
        return replace(c, old=new["old"], new=new["new"], at=at)
    return replace(c, **rewrite)  # type: ignore[arg-type]  # keys are operand attributes


def operands(c: Description) -> dict[str, Expr]:
    """The operand expressions of a description by attribute name."""
    if isinstance(c, Recurrence):
        return {
            **{f"initial {n}": e for n, e in zip(c.states, c.initial, strict=True)},
            **{f"body {n}": e for n, e in zip(c.values, c.bodies, strict=True)},
            "length": c.length,
            "at": c.at,
        }
    if isinstance(c, Scatter):
        return {"old": c.old, "new": c.new, **{f"at {d}": e for d, e in enumerate(c.at)}}
    names: tuple[str, ...] = ("q", "k", "v", "bias", "keep", "start", "stop")
    if isinstance(c, Gemm):
        names = ("a", "b")
    elif isinstance(c, Order):
        names = ("before",)
    elif isinstance(c, RankSelect):
        names = ("condition",)
    elif isinstance(c, Prefix):
        names = ("term",)
    elif isinstance(c, Greedy):
        names = ("eligible", "before", "excluded", "most")
    elif isinstance(c, Forest):
        names = ("x", "root", "split", "limit", "below", "end", "value")
    return {n: getattr(c, n) for n in names if getattr(c, n) is not None}
