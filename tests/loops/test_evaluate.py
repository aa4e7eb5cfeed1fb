from dataclasses import replace

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.loops import evaluate as interpreter
from hasten.loops import scope
from hasten.loops.descriptions import Attention, Gemm, RankSelect, expression
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Bounded, Expr, binary, cast, const, load, reduce, select, size, unary, var
from hasten.loops.program import Definition, Guard, Measured, Program, TensorInfo
from hasten.loops.sizes import bind_sizes
from hasten.loops.verify import verify

F32 = DType.F32
N, M = size("n"), size("m")


def program(inputs, bodies, **more):
    """A program of f32 inputs and of definitions given as (variables, body)."""
    p = Program(**more)
    for name, shape in inputs.items():
        p.inputs[name] = TensorInfo(name, F32, tuple(const(n) if isinstance(n, int) else n for n in shape))
    for name, (variables, body) in bodies.items():
        dtype = body.dtype if isinstance(body, Expr) else F32
        p.definitions[name] = Definition(name, dtype, variables, body, f"Op '{name}'")
    p.outputs = list(bodies)
    verify(p)
    return p


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_sizes_are_bound_derived_and_checked():
    p = program({"a": (N, M), "b": (M, 3)}, {})
    p.derived["twice"] = M * 2
    p.guards.append(Guard(N, M, "Add 'sum'"))
    assert bind_sizes(p, {"a": floats(2, 2), "b": floats(2, 3)}) == {"n": 2, "m": 2, "twice": 4}
    good = floats(2, 2)
    bad = {
        "missing": {"a": good},
        "unknown input 'c'": {"a": good, "b": floats(2, 3), "c": good},
        "has type float64; convert it to float32": {"a": good.astype(np.float64), "b": floats(2, 3)},
        r"has 1 dimensions; it must be \[n, m\]": {"a": good[0], "b": floats(2, 3)},
        "dimension 0 of input 'b' is 5, but m is 2 in dimension 1 of input 'a'": {
            "a": good,
            "b": floats(5, 3),
        },
        "dimension 1 of input 'b' is 4; it must be 3": {"a": good, "b": floats(2, 4)},
        r"Add 'sum' needs n == m, which are 3 and 2": {"a": floats(3, 2), "b": floats(2, 3)},
    }
    for message, feeds in bad.items():
        with pytest.raises(InputError, match=message):
            evaluate(p, feeds)


def test_a_negative_size_is_refused():
    p = program({"a": (N,)}, {})
    p.derived["rest"] = N - 3
    with pytest.raises(InputError, match=r"sub\(n,3\), is -1"):
        evaluate(p, {"a": floats(2)})


def test_only_what_is_asked_for_is_computed():
    i = var("i", N)
    fails = load("a", (Bounded(INDEX, i + 5, N),), F32)
    p = program({"a": (N,)}, {"good": ((i,), unary("neg", load("a", (i,), F32))), "bad": ((i,), fails)})
    a = floats(3)
    np.testing.assert_array_equal(evaluate(p, {"a": a}, ["good", "a"])["good"], -a)
    with pytest.raises(InputError, match=r"Op 'bad'.*element \[0\]"):
        evaluate(p, {"a": a})


def test_the_side_of_a_select_that_is_not_taken_may_read_anywhere():
    i = var("i", N + 2)
    inside = binary("and", binary("le", const(1), i), binary("le", i, N))
    p = Program()
    p.inputs["a"] = TensorInfo("a", F32, (N,))
    body = select(inside, load("a", (i - 1,), F32), const(0.0, F32))
    p.definitions["y"] = Definition("y", F32, (i,), body)
    p.outputs = ["y"]
    verify(p)
    np.testing.assert_array_equal(evaluate(p, {"a": floats(3)})["y"], np.pad(floats(3), 1))
    np.testing.assert_array_equal(evaluate(p, {"a": floats(0)})["y"], np.zeros(2))
    p.definitions["y"] = Definition("y", F32, (i,), load("a", (i - 1,), F32))
    with pytest.raises(AssertionError, match=r"y\[0\].*reads outside"):
        evaluate(p, {"a": floats(3)})


def test_bounded_counts_from_the_end_and_faults_inside_sums():
    i, k = var("i", M), var("k", N)
    at = cast(load("at", (k,), F32), INDEX)
    body = reduce("sum", (k,), load("a", (Bounded(INDEX, at, M),), F32))
    p = program({"a": (M,), "at": (N,)}, {"y": ((), body), "z": ((i,), body)})
    a = np.array([1, 2, 4], np.float32)
    found = evaluate(p, {"a": a, "at": np.array([0, -1], np.float32)})
    assert found["y"] == 5
    np.testing.assert_array_equal(found["z"], [5, 5, 5])
    with pytest.raises(InputError, match="out of range"):
        evaluate(p, {"a": a, "at": np.array([0, 3], np.float32)})


def test_reductions_over_nothing_give_their_neutral_element():
    k = var("k", N)
    x = load("a", (k,), F32)
    flag = binary("lt", x, const(0.0, F32))
    whole = cast(x, DType.I32)
    p = program(
        {"a": (N,)},
        {
            "sum": ((), reduce("sum", (k,), x)),
            "prod": ((), reduce("prod", (k,), x)),
            "max": ((), reduce("max", (k,), x)),
            "any": ((), reduce("max", (k,), flag)),
            "all": ((), reduce("min", (k,), flag)),
            "most": ((), reduce("max", (k,), whole)),
        },
    )
    found = evaluate(p, {"a": floats(0)})
    assert {k: v.item() for k, v in found.items()} == {
        "sum": 0, "prod": 1, "max": -np.inf, "any": False, "all": True, "most": -(2**31),
    }  # fmt: skip
    assert np.isnan(evaluate(p, {"a": np.array([1, np.nan, 2], np.float32)}, ["max"])["max"])


def test_long_sums_of_floats_round_once():
    k = var("k", N)
    p = program({"a": (N,)}, {"y": ((), reduce("sum", (k,), load("a", (k,), F32)))})
    a = np.full(2**18, 0.1, np.float32)
    assert evaluate(p, {"a": a})["y"] == np.float32(a.astype(np.float64).sum())


def contractions():
    """An attention with mask, a 3-wide convolution, an attention of two entries in a row, and a rank."""
    b, h, r, c, k, d = (var(v, e) for v, e in zip("bhrckd", (N, 2, M, 3, M, 4), strict=True))
    q = load("q", (b, h, r, d), F32)
    attention = Attention(
        batch=b, head=h, row=r, column=c, key=k, depth=d,
        q=q, k=load("q", (b, h, k, d), F32), v=load("v", (b, h, k, c), F32), scale=0.5,
        bias=load("v", (b, h, r, const(0)), F32), keep=binary("lt", k, r),
    )  # fmt: skip
    tap = var("tap", 3)
    at = r + tap - 1
    inside = binary("and", binary("le", const(0), at), binary("lt", at, M))
    gemm = Gemm(
        batch=(b,), rows=(h, r), column=c, taps=(tap,), depth=d,
        a=select(inside, load("q", (b, h, at, d), F32), const(0.0, F32)), b=load("w", (c, tap, d), F32),
    )  # fmt: skip
    start, stop = (load("starts", (b + n,), INDEX) for n in (0, 1))
    ragged = replace(
        attention, bias=None, start=start, stop=stop, longest=M,
        q=load("q", (const(0), h, r, d), F32), k=load("q", (const(1), h, k, d), F32),
        v=load("v", (const(0), h, k, c), F32), keep=binary("lt", k, r + 1),
    )  # fmt: skip
    place, at, position = var("which", 2), var("at", M + 1), var("position", M)
    positive = binary("lt", const(0.0, F32), load("v", (const(1), const(0), position, const(2)), F32))
    rank = RankSelect(place, at, position, positive)
    return [((b, h, r, c), attention), ((b, c, h, r), gemm), ((r, h, c), ragged), ((place, at), rank)]


@pytest.mark.parametrize("block", [interpreter.BLOCK, 50, 1])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_contractions_mean_their_expressions_in_blocks_of_any_size(monkeypatch, block, which):
    variables, contraction = contractions()[which]
    p = Program(constants={"w": floats(3, 3, 4, seed=1), "starts": np.array([0, 2, 5])})
    p.inputs["q"] = TensorInfo("q", F32, (N, const(2), M, const(4)))
    p.inputs["v"] = TensorInfo("v", F32, (N, const(2), M, const(3)))
    plain = expression(contraction)
    p.definitions["fast"] = Definition("fast", plain.dtype, variables, contraction)
    p.definitions["plain"] = Definition("plain", plain.dtype, variables, plain)
    p.outputs = ["fast", "plain"]
    verify(p)
    feeds = {"q": floats(2, 2, 5, 4), "v": floats(2, 2, 5, 3, seed=2)}
    expected = evaluate(p, feeds)["plain"]
    monkeypatch.setattr(interpreter, "BLOCK", block)
    monkeypatch.setattr(scope, "BLOCK", block)
    found = evaluate(p, feeds)
    np.testing.assert_allclose(found["fast"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["plain"], expected, rtol=1e-5, atol=1e-6)


def test_a_large_product_as_an_expression_stays_within_memory():
    """512 x 512 x 512 elements of a product's domain would be a gigabyte at once."""
    import tracemalloc

    i, j, k = var("i", N), var("j", N), var("k", N)
    body = reduce("sum", (k,), binary("mul", load("a", (i, k), F32), load("a", (k, j), F32)))
    p = program({"a": (N, N)}, {"y": ((i, j), body)})
    a = floats(512, 512)
    tracemalloc.start()
    found = evaluate(p, {"a": a})["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, a @ a, rtol=1e-3, atol=1e-3)
    assert peak < 300e6


def test_a_measured_size_is_that_of_the_data():
    p = Program()
    p.inputs["a"] = TensorInfo("a", F32, (N,))
    i, n = var("i", N), var("n", size("found"))
    positive = binary("lt", const(0.0, F32), load("a", (i,), F32))
    ranks = RankSelect(var("which", 2), var("at", N + 1), i, positive)
    p.definitions["ranks"] = Definition("ranks", INDEX, (ranks.which, ranks.at), ranks)
    p.measured["found"] = Measured("ranks", (const(0), N), N)
    square = load("a", (load("ranks", (const(1), n), INDEX),), F32)
    p.definitions["roots"] = Definition("roots", F32, (n,), unary("sqrt", square))
    k = var("k", size("found"))
    total = reduce("sum", (k,), load("roots", (k,), F32))
    p.definitions["total"] = Definition("total", F32, (), total)
    p.outputs = ["total"]
    verify(p)
    assert evaluate(p, {"a": np.array([4, -1, 9, 0, 16], np.float32)})["total"] == 9
    assert evaluate(p, {"a": np.array([-4, -1], np.float32)})["total"] == 0
    np.testing.assert_array_equal(
        evaluate(p, {"a": np.array([4, -1, 9], np.float32)}, ["ranks"])["ranks"],
        [[0, 1, 1, 2], [0, 2, 0, 0]],
    )
