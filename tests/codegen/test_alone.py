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
from hasten.target import native

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
SIZES = {"n": 13, "b": 2, "h": 11, "w0": 9, "s": 5, "t": 7}


def likely(p: Program) -> Schedules:
    return Schedules(sizes=Schedules(sizes=SIZES).likely_sizes(p))


def cut(p: Program, precision: DType) -> list[tuple[Kernel, Program]]:
    """Every product of a program, with the kernel that it has there."""
    lowered = lower_program(p, native(), likely(p), precision)
    return [
        (k, product_alone(k.product.stage, lowered.layouts, p.constants))
        for k in lowered.kernels
        if k.product
    ]


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
@pytest.mark.parametrize("whole", WHOLE)
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
