import numpy as np
import pytest

SIGNATURE = "(float[n, 4, 7, 5] x) => (float[n, 6, h, w] y)"
NORM = "y = BatchNormalization<epsilon = 0.01>(c, scale, shift, mean, variance)"


@pytest.fixture
def constants(rng):
    def normal(*shape):
        return rng.normal(0, 1, shape).astype(np.float32)

    return {
        "scale": normal(6),
        "shift": normal(6),
        "mean": normal(6),
        "variance": rng.uniform(0.1, 2, 6).astype(np.float32),
        "w": normal(6, 4, 3, 3),
        "wg": normal(6, 2, 3, 3),
        "wt": normal(4, 3, 2, 2),
        "b": normal(6),
        "channel": normal(1, 6, 1, 1),
        "one": normal(1),
        "row": normal(5),
        "wide": normal(1, 6, 1, 3),
        "gw": normal(4, 6),
        "gt": normal(6, 4),
        "gb": normal(3, 6),
    }


@pytest.mark.parametrize(
    "product",
    [
        "c = Conv(x, w)",
        "c = Conv(x, w, b)",
        "c = Conv<group = 2, strides = [2, 1]>(x, wg, b)",
        "c = ConvTranspose<group = 2>(x, wt, b)",
        "p = Conv(x, w) c = Add(p, channel)",
        "p = ConvTranspose<group = 2>(x, wt, b) c = Add(one, p)",
    ],
)
def test_folds_into_the_weights(optimized, rng, constants, product):
    x = rng.normal(0, 1, (2, 4, 7, 5)).astype(np.float32)
    body = f"{product} {NORM}"
    # onnx.reference cannot run a grouped ConvTranspose
    engine = "onnxruntime" if "Transpose" in product else "reference"
    result = optimized(SIGNATURE, body, constants, {"x": x}, tolerance=2e-5, engine=engine)
    assert sum(result.kinds.values()) == 1
    assert result.report.fused[0].rule == "fold BatchNormalization"


@pytest.mark.parametrize("product", ["Gemm(x, gw, b)", "Gemm<transB = 1>(x, gt)"])
def test_folds_into_a_gemm(optimized, rng, constants, product):
    x = rng.normal(0, 1, (3, 4)).astype(np.float32)
    signature = "(float[3, 4] x) => (float[3, 6] y)"
    result = optimized(signature, f"c = {product} {NORM}", constants, {"x": x}, tolerance=2e-5)
    assert dict(result.kinds) == {"Gemm": 1}


@pytest.mark.parametrize(
    ("shape", "weight", "product", "reason"),
    [
        ((6, 4), (4, 6), "c = Gemm(x, weight, rows)", "the bias of the Gemm has shape (6, 1)"),
        ((6, 4, 9), (6, 4, 3), "p = Conv(x, weight) c = Add(p, batch)", "shape (6, 1, 1)"),
        ((6, 4, 7, 4, 5), (6, 4, 2, 2, 2), "p = Conv(x, weight) c = Add(p, batch)", "shape (6, 1, 1)"),
    ],
)
def test_what_is_as_long_as_the_channels_but_lies_elsewhere(
    optimized, rng, constants, shape, weight, product, reason
):
    constants |= {"weight": rng.normal(0, 1, weight).astype(np.float32)}
    added = rng.normal(0, 1, 6).astype(np.float32)
    constants |= {"rows": added.reshape(6, 1), "batch": added.reshape(6, 1, 1)}
    used = {name: a for name, a in constants.items() if name in f"{product} {NORM}"}
    out = ", ".join("abcde"[: len(shape)])
    feeds = {"x": rng.normal(0, 1, shape).astype(np.float32)}
    signature = f"(float[{', '.join(map(str, shape))}] x) => (float[{out}] y)"
    result = optimized(signature, f"{product} {NORM}", used, feeds, tolerance=2e-5)
    assert any(reason in text for text in result.declines("fold BatchNormalization"))


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        (
            "(float[1, 4, 7, 5] x, float[6, 4, 3, 3] k) => (float[1, 6, 5, 3] y)",
            f"c = Conv(x, k) {NORM}",
            "the weights of the Conv are not constant",
        ),
        (
            "(float[1, 4, 7, 5] x, float[6] k) => (float[1, 6, 5, 3] y)",
            f"c = Conv(x, w) {NORM.replace('mean', 'k')}",
            "statistics of the BatchNormalization are not constant",
        ),
        (
            "(float[1, 4, 7, 5] x) => (float[1, 6, 5, 3] y, float[1, 6, 5, 3] c)",
            f"c = Conv(x, w) {NORM}",
            "'c' is an output of the model",
        ),
        (
            "(float[1, 4, 7, 5] x) => (float[1, 6, 5, 3] y)",
            f"p = Conv(x, w) c = Add(p, wide) {NORM}",
            "shape (1, 6, 1, 3), not one per channel",
        ),
        (
            "(float[3, 4] x) => (float[3, 6] y)",
            f"c = Gemm<alpha = 0.5>(x, gw) {NORM}",
            "alpha or beta is not 1",
        ),
        (
            "(float[3, 4] x) => (float[3, 6] y)",
            f"c = Gemm(x, gw, gb) {NORM}",
            "the bias of the Gemm has shape (3, 6)",
        ),
        (
            "(float[1, 4, 7, 5] x) => (float[1, 6, 5, 3] y)",
            f"c = Conv(x, w) {NORM.replace('0.01', '-5.0')}",
            "variance plus epsilon is not positive",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_declines(optimized, rng, constants, signature, body, reason):
    dims = (3, 4) if "[3, 4]" in signature else (1, 4, 7, 5)
    feed = {"x": rng.normal(0, 1, dims).astype(np.float32)}
    if "k)" in signature:
        shape = (6,) if "[6] k" in signature else (6, 4, 3, 3)
        feed["k"] = rng.normal(0, 1, shape).astype(np.float32)
    result = optimized(signature, body, constants, feed)
    assert result.kinds["BatchNormalization"] == 1
    assert any(reason in text for text in result.declines("fold BatchNormalization"))
