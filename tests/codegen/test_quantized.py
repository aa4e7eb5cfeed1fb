"""Products of bytes against what they stand for, and against each other on every instruction set.

The definition computes with what the bytes stand for, in floats. Compiled code sums the bytes themselves, so
that it is right to rounding before results are quantized again, and to one step of theirs afterwards.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.codegen.quantized import quantize_products
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Op, walk
from hasten.target import TARGETS, Target, native, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
THREADS = (1, 2, 3)
STEP = 0.05
"""Of results that are quantized again."""


def constants(rng, weight, columns, *, zero, dtype=np.uint8):
    """Weights in bytes with a scale for each column, and scales and zero points around a product."""
    return {
        "w": rng.integers(-127, 128, weight).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, columns).astype(np.float32),
        "bias": rng.standard_normal(columns).astype(np.float32),
        "s": np.float32(0.03),
        "z": dtype(zero),
        "s2": np.float32(STEP),
        "z2": dtype(3),
    }


BEFORE = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) "
AFTER = "yq = QuantizeLinear(r, s2, z2) y = DequantizeLinear(yq, s2, z2)"


def matmul(rng, k, n, *, zero=97, dtype=np.uint8, quantized=True):
    text = f"(float[m, {k}] x, float[m, {n}] other) => (float[m, {n}] y) {{ {BEFORE}"
    text += "wd = DequantizeLinear<axis = 1>(w, ws) p = MatMul(xd, wd) q = Add(p, bias) g = Gelu(q) "
    text += "r = Add(g, other) " + AFTER + "}" if quantized else "y = Add(g, other) }"
    return program(text, constants(rng, (k, n), n, zero=zero, dtype=dtype))


CONVOLUTIONS = (  # channels in and out, groups, window, stride, padding, zero point
    (16, 24, 1, 3, 1, 1, 100),
    (16, 40, 1, 1, 1, 0, 0),
    (10, 33, 1, 3, 2, 1, 255),
    (3, 8, 1, 3, 2, 1, 128),
    (1, 5, 1, 5, 1, 2, 7),
    (16, 24, 2, 3, 1, 1, 100),
    (32, 32, 32, 3, 1, 1, 113),
    (24, 24, 24, 5, 2, 2, 0),
)


def convolution(rng, c_in, c_out, groups, window, stride, pad, zero):
    attributes = f"group = {groups}, strides = [{stride}, {stride}], pads = {[pad] * 4}"
    text = f"(float[b, {c_in}, h, v] x) => (float[b, {c_out}, hh, vv] y) {{ {BEFORE}"
    text += (
        f"wd = DequantizeLinear<axis = 0>(w, ws) q = Conv<{attributes}>(xd, wd, bias) r = Relu(q) {AFTER}}}"
    )
    return program(text, constants(rng, (c_out, c_in // groups, window, window), c_out, zero=zero))


def programs():
    """Depths with and without whole groups and tiles, both signs, results in floats and in bytes."""
    rng = np.random.default_rng(0)
    sizes = ((1, 1), (4, 16), (7, 33), (64, 32), (70, 45), (130, 96))
    found = [matmul(rng, k, n) for k, n in sizes]
    found += [matmul(rng, 70, 45, quantized=False), matmul(rng, 20, 40, zero=-5, dtype=np.int8)]
    return found + [convolution(rng, *c) for c in CONVOLUTIONS]


def feeds_of(p, rng, m=13, b=2, h=9, v=11):
    sizes = {"m": m, "b": b, "h": h, "v": v}
    shapes = {
        n: [sizes[e.name] if hasattr(e, "name") else e.value for e in i.shape] for n, i in p.inputs.items()
    }
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


def assert_within_a_step(left, right):
    """Equal but for results that lie in the middle between two steps."""
    difference = np.abs(left - right)
    assert difference.max(initial=0) <= STEP * 1.001
    assert (difference > 1e-3 * STEP).mean() <= 0.01 if difference.size > 1000 else True


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_bytes_stand_for_what_the_definition_says(target):
    for engine in compile_programs(programs(), target, parallel=True):
        rng = np.random.default_rng(1)
        for m in (0, 1, 2, 13, 37):
            feeds = feeds_of(engine.program, rng, m=m, b=min(m, 2))
            expected = evaluate(engine.program, feeds)["y"]
            first = engine.run(feeds)["y"]
            assert_within_a_step(first, expected)
            for threads in THREADS[1:]:
                np.testing.assert_array_equal(engine.run(feeds, threads)["y"], first)


def test_every_instruction_set_gives_the_same_bytes():
    compiled = [compile_programs(programs(), target) for target in HERE]
    for engines in zip(*compiled, strict=True):
        feeds = feeds_of(engines[0].program, np.random.default_rng(2))
        first, *others = (e.run(feeds)["y"] for e in engines)
        for other in others:
            np.testing.assert_allclose(other, first, rtol=0, atol=1e-5)


def test_sums_do_not_saturate():
    """The largest bytes of all: instructions of 16 bits that saturate give another answer."""
    for dtype, zero in ((np.uint8, 0), (np.int8, -128)):
        arrays = constants(np.random.default_rng(0), (64, 32), 32, zero=zero, dtype=dtype)
        arrays |= {"w": np.full((64, 32), -128, np.int8), "ws": np.ones(32, np.float32), "s": np.float32(1)}
        text = f"(float[m, 64] x) => (float[m, 32] y) {{ {BEFORE} wd = DequantizeLinear<axis = 1>(w, ws) "
        p = program(text + "y = MatMul(xd, wd) }", arrays)
        for target in HERE:
            (engine,) = compile_programs([p], target)
            y = engine.run({"x": np.full((14, 64), 255, np.float32)})["y"]
            np.testing.assert_array_equal(y, np.full((14, 32), -128 * 255 * 64, np.float32))


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-vnni", "aarch64-i8mm"])
def test_nests_as_interpreted(name):
    chosen = programs()
    for p in (chosen[2], chosen[7], chosen[8], chosen[11], chosen[14]):
        feeds = feeds_of(p, np.random.default_rng(3), m=7, b=1, h=5, v=6)
        interpreted = Interpreted.of(p, Target.named(name)).run(feeds, 3)["y"]
        assert_within_a_step(interpreted, evaluate(p, feeds)["y"])


def test_tensors_between_products_are_bytes():
    rng = np.random.default_rng(0)
    arrays = constants(rng, (64, 64), 64, zero=120)
    text = f"(float[m, 64] x) => (float[m, 64] y) {{ {BEFORE} wd = DequantizeLinear<axis = 1>(w, ws) "
    text += "p = MatMul(xd, wd) r = Relu(p) hq = QuantizeLinear(r, s2, z2) hd = DequantizeLinear(hq, s2, z2) "
    p = program(text + "y = MatMul(hd, wd) }", arrays)
    lowered = lower_program(p, native())
    assert [lowered.layouts[t].dtype for k in lowered.kernels for t in k.writes] == [
        DType.U8,
        DType.U8,
        DType.F32,
    ]
    packed = {a.dtype for n, a in lowered.constants.items() if n.endswith("_packed")}
    assert packed == {np.dtype(np.int8)}


def test_what_cannot_be_summed_as_bytes_stays():
    rng = np.random.default_rng(0)
    arrays = constants(rng, (64, 32), 32, zero=120)
    head = f"(float[m, 64] x) => (float[m, 32] y) {{ {BEFORE}"
    p = program(
        f"{head} wd = DequantizeLinear<axis = 0>(w, wk) y = MatMul(xd, wd) }}",
        arrays | {"wk": np.ones(64, np.float32)},  # scales along the depth
    )
    bodies = [d.body for d in quantize_products(p).definitions.values()]
    assert [b.a.dtype for b in bodies if isinstance(b, Gemm)] == [DType.F32]
    (engine,) = compile_programs([p], native())
    agree(engine, feeds_of(p, rng))


@pytest.mark.parametrize("depth", [30, 32])
def test_results_are_memory_of_the_caller(depth):
    """Whole groups of depth are read: of 30, the last group of the last row ends beyond the array."""
    rng = np.random.default_rng(0)
    text = f"(float[m, {depth}] x) => (float[m, 16] y, uint8[m, {depth}] xq) {{ {BEFORE}"
    text += "wd = DequantizeLinear<axis = 1>(w, ws) y = MatMul(xd, wd) }"
    p = program(text, constants(rng, (depth, 16), 16, zero=97))
    bodies = [d.body for d in quantize_products(p).definitions.values()]
    wanted = DType.U8 if depth == 32 else DType.F32
    assert [b.a.dtype for b in bodies if isinstance(b, Gemm)] == [wanted]
    (engine,) = compile_programs([p], native())
    agree(engine, {"x": rng.standard_normal((13, depth)).astype(np.float32)})


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("single", [True, False])
def test_weights_have_zero_points(dtype, single):
    """One for all or one for each column, with and without sign, and at the ends of their range."""
    rng = np.random.default_rng(0)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    made = []
    for groups, window, pad in ((0, 1, 0), (1, 3, 1), (2, 1, 0), (16, 3, 1)):
        arrays = constants(rng, (70, 45) if not groups else (32, 16 // groups, window, window), 1, zero=97)
        columns = 45 if not groups else 32
        arrays["w"] = rng.integers(low, high + 1, arrays["w"].shape).astype(dtype)
        arrays["wz"] = rng.integers(low, high + 1, columns).astype(dtype)
        arrays["wz"][:2] = low, high
        arrays["ws"] = rng.uniform(0.001, 0.01, columns).astype(np.float32)
        if single:
            arrays |= {"wz": dtype(low + 17), "ws": np.float32(0.01)}
        if groups:
            text = f"(float[b, 16, h, v] x) => (float[b, 32, h, v] y) {{ {BEFORE}"
            text += "wd = DequantizeLinear<axis = 0>(w, ws, wz) "
            text += f"y = Conv<group = {groups}, pads = {[pad] * 4}>(xd, wd) }}"
        else:
            text = f"(float[m, 70] x) => (float[m, 45] y) {{ {BEFORE}"
            text += "wd = DequantizeLinear<axis = 1>(w, ws, wz) y = MatMul(xd, wd) }"
        made.append(program(text, arrays))
    for p in made:
        rewritten = quantize_products(p)
        products = [d.body.a.dtype for d in rewritten.definitions.values() if isinstance(d.body, Gemm)]
        whole = [n for n in rewritten.constants if n.endswith("_whole")]
        assert (products, len(whole)) in (([DType.U8], 0), ([], 1))
    for target in HERE:
        for engine in compile_programs(made, target, parallel=True):
            agree(engine, feeds_of(engine.program, rng), THREADS, tolerance=2e-5)


def test_borders_of_a_computed_zero_point():
    """What convolutions of integers pad with where scales are computed at run time."""
    rng = np.random.default_rng(0)
    arrays = constants(rng, (24, 16, 3, 3), 24, zero=0) | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    text = "(float[b, 16, h, v] x) => (float[b, 24, h, v] y) { xq, s0, z0 = DynamicQuantizeLinear(x) "
    text += "xp = Pad(xq, pads, z0) xd = DequantizeLinear(xp, s0, z0) "
    p = program(text + "wd = DequantizeLinear<axis = 0>(w, ws) y = Conv(xd, wd, bias) }", arrays)
    products = [d.body.a.dtype for d in quantize_products(p).definitions.values() if isinstance(d.body, Gemm)]
    assert products == [DType.U8]
    for target in HERE:
        (engine,) = compile_programs([p], target)
        agree(engine, feeds_of(p, rng), THREADS, tolerance=2e-5)


def test_epilogues_are_a_multiply_add_and_a_rounding():
    """What is known of offsets, scales, bias, activation and the next scale is one factor and one summand."""
    lowered = lower_program(convolution(np.random.default_rng(0), *CONVOLUTIONS[1]), native())
    (product,) = [k.product for k in lowered.kernels if k.product is not None]
    assert product.stage.epilogue is not None
    counts = Counter(n.op for n in walk(product.stage.epilogue) if isinstance(n, Op))
    # The sum becomes f32, is scaled, bounded and rounded (a summand and two casts, and 1 more as the zero
    # point is odd), and de-quantized again.
    assert counts == {"cast": 3, "bitcast": 1, "mul": 2, "add": 4, "min": 1, "max": 1}


def test_a_residual_of_bytes_is_added_in_the_epilogue():
    rng = np.random.default_rng(0)
    arrays = constants(rng, (64, 64), 64, zero=120) | {
        "w0": rng.integers(-127, 128, (64, 64)).astype(np.int8)
    }
    text = f"(float[m, 64] x) => (float[m, 64] y) {{ {BEFORE} wd = DequantizeLinear<axis = 1>(w, ws) "
    text += "vd = DequantizeLinear<axis = 1>(w0, ws) h = MatMul(xd, vd) hq = QuantizeLinear(h, s2, z2) "
    text += "hd = DequantizeLinear(hq, s2, z2) p = MatMul(xd, wd) r = Add(p, hd) " + AFTER + "}"
    p = program(text, arrays)
    lowered = lower_program(p, native())
    types = [lowered.layouts[t].dtype for k in lowered.kernels for t in k.writes]
    assert types == [DType.U8, DType.U8, DType.F32]
    (engine,) = compile_programs([p], native())
    feeds = feeds_of(p, rng)
    assert_within_a_step(engine.run(feeds)["y"], evaluate(p, feeds)["y"])


def test_a_concatenation_is_quantized():
    """Biases of its parts are read at the part's own columns, which are fewer than those of the whole."""
    rng = np.random.default_rng(0)
    arrays = constants(rng, (24, 16, 1, 1), 24, zero=100) | {
        "v": rng.integers(-127, 128, (40, 16, 1, 1)).astype(np.int8),
        "vs": rng.uniform(0.001, 0.01, 40).astype(np.float32),
        "shift": rng.standard_normal(40).astype(np.float32),
    }
    text = f"(float[b, 16, h, v] x) => (float[b, 64, h, v] y) {{ {BEFORE}"
    text += "wd = DequantizeLinear<axis = 0>(w, ws) vd = DequantizeLinear<axis = 0>(v, vs) "
    text += "p = Conv(xd, wd, bias) q = Conv(xd, vd, shift) c = Concat<axis = 1>(p, q) r = Relu(c) " + AFTER
    p = program(text + "}", arrays)
    (engine,) = compile_programs([p], native())
    feeds = feeds_of(p, rng)
    assert_within_a_step(engine.run(feeds)["y"], evaluate(p, feeds)["y"])


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_an_attention_writes_bytes(target):
    """With a factor for each column of all heads side by side, as smoothing leaves it."""
    rng = np.random.default_rng(0)
    arrays = constants(rng, (64, 33), 33, zero=90) | {"f": rng.uniform(0.5, 2, 64).astype(np.float32)}
    text = "(float[b, m, 64] x) => (float[b, m, 33] y) "
    text += "{ a = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x) c = Mul(a, f) "
    text += "xq = QuantizeLinear(c, s, z) xd = DequantizeLinear(xq, s, z) "
    text += "wd = DequantizeLinear<axis = 1>(w, ws) p = MatMul(xd, wd) r = Add(p, bias) " + AFTER + "}"
    p = program(text, arrays)
    lowered = lower_program(p, target)
    assert [lowered.layouts[t].dtype for k in lowered.kernels for t in k.writes] == [DType.U8, DType.F32]
    (engine,) = compile_programs([p], target)
    for m in (1, 13, 40):
        feeds = {"x": rng.standard_normal((2, m, 64)).astype(np.float32)}
        first = engine.run(feeds)["y"]
        assert_within_a_step(first, evaluate(p, feeds)["y"])
        np.testing.assert_array_equal(engine.run(feeds, 3)["y"], first)


def test_an_attention_that_others_read_too_stays_in_floats():
    arrays = constants(np.random.default_rng(0), (64, 33), 33, zero=90)
    text = "(float[b, m, 64] x) => (float[b, m, 33] y, float[b, m, 64] e) "
    text += (
        "{ a = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x) e = Exp(a) xq = QuantizeLinear(a, s, z) "
    )
    text += "xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = 1>(w, ws) y = MatMul(xd, wd) }"
    lowered = lower_program(program(text, arrays), native())
    assert [lowered.layouts[t].dtype for k in lowered.kernels for t in k.writes].count(DType.U8) == 1


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("offset", [None, 0, 3])
def test_sums_that_are_read_as_integers(groups, offset):
    """MatMulInteger and ConvInteger whose results stay integers: exact on every instruction set."""
    rng = np.random.default_rng(0)
    columns = 24 if groups else 45
    arrays = {"w": rng.integers(-128, 128, (24, 16 // groups, 3, 3) if groups else (70, 45)).astype(np.int8)}
    points = ["z0"] if offset is None else ["z0", "wz"]
    if offset is not None:
        arrays["wz"] = np.full(columns, offset, np.int8) if groups == 1 else np.array(offset, np.int8)
    operator = f"ConvInteger<group = {groups}, strides = [2, 2]>" if groups else "MatMulInteger"
    head = (
        "(float[b, 16, h, v] x) => (int32[b, 24, hh, vv] y)"
        if groups
        else "(float[m, 70] x) => (int32[m, 45] y)"
    )
    text = f"{head} {{ xq, s0, z0 = DynamicQuantizeLinear(x) y = {operator}(xq, w, {', '.join(points)}) }}"
    p = program(text, arrays)
    products = [d.body.a.dtype for d in quantize_products(p).definitions.values() if isinstance(d.body, Gemm)]
    assert products == [DType.U8]
    for target in HERE:
        (engine,) = compile_programs([p], target)
        agree(engine, feeds_of(p, rng), THREADS, tolerance=0)
