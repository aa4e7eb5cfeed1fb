"""Simplification of index arithmetic: polynomials over variables, sizes and opaque terms.

An index is brought to the form sum(coefficient * atom * atom ...). Division and remainder are resolved
by splitting off the terms that the divisor divides and proving that the rest lies in [0, divisor);
proofs use that a loop variable lies in [0, extent) and that a size is at least 1, which it is where an
element of it is taken. Conditions hold for sizes of 0 too: they decide whether anything is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Bounded,
    Const,
    Expr,
    Load,
    Op,
    Reduce,
    Size,
    Var,
    children,
    const,
)

Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]

_ARITHMETIC = frozenset({"add", "sub", "mul"})
_FOLD_INT: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else None,
    "mod": lambda a, b: a % b if b else None,
    "truncdiv": lambda a, b: (abs(a) // abs(b)) * (1 if (a >= 0) == (b > 0) else -1) if b else None,
    "min": min,
    "max": max,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}


def simplify_index(e: Op) -> Expr:
    """The simplest equal form of an operation on indices or conditions whose arguments are simple."""
    a, b = e.args
    if isinstance(a, Const) and isinstance(b, Const) and not a.dtype.is_float:
        fold = _FOLD_INT.get(e.op)
        value = fold(a.value, b.value) if fold else None
        if value is not None:
            return const(value, e.dtype)
    if e.dtype is DType.BOOL and a.dtype is DType.BOOL:
        return _simplify_logic(e, a, b)
    if a.dtype is not INDEX:
        return e
    if e.op in _ARITHMETIC:
        return from_poly(_merge_remainders(to_poly(e)))
    match e.op:
        case "floordiv":
            return _floordiv(a, b)
        case "truncdiv" if is_nonnegative(a) and is_nonnegative(b):
            return _floordiv(a, b)
        case "mod":
            return _mod(a, b)
        case "min" | "max":
            return _min_max(e, a, b)
        case "lt" | "le" | "eq" | "ne":
            return _compare(e, a, b)
    return e


def to_poly(e: Expr) -> Poly:
    """The polynomial form of an index expression."""
    if isinstance(e, Const):
        return {(): int(e.value)} if e.value else {}
    if isinstance(e, Op) and e.op in _ARITHMETIC:
        a, b = to_poly(e.args[0]), to_poly(e.args[1])
        if e.op == "mul":
            return multiply(a, b)
        return add(a, b, 1 if e.op == "add" else -1)
    return {(e,): 1}


def add(a: Poly, b: Poly, factor: int = 1) -> Poly:
    """A + factor * b."""
    result = dict(a)
    for atoms, c in b.items():
        total = result.get(atoms, 0) + factor * c
        if total:
            result[atoms] = total
        else:
            result.pop(atoms, None)
    return result


def multiply(a: Poly, b: Poly) -> Poly:
    """A * b."""
    result: Poly = {}
    for atoms_a, ca in a.items():
        for atoms_b, cb in b.items():
            atoms = tuple(sorted(atoms_a + atoms_b, key=spell)) if atoms_b else atoms_a
            result = add(result, {atoms: ca * cb})
    return result


def from_poly(p: Poly) -> Expr:
    """An expression for a polynomial: positive terms first, in a fixed order."""
    if not p:
        return const(0)
    terms = sorted(p.items(), key=lambda t: (t[1] < 0, not t[0], [spell(a) for a in t[0]]))
    result: Expr | None = None
    for atoms, c in terms:
        magnitude = abs(c) if result is not None else c
        term: Expr | None = None if magnitude == 1 and atoms else const(magnitude)
        for atom in reversed(atoms):
            term = atom if term is None else Op(INDEX, "mul", (atom, term))
        assert term is not None
        result = term if result is None else Op(INDEX, "add" if c > 0 else "sub", (result, term))
    assert result is not None
    return result


def spell(e: Expr) -> str:
    """A short text that identifies an expression and orders terms."""
    match e:
        case Const():
            return repr(e.value)
        case Var() | Size():
            return e.name
        case Op():
            return f"{e.op}({','.join(spell(c) for c in e.args)})"
        case Load():
            return f"{e.buffer}[{','.join(spell(c) for c in e.index)}]"
        case Reduce():
            return f"{e.op}_{','.join(v.name for v in e.vars)}({spell(e.body)})"
        case _:
            return f"{type(e).__name__}({','.join(spell(c) for c in children(e))})"


_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}
_BINDING = {"add": 1, "sub": 1, "mul": 2, "floordiv": 2, "mod": 2}


def infix(e: Expr, values: Mapping[str, Expr] | None = None) -> str:
    """A size as people write it: `batch * sequence * 4`.

    Args:
        e: an expression of sizes.
        values: sizes to write as the expressions that they stand for, by name.
    """
    return _infix(e, values or {})[0]


def _infix(e: Expr, values: Mapping[str, Expr]) -> tuple[str, int]:
    if isinstance(e, Size) and e.name in values:
        return _infix(values[e.name], values)
    if isinstance(e, Op) and e.op in _SYMBOLS:
        binding = _BINDING[e.op]
        left, right = (_infix(a, values) for a in e.args)
        # Products and sums associate; what follows a minus or a division does not.
        loose = binding if e.op in ("add", "mul") and right[1] == binding else binding + 1
        a = left[0] if left[1] >= binding else f"({left[0]})"
        b = right[0] if right[1] >= loose else f"({right[0]})"
        return f"{a} {_SYMBOLS[e.op]} {b}", binding
    if isinstance(e, Op):
        return f"{e.op}({', '.join(_infix(a, values)[0] for a in e.args)})", 3
    return spell(e), 3


def _merge_remainders(p: Poly) -> Poly:
    """Replaces m * d * (x // d) + m * (x % d) by m * x."""
    for atoms, c in list(p.items()):
        for position, atom in enumerate(atoms):
            if not (isinstance(atom, Op) and atom.op == "mod") or atoms not in p:
                continue
            x, d = atom.args
            rest = atoms[:position] + atoms[position + 1 :]
            outer: Poly = {rest: c}
            quotient = multiply(multiply(outer, to_poly(d)), to_poly(_floordiv(x, d)))
            if all(p.get(k) == v for k, v in quotient.items()):
                p = add(add(p, quotient, -1), {atoms: c}, -1)
                return _merge_remainders(add(p, multiply(outer, to_poly(x))))
    return p


def _raw(op: str, a: Expr, b: Expr) -> Op:
    return Op(INDEX, op, (a, b))


def divide(n: Poly, d: Poly) -> tuple[Poly, Poly]:
    """Splits n into quotient * d + remainder, term by term; d with one term or equal up to a factor."""
    if len(d) != 1:
        for factor_atoms, factor in _candidate_factors(n, d):
            product = multiply({factor_atoms: factor}, d)
            if all(n.get(k) == v for k, v in product.items()):
                q, r = divide(add(n, product, -1), d)
                return add({factor_atoms: factor}, q), r
        return {}, n
    ((d_atoms, d_coefficient),) = d.items()
    quotient: Poly = {}
    remainder: Poly = {}
    for atoms, c in n.items():
        rest = _without(atoms, d_atoms)
        if rest is not None and c % d_coefficient == 0:
            quotient[rest] = c // d_coefficient
        else:
            remainder[atoms] = c
    return quotient, remainder


def _candidate_factors(n: Poly, d: Poly) -> Iterable[tuple[Monomial, int]]:
    """Monomials that could multiply d inside n, from n's terms divided by d's leading term."""
    lead_atoms, lead = max(d.items(), key=lambda t: (len(t[0]), abs(t[1])))
    for atoms, c in n.items():
        rest = _without(atoms, lead_atoms)
        if rest is not None and c % lead == 0:
            yield rest, c // lead


def _without(atoms: Monomial, removed: Monomial) -> Monomial | None:
    """Atoms less the removed ones, or None where one is missing."""
    rest = list(atoms)
    for atom in removed:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _floordiv(a: Expr, b: Expr) -> Expr:
    if isinstance(b, Const) and b.value == 1:
        return a
    n, d = to_poly(a), to_poly(b)
    if not n or not d:
        return a if not n else _raw("floordiv", a, b)
    quotient, rest = divide(n, d)
    if not rest or (nonnegative(rest) and _less(rest, d)):
        return from_poly(quotient)
    remainder = from_poly(rest)
    if isinstance(b, Const) and b.value > 0:
        reduced = _reduce_by_common_factor(rest, int(b.value))
        if reduced is not None:
            return from_poly(add(quotient, to_poly(_floordiv(*reduced))))
        if isinstance(remainder, Op) and remainder.op == "floordiv":
            inner, by = remainder.args
            if isinstance(by, Const) and by.value > 0:
                remainder, b = inner, const(int(by.value) * int(b.value))
    return from_poly(add(quotient, {(_raw("floordiv", remainder, b),): 1}))


def _reduce_by_common_factor(n: Poly, d: int) -> tuple[Expr, Expr] | None:
    """(n // g, d // g) for the common factor g of d and all of n but a constant below g, if g > 1."""
    constant = n.get((), 0)
    g = math.gcd(d, *(c for atoms, c in n.items() if atoms))
    if g <= 1:
        return None
    reduced = {atoms: c // g for atoms, c in n.items() if atoms}
    if constant // g:
        reduced[()] = constant // g
    return from_poly(reduced), const(d // g)


def _mod(a: Expr, b: Expr) -> Expr:
    if isinstance(b, Const) and b.value == 1:
        return const(0)
    n, d = to_poly(a), to_poly(b)
    if not d:
        return _raw("mod", a, b)
    _, rest = divide(n, d)
    if not rest:
        return const(0)
    remainder = from_poly(rest)
    if nonnegative(rest) and _less(rest, d):
        return remainder
    return _raw("mod", remainder, b)


def _min_max(e: Op, a: Expr, b: Expr) -> Expr:
    difference = add(to_poly(a), to_poly(b), -1)
    smaller = e.op == "min"
    if nonnegative(difference):
        return b if smaller else a
    if nonnegative(_negated(difference)):
        return a if smaller else b
    return e


def _compare(e: Op, a: Expr, b: Expr) -> Expr:
    difference = add(to_poly(b), to_poly(a), -1)
    if e.op in ("eq", "ne"):
        if not difference:
            return const(e.op == "eq", DType.BOOL)
        less, more = add(difference, {(): -1}), add(_negated(difference), {(): -1})
        if nonnegative(less, 0) or nonnegative(more, 0):
            return const(e.op == "ne", DType.BOOL)
        return e
    margin: Poly = {(): -1} if e.op == "lt" else {}
    other: Poly = {} if e.op == "lt" else {(): -1}
    if nonnegative(add(difference, margin), 0):
        return const(True, DType.BOOL)
    if nonnegative(add(_negated(difference), other), 0):
        return const(False, DType.BOOL)
    return e


def _simplify_logic(e: Op, a: Expr, b: Expr) -> Expr:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Const):
            if e.op == "and":
                return y if x.value else x
            if e.op == "or":
                return x if x.value else y
    return a if a == b and e.op in ("and", "or") else e


def _negated(p: Poly) -> Poly:
    return {atoms: -c for atoms, c in p.items()}


def _less(a: Poly, b: Poly) -> bool:
    return nonnegative(add(add(b, a, -1), {(): -1}))


def is_nonnegative(e: Expr) -> bool:
    """True where an index expression is provably never negative."""
    return nonnegative(to_poly(e))


def nonnegative(p: Poly, least: int = 1) -> bool:
    """True where a polynomial is provably never negative.

    Every term is bounded on its own: variables of positive terms by 0, of negative ones by extent - 1,
    remainders by the divisor - 1. What is left has sizes only; with size = least + s all coefficients must
    be non-negative.

    Args:
        p: the polynomial.
        least: the least that a size can be.
    """
    bound: Poly = {}
    for atoms, c in p.items():
        if not all(_atom_nonnegative(a, least) for a in atoms):
            return False
        if all(isinstance(a, Size) for a in atoms):
            bound = add(bound, {atoms: c})
        elif c < 0:
            term: Poly = {(): c}
            for atom in atoms:
                upper = _upper(atom)
                if upper is None:
                    return False
                term = multiply(term, upper)
            if any(not all(isinstance(a, Size) for a in k) for k in term):
                return False
            bound = add(bound, term)
    shifted: Poly = {}
    for atoms, c in bound.items():
        term = {(): c}
        for atom in atoms:
            term = multiply(term, {(atom,): 1, (): least} if least else {(atom,): 1})
        shifted = add(shifted, term)
    return all(c >= 0 for c in shifted.values())


def _atom_nonnegative(atom: Expr, least: int) -> bool:
    def holds(e: Expr) -> bool:
        return nonnegative(to_poly(e), least)

    match atom:
        case Size():
            return not atom.signed
        case Bounded():
            return True
        case Var():
            return atom.extent is not None
        case Op(op="floordiv" | "mod", args=(a, b)):
            return (holds(a) or atom.op == "mod") and holds(b)
        case Op(op="min", args=(a, b)):
            return holds(a) and holds(b)
        case Op(op="max", args=(a, b)):
            return holds(a) or holds(b)
        case Op(op="select", args=(_, a, b)):
            return holds(a) and holds(b)
    return False


def _upper(atom: Expr) -> Poly | None:
    """An upper bound of an atom as a polynomial in sizes, where one is known."""
    match atom:
        case Size():
            return {(atom,): 1}
        case Var() if atom.extent is not None:
            return add(to_poly(atom.extent), {(): -1})
        case Bounded():
            return add(to_poly(atom.limit), {(): -1})
        case Op(op="mod", args=(_, d)):
            return add(to_poly(d), {(): -1})
        case Op(op="floordiv", args=(n, Const(value=d))) if isinstance(d, int) and d > 0:
            top: Poly = {}
            for atoms, c in to_poly(n).items():
                if c < 0 and atoms:
                    continue
                term: Poly = {(): c}
                for a in atoms:
                    upper = _upper(a)
                    if upper is None:
                        return None
                    term = multiply(term, upper)
                top = add(top, term)
            return {(): top.get((), 0) // d} if set(top) <= {()} else None
        case Op(op="min", args=(a, b)):
            return to_poly(b) if isinstance(b, Const) else to_poly(a)
    return None
