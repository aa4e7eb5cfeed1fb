"""Index arithmetic and conditions mean the same after they were simplified."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Const, Expr, Op, Size, Var, binary, const, size
from hasten.loops.scope import size_value

N, M = size("n"), size("m")
ROW, COLUMN = Var(INDEX, "i", N), Var(INDEX, "j", M * 2)
LEAVES = st.one_of(st.integers(-3, 7).map(const), st.sampled_from([N, M, ROW, COLUMN]))
PARTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["add", "sub"]), inner, inner),
        st.tuples(st.just("mul"), inner, st.integers(-3, 4).map(const)),
        st.tuples(st.just("floordiv"), inner, st.integers(2, 4).map(const)),
    ),
    max_leaves=6,
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["add", "sub", "min", "max", "mul"]), inner, inner),
        st.tuples(
            st.sampled_from(["floordiv", "mod"]),
            inner,
            st.sampled_from([const(1), const(4), N, M * 2, N * M]),
        ),
    ),
    max_leaves=6,
)


def built(tree: Expr | tuple) -> Expr:
    """An expression, simplified as it is built."""
    return tree if isinstance(tree, Expr) else binary(tree[0], built(tree[1]), built(tree[2]))


def written(tree: Expr | tuple) -> Expr:
    """The same as it is written."""
    if isinstance(tree, Expr):
        return tree
    dtype = DType.BOOL if tree[0] in ("lt", "le", "eq", "ne") else INDEX
    return Op(dtype, tree[0], (written(tree[1]), written(tree[2])))


def value(e: Expr, values: dict[str, int]) -> int:
    """What an expression is for values of its sizes and variables."""

    def placed(e: Expr) -> Expr:
        match e:
            case Var() | Size():
                return const(values[e.name])
            case Op(args=args):
                return Op(e.dtype, e.op, tuple(placed(a) for a in args))
        return e

    return int(e.value) if isinstance(e, Const) else size_value(placed(e), {})


def same(tree: Expr | tuple, sizes: tuple[int, ...]) -> None:
    found, wanted = built(tree), written(tree)
    for n, m in itertools.product(sizes, repeat=2):
        for i, j in {(0, 0), (n - 1, 0), (0, 2 * m - 1), (n // 2, m)}:
            at = {"n": n, "m": m, "i": i, "j": j}
            if (uses(wanted, ROW) and not 0 <= i < n) or (uses(wanted, COLUMN) and not 0 <= j < 2 * m):
                continue
            assert value(found, at) == value(wanted, at), (found, wanted, at)


def uses(e: Expr, v: Var) -> bool:
    return e == v or (isinstance(e, Op) and any(uses(a, v) for a in e.args))


@given(ANY)
def test_arithmetic_of_what_is_not_empty(tree):
    same(tree, (1, 2, 5))


@given(st.tuples(st.sampled_from(["lt", "le", "eq", "ne"]), PARTS, PARTS))
def test_conditions_hold_for_empty_sizes_too(tree):
    same(tree, (0, 1, 2, 5))


def test_nothing_is_inside_what_may_be_empty():
    assert not isinstance(binary("lt", const(0), N), Const)
    assert binary("lt", ROW, N) == const(True, DType.BOOL)
