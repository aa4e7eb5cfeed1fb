"""A small model written by hand in C, in an artifact: what the runtime's tests run."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.codegen.toolchain import build, find_compiler
from hasten.runtime.artifact import write_artifact
from hasten.target import native

# y = 2 x + table[ids]; total = sum of x, in two phases with a barrier between them
SOURCE = """
#include "pool.h"

enum { WIDTH = 4, ROWS = 16 };

static void phases(void *argument, hasten_team *team) {
    hasten_call *call = argument;
    int64_t batch = call->sizes[0];
    const float *x = call->values[0], *table = call->weights;
    const int64_t *ids = call->values[1];
    float *y = call->values[2], *total = call->values[3];
    double *sums = call->arena;
    int64_t first = batch * team->index / team->count, last = batch * (team->index + 1) / team->count;
    double sum = 0;
    for (int64_t row = first; row < last; row++) {
        if (ids[row] < 0 || ids[row] >= ROWS) {
            hasten_report(&call->fault, HASTEN_FAULT_INDEX, 0, ids[row], ROWS);
            continue;
        }
        for (int c = 0; c < WIDTH; c++) {
            y[row * WIDTH + c] = 2 * x[row * WIDTH + c] + table[ids[row] * WIDTH + c];
            sum += x[row * WIDTH + c];
        }
    }
    sums[8 * team->index] = sum;
    hasten_barrier(team);
    if (team->index != 0) return;
    sum = 0;
    for (int i = 0; i < team->count; i++) sum += sums[8 * i];
    *total = (float)sum;
}

HASTEN_API int32_t hasten_plan(int32_t part, const int64_t *sizes, int64_t *shapes, int64_t *arena) {
    if (part != 0) return -1;
    if (sizes[0] == 13) return 1;
    shapes[0] = sizes[0] - (sizes[0] == 7 ? 8 : 0); /* 7 stands for a size that comes out negative */
    shapes[1] = WIDTH;
    *arena = 64 * 64 + sizes[0] * 16; /* more than needed, so that it grows with the batch */
    return 0;
}

HASTEN_API int32_t hasten_run(int32_t part, hasten_call *call) {
    (void)part;
    hasten_pool_run(call->pool, call->threads, 100000, phases, call);
    return call->fault.code;
}
"""

TABLE = np.arange(64, dtype=np.float32).reshape(16, 4)

NATIVE = {
    "kind": "native",
    "part": 0,
    "inputs": ["x", "ids"],
    "input_dtypes": ["float32", "int64"],
    "input_shapes": [["batch", 4], ["batch"]],
    "sizes": ["batch"],
    "elements": {},
    "outputs": ["y", "total"],
    "output_dtypes": ["float32", "float32"],
    "output_ranks": [2, 0],
    "kernels": ["Gather 'table'"],
}
MANIFEST: dict[str, Any] = {
    "format": 1,
    "hasten": "0.1.0",
    "inputs": [
        {"name": "x", "dtype": "float32", "shape": ["batch", 4]},
        {"name": "ids", "dtype": "int64", "shape": ["batch"]},
    ],
    "outputs": [
        {"name": "y", "dtype": "float32", "shape": ["batch", 4]},
        {"name": "total", "dtype": "float32", "shape": []},
    ],
    "steps": [NATIVE],
    "threads": 2,
    "guards": ["batch != 13 (Add 'sum')"],
    "report": {"note": "by hand"},
}

Write = Callable[..., Path]


@pytest.fixture
def manifest() -> dict[str, Any]:
    return copy.deepcopy(MANIFEST)


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = native()
    cache = Path(os.environ["HASTEN_CACHE"]) if "HASTEN_CACHE" in os.environ else None
    cache = cache or tmp_path_factory.mktemp("cache")
    return build({"model.c": SOURCE}, target, find_compiler(target), cache=cache)


@pytest.fixture
def write(tmp_path: Path, code: bytes) -> Write:
    """Writes the model's artifact, with changes to its manifest and members."""

    def write_model(
        name: str = "model.hasten",
        members: Mapping[str, Any] | None = None,
        **changes: object,
    ) -> Path:
        contents = {"weights.bin": TABLE.data, f"code/{native().name}.so": code, "c/model.c": b"x"}
        write_artifact(tmp_path / name, {**MANIFEST, **changes}, {**contents, **(members or {})})
        return tmp_path / name

    return write_model
