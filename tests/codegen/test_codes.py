"""Products of floats with weights that are kept in 8 or 4 bits, against what the codes stand for."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.codes import find_codes
from hasten.codegen.fuse import fuse
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.quantized import quantize_products
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.target import TARGETS, Target, native, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
THREADS = (1, 2, 3)
RANGES = {
    "i4": (-8, 8, np.int8),
    "u4": (0, 16, np.uint8),
    "i8": (-128, 128, np.int8),
    "u8": (0, 256, np.uint8),
}


def product(kind, depth, columns, block, *, zeros, transposed=False, epilogue=True, seed=0):
    """x (w - z) s, with a bias and an activation function behind it; `block` 0 is a scale for each column."""
    rng = np.random.default_rng(seed)
    low, high, dtype = RANGES[kind]
    blocks = depth // block if block else 1
    arrays = {
        "w": rng.integers(low, high, (depth, columns)).astype(dtype),
        "s": rng.uniform(0.001, 0.01, (blocks, columns)).astype(np.float32),
        "z": rng.integers(low, high, (blocks, columns)).astype(dtype),
        "bias": rng.standard_normal(columns).astype(np.float32),
    }
    axis = f"axis = 0, block_size = {block}" if block else "axis = 1"
    if not block:
        arrays |= {n: arrays[n][0] for n in "sz"}
    turned = ""
    if transposed:
        axis = f"axis = 1, block_size = {block}" if block else "axis = 0"
        arrays |= {n: np.ascontiguousarray(arrays[n].T) for n in "wsz"}
        turned = "wt = Transpose(wd) "
    inputs = "w, s, z" if zeros else "w, s"
    text = f"(float[m, {depth}] x) => (float[m, {columns}] y) {{ wd = DequantizeLinear<{axis}>({inputs}) "
    text += turned + f"p = MatMul(x, {'wt' if transposed else 'wd'}) "
    text += "q = Add(p, bias) y = Relu(q) }" if epilogue else "y = Identity(p) }"
    return program(text, arrays)


def programs():
    """All kinds; blocks of one column and of several; depths and columns with and without whole panels."""
    return [
        product("i4", 64, 48, 32, zeros=False),
        product("u4", 128, 33, 64, zeros=True),
        product("i8", 96, 96, 32, zeros=False, transposed=True),
        product("u8", 256, 5, 128, zeros=True),
        product("i8", 36, 70, 0, zeros=False),
        product("u4", 40, 16, 0, zeros=True, transposed=True),
        product("i8", 768, 64, 16, zeros=True, epilogue=False),
    ]


def codes_of(p):
    (gemm,) = [s.body for s in fuse(quantize_products(p)) if isinstance(s.body, Gemm)]
    return find_codes(gemm, p.constants)


def test_codes_and_their_blocks_are_found():
    found = [codes_of(p) for p in programs()]
    assert [(c.bits, c.block, c.zeros is not None) for c in found] == [
        (4, 32, False),
        (4, 64, True),
        (8, 32, False),
        (8, 128, True),
        (8, 36, False),
        (4, 40, True),
        (8, 16, True),
    ]


def test_a_zero_point_in_the_middle_is_none():
    p = product("u8", 64, 32, 32, zeros=True)
    p.constants["z"] = np.full((2, 32), 128, np.uint8)
    assert codes_of(p).zeros is None


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_codes_stand_for_what_the_definition_says(target):
    for precision, tolerance in ((DType.F32, 4e-6), (DType.BF16, 2e-2)):
        chosen = programs() if precision is DType.F32 else programs()[:2]
        for engine in compile_programs(chosen, target, parallel=True, precision=precision):
            rng = np.random.default_rng(1)
            for m in (0, 1, 2, 7, 13, 37):
                x = rng.standard_normal((m, engine.program.inputs["x"].shape[1].value)).astype(np.float32)
                agree(engine, {"x": x}, THREADS, tolerance=tolerance)


def test_answers_are_those_of_weights_in_floats_to_the_last_bit():
    """Widening gives the numbers of DequantizeLinear, and sums go in the same order."""
    p = product("u4", 256, 64, 64, zeros=True)
    codes, scales, zeros = (p.constants[n].astype(np.float32) for n in "wsz")
    weights = (codes - zeros.repeat(64, axis=0)) * scales.repeat(64, axis=0)
    text = "(float[m, 256] x) => (float[m, 64] y) { p = MatMul(x, w) q = Add(p, bias) y = Relu(q) }"
    plain = program(text, {"w": weights, "bias": p.constants["bias"]})
    for target in HERE:
        narrow, wide = compile_programs([p, plain], target)
        for m in (1, 5, 12, 40):
            feeds = {"x": np.random.default_rng(m).standard_normal((m, 256)).astype(np.float32)}
            np.testing.assert_array_equal(narrow.run(feeds)["y"], wide.run(feeds)["y"])


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-bf16", "aarch64-dot"])
@pytest.mark.parametrize("precision", [DType.F32, DType.BF16])
def test_nests_as_interpreted(name, precision):
    chosen = programs()
    for p in (chosen[0], chosen[1], chosen[4]):
        engine = Interpreted.of(p, Target.named(name), precision)
        for m in (2, 14):
            x = np.random.default_rng(3).standard_normal((m, p.inputs["x"].shape[1].value)).astype(np.float32)
            agree(engine, {"x": x}, (1, 3), tolerance=4e-6 if precision is DType.F32 else 2e-2)


def test_weights_take_the_memory_of_their_codes():
    p = product("i4", 512, 256, 32, zeros=False)
    lowered = lower_program(p, native())
    sizes = {n: a.nbytes for n, a in lowered.constants.items()}
    assert sum(sizes.values()) <= 512 * 256 // 2 + 4 * 16 * 256 + 2 * 4 * 256


def test_what_cannot_be_codes_stays_in_floats():
    """Blocks that are short or that words of codes reach over, and convolutions."""
    short = product("i8", 64, 32, 8, zeros=False)
    assert codes_of(short) is None
    odd = product("i8", 37, 32, 0, zeros=False)
    assert codes_of(odd) is None
    rng = np.random.default_rng(0)
    for p in (short, odd):
        for engine in compile_programs([p], native()):
            agree(engine, {"x": rng.standard_normal((5, p.inputs["x"].shape[1].value)).astype(np.float32)})
