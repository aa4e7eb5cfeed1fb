import numpy as np
import pytest

C = {
    "root2": np.array(2**0.5, np.float32),
    "invroot2": np.array(0.70710677, np.float32),
    "one": np.array(1, np.float32),
    "two": np.array(2, np.float32),
    "three": np.array(3, np.float32),
    "half": np.array([0.5], np.float32),
    "a": np.array(0.044715, np.float32),
    "b": np.array(0.7978846, np.float32),
    "b2": np.array(0.035677407, np.float32),
}
SIGNATURE = "(float[n, 8] x) => (float[n, 8] y)"
ERF = [
    "u = Div(x, root2) e = Erf(u) s = Add(e, one) h = Mul(x, half) y = Mul(h, s)",
    "u = Div(x, root2) e = Erf(u) s = Add(one, e) h = Mul(x, s) y = Mul(h, half)",
    "u = Mul(invroot2, x) e = Erf(u) s = Add(e, one) h = Mul(half, s) y = Mul(x, h)",
    "u = Mul(invroot2, x) e = Erf(u) s = Add(e, one) h = Mul(s, x) y = Div(h, two)",
]
TANH = [
    "p = Pow(x, three) q = Mul(a, p) r = Add(x, q) u = Mul(b, r) t = Tanh(u)"
    " s = Add(one, t) h = Mul(half, x) y = Mul(h, s)",
    "p = Mul(x, x) q = Mul(p, a) r = Add(q, one) v = Mul(x, b) u = Mul(v, r) t = Tanh(u)"
    " s = Add(t, one) h = Mul(s, half) y = Mul(h, x)",
    "p = Mul(x, x) w = Mul(p, x) q = Mul(w, b2) v = Mul(x, b) u = Add(v, q) t = Tanh(u)"
    " s = Add(t, one) h = Mul(x, s) y = Mul(half, h)",
]


@pytest.mark.parametrize(("body", "approximate"), [(b, "none") for b in ERF] + [(b, "tanh") for b in TANH])
def test_every_spelling_becomes_one_node(optimized, rng, body, approximate):
    x = rng.normal(0, 3, (5, 8)).astype(np.float32)
    result = optimized(SIGNATURE, body, C, {"x": x})
    assert dict(result.kinds) == {"Gelu": 1}
    assert result.only("Gelu").attributes["approximate"].as_string() == approximate
    assert [item.rule for item in result.report.fused] == ["fuse Gelu"]
    assert len(result.report.fused[0].nodes) == result.report.nodes_before


def test_a_biased_input_is_the_whole_sum(optimized, rng):
    x = rng.normal(0, 1, (5, 8)).astype(np.float32)
    body = "z = Add(x, bias) " + ERF[0].replace("(x", "(z")
    constants = {**C, "bias": rng.normal(0, 1, 8).astype(np.float32)}
    assert dict(optimized(SIGNATURE, body, constants, {"x": x}).kinds) == {"Add": 1, "Gelu": 1}


def test_other_coefficients_are_left(optimized, rng):
    x = rng.normal(0, 1, (5, 8)).astype(np.float32)
    wrong = {**C, "root2": np.array(1.5, np.float32)}
    result = optimized(SIGNATURE, ERF[0], wrong, {"x": x})
    assert result.kinds["Erf"] == 1
    (reason,) = result.declines("fuse Gelu")
    assert "argument of Erf is not that of a GELU" in reason


def test_an_intermediate_that_others_need_is_kept(optimized, rng):
    x = rng.normal(0, 1, (5, 8)).astype(np.float32)
    signature = "(float[n, 8] x) => (float[n, 8] y, float[n, 8] other)"
    result = optimized(signature, ERF[0] + " other = Neg(e)", C, {"x": x})
    assert result.kinds["Erf"] == 1
    (reason,) = result.declines("fuse Gelu")
    assert "'e' is also used by" in reason
    result = optimized(signature.replace("other", "e"), ERF[0], C, {"x": x})
    assert "'e' is an output of the model" in result.declines("fuse Gelu")[0]


def test_constants_that_add_a_dimension_are_kept(optimized, rng):
    x = rng.normal(0, 1, (5, 8)).astype(np.float32)
    constants = {**C, "root2": C["root2"].reshape(1, 1, 1)}
    result = optimized("(float[n, 8] x) => (float[1, n, 8] y)", ERF[0], constants, {"x": x})
    assert result.kinds["Gelu"] == 0
    assert any("make 3 dimensions of 2" in text for text in result.declines("fuse Gelu"))
