"""The generated C itself: as it was reviewed, without warnings, for all targets."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.engines import compile_programs, program_sources
from tests.codegen.graphs import assert_close, program
from tests.codegen.kernels import GOLDEN, programs, source

from hasten.codegen.emit_c import size_text
from hasten.codegen.toolchain import find_compiler
from hasten.loops.dtypes import DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import const, size
from hasten.target import Target, architecture, native

RUNTIME = Path(__file__).parents[2] / "src/hasten/runtime"
CPUS = {"x86-64-v3": "x86_64_v3", "x86-64-v4": "x86_64_v4", "aarch64": "generic"}
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


def test_the_small_model_runs():
    p = model()
    engine = compile_programs([p], native())[0]
    found = engine.run(feeds(), 2)
    for name, right in evaluate(p, feeds()).items():
        assert_close(found[name], right, name)


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
