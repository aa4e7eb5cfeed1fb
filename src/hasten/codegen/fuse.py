"""Fusion: decides which tensors are written to memory and substitutes all others into their readers.

Movement (an index change and nothing else) always disappears into its readers. Arithmetic does when it
is evaluated once, or is so cheap that doing it again costs less than a round trip through memory. What
follows a contraction element by element becomes its epilogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hasten.codegen.stage import ACCUMULATOR, Stage
from hasten.codegen.tables import is_table
from hasten.codegen.uses import is_indirect, is_wide, plainly_read, shared_of, uses_of
from hasten.codegen.vectorize import coefficient
from hasten.loops.descriptions import (
    Attention,
    Description,
    Forest,
    Gemm,
    Greedy,
    Order,
    Prefix,
    RankSelect,
    Recurrence,
    Scatter,
    map_operands,
    operands,
)
from hasten.loops.dtypes import BYTES
from hasten.loops.expr import (
    Bounded,
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Var,
    children,
    const,
    constant_int,
    free_vars,
    substitute,
    transform,
    walk,
)
from hasten.loops.program import Definition, Program
from hasten.loops.simplify import spell, to_poly

CHEAP = 3
"""Largest cost, in simple operations, of an element that is computed again rather than stored."""

HIGHEST = 120
"""Longest chain of operations in one expression: what handles expressions goes down by calling itself."""

_COSTS = {"cast": 0, "select": 1, "div": 4, "sqrt": 4, "floordiv": 1, "mod": 1, "truncdiv": 4}
_SIMPLE = frozenset(
    ["add", "sub", "mul", "min", "max", "neg", "abs", "lt", "le", "eq", "ne", "and", "or", "not",
     "bitand", "bitor", "bitxor", "bitnot", "shl", "shr"]
)  # fmt: skip


def fuse(program: Program) -> list[Stage]:
    """The stages of a program, in an order in which each reads only earlier ones."""
    program = _literal_bounds(program)
    live = _live(program)
    inlined: dict[str, Definition] = {}
    uses, repeated, plain = uses_of(program, live), shared_of(program, live), plainly_read(live)
    kept = {*program.outputs, *(m.tensor for m in program.measured.values())}
    stages: list[Stage] = []
    origins: dict[str, tuple[str, ...]] = {}
    for d in live:
        origins[d.name] = _origins(d, inlined, origins)
        if isinstance(d.body, Expr):
            body: Expr | Description = _inline(d.body, inlined)
        else:
            body = _inline_operands(d.body, inlined, stages, origins)
        # What becomes bytes does so where it is summed, however few read it: that is what bytes are for.
        stored = d.name in kept or (
            d.dtype in BYTES and isinstance(body, Expr) and _reads_product(body, stages)
        )
        given = replace(d, body=body)
        view = None if d.name in kept else _taken_in(given, stages, inlined, uses, d.name in plain)
        if view is not None:
            inlined[d.name] = view
        elif (
            not stored
            and isinstance(body, Expr)
            and not is_table(body, d.vars)
            and _disappears(body, uses[d.name], d.name in repeated, stages)
        ):
            inlined[d.name] = given
        else:
            stages.append(Stage(d.name, d.dtype, d.vars, body, None, origins[d.name]))
    return _absorb_epilogues(_drop_unread(stages, kept), kept)


def _taken_in(
    d: Definition,
    stages: list[Stage],
    inlined: Mapping[str, Definition],
    uses: Mapping[str, int],
    plain: bool,
) -> Definition | None:
    """What follows a contraction in another shape, as a view of its result; or None.

    Its stage then computes it in its epilogue. It is the only reader: what becomes bytes of an attention,
    perhaps of heads side by side (what becomes floats is not its epilogue: it is taken into its readers, as
    anything is that is not the epilogue of a product), or what follows a product by groups.
    """
    if not isinstance(d.body, Expr) or any(isinstance(n, Reduce) for n in walk(d.body)):
        return None
    read: dict[str, list[Load]] = {}
    for load in dict.fromkeys(n for n in walk(d.body) if isinstance(n, Load)):
        read.setdefault(load.buffer, []).append(load)
    for at, s in enumerate(stages):
        loads = read.get(s.name, ())
        if len(loads) != 1 or not _takes_in(s, d, plain):
            continue
        between = [n for n, m in inlined.items() if s.name in m.reads()]
        inner = s.epilogue if s.epilogue is not None else Load(s.dtype, ACCUMULATOR, ())
        epilogue = substitute(d.body, {loads[0]: Load(s.dtype, ACCUMULATOR, ())})
        epilogue = substitute(epilogue, _positions(loads[0].index, s.vars))
        epilogue = substitute(epilogue, {Load(s.dtype, ACCUMULATOR, ()): inner})
        fits = free_vars(epilogue) <= set(s.vars) and height(epilogue) <= HIGHEST
        if fits and all(uses[n] == 1 for n in (s.name, *between)):
            origins = tuple(dict.fromkeys([*s.origins, d.origin]))
            del stages[at]  # it moves behind what else its epilogue reads
            stages.append(replace(s, dtype=d.dtype, epilogue=epilogue, origins=origins))
            return replace(d, body=Load(d.dtype, s.name, loads[0].index))
    return None


def _takes_in(s: Stage, d: Definition, plain: bool) -> bool:
    if isinstance(s.body, Attention):
        return s.epilogue is None and d.dtype in BYTES
    # Of the same shape it is merged later. Windows and what moves it read no view of it.
    return isinstance(s.body, Gemm) and len(s.vars) != len(d.vars) and plain


def _positions(index: Sequence[Expr], variables: Sequence[Var]) -> dict[Expr, Expr]:
    """Variables of who reads at an index, in terms of those of what is read: those that it is clear for."""
    found: dict[Expr, Expr] = {}
    parts: dict[tuple[Expr, Expr], dict[str, Var]] = {}
    for e, v in zip(index, variables, strict=True):
        if isinstance(e, Var):
            if e.extent is not None and v.extent is not None and constant_int(e.extent - v.extent) == 0:
                found[e] = v
        elif isinstance(e, Op) and e.op in ("floordiv", "mod"):
            parts.setdefault((e.args[0], e.args[1]), {})[e.op] = v
    for (whole, size), by in parts.items():
        if len(by) == 2 and by["mod"].extent == size and _is_whole(whole, by["floordiv"], size):
            found[whole] = by["floordiv"] * size + by["mod"]
    return found


def _is_whole(whole: Expr, quotient: Var, size: Expr) -> bool:
    """Whether quotients and remainders count no more than there is."""
    if not isinstance(whole, Var) or whole.extent is None or quotient.extent is None:
        return False
    return constant_int(quotient.extent * size - whole.extent) == 0


def _literal_bounds(program: Program) -> Program:
    """The program with constants of one element in `min` and `max` as literals.

    What is known to be a number is compared in one instruction. Other scalars stay in memory, so that
    kernels that differ in them alone are one function.
    """
    found = {n: a for n, a in program.constants.items() if a.size == 1 and a.dtype == np.float32}

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Op) or node.op not in ("min", "max"):
            return None
        arms = [transform(a, visit) for a in node.args]
        known = [
            const(found[a.buffer].item(), a.dtype) if isinstance(a, Load) and a.buffer in found else a
            for a in arms
        ]
        return replace(node, args=tuple(known))

    definitions = {
        name: replace(d, body=transform(d.body, visit)) if isinstance(d.body, Expr) else d
        for name, d in program.definitions.items()
    }
    return replace(program, definitions=definitions)


def _origins(
    d: Definition, inlined: Mapping[str, Definition], origins: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The operators that a stage for a definition computes: those it takes in, and its own.

    Movement that cannot fail is left out where it disappears: it costs nothing, and titles stay short.
    """
    found: dict[str, None] = {}
    for node in (n for e in d.expressions() for n in walk(e)):
        if isinstance(node, Load) and node.buffer in inlined and not _is_free(inlined[node.buffer]):
            found |= dict.fromkeys(origins[node.buffer])
    return tuple(dict.fromkeys([*found, d.origin]))


def _is_free(d: Definition) -> bool:
    checked = any(isinstance(n, Bounded) for n in walk(d.expr))
    return isinstance(d.body, Expr) and is_movement(d.body) and not checked


def _live(program: Program) -> list[Definition]:
    """Definitions that the outputs, and the sizes of others, need, in order."""
    needed = {*program.outputs, *(m.tensor for m in program.measured.values())}
    result = []
    for d in reversed(program.definitions.values()):
        if d.name in needed:
            result.append(d)
            needed |= d.reads()
    return result[::-1]


def cost(e: Expr) -> int:
    """Rough number of simple operations that an element takes; index arithmetic is free."""
    total = 0
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Load):
            continue
        if isinstance(node, Op):
            total += 1 if node.op in _SIMPLE else _COSTS.get(node.op, 10)
            stack.extend(node.args)
        elif isinstance(node, Reduce):
            total += 100
    return total


def height(e: Expr) -> int:
    """The longest chain of operations in an expression; elementary functions count as their polynomials."""
    found: dict[Expr, int] = {}
    stack = [e]
    while stack:
        node = stack[-1]
        below = [c for c in children(node) if c not in found]
        if below:
            stack += below
            continue
        stack.pop()
        own = 10 if isinstance(node, Op) and node.op not in _SIMPLE and node.op not in _COSTS else 1
        found[node] = own + max((found[c] for c in children(node)), default=0)
    return found[e]


def is_movement(e: Expr) -> bool:
    """Whether an element is only fetched, chosen or a constant, never computed from data."""
    if isinstance(e, (Load, Const)):
        return True
    if isinstance(e, Op) and e.op == "select":
        return is_movement(e.args[1]) and is_movement(e.args[2]) and not _reads(e.args[0])
    return not _reads(e) and not any(isinstance(n, Reduce) for n in walk(e))


def _reads(e: Expr) -> bool:
    return any(isinstance(n, Load) for n in walk(e))


def _disappears(body: Expr, uses: int, shared: bool, stages: list[Stage]) -> bool:
    if height(body) > HIGHEST:
        return False
    if is_movement(body):
        return uses <= 1 or not any(_is_lookup(n) for n in walk(body))
    sums = any(isinstance(n, Reduce) for n in walk(body))
    if uses <= 1 and not (shared and (sums or cost(body) > CHEAP)):
        return True
    if sums:
        return False
    if _reads_product(body, stages):
        return False  # better its producer's epilogue than computed in each reader
    loads = [n for n in walk(body) if isinstance(n, Load)]
    return cost(body) <= CHEAP and len(loads) <= 2 and not any(is_indirect(n) for n in loads)


def _reads_product(e: Expr, stages: list[Stage]) -> bool:
    contracted = {s.name for s in stages if isinstance(s.body, Gemm)}
    return any(isinstance(n, Load) and n.buffer in contracted for n in walk(e))


def _is_lookup(e: Expr) -> bool:
    return isinstance(e, Bounded) or (isinstance(e, Load) and is_indirect(e))


def _inline(e: Expr, inlined: dict[str, Definition]) -> Expr:
    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.buffer not in inlined:
            return None
        d = inlined[node.buffer]
        index = [_inline(i, inlined) for i in node.index]
        return substitute(d.expr, dict(zip(d.vars, index, strict=True)))

    return transform(e, visit)


def _inline_operands(
    c: Description,
    inlined: dict[str, Definition],
    stages: list[Stage],
    origins: Mapping[str, tuple[str, ...]],
) -> Description:
    """Operands seen through movement, where the kernel can still walk them; otherwise written first."""
    result: dict[str, Expr] = {}
    for name, e in operands(c).items():
        seen = _inline(e, inlined)
        if _walkable(c, name, seen):
            result[name] = seen
            continue
        result[name] = e
        for node in walk(e):
            if isinstance(node, Load) and node.buffer in inlined:
                d = inlined.pop(node.buffer)
                stages.append(Stage(d.name, d.dtype, d.vars, d.body, None, origins[d.name]))
    return map_operands(c, result)


def _walkable(c: Description, name: str, e: Expr) -> bool:
    """Whether a microkernel can read an operand as it is (any expression does for what it packs)."""
    if isinstance(c, Order):
        # Elements are compared many times, so what they are is computed before.
        return _arithmetic(e) <= _arithmetic(operands(c)[name])
    if isinstance(c, RankSelect):
        return isinstance(e, Load)
    if isinstance(c, Prefix):
        return True
    if isinstance(c, Forest | Greedy | Scatter):
        return not any(isinstance(n, Reduce) for n in walk(e))
    if isinstance(c, Recurrence):
        return all(_along_last(n, c.unit) for n in walk(e) if isinstance(n, Load))
    if isinstance(c, Gemm):
        return name == "b" or _is_direct(operand_load(e, c.depth))
    if name not in ("q", "k", "v"):
        return True
    along = c.column if name == "v" else c.depth
    return isinstance(e, Load) and _is_direct(operand_load(e, along))


def _arithmetic(e: Expr) -> int:
    """How many operations on floats and sums an expression has."""
    return sum(isinstance(n, Reduce) or (isinstance(n, Op) and n.dtype.is_float) for n in walk(e))


def _along_last(load: Load, v: Var) -> bool:
    """Whether a load is contiguous in a variable, or does not depend on it."""
    holders = [i for i in load.index if v in free_vars(i)]
    return not holders or (holders == [load.index[-1]] and constant_int(coefficient(holders[0], v)) == 1)


def _is_direct(load: Load | None) -> bool:
    return load is not None and not is_indirect(load)


def operand_load(e: Expr, along: Var) -> Load | None:
    """The load that an operand is, bare or guarded against padding, if `along` stands in one dim alone.

    Also where the flat row-major address is contiguous in `along` (a reshaped view).
    """
    if isinstance(e, Op) and e.op == "select":
        condition, value, other = e.args
        if along in free_vars(condition) or not isinstance(other, Const):
            return None
        if other.value != 0 and other.dtype not in BYTES:
            return None
        e = value
    if not isinstance(e, Load):
        return None
    holders = [i for i in e.index if along in free_vars(i)]
    if len(holders) == 1 and constant_int(coefficient(holders[0], along) or along) == 1:
        return e
    return e if len(holders) > 1 and all(_splits(i, along) for i in holders) else None


def _splits(index: Expr, along: Var) -> bool:
    """Whether `along` enters an index only as one quotient or remainder (part of a reshape)."""
    parts = [(atoms, c) for atoms, c in to_poly(index).items() if any(along in free_vars(a) for a in atoms)]
    if len(parts) != 1 or len(parts[0][0]) != 1 or parts[0][1] != 1:
        return False
    (atom,) = parts[0][0]
    return isinstance(atom, Op) and atom.op in ("floordiv", "mod") and atom.args[0] == along


def _drop_unread(stages: list[Stage], kept: set[str]) -> list[Stage]:
    needed = set(kept)
    result = []
    for s in reversed(stages):
        if s.name in needed:
            result.append(s)
            needed |= set(s.reads())
    return result[::-1]


def _absorb_epilogues(stages: list[Stage], kept: set[str]) -> list[Stage]:
    """Merges each contraction with the element-wise stage that is its only reader, repeatedly."""
    done: list[Stage] = []
    open_stages: dict[str, Stage] = {}
    readers: Counter[str] = Counter(name for s in stages for name in s.reads())
    for s in stages:
        result = s
        # Of several, the one whose result would take the most memory.
        candidates = [n for n in s.reads() if n in open_stages]
        for name in sorted(candidates, key=lambda n: -open_stages[n].dtype.bytes):
            merged = _merge(open_stages[name], s)
            if merged is not None:
                done.remove(open_stages.pop(name))
                result = merged
                break
        done.append(result)
        if isinstance(result.body, Gemm) and result.name not in kept and readers[result.name] == 1:
            open_stages[result.name] = result
    return done


def _merge(c: Stage, s: Stage) -> Stage | None:
    """The contraction `c` with the element-wise stage `s` as (the end of) its epilogue, if it can be."""
    if not isinstance(s.body, Expr) or len(c.vars) != len(s.vars):
        return None
    if any(isinstance(n, Reduce) for n in walk(s.body)):
        return None
    if [spell(n) for n in c.shape] != [spell(n) for n in s.shape]:
        return None
    loads = [n for n in walk(s.body) if isinstance(n, Load) and n.buffer == c.name]
    # Along an axis of one element a reader may say 0 instead of the variable.
    if any(n.index[d] != v for n in loads for d, v in enumerate(s.vars) if is_wide(v)):
        return None
    back: dict[Expr, Expr] = dict(zip(s.vars, c.vars, strict=True))
    inner = c.epilogue if c.epilogue is not None else Load(c.dtype, ACCUMULATOR, ())
    epilogue = substitute(s.body, {**back, **dict.fromkeys(loads, inner)})
    if height(epilogue) > HIGHEST:
        return None
    return Stage(s.name, s.dtype, c.vars, c.body, epilogue, c.origins + s.origins)
