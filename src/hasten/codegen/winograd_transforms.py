"""The matrices of Winograd's minimal filtering F(m, 3), and code that applies them.

m results of a filter with 3 taps, y[i] = sum over k of d[i + k] * g[k], take m + 2 products instead of 3 m:

    y = A^T [(G g) * (B^T d)]

A polynomial product is evaluated at m + 1 points and at infinity and interpolated (Toom and Cook); the
filter is its transpose. In two dimensions the transforms are applied along one axis, then along the other.
Sources: Winograd, "Arithmetic complexity of computations" (1980); Lavin and Gray, "Fast algorithms for
convolutional neural networks" (2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from hasten.codegen.algorithm import WINDOW, Algorithm
from hasten.codegen.reductions import Names
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Op, Var, const
from hasten.loops.nest import Let, Stmt

Matrix = tuple[tuple[Fraction, ...], ...]

POINTS: Mapping[Algorithm, tuple[Fraction, ...]] = {
    Algorithm.WINOGRAD_2: (Fraction(0), Fraction(1), Fraction(-1)),
    Algorithm.WINOGRAD_4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
"""Finite points of interpolation. Opposites share sums; 5/8 and 3/2 leave half the error of 1 and 2, for two
more operations in A^T (docs/decisions/0007-winograd.md)."""


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3).

    Attributes:
        inputs: B^T, [m + 2, m + 2].
        weights: G, [m + 2, 3].
        outputs: A^T, [m, m + 2].
    """

    inputs: Matrix
    weights: Matrix
    outputs: Matrix

    @property
    def results(self) -> int:
        """Results along an axis: m."""
        return len(self.outputs)

    @property
    def points(self) -> int:
        """Inputs and products along an axis: m + 2."""
        return len(self.inputs)


def transforms(algorithm: Algorithm) -> Transforms:
    """The matrices of an algorithm, from its points of interpolation.

    With finite points p_j: row j of A is (1, p_j, p_j^2, ...), row j of G the same divided by the product of
    all p_j - p_l, row j of B^T holds the coefficients of the product of all x - p_l, for l other than j. The
    point at infinity takes the highest coefficients, and the product over all l.
    """
    points = POINTS[algorithm]
    results = len(points) - WINDOW + 2
    rows: list[tuple[Fraction, ...]] = []
    weights: list[tuple[Fraction, ...]] = []
    for j, p in enumerate(points):
        others = [q for i, q in enumerate(points) if i != j]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        rows.append((*_from_roots(others), Fraction(0)))
        weights.append(tuple(p**k / scale for k in range(WINDOW)))
    rows.append(_from_roots(points))
    weights.append(tuple(Fraction(k == WINDOW - 1) for k in range(WINDOW)))
    outputs = tuple((*(p**i for p in points), Fraction(i == results - 1)) for i in range(results))
    return Transforms(tuple(rows), tuple(weights), outputs)


def _from_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients, the lowest first, of the product of all x - root."""
    product = [Fraction(1)]
    for r in roots:
        shifted, scaled = [Fraction(0), *product], [*(-r * c for c in product), Fraction(0)]
        product = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(product)


def transform_weights(weight: np.ndarray, algorithm: Algorithm) -> np.ndarray:
    """G g G^T for every column and depth, worked out in float64.

    Args:
        weight: [1, column, tap, depth] with the 9 taps of a window, row by row.
        algorithm: one of Winograd's.

    Returns:
        [1, column, point, depth], of the type of `weight`.
    """
    _, columns, _, depth = weight.shape
    g = np.array(transforms(algorithm).weights, np.float64)
    window = weight.astype(np.float64).reshape(columns, WINDOW, WINDOW, depth)
    product: np.ndarray = np.einsum("ya,xb,cabd->cyxd", g, g, window)
    return product.reshape(1, columns, -1, depth).astype(weight.dtype)


def apply_matrix(matrix: Matrix, values: Sequence[Expr], names: Names) -> tuple[list[Stmt], list[Expr]]:
    """Statements and results of a matrix times a vector of values, with what rows share computed once.

    Opposite points make pairs of columns (of A^T) or of rows (of B^T) that are equal up to signs: a sum and a
    difference serve both.
    """
    statements: list[Stmt] = []

    def named(e: Expr, hint: str) -> Expr:
        if isinstance(e, Var):
            return e
        v = Var(e.dtype, names.next(hint), lanes=e.lanes)
        statements.append(Let(v, e))
        return v

    given = [named(v, "v") for v in values]
    pairs = _opposite(tuple(zip(*matrix, strict=True)))
    if pairs:
        sums = {j: named(_sum([(1, given[j]), (1, given[k])]), "sum") for j, k in pairs}
        differences = {j: named(_sum([(1, given[j]), (-1, given[k])]), "difference") for j, k in pairs}
        seconds = {k for _, k in pairs}
        results = []
        for row in matrix:
            terms = [(c, _part(row, j, pairs, given, sums, differences)) for j, c in enumerate(row)]
            results.append(_sum([t for j, t in enumerate(terms) if j not in seconds]))
        return statements, results
    found: dict[int, Expr] = {}
    for i, k in _opposite(matrix):
        equal = [(c, v) for c, d, v in zip(matrix[i], matrix[k], given, strict=True) if c == d]
        negated = [(c, v) for c, d, v in zip(matrix[i], matrix[k], given, strict=True) if c != d]
        factor = [abs(c) for c, _ in negated if c][-1]
        even = named(_sum(equal), "even")
        odd = named(_sum([(c / factor, v) for c, v in negated]), "odd")
        found[i], found[k] = _sum([(1, even), (factor, odd)]), _sum([(1, even), (-factor, odd)])
    plain = [_sum(list(zip(row, given, strict=True))) for row in matrix]
    return statements, [found.get(i, e) for i, e in enumerate(plain)]


def _opposite(rows: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Pairs of rows that are equal in some places and each other's negative in the others."""
    pairs = []
    for i, a in enumerate(rows):
        for k, b in enumerate(rows[:i]):
            same = any(x == y != 0 for x, y in zip(a, b, strict=True))
            negated = any(x == -y != 0 for x, y in zip(a, b, strict=True))
            if same and negated and all(abs(x) == abs(y) for x, y in zip(a, b, strict=True)):
                pairs.append((k, i))
    return pairs


def _part(
    row: Sequence[Fraction],
    j: int,
    pairs: Sequence[tuple[int, int]],
    given: Sequence[Expr],
    sums: dict[int, Expr],
    differences: dict[int, Expr],
) -> Expr:
    """What the factor of column j applies to: its value, or the sum or difference of its pair."""
    for first, second in pairs:
        if j == first:
            return (sums if row[first] == row[second] else differences)[first]
    return given[j]


def _sum(terms: Sequence[tuple[Fraction | int, Expr]]) -> Expr:
    """Sum of factor * value; a term with factor 1 stands in front where there is one."""
    present = sorted(((Fraction(c), v) for c, v in terms if c), key=lambda t: t[0] != 1)
    (c, total), *rest = present
    if c != 1:
        total = _scaled(c, total)
    for c, v in rest:
        if c < 0 and c != -1:  # one fused operation, like the others
            total = Op(DType.F32, "add", (total, _scaled(c, v)), lanes=v.lanes)
        else:
            term = v if abs(c) == 1 else _scaled(c, v)
            total = Op(DType.F32, "add" if c > 0 else "sub", (total, term), lanes=v.lanes)
    return total


def _scaled(c: Fraction, v: Expr) -> Expr:
    return Op(DType.F32, "mul", (v, const(float(c), DType.F32)), lanes=v.lanes)
