"""The C of a part: marks for a profile, which cost nothing otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.engines import compile_programs, program_sources
from tests.codegen.graphs import agree, program
from tests.codegen.test_products import attentions

from hasten.codegen.gemm import STEPS_AHEAD
from hasten.codegen.part import APART
from hasten.codegen.tiles import PANEL, group
from hasten.codegen.toolchain import find_compiler
from hasten.loops.dtypes import DType
from hasten.target import TARGETS, Target, native

RUNTIME = Path(__file__).parents[2] / "src/hasten/runtime"


def compile_c(source: Path, target: Target, folder: Path, *options: str) -> bytes:
    """An object file, which has the names of all that it defines and refers to."""
    zig = find_compiler(Target.named("aarch64")).command
    command = [*zig, "-target", target.triple, "-std=c11", "-O2", "-c", str(source), "-o", "out.o", *options]
    command += [f"-I{RUNTIME / 'include'}", f"-I{RUNTIME / 'csrc'}", "-Wall", "-Wextra", "-Werror"]
    environment = {"PATH": "/usr/bin:/bin", "ZIG_GLOBAL_CACHE_DIR": str(folder), "HOME": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return (folder / "out.o").read_bytes()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_only_profiled_code_has_marks(target: Target, tmp_path: Path) -> None:
    text = "(float[n, 32] x) => (float[n, 32] y) { h = MatMul(x, w) s = Softmax(h) y = MatMul(s, w) }"
    sources, _, _ = program_sources([program(text, {"w": np.ones((32, 32), np.float32)})], target)
    part = tmp_path / "part.c"
    part.write_text(sources["parts_0.c"], "utf-8")
    profiled = compile_c(part, target, tmp_path, "-DHASTEN_PROFILE")
    assert b"hasten_mark" in profiled
    assert b"hasten_count" in profiled
    plain = compile_c(part, target, tmp_path)
    assert b"part_0_product_0" in plain  # names are to be seen in it
    for trace in (b"hasten_mark", b"hasten_count", b"count_part", b"clock_gettime"):
        assert trace not in plain
    log = compile_c(RUNTIME / "csrc/profile.c", target, tmp_path)
    assert b"hasten_mark" in log
    assert b"clock_gettime" in log


def test_no_thread_asks_ahead_for_what_another_writes() -> None:
    """An attention asks for keys and values in its own scratch memory, and a stretch beyond its end."""
    (attention, *_) = attentions()
    sources, _, (titles,) = program_sources([attention], Target.named("x86-64-v4"))
    assert any("Attention" in title for title in titles)
    assert f"plan->scratch_bytes += {APART};" in sources["parts_0.c"]
    assert STEPS_AHEAD * PANEL * group(DType.BF16) * DType.BF16.bytes <= APART


OWN_NAMES = ["run", "argument", "scratch", "team", "plan", "arena", "int", "NULL", "MOST_THREADS"]
OWN_NAMES += ["hasten_barrier", "max_int64_t", "size_n", "part_0_run", "t_run", "HASTEN_WAITS"]
OWN_NAMES_BY_PICTURE = ["index", "count", "own", "stride", "picture", "apart"]


def test_tensors_may_have_the_names_of_the_code_itself() -> None:
    rng = np.random.default_rng(0)
    programs, feeds = [], []
    for names, shape, product, weights in (
        (OWN_NAMES, "n, 16", "MatMul", (16, 16)),
        (OWN_NAMES_BY_PICTURE, "n, 16, 96, 96", "Conv<pads = [1, 1, 1, 1]>", (16, 16, 3, 3)),
    ):
        befores = ["x", *names]
        nodes = [
            f"{name}_before = {product}({before}, w) {name} = Tanh({name}_before)"
            for before, name in zip(befores, names, strict=False)
        ]
        text = f"(float[{shape}] x) => (float[{shape}] y) {{ {' '.join(nodes)} y = Softmax({names[-1]}) }}"
        w = (0.3 * rng.standard_normal(weights) / weights[-1]).astype(np.float32)
        programs.append(program(text, {"w": w}))
        sizes = [2, *(int(n) for n in shape.split(", ")[1:])]
        feeds.append({"x": rng.standard_normal(sizes).astype(np.float32)})
    for engine, given in zip(compile_programs(programs, native()), feeds, strict=True):
        agree(engine, given, (1, 2), tolerance=1e-5)
