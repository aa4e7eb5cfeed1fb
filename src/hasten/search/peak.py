"""The machine's peak in f32: how many multiplications and additions its cores do per second at best."""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hasten.codegen.toolchain import build, default_cache, find_compiler
from hasten.target import Target, native

_STEPS = 4  # of all accumulators in each turn of the loop
_SHORTEST = 0.02  # seconds that one measurement takes at least
_FLOPS_PER_ELEMENT = 2


class Peak:
    """Measures the peak, as often as wanted.

    Attributes:
        threads: threads that run at once.
    """

    def __init__(self, threads: int, cache: Path | None = None) -> None:
        """Compiles the kernel.

        Raises:
            TargetError: this machine runs none of the targets.
            ToolchainError: there is no compiler.
        """
        target = native()
        compiler = find_compiler(target)
        folder = default_cache() if cache is None else cache
        code = build({"peak.c": peak_source(target)}, target, compiler, cache=folder)
        with tempfile.TemporaryDirectory(prefix="hasten-") as place:
            path = Path(place) / "peak.so"
            path.write_bytes(code)
            self._kernel = ctypes.CDLL(str(path)).peak
        self._kernel.argtypes = [ctypes.c_int64]
        self._kernel.restype = ctypes.c_float
        self.threads = threads
        self._flops = accumulators(target) * target.vector_bytes // 4 * _STEPS * _FLOPS_PER_ELEMENT
        self._turns = 1000
        while (seconds := self._seconds()) < _SHORTEST:
            self._turns = int(self._turns * min(10.0, 1.2 * _SHORTEST / max(seconds, 1e-6))) + 1

    def gflops(self) -> float:
        """10**9 operations per second of all threads together, now; takes about 20 ms."""
        return self._flops * self._turns * self.threads / self._seconds() / 1e9

    def _seconds(self) -> float:
        """How long all threads take for a number of turns; ctypes lets them run at once."""
        gate = threading.Barrier(self.threads + 1)

        def run() -> None:
            gate.wait()
            self._kernel(self._turns)

        workers = [threading.Thread(target=run, name="hasten-peak") for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        return time.perf_counter() - start


def accumulators(target: Target) -> int:
    """As many as fit the registers beside the two operands: enough to hide the latency everywhere."""
    return target.registers - 4


def peak_source(target: Target) -> str:
    """C of the kernel: independent chains of fused multiply-adds, all in registers."""
    lanes = target.vector_bytes // 4
    register = {"x86-64": "v", "aarch64": "w"}[target.arch]
    names = [f"a{i}" for i in range(accumulators(target))]
    lines = [
        '#include "hasten.h"',
        f"typedef float vector __attribute__((vector_size({target.vector_bytes})));",
        "",
        "/* Values stay finite: x -> x / 2 + 1 tends to 2. */",
        "HASTEN_API float peak(int64_t turns) {",
        "    vector factor = (vector){0} + 0.5f, term = (vector){0} + 1.0f;",
        # The compiler must not know the operands, or it would solve the recurrence.
        f'    __asm__ volatile("" : "+{register}"(factor), "+{register}"(term));',
        *(f"    vector {name} = term + {i}.0f;" for i, name in enumerate(names)),
        "    for (int64_t turn = 0; turn < turns; turn++) {",
        *(f"        {line}" for line in _steps(names)),
        "    }",
        f"    const vector sum = {' + '.join(names)};",
        "    float total = 0;",
        f"    for (int lane = 0; lane < {lanes}; lane++) total += sum[lane];",
        "    return total;",
        "}",
        "",
        "int32_t hasten_plan(int32_t part, const int64_t *sizes, int64_t *shapes, int64_t *arena) {",
        "    (void)part, (void)sizes, (void)shapes, (void)arena;",
        "    return -1;",
        "}",
        "int32_t hasten_run(int32_t part, hasten_call *call) {",
        "    (void)part, (void)call;",
        "    return -1;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _steps(names: Sequence[str]) -> list[str]:
    return [f"{name} = {name} * factor + term;" for _ in range(_STEPS) for name in names]
