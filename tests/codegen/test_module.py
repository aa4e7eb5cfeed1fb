"""The C of a part: marks for a profile, which cost nothing otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.engines import program_sources
from tests.codegen.graphs import program
from tests.codegen.test_products import attentions

from hasten.codegen.gemm import STEPS_AHEAD
from hasten.codegen.part import APART
from hasten.codegen.tiles import PANEL, group
from hasten.codegen.toolchain import find_compiler
from hasten.loops.dtypes import DType
from hasten.target import TARGETS, Target

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
