"""Faults put into C are found; `make sanitize` runs what hasten generates."""

import subprocess
import sys

import pytest
from tests.sanitize.sanitizers import ADDRESS, environment

SOURCE = """
#include "pool.h"
HASTEN_API int first(const int *x, int at, int by) { return x[at] << by; }
"""

PROGRAM = """
import ctypes, os, sys, tempfile
import numpy as np
from hasten.codegen.toolchain import build, find_compiler
from hasten.target import native
library = build({"first.c": sys.argv[1]}, native(), find_compiler(native()), level=1)
with tempfile.NamedTemporaryFile(suffix=".so") as file:
    file.write(library)
    file.flush()
    first = ctypes.CDLL(file.name).first
x = np.zeros(1000, np.int32)
print(first(ctypes.c_void_p(x.ctypes.data), int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("at", "by", "said"),
    [(999, 1, "0"), (1000, 1, "heap-buffer-overflow"), (0, 40, "shift exponent 40")],
)
def test_what_is_read_outside_and_what_is_undefined_ends_the_process(tmp_path, at, by, said):
    variables = environment(ADDRESS, tmp_path)
    if variables is None:
        pytest.skip("gcc's sanitizers are not on this machine")
    command = [sys.executable, "-c", PROGRAM, SOURCE, str(at), str(by)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) == (said == "0")
