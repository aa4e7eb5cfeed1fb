"""Storage in bf16: compiled kernels on processors with and without the instructions against the definition.

Products of numbers that bf16 holds are exact in f32, so on such inputs kernels of pairs must agree with the
definition as closely as kernels of f32 do; only what is rounded on the way needs a wider tolerance.
"""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program
from tests.codegen.test_products import attentions, convolutions, feeds_of, normal, products

from hasten.codegen.lower_stages import lower_program
from hasten.loops.dtypes import DType
from hasten.target import TARGETS, Target, native, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
THREADS = (1, 2, 3)
ROUNDING = 2.0**-7
"""Share of the largest element by which results may differ where intermediate tensors are rounded to bf16."""


def rounded(array):
    """The nearest values that bf16 holds; other types as they are."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32) if array.dtype == np.float32 else array


def exact(p):
    return replace(p, constants={n: rounded(a) for n, a in p.constants.items()})


def inputs_of(p, **sizes):
    return {n: rounded(a) for n, a in feeds_of(p, **sizes).items()}


def closely(engine, feeds, threads):
    """Results that cancel are small beside the f32 sums that they are differences of."""
    agree(engine, feeds, threads, tolerance=4e-5)


def loosely(engine, feeds, threads):
    agree(engine, feeds, threads, tolerance=ROUNDING)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_products_are_exact_on_what_bf16_holds(target):
    programs = [exact(p) for p in products()]
    for number, engine in enumerate(compile_programs(programs, target, parallel=True, precision=DType.BF16)):
        for m in {1, 2, 7, 13, 30, 200 if number % 7 == 0 else 1}:
            closely(engine, inputs_of(engine.program, m=m), THREADS)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_convolutions_are_exact_on_what_bf16_holds(target):
    programs = [exact(p) for p in convolutions()]
    for engine in compile_programs(programs, target, parallel=True, precision=DType.BF16):
        for b, h, w0 in ((1, 7, 9), (2, 12, 5), (0, 7, 7)):
            closely(engine, inputs_of(engine.program, b=b, h=h, w0=w0), THREADS)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_attention(target):
    for engine in compile_programs(attentions(), target, parallel=True, precision=DType.BF16):
        for b, s, t in ((1, 1, 1), (2, 1, 17), (2, 33, 40), (3, 7, 32), (1, 40, 5), (0, 3, 3)):
            loosely(engine, inputs_of(engine.program, b=b, s=s, t=t), THREADS)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_keys_that_are_given_as_columns(target):
    """Two neighbouring elements in memory are of two keys, not of one."""
    text = """(float[b, 2, s, 16] q, float[b, 2, 16, u] k, float[b, 2, u, 24] v) => (float[b, 2, s, 24] y)
        { t = Transpose<perm = [0, 1, 3, 2]>(k) y = Attention(q, t, v) }"""
    for engine in compile_programs([program(text)], target, precision=DType.BF16):
        for b, s, t in ((1, 1, 1), (2, 13, 40)):
            loosely(engine, inputs_of(engine.program, b=b, s=s, u=t), THREADS)


CHAIN = (
    "(float[b, s, 32] x) => (float[b, s, 32] y, float[b, s, 64] h) {"
    "n = LayerNormalization<axis = -1>(x, one, nought) u = MatMul(n, w1) h = Gelu(u) "
    "d = MatMul(h, w2) r = Add(n, d) y = LayerNormalization<axis = -1>(r, one, nought) }"
)


def chain():
    weights = {"w1": normal(32, 64) / 6, "w2": normal(64, 32) / 8}
    return program(CHAIN, weights | {"one": normal(32), "nought": normal(32)})


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_what_products_read_is_rounded_once_where_it_is_written(target):
    (engine,) = compile_programs([chain()], target, parallel=True, precision=DType.BF16)
    loosely(engine, feeds_of(engine.program, b=2, s=9), THREADS)


def test_operands_are_stored_narrow_and_the_rest_is_not():
    lowered = lower_program(chain(), native(), precision=DType.BF16)
    types = {t: lowered.layouts[t].dtype for k in lowered.kernels for t in k.writes}
    narrow = [name for name, dtype in types.items() if dtype is DType.BF16]
    # The first normalization, and a copy of `h`, which is a result and keeps its type.
    assert len(narrow) == 2 and any(name.startswith("h") for name in narrow), types
    assert types["y"] is types["h"] is DType.F32
    packed = [a for n, a in lowered.constants.items() if n.endswith("_packed")]
    assert [a.dtype for a in packed] == [ml_dtypes.bfloat16] * 2


def test_large_tables_are_stored_narrow():
    p = program(
        "(int64[m] ids) => (float[m, 64] y) { g = Gather(table, ids) y = Add(g, bias) }",
        {"table": normal(2000, 64), "bias": normal(64)},
    )
    lowered = lower_program(p, native(), precision=DType.BF16)
    assert sorted(a.dtype.name for a in lowered.constants.values()) == ["bfloat16", "float32"]
    (engine,) = compile_programs([p], native(), precision=DType.BF16)
    loosely(engine, {"ids": np.array([3, 1999, -1, 0])}, (1, 2))


def test_an_odd_depth_stays_as_it_is():
    p = program("(float[m, 7] x) => (float[m, 5] y) { y = MatMul(x, w) }", {"w": normal(7, 5)})
    lowered = lower_program(p, native(), precision=DType.BF16)
    assert DType.BF16 not in {layout.dtype for layout in lowered.layouts.values()}


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-bf16", "x86-64-v4-amx", "aarch64"])
def test_nests_as_interpreted(name):
    target = Target.named(name)
    for p in [exact(products()[4]), exact(convolutions()[1])]:
        closely(Interpreted.of(p, target, DType.BF16), inputs_of(p, m=7, b=1, h=6, w0=5), (1, 3))
    for p in (attentions()[2], chain()):
        loosely(Interpreted.of(p, target, DType.BF16), feeds_of(p, b=1, s=7, t=5), (2,))


def test_sums_of_groups_of_channels_stay_wide():
    """A group is reduced over a part of the axis of channels, which is no window."""
    text = """(float[n, 32, 8, 8] x) => (float[n, 32, 8, 8] y)
        { y = GroupNormalization<num_groups = 4>(x, one, nought) }"""
    p = program(text, {"one": np.ones(32, np.float32), "nought": np.zeros(32, np.float32)})
    lowered = lower_program(p, native(), precision=DType.BF16)
    assert DType.BF16 not in {layout.dtype for layout in lowered.layouts.values()}


def test_what_windows_slide_over_is_narrow():
    for window in (
        "AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(s)",
        "MaxPool<kernel_shape = [1, 3], pads = [0, 1, 0, 1]>(s)",
    ):
        text = f"(float[n, 8, h, w] x) => (float[n, 8, oh, ow] y) {{ s = Conv(x, k) y = {window} }}"
        lowered = lower_program(program(text, {"k": normal(8, 8, 1, 1)}), native(), precision=DType.BF16)
        assert lowered.layouts["s"].dtype is DType.BF16, window


def test_large_weights_of_a_window_keep_its_kernel():
    text = """(float[n, 8, h, w] x) => (float[n, 1536, h, w] y)
        { c = Conv(x, wide) y = Conv<group = 1536, pads = [3, 3, 3, 3]>(c, k) }"""
    weights = {"wide": normal(1536, 8, 1, 1), "k": normal(1536, 1, 7, 7)}
    lowered = lower_program(program(text, weights), native(), precision=DType.BF16)
    assert any(k.function.name.startswith("window_") for k in lowered.kernels)
