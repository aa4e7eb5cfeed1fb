"""Products on tile registers of matrices: their C against what defines it, and what decides on their use.

That whole kernels on them compute what they should is in `test_narrow.py` and `test_quantized.py`, which go
through all targets.
"""

from __future__ import annotations

import ctypes
import shutil

import ml_dtypes
import numpy as np
import pytest
from tests.codegen.engines import compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.amx import MATRIX, matrix_frame, matrix_function, matrix_functions, matrix_step
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.module import module_sources
from hasten.codegen.toolchain import build, find_compiler
from hasten.loops.dtypes import DType
from hasten.loops.expr import const
from hasten.loops.interpret import interpret
from hasten.loops.nest import Call, statements
from hasten.loops.scope import size_value
from hasten.runtime.library import Library
from hasten.target import Target, runs_here

TARGET = Target.named("x86-64-v4-amx")
DTYPES = (DType.BF16, DType.U8)
on_tiles = pytest.mark.skipif(not runs_here(TARGET), reason="this processor has no tile registers (AMX)")


def numbers(rng, count: int, dtype: DType) -> np.ndarray:
    """Whole numbers, small enough for their products and sums to be exact in f32."""
    if dtype is DType.BF16:
        return rng.integers(-8, 9, count).astype(ml_dtypes.bfloat16)
    low, high = (0, 256) if dtype is DType.U8 else (-128, 128)
    return rng.integers(low, high, count).astype(dtype.numpy)


@pytest.fixture(scope="module")
def library() -> Library:
    sources = module_sources([], TARGET, lambda op, args: None, DTYPES)
    for f in (*matrix_frame(TARGET), *(f for d in DTYPES for f in matrix_functions(TARGET, d))):
        sources = {n: t.replace(f"void {f.name}(", f"HASTEN_API void {f.name}(") for n, t in sources.items()}
    return Library(memoryview(build(sources, TARGET, find_compiler(TARGET))))


@on_tiles
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize(
    ("m", "depth", "step"),
    [
        (1, 4, 4),
        (16, 16, 16),
        (17, 10, 5),
        (31, 48, 16),
        (32, 13, 13),
        (33, 144, 16),
        (100, 270, 15),
        (0, 8, 8),
    ],
)
def test_compiled_as_interpreted(library, dtype, columns, m, depth, step):
    f, size = matrix_function(dtype, columns), 4 // dtype.bytes
    rng = np.random.default_rng(m)
    pitch, stride, tile_pitch = depth * size + 6, columns * size + 32, columns + 3
    types = {p.name: p.dtype for p in f.params}
    rows = numbers(rng, m * pitch + 64, dtype)
    panel = numbers(rng, depth * stride, types["panel"])
    results = []
    for run in ("compiled", "interpreted"):
        tile = np.full(m * tile_pitch + 64, 77, types["tile"].numpy)
        arrays = {"rows": rows, "panel": panel, "tile": tile}
        given = {
            "m": m,
            "pitch": pitch,
            "depth": depth,
            "step": step,
            "stride": stride,
            "tile_pitch": tile_pitch,
        }
        if run == "interpreted":
            interpret(f, [(given | arrays)[p.name] for p in f.params])
        else:
            pointers = {n: ctypes.c_void_p(a.ctypes.data) for n, a in arrays.items()}
            plain = {n: ctypes.c_int64(v) for n, v in given.items()}
            library.function("matrix_begin")(ctypes.c_int64(m), ctypes.c_int64(step))
            library.function(f.name)(*((plain | pointers)[p.name] for p in f.params))
            library.function("matrix_end")()
        results.append(tile)
    np.testing.assert_array_equal(*results)


@on_tiles
def test_rows_in_blocks_and_windows_over_edges():
    rng = np.random.default_rng(1)
    wide = {"w": rng.integers(-4, 5, (1200, 40)).astype(np.float32)}
    window = {"w": rng.integers(-4, 5, (24, 64, 3, 3)).astype(np.float32)}
    matmul = program("(float[b, m, 1200] x) => (float[b, m, 40] y) { y = MatMul(x, w) }", wide)
    conv = program(
        "(float[b, 64, h, v] x) => (float[b, 24, h, v] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }", window
    )
    for engine, sizes in zip(
        compile_programs([matmul, conv], TARGET, parallel=True, precision=DType.BF16),
        ({"b": 3, "m": 211}, {"b": 2, "h": 19, "v": 23}),
        strict=True,
    ):
        shape = [size_value(n, sizes) for n in engine.program.inputs["x"].shape]
        agree(engine, {"x": rng.integers(-4, 5, shape).astype(np.float32)}, (1, 2, 3))


def called(p, target: Target = TARGET) -> set[str]:
    lowered = lower_program(p, target, precision=DType.BF16)
    return {s.function for k in lowered.kernels for s in statements(k.function.body) if isinstance(s, Call)}


def copies(p) -> bool:
    """Whether the kernels of a program copy rows side by side."""
    return any(k.scratch != const(0) for k in lower_program(p, TARGET, precision=DType.BF16).kernels)


def test_rows_at_one_distance_are_not_copied():
    w, k = np.ones((64, 48), np.float32), np.ones((48, 64, 1, 1), np.float32)
    assert not copies(program("(float[b, s, 64] x) => (float[b, s, 48] y) { y = MatMul(x, w) }", {"w": w}))
    assert not copies(
        program("(float[b, 64, h, v] x) => (float[b, 48, h, v] y) { y = Conv(x, k) }", {"k": k})
    )
    strided = "(float[b, 64, h, v] x) => (float[b, 48, i, j] y) { y = Conv<strides = [2, 2]>(x, k) }"
    assert copies(program(strided, {"k": k}))


def test_only_this_target_multiplies_matrices():
    p = program(
        "(float[m, 64] x) => (float[m, 48] y) { y = MatMul(x, w) }", {"w": np.ones((64, 48), np.float32)}
    )
    assert any(name.startswith(MATRIX) for name in called(p))
    assert not any(name.startswith(MATRIX) for name in called(p, Target.named("x86-64-v4-bf16")))


@pytest.mark.parametrize(
    ("dtype", "depth", "step"),
    [(DType.BF16, 768, 16), (DType.BF16, 144, 12), (DType.BF16, 4, 2), (DType.BF16, 62, None),
     (DType.U8, 148, None), (DType.U8, 64, 16), (DType.U8, 24, 6), (DType.F32, 64, None)],
)  # fmt: skip
def test_steps_divide_the_depth(dtype, depth, step):
    assert matrix_step(TARGET, dtype, depth) == step


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_gcc_takes_the_statements(monkeypatch):
    monkeypatch.setenv("HASTEN_CC", "gcc")
    compiler = find_compiler()
    if not compiler.builds_for(TARGET):
        pytest.skip("this gcc compiles for another architecture")
    assert build(module_sources([], TARGET, lambda op, args: None, DTYPES), TARGET, compiler)
