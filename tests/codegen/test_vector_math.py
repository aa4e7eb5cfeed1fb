"""Accuracy of the elementary functions, evaluated exactly as the generated code may round them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest

from hasten.codegen import vector_math
from hasten.codegen.math import nodes
from hasten.loops.dtypes import DType
from hasten.loops.expr import Const, Expr, Op, Var, const, walk

Array = np.ndarray[Any, np.dtype[Any]]
ALLOWED = frozenset(
    {"add", "sub", "mul", "div", "neg", "abs", "sqrt", "lt", "le", "eq", "ne", "select", "round", "floor"}
    | {"cast", "bitcast", "bitand", "bitor", "bitxor", "shl", "shr"}
)
CONTRACTIONS = ("none", "left", "right")  # which product of a sum the compiler fuses, when both are products
PLAIN: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "select": np.where,
    "round": np.rint,
    "floor": np.floor,
    "bitand": np.bitwise_and,
    "bitor": np.bitwise_or,
    "bitxor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):  # NaN and overflow are among the arguments
        yield


def evaluate(e: Expr, values: dict[str, Array], contraction: str = "none") -> Array:
    """The expression in NumPy; sums of products are fused as `contraction` says."""
    memo: dict[Expr, Array] = {}

    def fused(node: Op) -> Array | None:
        products = [i for i, a in enumerate(node.args) if isinstance(a, Op) and a.op == "mul"]
        if contraction == "none" or not products or not node.dtype.is_float:
            return None
        chosen = products[0 if contraction == "left" else -1]
        wide = np.float64 if node.dtype is DType.F32 else np.longdouble
        product, other = node.args[chosen], node.args[1 - chosen]
        assert isinstance(product, Op)
        a, b = (go(p).astype(wide) for p in product.args)
        c = go(other).astype(wide)
        total = a * b + c if node.op == "add" else (a * b - c if chosen == 0 else c - a * b)
        return total.astype(node.dtype.numpy)

    def compute(node: Expr) -> Array:
        match node:
            case Var():
                return values[node.name]
            case Const():
                return np.asarray(node.value).astype(node.dtype.numpy)
            case Op(op="cast"):
                return go(node.args[0]).astype(node.dtype.numpy)
            case Op(op="bitcast"):
                return go(node.args[0]).view(node.dtype.numpy)
            case Op(op="add" | "sub"):
                done = fused(node)
                return done if done is not None else PLAIN[node.op](*(go(a) for a in node.args))
            case Op():
                return PLAIN[node.op](*(go(a) for a in node.args))
        raise AssertionError(f"unexpected {node}")

    def go(node: Expr) -> Array:
        if node not in memo:
            memo[node] = compute(node)
            assert memo[node].dtype == node.dtype.numpy, node
        return memo[node]

    return go(e)


def worst(got: Array, want: Array) -> float:
    """Greatest error in units in the last place of `got`'s type; overflow and subnormals included."""
    info = np.finfo(got.dtype)
    want = want.astype(np.longdouble)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    beyond = np.abs(want) >= np.longdouble(info.max) * (1 + np.longdouble(info.eps) / 4)
    assert np.array_equal(got[beyond], np.copysign(got.dtype.type(np.inf), want[beyond]).astype(got.dtype))
    finite = ~(np.isnan(want) | beyond)
    got, want = got[finite].astype(np.longdouble), want[finite]
    exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp) - info.nmant
    return float(np.max(np.abs(got - want) * np.ldexp(np.longdouble(1), -exponent)))


def samples(dtype: DType, interval: float) -> Array:
    """Points of every exponent and both signs, points spread evenly over an interval, and the edges."""
    rng = np.random.default_rng(7)
    exponents, mantissa = (256, 23) if dtype is DType.F32 else (2048, 52)
    integer = np.int64 if dtype is DType.F64 else np.int32
    count = 204_800 // exponents
    high = np.repeat(np.arange(exponents, dtype=np.int64) << mantissa, count)
    positive = (high | rng.integers(0, 1 << mantissa, high.size)).astype(integer).view(dtype.numpy)
    even = rng.uniform(-interval, interval, 200_000).astype(dtype.numpy)
    edges = np.array([0.0, 1.0, 0.5, np.inf, np.nan, np.finfo(dtype.numpy).max, np.finfo(dtype.numpy).tiny])
    edges = edges.astype(dtype.numpy)
    return np.concatenate([positive, -positive, even, edges, -edges])


def exact(op: str, x: Array) -> Array:
    """The function, at least 29 bits (float32) or 11 bits (float64) better than the type."""
    if op == "erf":
        return np.fromiter((math.erf(v) for v in x.tolist()), np.float64)
    wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    if op == "sigmoid":
        return 1 / (1 + np.exp(-wide))
    return getattr(np, op)(wide)


X32, Y32, X64 = Var(DType.F32, "x"), Var(DType.F32, "y"), Var(DType.F64, "x")
BOUNDS = [  # function, type, interval where it is not constant, worst error in units in the last place
    ("exp", DType.F32, 110.0, 1.2),
    ("log", DType.F32, 3.0, 1.0),
    ("tanh", DType.F32, 10.0, 2.6),
    ("sigmoid", DType.F32, 20.0, 2.6),
    ("erf", DType.F32, 4.0, 3.1),
    ("sin", DType.F32, 1e4, 1.6),
    ("cos", DType.F32, 1e4, 1.6),
    ("exp", DType.F64, 750.0, 1.2),
    ("log", DType.F64, 3.0, 1.2),
    ("tanh", DType.F64, 20.0, 3.0),
    ("sigmoid", DType.F64, 40.0, 2.6),
]
EXPANDED = [
    *(vector_math.expand(op, Var(dtype, "x", lanes=8)) for op, dtype, _, _ in BOUNDS),
    vector_math.expand2("pow", Var(DType.F32, "x", lanes=8), Var(DType.F32, "y", lanes=8)),
    vector_math.exp_nonpositive(Var(DType.F32, "x", lanes=8)),
    vector_math.exp_for_bf16(Var(DType.F32, "x", lanes=8)),
    vector_math.gelu_erf(Var(DType.F32, "x", lanes=8)),
]


@pytest.mark.parametrize("contraction", CONTRACTIONS)
@pytest.mark.parametrize(("op", "dtype", "interval", "bound"), BOUNDS)
def test_error_is_bounded_over_the_full_range(
    op: str, dtype: DType, interval: float, bound: float, contraction: str
) -> None:
    x = samples(dtype, interval)
    if op == "sigmoid":  # what would be subnormal is zero: see the next test
        x = x[~(x < np.log(np.finfo(dtype.numpy).tiny))]
    expanded = vector_math.expand(op, Var(dtype, "x"))
    assert expanded is not None
    got = evaluate(expanded, {"x": x}, contraction)
    assert worst(got, exact(op, x)) <= bound
    if op in ("tanh", "erf", "sin", "cos", "sigmoid"):
        assert np.nanmax(np.abs(got)) <= 1.0


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_sigmoid_below_the_normal_numbers_is_less_than_the_smallest(contraction: str) -> None:
    for dtype, start in ((DType.F32, -87.3), (DType.F64, -708.4)):
        x = np.concatenate([np.linspace(start, 1.1 * start, 1000), [-1e30, -np.inf]]).astype(dtype.numpy)
        expanded = vector_math.expand("sigmoid", Var(dtype, "x"))
        assert expanded is not None
        got = evaluate(expanded, {"x": x}, contraction)
        assert np.all(got >= 0) and np.all(got <= 1.2 * np.finfo(dtype.numpy).tiny)
        assert got[-1] == got[-2] == 0


@pytest.mark.parametrize(
    ("op", "points"),
    [
        (
            "exp",
            [
                (0.0, 1.0),
                (-0.0, 1.0),
                (np.inf, np.inf),
                (-np.inf, 0.0),
                (-103.9, 1e-45),
                (-104.5, 0.0),
                (88.75, np.inf),
            ],
        ),
        (
            "log",
            [
                (0.0, -np.inf),
                (-0.0, -np.inf),
                (1.0, 0.0),
                (np.inf, np.inf),
                (-1.0, np.nan),
                (-np.inf, np.nan),
            ],
        ),
        (
            "tanh",
            [
                (0.0, 0.0),
                (-0.0, -0.0),
                (1e-45, 1e-45),
                (1e-30, 1e-30),
                (np.inf, 1.0),
                (-np.inf, -1.0),
                (9.1, 1.0),
            ],
        ),
        ("erf", [(0.0, 0.0), (-0.0, -0.0), (-1e-45, -1e-45), (np.inf, 1.0), (-np.inf, -1.0), (3.95, 1.0)]),
        ("sigmoid", [(0.0, 0.5), (np.inf, 1.0), (-np.inf, 0.0), (20.0, 1.0)]),
        ("sin", [(0.0, 0.0), (-0.0, -0.0), (1e-45, 1e-45), (np.inf, np.nan), (-np.inf, np.nan)]),
        ("cos", [(0.0, 1.0), (-0.0, 1.0), (1e-45, 1.0), (np.inf, np.nan)]),
    ],
)
def test_edges_are_exact(op: str, points: list[tuple[float, float]]) -> None:
    expanded = vector_math.expand(op, X32)
    assert expanded is not None
    x, want = np.array([*points, (np.nan, np.nan)], np.float32).T.copy()
    for contraction in CONTRACTIONS:
        got = evaluate(expanded, {"x": x}, contraction)
        np.testing.assert_array_equal(got, want)
        known = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[known]), np.signbit(want[known]))


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_sin_and_cos_next_to_multiples_of_a_quarter_circle(contraction: str) -> None:
    # the float32 numbers nearest to multiples of pi / 2, where almost all digits cancel, up to the largest
    hard = [16367173.0 * 2.0**72, 3.4028234663852886e38, 2.0**127, 1e22, 4.71238899230957, 1.5707963705062866]
    with mpmath.workdps(80):
        for n in range(1, 20_000, 37):
            hard.append(float(np.float32(n * mpmath.pi / 2)))
        for k in range(24, 128):
            n = mpmath.floor(mpmath.ldexp(1, k) * 2 / mpmath.pi)
            hard += [float(np.float32(float((n + i) * mpmath.pi / 2))) for i in (0, 1)]
        x = np.array(hard, np.float32)
        for op, function in (("sin", mpmath.sin), ("cos", mpmath.cos)):
            want = np.array([np.longdouble(mpmath.nstr(function(mpmath.mpf(float(v))), 25)) for v in x])
            expanded = vector_math.expand(op, X32)
            assert expanded is not None
            assert worst(evaluate(expanded, {"x": x}, contraction), want) <= 1.6


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_pow_is_rounded_almost_correctly(contraction: str) -> None:
    rng = np.random.default_rng(5)
    expanded = vector_math.expand2("pow", X32, Y32)
    assert expanded is not None
    base = samples(DType.F32, 3.0)
    reach = 150 / np.abs(np.log2(np.abs(base.astype(np.float64))))
    exponent = np.clip(rng.uniform(-1, 1, base.size) * reach, -3e38, 3e38).astype(np.float32)
    whole = rng.integers(-9, 10, base.size).astype(np.float32)
    for y in (exponent, whole):
        want = np.power(base.astype(np.float64), y.astype(np.float64))
        assert worst(evaluate(expanded, {"x": base, "y": y}, contraction), want) <= 0.6


def test_pow_agrees_with_c_on_every_pair_of_edges() -> None:
    edges = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 16777215.0, 16777216.0, 1e30, 1e-40, 3.4028235e38, np.inf]
    values = np.array([*edges, *(-e for e in edges), np.nan], np.float32)
    x, y = (v.reshape(-1).copy() for v in np.meshgrid(values, values))
    want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    general = vector_math.expand2("pow", X32, Y32)
    assert general is not None
    got = evaluate(general, {"x": x, "y": y})
    np.testing.assert_array_max_ulp(got[np.isfinite(want)], want[np.isfinite(want)], 1)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(want)]), np.signbit(want[~np.isnan(want)]))
    for constant in (1.0, 2.0, 3.0, -1.0, 0.5):
        short = vector_math.expand2("pow", X32, const(constant, DType.F32))
        assert short is not None and sum(isinstance(e, Op) for e in walk(short)) <= 4
        want = np.power(values.astype(np.float64), np.full(values.size, constant))
        assert worst(evaluate(short, {"x": values}), want) <= 1.5


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_exp_of_nonpositive_numbers(contraction: str) -> None:
    x = -np.abs(samples(DType.F32, 90.0))
    got = evaluate(vector_math.exp_nonpositive(X32), {"x": x}, contraction)
    small = x < -87.3
    assert worst(got[~small], exact("exp", x[~small])) <= 2.5
    assert np.all(got[small] <= 1.2 * np.finfo(np.float32).tiny)
    assert np.all(got[x < -87.7] == 0) and np.all(got[x == 0] == 1)


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_exp_for_bf16(contraction: str) -> None:
    x = -np.abs(samples(DType.F32, 90.0))
    got = evaluate(vector_math.exp_for_bf16(X32), {"x": x}, contraction)
    want = exact("exp", x)
    normal = x > -87.3
    assert np.max(np.abs(got[normal] / want[normal] - 1)) <= 2**-13
    assert np.all(got[x < -87.7] == 0)
    assert np.all(got[~normal & ~np.isnan(x)] <= 1.2 * np.finfo(np.float32).tiny)
    assert np.all(np.isnan(got[np.isnan(x)]))
    assert len(list(walk(vector_math.exp_for_bf16(X32)))) < len(list(walk(vector_math.exp_nonpositive(X32))))


@pytest.mark.parametrize("contraction", CONTRACTIONS)
def test_gelu_error_is_absolute(contraction: str) -> None:
    x = samples(DType.F32, 9.0)
    got = evaluate(vector_math.gelu_erf(X32), {"x": x}, contraction).astype(np.float64)
    wide = x.astype(np.float64)
    want = wide * (1 + exact("erf", wide / np.sqrt(2.0))) / 2
    inside = np.isfinite(want)
    error = np.abs(got - want)[inside] / np.maximum(1, np.abs(wide[inside]))
    assert np.max(error) <= 4e-7
    far = np.abs(x) > 7.7
    np.testing.assert_array_equal(got[far], np.maximum(wide, 0)[far])
    assert np.all(got[x == 0] == 0) and np.all(np.isnan(got[np.isnan(x)]))


def test_expansions_use_the_permitted_operations_on_as_many_lanes_as_the_argument() -> None:
    for expanded in EXPANDED:
        assert expanded is not None and expanded.lanes == 8
        for e in walk(expanded):
            assert isinstance(e, Const | Var | Op)
            assert e.lanes == (1 if isinstance(e, Const) else 8)
            assert not isinstance(e, Op) or e.op in ALLOWED


def test_what_has_no_expansion_is_left_to_the_c_library() -> None:
    assert vector_math.expand("erf", X64) is None
    assert vector_math.expand("atan", X32) is None
    assert vector_math.expand("exp", Var(DType.I32, "x")) is None
    assert vector_math.expand2("pow", X64, X64) is None


def test_bits_round_trip() -> None:
    x = np.array([1.0, -0.0, np.inf], np.float32)
    as_integer = evaluate(nodes.bits(X32), {"x": x})
    assert as_integer.tolist() == [0x3F800000, -(1 << 31), 0x7F800000]
    np.testing.assert_array_equal(evaluate(nodes.real(nodes.bits(X32)), {"x": x}), x)
