"""Normalizations and what follows them row by row: one kernel, the same results."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.loops.dtypes import DType
from hasten.target import TARGETS, Target, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
RNG = np.random.default_rng(0)
CONSTANTS = {
    "g": RNG.standard_normal(70).astype(np.float32),
    "w": RNG.integers(-127, 128, (70, 24)).astype(np.int8),
    "ws": RNG.uniform(0.001, 0.01, 24).astype(np.float32),
    "s": np.float32(0.03),
    "z": np.uint8(120),
    "last": np.array([-1], np.int64),
    "first": np.array([0], np.int64),
    "most": np.float32(127),
}
NORMAL = "a = LayerNormalization(x, g, g) "
PRODUCT = "wd = DequantizeLinear<axis = 1>(w, ws) m = MatMul(d, wd) "


def graph(body, shape="n, t, 70", results="float[n, t, 24] m"):
    return program(f"(float[{shape}] x) => ({results}) {{ {NORMAL}{body} }}", CONSTANTS)


STATIC = graph(
    "q = QuantizeLinear(a, s, z) d = DequantizeLinear(q, s, z) " + PRODUCT,
    results="float[n, t, 24] m, float[n, t, 70] a",
)
BY_ROW = graph(
    "b = Abs(a) top = ReduceMax<keepdims = 1>(b, last) scale = Div(top, most) r = Div(a, scale) y = Round(r) "
    "e = Mul(y, scale) k = Exp(a)",
    results="float[n, t, 70] e, float[n, t, 70] k, float[n, t, 1] top, float[n, t, 70] a",
)
SCALED = (
    "b = Abs(a) top = ReduceMax<keepdims = 1>(b, last) share = Mul(top, most) scale = Max(share, least) "
    "q = QuantizeLinear<axis = -1, block_size = {0}, output_dtype = 3>(a, scale) "
    "d = DequantizeLinear<axis = -1, block_size = {0}>(q, scale) "
)
BEFORE = {
    "a product": ("p = MatMul(x, v) a = Gelu(p) ", 70),
    "an attention": ("k = MatMul(x, v2) a = Attention<q_num_heads = 2, kv_num_heads = 2>(k, k, k) ", 48),
}


def scaled(before, columns):
    """What a product or an attention wrote, quantized with a scale for each row for another product."""
    constants = CONSTANTS | {
        "v": RNG.standard_normal((70, 70)).astype(np.float32),
        "v2": RNG.standard_normal((70, 48)).astype(np.float32),
        "w": RNG.integers(-127, 128, (columns, 24)).astype(np.int8),
        "most": np.float32(1 / 127),
        "least": np.float32(np.finfo(np.float32).tiny),
    }
    text = f"(float[n, t, 70] x) => (float[n, t, 24] m) {{ {before}{SCALED.format(columns)}{PRODUCT}}}"
    return program(text, constants)


APART = {
    "another row": "f = Gather<axis = 0>(a, first) y = Mul(a, f)",
    "columns": "y = ReduceSum<keepdims = 0>(a, first)",
    "turned": "y = Transpose<perm = [2, 0, 1]>(a)",
}


def stages_of(p, target="x86-64-v4"):
    return [k.writes for k in lower_program(p, Target.named(target)).kernels]


def test_a_row_is_quantized_when_it_is_normalized():
    lowered = lower_program(STATIC, Target.named("x86-64-v4"))
    rows, _ = lowered.kernels
    assert rows.function.name == "rows_0"
    assert [lowered.layouts[t].dtype for t in rows.writes] == [DType.F32, DType.U8]


def test_scales_of_rows_are_found_on_the_way():
    assert len(stages_of(BY_ROW)) == 1


@pytest.mark.parametrize(("before", "columns"), BEFORE.values(), ids=BEFORE)
def test_a_row_is_quantized_where_its_scale_is_found(before, columns):
    """Its magnitudes are not written down, nor is anything between it and its bytes."""
    p = scaled(before, columns)
    lowered = lower_program(p, Target.named("x86-64-v4"))
    *_, wrote, rows, _ = lowered.kernels
    assert [lowered.layouts[t].dtype for t in wrote.writes] == [DType.F32]
    assert [lowered.layouts[t].dtype for t in rows.writes] == [DType.F32, DType.U8]
    for target in HERE:
        (engine,) = compile_programs([p], target, parallel=True)
        for shape in ((1, 1, 70), (2, 9, 70)):
            x = RNG.standard_normal(shape).astype(np.float32)
            x[0, 0] = 0  # the least scale
            agree(engine, {"x": x}, (1, 2, 3), 1e-2)
        agree(Interpreted.of(p, target), {"x": x}, (1, 2), 1e-2)


@pytest.mark.parametrize("body", APART.values(), ids=APART)
def test_what_needs_other_rows_waits_for_them(body):
    p = graph(
        body,
        results="float[n, t, 70] a, float[i, j, k] y"
        if "Sum" not in body
        else "float[n, t, 70] a, float[i, k] y",
    )
    assert len(stages_of(p)) == 2


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_results_are_the_same(target):
    for engine in compile_programs([STATIC, BY_ROW], target, parallel=True):
        for shape in ((0, 3, 70), (1, 1, 70), (2, 9, 70)):
            x = RNG.standard_normal(shape).astype(np.float32)
            agree(engine, {"x": x}, (1, 2, 3), 1e-2)
        agree(Interpreted.of(engine.program, target), {"x": x}, (1, 2), 1e-2)
