"""constant_folding, common_subexpressions, dead_code, no_ops and move_parts."""

import numpy as np
import pytest

C = {
    "zero": np.array(0, np.float32),
    "one": np.array([1], np.float32),
    "wide_zero": np.zeros((2, 1, 4), np.float32),
    "false": np.array(False),
    "ratio": np.array(0.5, np.float32),
    "all": np.array([0, 0, 4], np.int64),
    "axes1": np.array([1], np.int64),
    "start": np.array([0], np.int64),
    "four": np.array([4], np.int64),
    "end": np.array([2**63 - 1], np.int64),
    "nopad": np.zeros(6, np.int64),
    "pads": np.array([0, 0, 1, 0, 0, 0], np.int64),
    "flat": np.array([0, -1], np.int64),
    "twelve": np.array([0, 0, 2, 2], np.int64),
    "ones": np.array([1, 1, 1], np.int64),
    "more": np.array([2, 1, 1, 1], np.int64),
    "axis2": np.array([2], np.int64),
    "last": np.array([-1], np.int64),
    "grid": np.arange(8, dtype=np.float32).reshape(2, 4),
}
SIGNATURE = "(float[b, s, 4] x) => (float y)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Identity(x) y = Neg(a)", "Neg"),
        ("y = Identity(x)", "Identity"),
        ("a = Dropout(x, ratio) y = Neg(a)", "Neg"),
        ("a = Dropout(x, ratio, false) y = Neg(a)", "Neg"),
        ("a = Cast<to = 1>(x) y = Neg(a)", "Neg"),
        ("a = Cast<to = 11>(x) y = Neg(a)", "Cast Neg"),
        ("a = Reshape(x, all) y = Neg(a)", "Neg"),
        ("sh = Shape(x) a = Reshape(x, sh) y = Neg(a)", "Neg"),
        ("a = Reshape(x, flat) y = Neg(a)", "Reshape Neg"),
        ("a = Reshape(x, twelve) e = Reshape(a, all) y = Neg(e)", "Neg"),
        ("a = Reshape(x, twelve) e = Reshape(a, flat) y = Neg(e)", "Reshape Neg"),
        ("a = Transpose<perm = [0, 1, 2]>(x) y = Neg(a)", "Neg"),
        ("a = Transpose(x) e = Transpose(a) y = Neg(e)", "Neg"),
        (
            "a = Transpose<perm = [1, 0, 2]>(x) e = Transpose<perm = [0, 2, 1]>(a) y = Neg(e)",
            "Transpose Neg",
        ),
        ("a = Slice(x, start, end, axis2) y = Neg(a)", "Neg"),
        ("a = Slice(x, start, four, axis2) y = Neg(a)", "Neg"),
        ("n = Shape<start = 1, end = 2>(x) a = Slice(x, start, n, axes1) y = Neg(a)", "Neg"),
        ("a = Slice(x, start, four, axes1) y = Neg(a)", "Slice Neg"),
        ("a = Expand(x, ones) y = Neg(a)", "Neg"),
        ("a = Expand(x, more) y = Neg(a)", "Expand Neg"),
        ("a = Pad(x, nopad) y = Neg(a)", "Neg"),
        ("a = Pad(x, pads) y = Neg(a)", "Pad Neg"),
        ("a = Add(zero, x) e = Mul(a, one) f = Sub(e, zero) g = Div(f, one) y = Neg(g)", "Neg"),
        ("a = Add(x, wide_zero) y = Neg(a)", "Add Neg"),
        ("a = Sub(zero, x) y = Neg(a)", "Sub Neg"),
        ("a = Concat<axis = 1>(x) y = Neg(a)", "Neg"),
        ("a = Unsqueeze(x, axes1) e = Squeeze(a, axes1) y = Neg(e)", "Neg"),
        ("a = Neg(x) e = Neg(x) y = Mul(a, e)", "Neg Mul"),
        (
            "f = Flatten<axis = 2>(x) a = Softmax(f) sh = Shape(x) e = Reshape(a, sh) y = Neg(e)",
            "Softmax Neg",
        ),
    ],
)
def test_no_ops(optimized, rng, body, left):
    feeds = [{"x": rng.normal(0, 1, (2, s, 4)).astype(np.float32)} for s in (1, 5)]
    kind = "double" if "to = 11" in body else "float"
    rank = "[b, s, 4]"
    if "more" in body:
        rank = "[a, b, s, 4]"
    elif "flat" in body:
        rank = "[b, m]"
    elif "pads)" in body or "perm = [1" in body or ("axes1) y" in body and "Slice" in body):
        rank = "[b, m, k]"
    signature = SIGNATURE.replace("float y", f"{kind}{rank} y")
    result = optimized(signature, body, C, *feeds)
    assert sorted(result.kinds.elements()) == sorted(left.split())


def test_constants_fold_up_to_a_limit(optimized, rng):
    constants = {
        **C,
        "big": np.array([400, 400], np.int64),
        "small": np.array([2, 4], np.int64),
    }
    body = (
        "g = Transpose(grid) t = Transpose(g) e = Expand(one, small) h = Add(e, t) "
        "w = Expand(one, big) total = ReduceSum<keepdims = 0>(w) z = Add(x, h) y = Mul(z, total)"
    )
    feed = {"x": rng.normal(0, 1, (2, 2, 4)).astype(np.float32)}
    result = optimized("(float[b, 2, 4] x) => (float[b, 2, 4] y)", body, constants, feed)
    assert dict(result.kinds) == {"Expand": 1, "ReduceSum": 1, "Add": 1, "Mul": 1}


def test_shapes_of_known_sizes_fold(optimized, rng):
    body = (
        "sh = Shape(x) i = Constant<value_int = 2>() n = Gather(sh, i) "
        "f = Cast<to = 1>(n) r = Sqrt(f) y = Div(x, r)"
    )
    feed = {"x": rng.normal(0, 1, (2, 3, 4)).astype(np.float32)}
    result = optimized("(float[b, s, 4] x) => (float[b, s, 4] y)", body, C, feed)
    assert dict(result.kinds) == {"Div": 1}


def test_quantized_weights_stay_quantized(optimized, rng):
    constants = {
        "w": rng.integers(-128, 127, (4, 3), dtype=np.int8),
        "scale": np.array(0.1, np.float32),
        "point": np.array(3, np.int8),
    }
    body = "f = DequantizeLinear(w, scale, point) y = MatMul(x, f)"
    feed = {"x": rng.normal(0, 1, (2, 4)).astype(np.float32)}
    result = optimized("(float[b, 4] x) => (float[b, 3] y)", body, constants, feed)
    assert dict(result.kinds) == {"DequantizeLinear": 1, "MatMul": 1}


def test_random_numbers_are_not_merged_or_folded(optimized):
    signature = "(float[2] x) => (float[2] y, int64[2] same)"
    body = (
        "a = RandomNormal<shape = [2]>() b = RandomNormal<shape = [2]>() d = Sub(a, b) "
        "e = Mul(d, zero) y = Add(x, e) same = Shape(x) "
    )
    signature = signature.replace("int64[2] same", "int64[1] same")
    result = optimized(signature, body, C, {"x": np.ones(2, np.float32)})
    assert result.kinds["RandomNormal"] == 2


def test_equal_constants_are_stored_once_and_unused_ones_not_at_all(optimized, rng):
    constants = {
        "a": rng.normal(0, 1, (4, 4)).astype(np.float32),
        "unused": np.ones((4, 4), np.float32),
        "negative": np.array([0.0], np.float32),
        "positive": np.array([-0.0], np.float32),
    }
    constants["same"] = constants["a"].copy()
    body = "p = MatMul(x, a) q = MatMul(p, same) i = Reciprocal(positive) j = Mul(q, i) y = Neg(j)"
    feed = {"x": rng.normal(0, 1, (2, 4)).astype(np.float32)}
    with np.errstate(divide="ignore"):
        result = optimized("(float[b, 4] x) => (float[b, 4] y)", body, constants, feed)
    kept = list(result.model.graph.initializers)
    assert "a" in kept
    assert {"same", "unused", "positive"}.isdisjoint(kept)


def test_outputs_that_compute_the_same_both_stay(optimized, rng):
    signature = "(float[b] x, float[b] unused) => (float[b] y, float[b] z)"
    feed = {n: rng.normal(0, 1, 3).astype(np.float32) for n in ("x", "unused")}
    result = optimized(signature, "y = Neg(x) z = Neg(x)", {}, feed)
    assert [v.name for v in result.model.graph.outputs] == ["y", "z"]


def test_the_body_of_an_if_keeps_what_it_uses(optimized, rng):
    body = (
        "a = Neg(x) y = If(c) <then_branch = t () => (float[b] p) { p = Abs(a) }, "
        "else_branch = e () => (float[b] q) { q = Exp(a) }>"
    )
    feeds = [{"x": rng.normal(0, 1, 3).astype(np.float32), "c": np.array(f)} for f in (True, False)]
    result = optimized("(float[b] x, bool c) => (float[b] y)", body, {}, *feeds)
    assert dict(result.kinds) == {"Neg": 1, "If": 1}
