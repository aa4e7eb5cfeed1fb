import numpy as np
import pytest

ATTENTION = "y = Attention<q_num_heads = 2, kv_num_heads = 2, scale = 0.5>(q, k, v)"
SIGNATURE = "(float[b, s, 6] x) => (float[b, s, w] y)"


@pytest.fixture
def constants(rng):
    made = {name: rng.normal(0, 1, (6, 8)) for name in ("wq", "wk", "wv")}
    made |= {name: rng.normal(0, 1, 8) for name in ("bq", "bk", "bv")}
    made |= {"row": rng.normal(0, 1, (1, 8)), "w3": rng.normal(0, 1, (1, 6, 8))}
    return {name: array.astype(np.float32) for name, array in made.items()}


def linear(name, bias=True, source="x"):
    if not bias:
        return f"{name} = MatMul({source}, w{name}) "
    return f"{name}0 = MatMul({source}, w{name}) {name} = Add({name}0, b{name}) "


@pytest.mark.parametrize(("biases", "adds"), [((True,) * 3, 1), ((False,) * 3, 0), ((True, False, True), 1)])
def test_three_products_become_one(optimized, rng, constants, biases, adds):
    body = "".join(linear(n, b) for n, b in zip("qkv", biases, strict=True)) + ATTENTION
    feeds = [{"x": rng.normal(0, 1, (b, s, 6)).astype(np.float32)} for b, s in ((1, 3), (2, 4))]
    result = optimized(SIGNATURE, body, constants, *feeds, tolerance=2e-5)
    expected = {"MatMul": 1, "Split": 1, "Attention": 1} | ({"Add": 1} if adds else {})
    assert dict(result.kinds) == expected
    assert result.only("MatMul").inputs[1].shape.numpy() == (6, 24)
    assert result.model.graph.initializers.keys().isdisjoint({"wq", "wk", "wv"})


def test_values_may_have_another_width(optimized, rng, constants):
    constants["wv"] = rng.normal(0, 1, (6, 4)).astype(np.float32)
    body = linear("q") + linear("k") + linear("v", bias=False) + ATTENTION
    feed = {"x": rng.normal(0, 1, (2, 3, 6)).astype(np.float32)}
    result = optimized(SIGNATURE, body, constants, feed, tolerance=2e-5)
    assert result.only("MatMul").inputs[1].shape.numpy() == (6, 20)


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        (
            "(float[b, s, 6] x, float[b, s, 6] z) => (float[b, s, w] y)",
            linear("q") + linear("k", source="z") + linear("v"),
            "products of different inputs",
        ),
        (
            "(float[b, s, 6] x, float[b, s, 5] z) => (float[b, s, w] y)",
            linear("q") + "k = MatMul(z, short) " + linear("v"),
            "products of different inputs",
        ),
        (
            "(float[b, s, 6] x, float[6, 8] z) => (float[b, s, w] y)",
            linear("q") + "k = MatMul(x, z) " + linear("v"),
            "the weights of k are not a constant matrix",
        ),
        (SIGNATURE, linear("q") + "k = MatMul(x, w3) " + linear("v"), "not a constant matrix"),
        (
            SIGNATURE,
            linear("q") + "k0 = MatMul(x, wk) k = Add(k0, row) " + linear("v"),
            "the bias of k has shape (1, 8), not (8,)",
        ),
        (
            SIGNATURE,
            linear("q") + "k0 = MatMul(x, wk) k = Tanh(k0) " + linear("v"),
            "(Tanh), not from a MatMul",
        ),
        (
            "(float[b, s, 6] x) => (float[b, s, w] y, float[b, s, 8] k)",
            linear("q") + linear("k") + linear("v"),
            "'k' is an output of the model",
        ),
    ],
)
def test_declines(optimized, rng, constants, signature, body, reason):
    constants["short"] = rng.normal(0, 1, (5, 8)).astype(np.float32)
    feed = {"x": rng.normal(0, 1, (2, 3, 6)).astype(np.float32)}
    if " z)" in signature:
        shape = (6, 8) if "[6, 8]" in signature else (2, 3, 5 if "5] z" in signature else 6)
        feed["z"] = rng.normal(0, 1, shape).astype(np.float32)
    result = optimized(signature, body + ATTENTION, constants, feed, tolerance=1e-5)
    assert result.kinds["Split"] == 0
    assert any(reason in text for text in result.declines("fuse QKV products"))
