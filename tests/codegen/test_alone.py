"""A kernel by itself is the kernel that the whole program has, and computes what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.engines import compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.alone import product_alone, well_formed
from hasten.codegen.kernel import Kernel
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.schedule import Schedules
from hasten.loops.dtypes import DType
from hasten.loops.evaluate import evaluate
from hasten.loops.nest import Function
from hasten.loops.program import Program
from hasten.loops.scope import size_value
from hasten.loops.verify import verify
from hasten.target import TARGETS, Target, native, runs_here

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WHOLE = {
    "layers": program(
        "(float[n, 20] x) => (float[n, 8] y) { p = MatMul(x, a) q = Add(p, b) r = Gelu(q) s = MatMul(r, c) "
        "t = Relu(s) y = Softmax(t) }",
        {"a": normal(20, 40), "b": normal(40), "c": normal(40, 8)},
    ),
    "pictures": program(
        "(float[b, 9, h, w0] x) => (float[b, 10] y) { p = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) q = Relu(p) "
        "r = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(q, w2, b2) s = Conv<strides = [2, 2]>(q, w3) "
        "t = Add(r, s) u = Relu(t) v = GlobalAveragePool(u) z = Flatten(v) y = MatMul(z, m) }",
        {"w1": normal(16, 9, 3, 3), "b1": normal(16), "w2": normal(40, 16, 3, 3), "b2": normal(40),
         "w3": normal(40, 16, 1, 1), "m": normal(40, 10)},
    ),
    "scores": program(
        "(float[b, s, 12] x, float[b, t, 12] z) => (float[b, s, t] y) "
        "{ k = Transpose<perm = [0, 2, 1]>(z) p = MatMul(x, k) y = Sigmoid(p) }"
    ),
}  # fmt: skip


def quantized(text: str, weights: dict[str, tuple[int, ...]]) -> Program:
    """A graph with weights in bytes, with a scale for each column, and bytes around products."""
    constants = {"s": np.float32(0.03), "z": np.uint8(97), "s2": np.float32(0.05), "z2": np.uint8(3)}
    for name, shape in weights.items():
        axis = 1 if len(shape) == 2 else 0
        constants[name] = RNG.integers(-127, 128, shape).astype(np.int8)
        constants[f"{name}_scale"] = RNG.uniform(0.001, 0.003, shape[axis]).astype(np.float32)
        constants[f"{name}_bias"] = normal(shape[axis])
    return program(text, constants)


WHOLE["bytes"] = quantized(
    "(float[n, 64] x, float[n, 40] other) => (float[n, 40] y) { xq = QuantizeLinear(x, s, z) "
    "xd = DequantizeLinear(xq, s, z) ad = DequantizeLinear<axis = 1>(a, a_scale) p = MatMul(xd, ad) "
    "q = Add(p, a_bias) g = Gelu(q) gq = QuantizeLinear(g, s2, z2) gd = DequantizeLinear(gq, s2, z2) "
    "cd = DequantizeLinear<axis = 1>(c, c_scale) r = MatMul(gd, cd) t = Add(r, c_bias) y = Add(t, other) }",
    {"a": (64, 48), "c": (48, 40)},
)
WHOLE["pictures of bytes"] = quantized(
    "(float[b, 16, h, w0] x) => (float[b, 16, h, w0] y) { xq = QuantizeLinear(x, s, z) "
    "xd = DequantizeLinear(xq, s, z) ad = DequantizeLinear<axis = 0>(a, a_scale) "
    "p = Conv<pads = [1, 1, 1, 1]>(xd, ad, a_bias) q = Relu(p) qq = QuantizeLinear(q, s2, z2) "
    "qd = DequantizeLinear(qq, s2, z2) cd = DequantizeLinear<axis = 0>(c, c_scale) "
    "r = Conv<pads = [1, 1, 1, 1]>(qd, cd, c_bias) t = Add(r, xd) u = Relu(t) "
    "uq = QuantizeLinear(u, s2, z2) y = DequantizeLinear(uq, s2, z2) }",
    {"a": (16, 16, 3, 3), "c": (16, 16, 3, 3)},
)
BYTES = [name for name in WHOLE if "bytes" in name]
HERE = [t for t in TARGETS if runs_here(t)]
SIZES = {"n": 13, "b": 2, "h": 11, "w0": 9, "s": 5, "t": 7}


def likely(p: Program) -> Schedules:
    return Schedules(sizes=Schedules(sizes=SIZES).likely_sizes(p))


def cut(p: Program, precision: DType) -> list[tuple[Kernel, Program]]:
    """Every product of a program, with the kernel that it has there."""
    lowered = lower_program(p, native(), likely(p), precision)
    return [(k, product_alone(k.product, lowered, p.constants)) for k in lowered.kernels if k.product]


def code(f: Function) -> object:
    return f.params, f.body


@pytest.mark.parametrize("precision", [DType.F32, DType.BF16])
@pytest.mark.parametrize("name", WHOLE)
def test_the_kernel_alone_is_the_one_of_the_program(name: str, precision: DType) -> None:
    pairs = cut(WHOLE[name], precision)
    assert pairs
    for kernel, alone in pairs:
        verify(well_formed(alone))
        (own,) = [k for k in lower_program(alone, native(), likely(WHOLE[name])).kernels if k.product]
        assert own.product is not None
        assert kernel.product is not None
        assert own.product.shape == kernel.product.shape
        assert code(own.function) == code(kernel.function)


@pytest.mark.parametrize("precision", [DType.F32, DType.BF16])
@pytest.mark.parametrize("whole", [name for name in WHOLE if name not in BYTES])
def test_a_kernel_alone_computes_its_definition(whole: str, precision: DType) -> None:
    sizes = likely(WHOLE[whole]).sizes
    alone = [program for _, program in cut(WHOLE[whole], precision)]
    for engine in compile_programs(alone, native(), parallel=True):
        feeds = {}
        for given, info in engine.program.inputs.items():
            shape = [size_value(n, sizes) for n in info.shape]
            numbers = normal(*shape) if info.dtype.is_float else np.zeros(shape)
            feeds[given] = numbers.astype(info.dtype.numpy)
        if precision is DType.F32:
            agree(engine, feeds, threads=(1, 2))
            continue
        for name, expected in evaluate(well_formed(engine.program), feeds).items():
            got, wanted = (a.astype(np.float32) for a in (engine.run(feeds)[name], expected))
            np.testing.assert_allclose(got, wanted, rtol=2**-7, atol=1e-5)  # both were rounded to bf16


@pytest.mark.parametrize("target", (HERE[0], HERE[-1]), ids=lambda t: t.name)
@pytest.mark.parametrize("whole", BYTES)
def test_a_product_of_bytes_alone_computes_its_definition(whole: str, target: Target) -> None:
    sizes = likely(WHOLE[whole]).sizes
    lowered = lower_program(WHOLE[whole], target, likely(WHOLE[whole]))
    products = [k.product for k in lowered.kernels if k.product and k.product.shape.dtype is DType.U8]
    assert len(products) == 2
    alone = [product_alone(p, lowered, WHOLE[whole].constants) for p in products]
    assert not any(name.endswith("_scale") or "lean" in name for p in alone for name in p.inputs)
    for engine in compile_programs(alone, target, parallel=True):
        feeds = {}
        for name, info in engine.program.inputs.items():
            shape = [size_value(n, sizes) for n in info.shape]
            of_bytes = info.dtype is DType.U8
            feeds[name] = RNG.integers(0, 256, shape, np.uint8) if of_bytes else normal(*shape)
        ((name, expected),) = evaluate(well_formed(engine.program), feeds).items()
        for threads in (1, 2):
            got = engine.run(feeds, threads)[name].astype(np.float64)
            off = np.abs(got - expected)
            if expected.dtype == np.uint8:
                assert len(np.unique(expected)) > 50
                assert off.max() <= 1
                assert (off > 0).mean() <= 0.01
            else:
                assert off.max() <= 1e-5 * np.abs(expected).max()
