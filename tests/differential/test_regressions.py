"""What random graphs once found, each made small: hasten must say what ONNX Runtime or the reference says."""

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from tests.differential.compare import Tolerance
from tests.differential.graph import Graph
from tests.differential.run import Config, evaluate

import hasten
from hasten.target import TARGETS, runs_here

ROUNDED = Tolerance(exact=False, epsilon=2.0**-24)
EXACT = Tolerance(exact=True, epsilon=0.0)
R = np.random.default_rng(0)


def floats(*shape):
    return (R.integers(-32, 33, shape) / 8).astype(np.float32)


CASES = {
    # No kernel multiplies over no depth at all.
    "a product of depth 0": (
        """(float[n,0] x) => (float[n,2] y) <float[2] b = {1.5, -2}, int64[2] z = {0, 2}>
        { w = ConstantOfShape (z) m = MatMul (x, w) y = Add (m, b) }""",
        {"x": floats(3, 0)},
        ROUNDED,
    ),
    # A reduction went into another one, where nothing computes it.
    "scatter of a softmax": (
        """(float[6] x) => (float[6] y) <int64[3] i = {1, -5, 4}, float[3] u = {0.5, 0.125, -1}>
        { s = Softmax <axis = 0> (x) y = ScatterElements <axis = 0, reduction = "max"> (s, i, u) }""",
        {"x": floats(6)},
        ROUNDED,
    ),
    # What lies half way between two steps went to the odd one where the zero point is odd.
    "ties with an odd zero point": (
        """(float[n] x) => (uint8[n] y) <float s = {0.25}, uint8 z = {149}>
        { y = QuantizeLinear (x, s, z) }""",
        {"x": np.arange(-200, 200, dtype=np.float32) / 8},
        EXACT,
    ),
    "ties between the bounds of an activation": (
        """(float[n] x) => (uint8[n] y) <float s = {0.25}, uint8 z = {3}, float a = {-0.375}, float b = {6}>
        { c = Clip (x, a, b) y = QuantizeLinear (c, s, z) }""",
        {"x": np.arange(-80, 80, dtype=np.float32) / 8},
        EXACT,
    ),
    # The depth was the size of the variable operand, and that of the weight was known.
    "depth that only the weight knows": (
        """(float[2, n] x) => (float[2, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul (x, w) }""",
        {"x": floats(2, 2)},
        EXACT,
    ),
    "a vector by a matrix that knows its length": (
        """(float[n] x) => (float[3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul (x, w) }""",
        {"x": floats(2)},
        EXACT,
    ),
    "weights for one axis of a batch of unknown length": (
        """(float[n, 2, 1, 2] x) => (float[n, 2, 1, 3] y)
        <float[2, 2, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul (x, w) }""",
        {"x": floats(4, 2, 1, 2)},
        EXACT,
    ),
    # Sizes were taken to be 1 or more: a slice of nothing had one element.
    "the last of nothing": (
        """(float[2, n] x) => (float[2, m] y) <int64[1] a = {-1}, int64[1] b = {9}, int64[1] d = {1}>
        { y = Slice (x, a, b, d) }""",
        {"x": floats(2, 0)},
        EXACT,
    ),
    "arithmetic of empty shapes": (
        """(float16 x) => (int64[0] y) { s = Shape <start = 0, end = 0> (x) y = Add (s, s) }""",
        {"x": np.array(1, np.float16)},
        EXACT,
    ),
    # Keys that no token has were looked up by a kernel that looks nothing up.
    "keys that are an output too, with padding": (
        """(float[4, 4] x, float[3, 1, 1, 4] m) => (float[3, 4, 4] y, float[3, 1, 4, 4] k) <
            int64[3] e = {3, 1, 1}, float c = {2}, int64[4] heads = {0, -1, 1, 4},
            int64[3] joined = {0, -1, 4},
            float[4, 4] w = {0.25, -0.5, 1, 2, 0, 0.5, 0.25, 1, -1, 0.5, 0.25, 0, 1, 1, -0.5, 0.25}>
        {
            t = Expand (x, e)
            qa = MatMul (t, w)
            qb = Reshape (qa, heads)
            q = Transpose <perm = [0, 2, 1, 3]> (qb)
            kb = Reshape (t, heads)
            k = Transpose <perm = [0, 2, 1, 3]> (kb)
            va = MatMul (t, w)
            vb = Reshape (va, heads)
            v = Transpose <perm = [0, 2, 1, 3]> (vb)
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            s = MatMul (q, kt)
            n = Div (s, c)
            p = Add (n, m)
            r = Softmax <axis = -1> (p)
            o = MatMul (r, v)
            f = Transpose <perm = [0, 2, 1, 3]> (o)
            y = Reshape (f, joined)
        }""",
        {"x": floats(4, 4), "m": np.zeros((3, 1, 1, 4), np.float32)},
        ROUNDED,
    ),
    # What is cropped to one element was taken to be as long as what it is repeated for.
    "cropped to one element": (
        """(float[m, 3] x, float[1, 5] z) => (float[1, 5] y) <int64[2] one = {1, 1}>
        { c = CenterCropPad (x, one) y = Mul (c, z) }""",
        {"x": floats(5, 3), "z": floats(1, 5)},
        EXACT,
    ),
    # Vectors of bool are masks of 32 bits: the C did not compile.
    "a choice between bools": (
        """(float[n, 2, m, 3] x) => (bool[n, 2, m] y) {
            i = ArgMin <axis = 3, keepdims = 0, select_last_index = 1> (x)
            c = GreaterOrEqual (i, i)
            y = Trilu <upper = 0> (c)
        }""",
        {"x": floats(4, 2, 20, 3)},
        EXACT,
    ),
    # A position was taken to be inside because sizes are 1 or more: what is not there was read.
    "a border around nothing, backwards": (
        """(int64[n, 1] x) => (int64[3, 1] y) <int64[4] p = {2, 0, 1, 0}, int64 c = {7}, int64[1] a = {2},
            int64[1] b = {-9223372036854775808}, int64[1] axis = {0}, int64[1] step = {-1}>
        { w = Pad (x, p, c) y = Slice (w, a, b, axis, step) }""",
        {"x": np.zeros((0, 1), np.int64)},
        EXACT,
    ),
    "borders around parts of borders": (
        """(bool[n, m] x) => (bool[6, m] y) <int64[4] p = {2, 0, 1, 0}, bool no = {0},
            int64[2] parts = {1, 2}, int64[4] q = {3, 0, 1, 0}, bool yes = {1}>
        { w = Pad (x, p, no) first, rest = Split <axis = 0> (w, parts) y = Pad (rest, q, yes) }""",
        {"x": np.zeros((0, 1), bool)},
        EXACT,
    ),
    # C makes an int of a choice between two bytes: the C did not compile.
    "bytes divided by one of each row": (
        """(uint8[n, m] x, uint8[n, 1] d) => (uint8[n, m] y) { y = Div (x, d) }""",
        {"x": np.arange(120, dtype=np.uint8).reshape(3, 40), "d": np.array([[3], [7], [255]], np.uint8)},
        EXACT,
    ),
    # A window slid along the rows, and what of it lies inside a row differs along the row: no C came of it.
    "a window over all columns, rows apart": (
        """(float[m, 4, 5, 4] x) => (float[m, 4, 3, 4] y) {
            y = AveragePool <auto_pad = "SAME_UPPER", count_include_pad = 1, kernel_shape = [3, 5],
                strides = [2, 1]> (x)
        }""",
        {"x": floats(2, 4, 5, 4)},
        ROUNDED,
    ),
    # The first of no rows was written, outside of the result.
    "sums along an empty axis": (
        """(float[m, 8] x) => (float[m, 8] y) <int64 a = {0}>
        { y = CumSum <exclusive = 1, reverse = 1> (x, a) }""",
        {"x": floats(0, 8)},
        EXACT,
    ),
    # ONNX's evaluator takes a condition that is left out for one that does not hold.
    "a loop without a condition": (
        """(float[2] x) => (float[2] y) <int64 n = {3}> {
            y = Loop (n, "", x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) {
                on = Identity (go)
                t = Add (s, s)
            }>
        }""",
        {"x": floats(2)},
        EXACT,
    ),
    # C takes the last bit of an operand of ^ or | before it takes them together: -1 and -2 came out.
    "conditions as numbers": (
        """(bool[n] x, bool[n] y) => (float[n] e, float[n] o, float[n] a) {
            e0 = Xor (x, y) e = Cast <to = 1> (e0)
            o0 = Or (x, y) o = Cast <to = 1> (o0)
            a0 = And (x, y) a = Cast <to = 1> (a0)
        }""",
        {"x": np.arange(50) % 2 == 0, "y": np.arange(50) % 3 == 0},
        EXACT,
    ),
}  # fmt: skip

LEAST = next(t.name for t in TARGETS if runs_here(t))
"""The target with the fewest instructions that runs here."""


def graph(name):
    text, feeds, tolerance = CASES[name]
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> g {text}')
    return Graph(0, model, (feeds,), {o.name: tolerance for o in model.graph.output})


@pytest.fixture(scope="module")
def outcomes():
    graphs = [graph(name) for name in CASES]
    ways = (Config(), Config(threads=2), Config(target=LEAST))
    return [dict(zip(CASES, evaluate(graphs, way), strict=True)) for way in ways]


@pytest.mark.parametrize("name", CASES)
def test_found_once(name, outcomes):
    for by_name in outcomes:
        found = by_name[name]
        assert found.verdict == "same", found.detail
        assert not found.host


def test_weights_that_repeat_for_an_unknown_batch_stay_f32_in_bf16():
    # They are packed at run time, for which bf16 has no kernel: the generated C did not compile.
    (found,) = evaluate(
        [graph("weights for one axis of a batch of unknown length")], Config(precision="bf16")
    )
    assert found.verdict == "same", found.detail


@pytest.mark.parametrize(
    "text",
    [
        # Its sums are read again where they are written, and were read as floats.
        "(float[5,24] x) => (float[5,16] y) { a = CumSum (x, one) y = MatMul (a, w) }",
        # So are the states of a recurrence.
        """(float[5,1,24] x) => (float[5,16] y) {
            h = LSTM <direction = "bidirectional", hidden_size = 12> (x, wi, wr)
            t = Transpose <perm = [0, 2, 1, 3]> (h)
            r = Reshape (t, rows)
            y = MatMul (r, w)
        }""",
    ],
    ids=["sums", "states"],
)
def test_what_kernels_read_again_stays_f32_in_bf16(text, tmp_path):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> g {text}')
    weights = {"w": floats(24, 16), "wi": floats(2, 48, 24) / 8, "wr": floats(2, 48, 12) / 8}
    weights |= {"one": np.array(1), "rows": np.array([5, 24])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in weights.items())
    x = floats(*(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
    f32, bf16 = (
        hasten.compile(model, precision=p, cache=tmp_path).run({"x": x})["y"] for p in ("f32", "bf16")
    )
    np.testing.assert_allclose(bf16, f32, atol=0.02 * np.abs(f32).max())
