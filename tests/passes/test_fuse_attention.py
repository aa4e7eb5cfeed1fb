"""fuse_attention, attention_inputs, attention_mask: 4-D arithmetic to one Attention."""

import numpy as np
import pytest

H, D = 3, 4
WIDE = H * D
C = {
    "split": np.array([0, 0, H, D], np.int64),
    "merge": np.array([0, 0, -1], np.int64),
    "half": np.array(0.5, np.float32),
    "root": np.array(2.0, np.float32),
    "zero": np.array(0.0, np.float32),
    "low": np.array(-3.4028235e38, np.float32),
    "never": np.array(-np.inf, np.float32),
    "tenthousand": np.array(-1e4, np.float32),
    "axis2": np.array([2], np.int64),
    "gsplit": np.array([0, 0, 1, D], np.int64),
    "gshape": np.array([1, 1, H, 1, 1], np.int64),
    "gmerge": np.array([0, H, -1, D], np.int64),
}
HEADS = (
    "q3 = Reshape(x, split) q = Transpose<perm = [0, 2, 1, 3]>(q3) "
    "k3 = Reshape(c, split) k = Transpose<perm = [0, 2, 1, 3]>(k3) "
    "v3 = Reshape(c2, split) v = Transpose<perm = [0, 2, 1, 3]>(v3) "
)
KT = "kt = Transpose<perm = [0, 1, 3, 2]>(k) "
OUT = "o = MatMul(p, v) ot = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(ot, merge)"
INPUTS = f"float[b, s, {WIDE}] x, float[b, t, {WIDE}] c, float[b, t, {WIDE}] c2"
OUTPUTS = "(float[b, s, w] y)"


def feeds(rng, masks=()):
    for b, s, t in ((1, 3, 3), (2, 5, 4)):
        normal = {
            name: rng.normal(0, 1, (b, n, WIDE)).astype(np.float32)
            for name, n in (("x", s), ("c", t), ("c2", t))
        }
        keep = rng.random((b, 1, s, t)) < 0.6
        keep[..., 0] = True
        made = {
            "keep": keep,
            "hide": ~keep,
            "bias": rng.normal(0, 1, (b, H, s, t)).astype(np.float32),
            "added": np.where(keep[:, :, :1], 0, -3.4028235e38).astype(np.float32),
        }
        yield normal | {name: made[name] for name in masks}


MASK_TYPES = {
    "keep": "bool[b, 1, s, t] keep",
    "hide": "bool[b, 1, s, t] hide",
    "bias": f"float[b, {H}, s, t] bias",
    "added": "float[b, 1, 1, t] added",
}


def signature(masks=()):
    return f"({', '.join([INPUTS, *(MASK_TYPES[m] for m in masks)])}) => {OUTPUTS}"


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("p = MatMul(q, kt) a = Softmax(p) ", 1.0),
        ("m = MatMul(q, kt) n = Mul(m, half) a = Softmax<axis = 3>(n) ", 0.5),
        ("m = MatMul(q, kt) n = Div(m, root) a = Softmax(n) ", 0.5),
        ("q5 = Mul(q, half) k5 = Mul(kt, half) m = MatMul(q5, k5) a = Softmax(m) ", 0.25),
        ("q5 = Div(q, root) m = MatMul(q5, kt) n = Mul(half, m) a = Softmax(n) ", 0.25),
    ],
)
def test_scale_is_gathered_from_every_place(optimized, rng, scores, scale):
    body = HEADS + KT + scores + OUT.replace("(p,", "(a,")
    result = optimized(signature(), body, C, *feeds(rng))
    assert dict(result.kinds) == {"Attention": 1}
    node = result.only("Attention")
    assert [v.name for v in node.inputs] == ["x", "c", "c2"]
    assert node.attributes["scale"].as_float() == pytest.approx(scale)
    assert node.attributes["q_num_heads"].as_int() == H
    assert node.attributes["kv_num_heads"].as_int() == H


def test_scale_before_the_split_of_heads(optimized, rng):
    body = "xs = Mul(x, half) " + HEADS.replace("(x,", "(xs,") + KT
    body += "m = MatMul(q, kt) p = Softmax(m) " + OUT
    result = optimized(signature(), body, C, *feeds(rng))
    assert dict(result.kinds) == {"Attention": 1}
    assert result.only("Attention").attributes["scale"].as_float() == pytest.approx(0.5)


def test_keys_transposed_through_three_dimensions_with_computed_shapes(optimized, rng):
    constants = {
        **C,
        "minus1": np.array([-1], np.int64),
        "minus2": np.array([-2], np.int64),
        "first": np.array([-(2**63)], np.int64),
        "last": np.array([2**63 - 1], np.int64),
    }
    detour = (
        "sh = Shape(k) size = Slice(sh, minus1, last) len = Slice(sh, minus2, minus1) "
        "lead = Slice(sh, first, minus2) flat = Concat<axis = 0>(minus1, len, size) "
        "back = Concat<axis = 0>(lead, size, len) k1 = Reshape(k, flat) "
        "k2 = Transpose<perm = [0, 2, 1]>(k1) kt = Reshape(k2, back) "
    )
    body = HEADS + detour + "m = MatMul(q, kt) p = Softmax(m) " + OUT
    result = optimized(signature(), body, constants, *feeds(rng))
    assert dict(result.kinds) == {"Attention": 1}


@pytest.mark.parametrize(
    ("masks", "steps", "kinds"),
    [
        (("added",), "n = Add(m, added) p = Softmax(n) ", {}),
        (("bias", "added"), "l = Add(bias, m) n = Add(l, added) p = Softmax(n) ", {"Add": 1}),
        (("keep",), "w = Where(keep, zero, never) n = Add(m, w) p = Softmax(n) ", {}),
        (("hide",), "w = Where(hide, never, zero) n = Add(w, m) p = Softmax(n) ", {"Not": 1}),
        (("keep",), "w = Where(keep, zero, low) n = Add(m, w) p = Softmax(n) ", {"Where": 1}),
        (("keep",), "n = Where(keep, m, never) p = Softmax(n) ", {}),
        (("hide",), "n = Where(hide, low, m) p = Softmax(n) ", {"Where": 1}),
        (("keep",), "n = Where(keep, m, tenthousand) p = Softmax(n) ", {"Where": 1}),
        (
            ("keep",),
            "n = Where(keep, m, never) a = Softmax(n) i = IsNaN(a) p = Where(i, zero, a) ",
            {},
        ),
    ],
)
def test_masks(optimized, rng, masks, steps, kinds):
    body = HEADS + KT + "m0 = MatMul(q, kt) m = Mul(m0, half) " + steps + OUT
    result = optimized(signature(masks), body, C, *feeds(rng, masks), tolerance=1e-5)
    assert dict(result.kinds) == {"Attention": 1, **kinds}
    assert len(result.only("Attention").inputs) == 4


@pytest.mark.parametrize(
    "fill",
    [
        "w = Where(keep, zero, low) n = Add(m, w) ",
        "n = Where(keep, m, low) ",
        "n = Where(keep, m, tenthousand) ",
    ],
)
def test_fully_masked_rows_average_under_a_finite_mask(optimized, rng, fill):
    feed = next(iter(feeds(rng, ("keep",))))
    feed["keep"][:, :, 1] = False
    body = HEADS + KT + "m = MatMul(q, kt) " + fill + "p = Softmax(n) " + OUT
    result = optimized(signature(("keep",)), body, C, feed, tolerance=1e-5)
    assert result.kinds["Attention"] == 1


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
def test_fully_masked_rows_are_zero_under_an_infinite_mask(optimized, rng, engine):
    feed = next(iter(feeds(rng, ("keep",))))
    feed["keep"][:, :, 1] = False
    guarded = "n = Where(keep, m, never) a = Softmax(n) i = IsNaN(a) p = Where(i, zero, a) "
    body = HEADS + KT + "m = MatMul(q, kt) " + guarded + OUT
    result = optimized(signature(("keep",)), body, C, feed, tolerance=1e-5, engine=engine)
    assert dict(result.kinds) == {"Attention": 1}


def test_a_guard_without_attention_stays(optimized):
    body = "a = Softmax(x) i = IsNaN(a) y = Where(i, zero, a)"
    x = np.full((1, 2, 3), -np.inf, np.float32)
    with np.errstate(invalid="ignore"):
        result = optimized("(float[1, 2, 3] x) => (float[1, 2, 3] y)", body, C, {"x": x})
    assert result.kinds["IsNaN"] == 1


GROUPED = (
    "q3 = Reshape(x, split) q = Transpose<perm = [0, 2, 1, 3]>(q3) "
    "k3 = Reshape(c, gsplit) k4 = Transpose<perm = [0, 2, 1, 3]>(k3) "
    "v3 = Reshape(c2, gsplit) v4 = Transpose<perm = [0, 2, 1, 3]>(v3) "
    "k5 = Unsqueeze(k4, axis2) ke = Expand(k5, gshape) k = Reshape(ke, gmerge) "
    "v5 = Unsqueeze(v4, axis2) ve = Expand(v5, gshape) v = Reshape(ve, gmerge) "
)


def grouped_feed(rng):
    made = {"x": rng.normal(0, 1, (2, 5, WIDE)), "c": rng.normal(0, 1, (2, 3, D))}
    made["c2"] = rng.normal(0, 1, (2, 3, D))
    return {name: array.astype(np.float32) for name, array in made.items()}


GROUPED_SIGNATURE = f"(float[b, s, {WIDE}] x, float[b, t, {D}] c, float[b, t, {D}] c2) => {OUTPUTS}"


def test_repeated_heads_become_grouped_queries(optimized, rng):
    body = GROUPED + KT + "m = MatMul(q, kt) p = Softmax(m) " + OUT
    result = optimized(GROUPED_SIGNATURE, body, C, grouped_feed(rng))
    assert dict(result.kinds) == {"Attention": 1}
    assert result.only("Attention").attributes["kv_num_heads"].as_int() == 1


def test_packed_product_becomes_a_split(optimized, rng):
    constants = {
        "w": rng.normal(0, 1, (WIDE, 3 * WIDE)).astype(np.float32),
        "split5": np.array([0, 0, 3, H, D], np.int64),
        "merge": C["merge"],
        "half": C["half"],
        **{f"i{n}": np.array([n], np.int64) for n in range(4)},
        "at2": np.array(2, np.int64),
    }
    body = (
        "packed = MatMul(x, w) r = Reshape(packed, split5) "
        "t = Transpose<perm = [2, 0, 3, 1, 4]>(r) "
        "qs = Slice(t, i0, i1, i0, i1) q0 = Squeeze(qs, i0) q = Mul(q0, half) "
        "ks = Slice(t, i1, i2, i0, i1) k = Squeeze(ks, i0) v = Gather<axis = 0>(t, at2) "
    )
    body += KT + "m = MatMul(q, kt) p = Softmax(m) " + OUT
    sign = f"(float[b, s, {WIDE}] x) => {OUTPUTS}"
    feed = {"x": rng.normal(0, 1, (2, 5, WIDE)).astype(np.float32)}
    result = optimized(sign, body, constants, feed, tolerance=2e-5)
    assert dict(result.kinds) == {"MatMul": 1, "Split": 1, "Attention": 1}


PLAIN = "m = MatMul(q, kt) p = Softmax(m) "


@pytest.mark.parametrize(
    ("masks", "body", "reason"),
    [
        ((), HEADS + KT + "m = MatMul(q, kt) p = Softmax<axis = 2>(m) " + OUT, "last axis"),
        (
            ("bias",),
            HEADS + KT + "m = MatMul(q, kt) n = Add(m, bias) e = Mul(n, half) p = Softmax(e) " + OUT,
            "scaled after the mask",
        ),
        (
            ("keep",),
            HEADS + KT + "m = MatMul(q, kt) n = Where(keep, m, half) p = Softmax(n) " + OUT,
            "set to 0.5",
        ),
        (
            ("keep", "added"),
            HEADS + KT + "m = MatMul(q, kt) a = Add(m, added) n = Where(keep, a, tenthousand) "
            "p = Softmax(n) " + OUT,
            "which another mask may come near",
        ),
        (
            (),
            HEADS + KT + "m = MatMul(q, kt) e = Exp(m) p = Softmax(e) " + OUT,
            "not taken of a product",
        ),
    ],
)
def test_declines(optimized, rng, masks, body, reason):
    result = optimized(signature(masks), body, C, *feeds(rng, masks), tolerance=1e-5)
    assert result.kinds["Attention"] == 0
    assert any(reason in text for text in result.declines("fuse Attention"))


def test_declines_where_probabilities_are_an_output(optimized, rng):
    sign = f"({INPUTS}) => (float[b, s, w] y, float[b, {H}, s, t] p)"
    result = optimized(sign, HEADS + KT + PLAIN + OUT, C, *feeds(rng))
    assert result.declines("fuse Attention") == ["the intermediate 'p' is an output of the model"]


def test_declines_where_sizes_are_not_proved_equal(optimized, rng):
    sign = signature().replace("float[b, t, 12] c,", "float[e, t, 12] c,")
    result = optimized(sign, HEADS + KT + PLAIN + OUT, C, *feeds(rng))
    assert "batch sizes b, e and b are not proved equal" in result.declines("fuse Attention")[0]


def test_declines_where_only_keys_are_repeated(optimized, rng):
    values = GROUPED[: GROUPED.index("v5")].replace("(c2, gsplit)", "(c2, split)")
    body = values.replace("v4 =", "v =") + KT + PLAIN + OUT
    sign = GROUPED_SIGNATURE.replace(f"float[b, t, {D}] c2", f"float[b, t, {WIDE}] c2")
    feed = grouped_feed(rng)
    feed["c2"] = rng.normal(0, 1, (2, 3, WIDE)).astype(np.float32)
    result = optimized(sign, body, C, feed)
    assert "repeated differently" in result.declines("fuse Attention")[0]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((1, 1, 3, 1), "one number for all keys"), ((2, 1, 1, 1, 3), "widens the scores")],
)
def test_declines_masks_of_other_shapes(optimized, rng, shape, reason):
    sign = f"(float[1, 3, {WIDE}] x, float[1, 3, {WIDE}] c, float[1, 3, {WIDE}] c2) => {OUTPUTS}"
    feed = {n: rng.normal(0, 1, (1, 3, WIDE)).astype(np.float32) for n in ("x", "c", "c2")}
    steps = "m = MatMul(q, kt) n = Add(m, odd) p = Softmax(n) "
    out = OUT if len(shape) == 4 else "y = MatMul(p, v)"
    if len(shape) == 5:
        sign = sign.replace("[b, s, w] y", f"[2, 1, {H}, 3, {D}] y")
    constants = {**C, "odd": rng.normal(0, 1, shape).astype(np.float32)}
    result = optimized(sign, HEADS + KT + steps + out, constants, feed, tolerance=1e-5)
    reasons = result.declines("fuse Attention")
    assert any(reason in text for text in reasons)


def test_declines_half_precision(optimized, rng):
    halves = {k: C[k] for k in ("split", "merge")}
    feed = {k: v.astype(np.float16) for k, v in next(iter(feeds(rng))).items()}
    sign = signature().replace("float[", "float16[")
    result = optimized(sign, HEADS + KT + PLAIN + OUT, halves, feed, tolerance=2e-3)
    assert "not float32" in result.declines("fuse Attention")[0]


@pytest.mark.parametrize("more", ["is_causal = 1", "softcap = 0.4"])
def test_a_factor_leaves_what_else_an_attention_says(optimized, rng, more):
    x = {n: rng.normal(0, 1, (1, 2, 5, 8)).astype(np.float32) for n in "qkv"}
    sign = "(float[1, 2, 5, 8] q, float[1, 2, 5, 8] k, float[1, 2, 5, 8] v) => (float[1, 2, 5, 8] y)"
    body = f"f = Mul(q, twice) y = Attention<scale = 0.5, {more}>(f, k, v)"
    constants = {"twice": np.array(2, np.float32)}
    result = optimized(sign, body, constants, x, tolerance=1e-5, engine="reference")
    assert dict(result.kinds) == {"Attention": 1}
    assert result.only("Attention").attributes["scale"].as_float() == 1
