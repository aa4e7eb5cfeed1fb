"""Sizes that turn out to be 1, or 0, in a run: what ONNX says, and an error where it says nothing."""

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.differential.compare import Tolerance
from tests.differential.graph import Graph
from tests.differential.run import Config, evaluate

from hasten import compile as compile_model
from hasten.errors import InputError

ROUNDED = Tolerance(exact=False, epsilon=2.0**-24)
R = np.random.default_rng(0)


def floats(*shape):
    return (R.integers(-32, 33, shape) / 8).astype(np.float32)


def sizes(count, *lengths):
    return itertools.product(lengths, repeat=count)


CASES = {
    "rows": (
        "(float[n, 3] x, float[m, 3] z) => (float[k, 3] y) { y = Sub (x, z) }",
        [{"x": floats(n, 3), "z": floats(m, 3)} for n, m in sizes(2, 0, 1, 5)],
    ),
    # Vectors go along this axis: whole ones, or one element for all.
    "columns": (
        "(float[3, n] x, float[3, m] z) => (float[3, k] y) { y = Sub (x, z) }",
        [{"x": floats(3, n), "z": floats(3, m)} for n, m in sizes(2, 0, 1, 37)],
    ),
    "a single axis": (
        "(float[n] x, float[m] z, bool[k] c) => (float[j] y) { y = Where (c, x, z) }",
        [{"x": floats(a), "z": floats(b), "c": floats(c) > 0} for a, b, c in sizes(3, 0, 1, 70)],
    ),
    "what a reduction gives": (
        """(float[n, 4] x, float[m] z) => (float[k] y) <int64[1] a = {1}>
        { r = ReduceSum <keepdims = 0> (x, a) y = Add (r, z) }""",
        [{"x": floats(n, 4), "z": floats(m)} for n, m in sizes(2, 1, 19)],
    ),
    "a constant": (
        "(float[n] x, float[n, m] z) => (float[5] y, float[k, 5] w) <float[5] c = {1, 2, 3, 4, 5}>"
        "{ y = Mul (x, c) w = Mul (z, c) }",
        [{"x": floats(n), "z": floats(n, m)} for n, m in sizes(2, 1, 5)],
    ),
    "twice": (
        "(float[n] x, float[m] z) => (float[k] y)"
        "{ a = Add (x, z) b = Mul (a, x) c = Sub (z, b) y = Add (c, a) }",
        [{"x": floats(n), "z": floats(m)} for n, m in sizes(2, 0, 1, 6)],
    ),
    "products": (
        """(float[n, 3, 4] x, float[m, 4, 5] z) => (float[k, 3, 5] y, float[k, 3, 5] e) {
            y = MatMul (x, z)
            e = Einsum <equation = "...ij,...jk->...ik"> (x, z)
        }""",
        [{"x": floats(n, 3, 4), "z": floats(m, 4, 5)} for n, m in sizes(2, 1, 3)],
    ),
    "bias of a product": (
        "(float[n, 3] x, float[m] c) => (float[n, 4] y)"
        "<float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = Gemm (x, w, c) }",
        [{"x": floats(n, 3), "c": floats(m)} for n, m in itertools.product((1, 7), (1, 4))],
    ),
    "expanded to a constant": (
        "(float[n, m] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Expand (x, s) }",
        [{"x": floats(n, m)} for n, m in itertools.product((1, 2), (1, 3))],
    ),
    "expanded to what is read": (
        "(float[n, 1] x, int64[2] s) => (float[a, b] y) { y = Expand (x, s) }",
        [
            {"x": floats(n, 1), "s": np.array(s)}
            for n, s in ((1, (4, 3)), (4, (4, 1)), (4, (1, 2)), (3, (3, 5)))
        ],
    ),
    # One element at most, which its length as a difference of two bounds does not show.
    "the second column": (
        """(float[2, n] x) => (float[2, n] y, float[2, n] z)
        <int64[1] a = {1}, int64[1] b = {2}, int64[1] minus = {-1}> {
            s = Slice (x, a, b, a)
            y = Sub (x, s)
            t = Slice (x, b, a, a, minus)
            z = Sub (x, t)
        }""",
        [{"x": floats(2, n)} for n in (3, 4, 9)],
    ),
    "how many there are": (
        """(float[n] x, float[m] z) => (float[k] y)
        { i = NonZero (x) t = Transpose (i) g = GatherND (x, t) y = Add (g, z) }""",
        [{"x": np.array(x, np.float32), "z": floats(m)} for x, m in (([0, 2, 0], 4), ([1, 0, 3], 1))],
    ),
    # Sizes were taken to be 1 or more: the first of both was that of the part without elements.
    "the first behind nothing": (
        """(float[n] x, float[m] z) => (float y, float[1] p)
        <int64 zero = {0}, int64[1] z1 = {0}, int64[2] b = {0, 2}> {
            c = Concat <axis = 0> (x, z)
            y = Gather (c, zero)
            w = Pad (x, b)
            p = Gather (w, z1)
        }""",
        [{"x": floats(n), "z": floats(m)} for n, m in ((0, 2), (2, 0), (3, 1))],
    ),
}  # fmt: skip


def graph(text, feeds):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    return Graph(0, model, tuple(feeds), {o.name: ROUNDED for o in model.graph.output})


@pytest.fixture(scope="module")
def outcomes():
    graphs = [graph(*case) for case in CASES.values()]
    return dict(zip(CASES, evaluate(graphs, Config(threads=2)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_an_axis_of_one_element_repeats(name, outcomes):
    found = outcomes[name]
    assert found.verdict == "same", found.detail
    assert not found.host
    assert not found.empty


def test_other_lengths_are_an_error_that_names_the_operator():
    text = "(float[n] x, float[m] z) => (float[k] y) { y = Add (x, z) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    model.graph.node[0].name = "sum"
    with compile_model(model) as session:
        assert session.run({"x": floats(1), "z": floats(4)})["y"].shape == (4,)
        with pytest.raises(InputError, match=r"n == m, or 1 \(Add 'sum'\)"):
            session.run({"x": floats(3), "z": floats(4)})
