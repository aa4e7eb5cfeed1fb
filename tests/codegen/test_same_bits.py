"""The order of a sum depends on what is computed alone: not on vectors, rows beside it, or threads."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import program

from hasten.loops.dtypes import DType
from hasten.target import Target, native, runs_here

WIDTHS = [Target.named(n) for n in ("aarch64", "x86-64-v3", "x86-64-v4")]
HERE = list(dict.fromkeys(t for t in (*WIDTHS, native()) if runs_here(t)))
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def product(depth, columns):
    text = f"(float[m, {depth}] x) => (float[m, {columns}] y) {{ p = MatMul(x, w) y = Tanh(p) }}"
    return program(text, {"w": normal(depth, columns)})


def attention(keys):
    text = f"""(float[b, 2, s, 24] q, float[b, 2, {keys}, 24] k, float[b, 2, {keys}, 24] v)
        => (float[b, 2, s, 24] y) {{ t = Transpose<perm = [0, 1, 3, 2]>(k) p = MatMul(q, t)
        r = Softmax(p) y = MatMul(r, v) }}"""
    return program(text)


def over_rows(length):
    text = f"""(float[n, {length}] x) => (float[n, {length}] y, float[n] z)
        {{ y = LayerNormalization<axis = -1>(x, g) z = ReduceSumSquare<keepdims = 0>(x, last) }}"""
    return program(text, {"g": normal(length), "last": np.array([1])})


@pytest.mark.parametrize("length", [5, 9, 15, 17, 31, 63, 64, 100, 130, 203])
def test_rows_add_up_alike_in_vectors_of_all_widths(length):
    p, x = over_rows(length), normal(3, length)
    first, *others = (Interpreted.of(p, t).run({"x": x}) for t in WIDTHS)
    for other in others:
        for name, right in first.items():
            np.testing.assert_array_equal(other[name], right, name)


@pytest.mark.parametrize("keys", [1, 7, 40])
def test_attention_adds_up_alike_in_vectors_of_all_widths(keys):
    p = attention(keys)
    for queries in (1, 3):
        feeds = {"q": normal(1, 2, queries, 24), "k": normal(1, 2, keys, 24), "v": normal(1, 2, keys, 24)}
        first, *others = (Interpreted.of(p, t).run(feeds)["y"] for t in WIDTHS)
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_products_add_up_alike_in_vectors_of_all_widths(rows):
    for depth, columns in ((9, 145), (40, 16), (33, 40)):
        p, x = product(depth, columns), normal(rows, depth)
        first, *others = (Interpreted.of(p, t).run({"x": x})["y"] for t in WIDTHS)
        for other in others:
            np.testing.assert_array_equal(other, first)


ELEMENTS = {
    "a product for each row": "p = Mul(a, b) y = Add(x, p)",
    "taken away": "p = Mul(a, b) y = Sub(p, x)",
    "two products": "p = Mul(a, b) q = Mul(x, x) y = Add(p, q)",
    "its negative": "p = Mul(a, b) q = Neg(p) y = Add(x, q)",
    "behind a product": "m = MatMul(x, w) p = Mul(a, b) y = Add(m, p)",
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_in_vectors_and_beside_them_are_fused_alike(name):
    text = "(float[n, 24] x, float[n, 1] a, float[n, 1] b) => (float[n, 24] y) {{ {} }}"
    p = program(text.format(ELEMENTS[name]), {"w": normal(24, 24)} if "MatMul" in ELEMENTS[name] else None)
    feeds = {"x": normal(50, 24), "a": normal(50, 1), "b": normal(50, 1)}
    found = []
    for target in HERE:
        (engine,) = compile_programs([p], target)
        found.append(engine.run(feeds)["y"])
        alone = [engine.run({n: a[r : r + 1] for n, a in feeds.items()})["y"] for r in range(50)]
        np.testing.assert_array_equal(np.concatenate(alone), found[-1])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("precision", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_a_row_is_the_same_alone_and_among_others(target, precision):
    sizes = ((64, 1), (130, 16), (257, 100), (96, 145), (31, 300))
    programs = [product(*s) for s in sizes]
    for engine, (depth, _) in zip(
        compile_programs(programs, target, precision=precision), sizes, strict=True
    ):
        x = normal(29, depth)
        together = engine.run({"x": x})["y"]
        for count in (1, 2, 3, 7, 13):
            for threads in (1, 2, 3):
                some = engine.run({"x": x[4 : 4 + count]}, threads)["y"]
                np.testing.assert_array_equal(some, together[4 : 4 + count])


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_a_query_is_the_same_alone_and_among_others(target):
    for engine, keys in zip(compile_programs([attention(5), attention(77)], target), (5, 77), strict=True):
        feeds = {"q": normal(2, 2, 19, 24), "k": normal(2, 2, keys, 24), "v": normal(2, 2, keys, 24)}
        together = engine.run(feeds)["y"]
        for count in (1, 2, 6):
            some = engine.run({**feeds, "q": feeds["q"][:, :, 3 : 3 + count]}, 2)["y"]
            np.testing.assert_array_equal(some, together[:, :, 3 : 3 + count])


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_windows_of_long_sums_add_up_alike_in_vectors_of_all_widths(length):
    taps = 9
    text = f"""(double[2, {length + taps - 1}] x) => (double[2, {length}] y) {{ c = Cast<to = 11>(w)
        rows = Unsqueeze(x, one) sums = Conv(rows, c) y = Squeeze(sums, one) }}"""
    p = program(text, {"w": np.ones((1, 1, taps), np.float32), "one": np.array([1])})
    x = RNG.standard_normal((2, length + taps - 1))
    first, *others = (Interpreted.of(p, t).run({"x": x})["y"] for t in WIDTHS)
    for other in others:
        np.testing.assert_array_equal(other, first)
