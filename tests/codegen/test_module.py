"""The C of a part: marks for a profile, which cost nothing otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.codegen.engines import program_sources
from tests.codegen.graphs import program

from hasten.codegen.toolchain import find_compiler
from hasten.target import TARGETS, Target

RUNTIME = Path(__file__).parents[2] / "src/hasten/runtime"


def symbols(target: Target, folder: Path, *options: str) -> bytes:
    """The object file of a part with two kernels, which has the names of all that it refers to."""
    text = "(float[n, 32] x) => (float[n, 32] y) { h = MatMul(x, w) s = Softmax(h) y = MatMul(s, w) }"
    sources, _, _ = program_sources([program(text, {"w": np.ones((32, 32), np.float32)})], target)
    (folder / "part.c").write_text(sources["parts_0.c"], "utf-8")
    zig = find_compiler(Target.named("aarch64")).command
    command = [*zig, "-target", target.triple, "-std=c11", "-O2", "-c", "part.c", "-o", "part.o"]
    command += [f"-I{RUNTIME / 'include'}", f"-I{RUNTIME / 'csrc'}", "-Wall", "-Wextra", "-Werror", *options]
    environment = {"PATH": "/usr/bin:/bin", "ZIG_GLOBAL_CACHE_DIR": str(folder), "HOME": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return (folder / "part.o").read_bytes()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_only_profiled_code_has_marks(target: Target, tmp_path: Path) -> None:
    profiled = symbols(target, tmp_path, "-DHASTEN_PROFILE")
    assert b"hasten_mark" in profiled
    assert b"hasten_count" in profiled
    plain = symbols(target, tmp_path)
    assert b"part_0_product_0" in plain  # names are to be seen in it
    for trace in (b"hasten_mark", b"hasten_count", b"count_part", b"clock_gettime"):
        assert trace not in plain
