"""fuse_layer_norm and fuse_rms_norm."""

import numpy as np
import pytest

C = {
    "last": np.array([-1], np.int64),
    "two": np.array(2, np.float32),
    "one": np.array(1, np.float32),
    "minus_half": np.array(-0.5, np.float32),
    "eps": np.array(1e-3, np.float32),
    "gamma": np.linspace(0.5, 2, 6, dtype=np.float32),
    "beta": np.linspace(-1, 1, 6, dtype=np.float32),
}
SIGNATURE = "(float[n, t, 6] x) => (float[n, t, 6] y)"
CENTER = "m = ReduceMean(x, last) d = Sub(x, m) "
SQUARES = ["q = Pow(d, two) ", "q = Mul(d, d) "]
ROOTS = [
    "r = Sqrt(e) z = Div(d, r) ",
    "r = Sqrt(e) i = Reciprocal(r) z = Mul(d, i) ",
    "r = Sqrt(e) i = Div(one, r) z = Mul(i, d) ",
    "i = Pow(e, minus_half) z = Mul(d, i) ",
]
AFFINE = ["g = Mul(z, gamma) y = Add(g, beta)", "g = Mul(gamma, z) y = Add(beta, g)"]


def spelled(square: str, root: str, affine: str) -> str:
    return f"{CENTER}{square}v = ReduceMean(q, last) e = Add(v, eps) {root}{affine}"


def feeds(rng, *sizes):
    return [{"x": rng.normal(2, 3, (n, t, 6)).astype(np.float32)} for n, t in sizes]


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", SQUARES)
def test_layer_norm_spellings(optimized, rng, square, root, affine):
    body = spelled(square, root, affine)
    result = optimized(SIGNATURE, body, C, *feeds(rng, (1, 3), (2, 1)), tolerance=1e-5)
    assert dict(result.kinds) == {"LayerNormalization": 1}
    node = result.only("LayerNormalization")
    assert [value.name for value in node.inputs] == ["x", "gamma", "beta"]
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("affine", "left"),
    [
        ("y = Mul(z, gamma)", {}),
        ("y = Add(z, beta)", {}),
        ("y = Identity(z)", {}),
        ("y = Add(z, x)", {"Add": 1}),
        ("y = Mul(z, x)", {"Mul": 1}),
    ],
)
def test_layer_norm_without_scale_or_bias(optimized, rng, affine, left):
    body = spelled(SQUARES[0], ROOTS[0], affine)
    result = optimized(SIGNATURE, body, C, *feeds(rng, (2, 3)), tolerance=1e-5)
    assert dict(result.kinds) == {"LayerNormalization": 1, **left}


def test_layer_norm_over_two_axes_and_a_scale_with_leading_ones(optimized, rng):
    constants = {
        **C,
        "last": np.array([-2, -1], np.int64),
        "gamma": rng.normal(0, 1, (1, 4, 6)).astype(np.float32),
        "beta": rng.normal(0, 1, (4, 6)).astype(np.float32),
    }
    signature = "(float[n, 4, 6] x) => (float[n, 4, 6] y)"
    body = spelled(SQUARES[1], ROOTS[0], AFFINE[0])
    result = optimized(signature, body, constants, *feeds(rng, (3, 4)), tolerance=1e-5)
    assert result.only("LayerNormalization").attributes["axis"].as_int() == -2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"last": np.array([1], np.int64)}, "not taken over the same, last axes"),
        ({"gamma": np.ones((3, 6), np.float32) * 2}, "the scale is (3, 6)"),
    ],
)
def test_layer_norm_declines(optimized, rng, changes, reason):
    signature = "(float[n, 3, 6] x) => (float[n, 3, 6] y)"
    body = spelled(SQUARES[0], ROOTS[0], AFFINE[0])
    affine_left = "gamma" in changes
    result = optimized(signature, body, {**C, **changes}, *feeds(rng, (2, 3)), tolerance=1e-5)
    if affine_left:  # the normalization itself fuses, its scale stays a product
        assert dict(result.kinds) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
    else:
        assert any(reason in text for text in result.declines("fuse LayerNormalization"))
        assert result.kinds["LayerNormalization"] == 0


def test_layer_norm_in_double_is_left(optimized, rng):
    doubles = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in C.items()}
    x = rng.normal(0, 1, (2, 3, 6))
    body = spelled(SQUARES[0], ROOTS[0], AFFINE[0])
    result = optimized(SIGNATURE.replace("float", "double"), body, doubles, {"x": x})
    assert "computes in float32" in result.declines("fuse LayerNormalization")[0]


def test_a_variance_that_others_need_is_kept(optimized, rng):
    signature = "(float[n, t, 6] x) => (float[n, t, 6] y, float[n, t, 1] v)"
    body = spelled(SQUARES[0], ROOTS[0], AFFINE[0])
    result = optimized(signature, body, C, *feeds(rng, (2, 3)))
    assert "'v' is an output of the model" in result.declines("fuse LayerNormalization")[0]


@pytest.mark.parametrize("affine", ["y = Mul(gamma, z)", "y = Mul(z, gamma)", "y = Identity(z)"])
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", SQUARES)
def test_rms_norm_spellings(optimized, rng, square, root, affine):
    body = f"{square}v = ReduceMean(q, last) e = Add(v, eps) {root}{affine}".replace("d,", "x,")
    body = body.replace("d)", "x)")
    result = optimized(SIGNATURE, body, C, *feeds(rng, (1, 3), (2, 2)), tolerance=1e-5)
    assert dict(result.kinds) == {"RMSNormalization": 1}


def test_rms_norm_declines(optimized, rng):
    body = "q = Mul(x, x) v = ReduceMean(q, last) e = Add(v, eps) r = Sqrt(e) z = Div(x, r) y = Mul(z, gamma)"
    over_first = {**C, "last": np.array([0], np.int64)}
    result = optimized(SIGNATURE, body, over_first, *feeds(rng, (2, 3)))
    assert "not taken over the last axes" in result.declines("fuse RMSNormalization")[0]
    doubles = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in C.items()}
    x = rng.normal(0, 1, (2, 3, 6))
    result = optimized(SIGNATURE.replace("float", "double"), body, doubles, {"x": x})
    assert "computes in float32" in result.declines("fuse RMSNormalization")[0]


GROUPS = {
    "grouped": np.array([0, 3, -1], np.int64),
    "ones": np.ones(3, np.float32),
    "zeros": np.zeros(3, np.float32),
    "odd": np.linspace(1, 2, 3, dtype=np.float32),
    "factor": np.linspace(0.5, 2, 12, dtype=np.float32).reshape(12, 1, 1),
    "shift": np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 12, 1, 1),
    "shape": np.array([0, 12, 5, 4], np.int64),
}
GROUPED = "r = Reshape(x, grouped) i = InstanceNormalization<epsilon=0.01>(r, {}, {}) b = Reshape(i, shape) "
OF_PICTURES = "(float[n, 12, 5, 4] x) => (float[n, 12, 5, 4] y)"


@pytest.mark.parametrize("own", [("ones", "zeros"), ("odd", "odd")])
@pytest.mark.parametrize(
    "affine", ["g = Mul(b, factor) y = Add(g, shift)", "y = Mul(factor, b)", "y = Identity(b)"]
)
def test_group_norm_of_reshaped_pictures(optimized, rng, own, affine):
    pictures = [{"x": rng.normal(2, 3, (n, 12, 5, 4)).astype(np.float32)} for n in (1, 3)]
    result = optimized(OF_PICTURES, GROUPED.format(*own) + affine, GROUPS, *pictures, tolerance=1e-5)
    assert dict(result.kinds) == {"GroupNormalization": 1}
    node = result.only("GroupNormalization")
    assert (node.attributes["num_groups"].as_int(), node.attributes["epsilon"].as_float()) == (
        3,
        pytest.approx(0.01),
    )


def test_a_scale_for_each_position_is_not_group_norms(optimized, rng):
    constants = {**GROUPS, "factor": np.arange(20, dtype=np.float32).reshape(5, 4)}
    body = GROUPED.format("ones", "zeros") + "y = Mul(b, factor)"
    pictures = {"x": rng.normal(2, 3, (2, 12, 5, 4)).astype(np.float32)}
    result = optimized(OF_PICTURES, body, constants, pictures, tolerance=1e-5)
    assert dict(result.kinds) == {"GroupNormalization": 1, "Mul": 1}
