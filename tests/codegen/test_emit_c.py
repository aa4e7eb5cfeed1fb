"""The generated C itself: as it was reviewed, without warnings, for all targets."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.engines import compile_programs, parameters, program_sources
from tests.codegen.graphs import assert_close, program
from tests.codegen.kernels import GOLDEN, programs, source

from hasten.codegen import toolchain
from hasten.codegen.elementary import expand_operation
from hasten.codegen.emit_c import emit_functions, size_text
from hasten.codegen.tiles import tile_function, tiles_for
from hasten.codegen.toolchain import find_compiler
from hasten.loops.dtypes import DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import const, size
from hasten.loops.sizes import bind_sizes
from hasten.target import Target, architecture, native, runs_here

RUNTIME = Path(__file__).parents[2] / "src/hasten/runtime"
CPUS = {
    "x86-64-v3": "x86_64_v3",
    "x86-64-v4": "x86_64_v4",
    "aarch64": "generic",
    "aarch64-dot": "generic+dotprod",
    "aarch64-i8mm": "generic+dotprod+i8mm",
}
# -Wno-psabi: vectors are passed between static functions only.
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-O1", "-fwrapv"]


@pytest.mark.parametrize("name", programs())
def test_generated_code_is_as_reviewed(name):
    kept = (GOLDEN / f"{name}.c").read_text("utf-8")
    assert source(programs()[name]) == kept, "if the change is meant: python -m tests.codegen.kernels"


def model(*more):
    """A small model with each kind of kernel."""
    rng = np.random.default_rng(0)
    text = (
        "(float[b, 3, h, w0] x, int64[b, t] ids) => (float[b, 9] y, bool[b, t] odd, int64[b] best) {"
        "c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, cw, cb) r = HardSwish(c) p = MaxPool<"
        "kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) g = GlobalAveragePool(p) f = Flatten(g)"
        "e = Gather(table, ids) n = LayerNormalization(e, scale, shift)"
        "a = Attention<q_num_heads = 2, kv_num_heads = 2>(n, n, n) m = ReduceMean<keepdims = 0>(a, axes)"
        "j = Concat<axis = 1>(f, m) d = MatMul(j, w) y = Softmax(d)"
        "two = Mod(ids, k) odd = Equal(two, one) best = ArgMax<axis = 1, keepdims = 0>(d) }"
    )
    constants = {
        "cw": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "cb": rng.standard_normal(8).astype(np.float32),
        "table": rng.standard_normal((20, 24)).astype(np.float32),
        "scale": np.ones(24, np.float32),
        "shift": np.zeros(24, np.float32),
        "axes": np.array([1]),
        "w": rng.standard_normal((32, 9)).astype(np.float32),
        "k": np.array(2),
        "one": np.array(1),
    }
    return program(text, constants)


def quantized_model():
    """Products of bytes: a matrix product with the largest bytes, a convolution, sums read as integers."""
    rng = np.random.default_rng(2)
    text = (
        "(float[b, 3, h, w0] x, int64[b, t] ids) => (float[b, 3, h, w0] y, int32[b, t, 35] whole) {"
        "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) cd = DequantizeLinear(c, cs)"
        "y = Conv<pads = [1, 1, 1, 1]>(xd, cd, bias)"
        "e = Gather(table, ids) whole = MatMulInteger(e, w) }"
    )
    constants = {
        "s": np.float32(0.03),
        "z": np.uint8(97),
        "c": rng.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8),
        "cs": np.float32(0.01),
        "bias": rng.standard_normal(3).astype(np.float32),
        "table": np.where(np.arange(20)[:, None] % 3, rng.integers(0, 256, (20, 70)), 255).astype(np.uint8),
        "w": np.where(np.arange(35) % 3, rng.integers(-128, 128, (70, 35)), -128).astype(np.int8),
    }
    return program(text, constants)


def feeds():
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((2, 3, 10, 12)).astype(np.float32),
        "ids": rng.integers(-20, 20, (2, 5)),
    }


def compilers():
    """Targets, and commands that compile for them: zig for all, gcc where it can."""
    zig = find_compiler(Target.named("aarch64"))
    found = []
    for target in map(Target.named, CPUS):
        command = [*zig.command, "-target", target.triple, f"-mcpu={CPUS[target.name]}"]
        found.append(pytest.param(target, command, id=f"zig-{target.name}"))
        if shutil.which("gcc") and target.arch == architecture() == "x86-64":
            found.append(pytest.param(target, ["gcc", f"-march={target.name}"], id=f"gcc-{target.name}"))
    return found


@pytest.mark.parametrize(("target", "command"), compilers())
def test_no_warnings(target, command, tmp_path):
    sources, _, _ = program_sources([model()], target)
    includes = [f"-I{RUNTIME / 'include'}", f"-I{RUNTIME / 'csrc'}"]
    files = []
    for file, text in sources.items():
        (tmp_path / file).write_text(text, "utf-8")
        files += [file] if file.endswith(".c") else []
    environment = {"PATH": "/usr/bin:/bin", "ZIG_GLOBAL_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *FLAGS, *includes, "-c", *files],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]


@pytest.mark.parametrize(
    ("name", "instructions"),
    [
        ("x86-64-v3", {"vpmaddwd": 24}),
        ("x86-64-v3-vnni", {"vpdpbusd": 12}),
        ("x86-64-v4-vnni", {"vpdpbusd": 24}),
        ("aarch64", {"mla": 96}),
        ("aarch64-dot", {"sdot": 28}),
        ("aarch64-i8mm", {"usdot": 24}),
    ],
)
def test_instructions_that_multiply_bytes(name, instructions, tmp_path):
    """In the largest tile: one for each of its vectors of sums where the processor has the very operation."""
    target = Target.named(name)
    f = tile_function(tiles_for(target, DType.U8)[0])
    (tmp_path / "tile.c").write_text(emit_functions([f], expand_operation, exported=[f.name]), "utf-8")
    compiler = find_compiler(Target.named("aarch64"))  # zig
    flags = [
        *toolchain._compile_flags(target, compiler, 3),
        f"-I{RUNTIME / 'include'}",
        f"-I{RUNTIME / 'csrc'}",
    ]
    subprocess.run([*compiler.command, *flags, "-S", "tile.c"], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "tile.s").read_text("utf-8")
    found = Counter(re.findall(r"\b(vpmadd\w+|vpdp\w+|mla|[us]{1,2}dot|usmmla)\b", text))
    assert found == instructions


def test_the_small_model_runs():
    p = model()
    engine = compile_programs([p], native())[0]
    found = engine.run(feeds(), 2)
    for name, right in evaluate(p, feeds()).items():
        assert_close(found[name], right, name)


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "hasten.h"

static void *block(const char *name, size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 127) / 64 * 64);
    FILE *file = name ? fopen(name, "rb") : NULL;
    if (file && fread(memory, 1, bytes, file) != bytes) exit(2);
    if (file) fclose(file);
    return memory;
}

int main(void) {
    const int64_t sizes[] = {%(sizes)s};
    const char *names[] = {%(names)s};
    const size_t bytes[] = {%(bytes)s};
    int64_t shapes[64], arena;
    if (hasten_plan(0, sizes, shapes, &arena)) return 3;
    void *values[%(count)d];
    for (int i = 0; i < %(count)d; ++i) values[i] = block(i < %(inputs)d ? names[i] : NULL, bytes[i]);
    void *weights = block("weights.bin", %(weights)d);
    hasten_call call = {sizes, values, weights, block(NULL, arena), NULL, 1, 0, {0}};
    if (hasten_run(0, &call)) return 4;
    for (int i = %(inputs)d; i < %(count)d; ++i) {
        FILE *file = fopen(names[i], "wb");
        if (fwrite(values[i], 1, bytes[i], file) != bytes[i] || fclose(file)) return 5;
    }
    return 0;
}
"""
"""A program in C that runs part 0, as another language would."""


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("aarch64", model),
        ("x86-64-v3", model),
        ("aarch64", quantized_model),
        ("aarch64-dot", quantized_model),
        ("aarch64-i8mm", quantized_model),
    ],
)
def test_a_program_in_c_runs_small_models(name, make, tmp_path):
    target = Target.named(name)
    here = runs_here(target)
    qemu = f"qemu-{target.arch.replace('-', '_')}"
    if not here and not shutil.which(qemu):
        pytest.skip(f"this machine does not run {name}, and {qemu} (Debian's qemu-user) is missing")
    p = make()
    expected = evaluate(p, feeds())
    sources, weights, _ = program_sources([p], target)
    arrays = {**{n: feeds()[n] for n in p.inputs}, **{n: expected[n] for n in p.outputs}}
    for n in p.inputs:
        feeds()[n].tofile(tmp_path / n)
    np.concatenate(weights.arrays).tofile(tmp_path / "weights.bin")
    values = bind_sizes(p, feeds())
    sources["main.c"] = MAIN % {
        "sizes": ", ".join(str(values[n]) for n in parameters(p)),
        "names": ", ".join(f'"{n}"' for n in arrays),
        "bytes": ", ".join(str(a.nbytes) for a in arrays.values()),
        "count": len(arrays),
        "inputs": len(p.inputs),
        "weights": weights.size,
    }
    sources["pool.c"] = (RUNTIME / "csrc/pool.c").read_text("utf-8")
    for file, text in sources.items():
        (tmp_path / file).write_text(text, "utf-8")
    zig = find_compiler(Target.named("aarch64")).command
    # An emulated program has no libc to find: it carries one.
    system = [target.triple] if here else [target.triple.replace("gnu", "musl"), "-static"]
    command = [*zig, "-target", *system, f"-mcpu={CPUS[name]}", "-O1", "-fwrapv", "-std=gnu11"]
    command += ["-fno-sanitize=undefined", f"-I{RUNTIME / 'include'}", f"-I{RUNTIME / 'csrc'}"]
    command += [*(f for f in sources if f.endswith(".c")), "-o", "main", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*([] if here else [qemu]), "./main"], cwd=tmp_path, check=True)
    for n, right in expected.items():
        found = np.fromfile(tmp_path / n, right.dtype).reshape(right.shape)
        assert_close(found, right, n)


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (size("n") * 3 + 1, "size_n * 3 + 1"),
        ((size("n") + 1) * (size("m") + 2), None),
        (size("n") // 4 * 4, "floordiv_int64_t(size_n, 4) * 4"),
        (const(2**40), "1099511627776LL"),
        (const(-(2**63)), "INT64_MIN"),
        (const(float("-inf"), DType.F32), "-INFINITY"),
        (const(0.1, DType.F32), "0.1f"),
        (const(-0.0, DType.F64), "-0.0"),
    ],
)
def test_text_of_expressions(e, text):
    if text is None:  # parentheses as the tree has them
        assert eval(size_text(e), {"size_n": 3, "size_m": 4}) == 24
    else:
        assert size_text(e) in (text, text.replace("floordiv_int64_t(size_n, 4)", "size_n / 4"))
