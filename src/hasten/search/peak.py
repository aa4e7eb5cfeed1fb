"""The machine's peaks: how much its cores multiply and add, and read from memory, per second at best."""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.codegen.toolchain import build, default_cache, find_compiler
from hasten.target import Target, caches, native, processor_features, runs_here

_CALLS = 3  # of which the shortest says how long a number of turns takes
_STEPS = 4  # of all accumulators in each turn of the loop
_FLOPS_PER_ELEMENT = 2
_SUM_BYTES = 4

_TILES = Target.named("x86-64-v4-amx")
_TILE_SUMS = 16 * 16
_TILE_GROUPS = 16  # that one instruction multiplies for each sum
_TILES_OF_SUMS = 4

_LEAST_STREAM = 256 << 20  # bytes; some machines do not tell of their last level, or share it with others
_MOST_STREAM = 1 << 30
_STREAM_PER_CACHE = 4  # of the last level
_STREAM_PASSES = 3
_STREAM_PIECES = 8  # of each thread's part, timed apart


@dataclass(frozen=True)
class Dot:
    """An instruction that multiplies groups of narrow numbers and adds the products to sums of 32 bits.

    Attributes:
        precision: of the numbers: "bf16", or "int8" for bytes.
        feature: what a processor that has it calls it.
        vector_bytes: of its vectors, whatever the target.
        code: in assembly; operand 0 are the sums, 1 both factors.
        group: numbers that are multiplied for each sum.
    """

    precision: str
    feature: str
    vector_bytes: int
    code: str
    group: int


DOTS = (
    Dot("bf16", "avx512_bf16", 64, "vdpbf16ps %1, %1, %0", 2),
    Dot("int8", "avx512_vnni", 64, "vpdpbusd %1, %1, %0", 4),
    Dot("int8", "avx_vnni", 32, "%{vex%} vpdpbusd %1, %1, %0", 4),
    # Of 2 x 8 by 8 x 2 bytes: twice what `usdot` multiplies, which is what our kernels have.
    Dot("int8", "i8mm", 16, ".arch_extension i8mm\\n usmmla %0.4s, %1.16b, %1.16b", 8),
    Dot("int8", "asimddp", 16, ".arch_extension dotprod\\n sdot %0.4s, %1.16b, %1.16b", 4),
)
"""The instructions, of those for one type the fastest first."""

TILE_DOTS = {"bf16": "tdpbf16ps", "int8": "tdpbusd"}
"""Those on tiles of matrices (AMX)."""


class Peak:
    """Measures the peaks, as often as wanted.

    Attributes:
        threads: threads that run at once.
    """

    def __init__(self, threads: int, cache: Path | None = None, *, seconds: float = 0.02) -> None:
        """Compiles the kernels.

        Args:
            threads: threads that run at once.
            cache: folder of compiled objects; `default_cache()` if None.
            seconds: that a measurement of arithmetic takes. The best of many short ones is the peak even
                where other programs run at times; a longer one tells what is to be had now.

        Raises:
            TargetError: this machine runs none of the targets.
            ToolchainError: there is no compiler.
        """
        target = native()
        compiler = find_compiler(target)
        folder = default_cache() if cache is None else cache
        sources = {"peak.c": peak_source(target)}
        tiles = TILE_DOTS if runs_here(_TILES) else {}
        vectors = {d.precision: d for d in reversed(DOTS) if d.feature in processor_features()}
        for precision, dot in vectors.items():
            name, code = f"peak_{precision}", tiles.get(precision)
            sources[f"{name}.c"] = tile_source(name, code) if code else dot_source(name, dot, target)
        built = build(sources, target, compiler, cache=folder)
        with tempfile.TemporaryDirectory(prefix="hasten-") as place:
            path = Path(place) / "peak.so"
            path.write_bytes(built)
            self._library = ctypes.CDLL(str(path))
        self.threads = threads
        self._shortest = seconds
        chains = accumulators(target) * _STEPS * _FLOPS_PER_ELEMENT
        self._loops = {"f32": self._loop("peak", chains * target.vector_bytes // _SUM_BYTES)}
        for precision, dot in vectors.items():
            sums = chains * dot.vector_bytes // _SUM_BYTES
            if precision in tiles:
                sums = _TILES_OF_SUMS * _STEPS * _FLOPS_PER_ELEMENT * _TILE_SUMS * _TILE_GROUPS
            self._loops[precision] = self._loop(f"peak_{precision}", sums * dot.group)

    def gflops(self, precision: str = "f32") -> float | None:
        """10**9 operations per second of all threads together, now; None if there is no instruction.

        Args:
            precision: of what is multiplied: "f32", "bf16" (added in f32) or "int8" (added in i32).
        """
        loop = self._loops.get(precision)
        return None if loop is None else loop()

    def by_precision(self, tries: int = 3) -> dict[str, float]:
        """All of these by precision, of those that there is an instruction for.

        The best of some measurements: what disturbs them makes them less, never more.
        """
        return {name: max(loop() for _ in range(tries)) for name, loop in self._loops.items()}

    def gigabytes_per_second(self) -> float:
        """10**9 bytes per second that all threads together read from memory; takes about 0.3 s.

        They read, each its own part, a buffer of several times the last-level cache (within 256 MB and
        1 GB), a piece at a time; the best piece counts. What stays in a cache is read faster than this.
        """
        size = max(_LEAST_STREAM, min(_MOST_STREAM, _STREAM_PER_CACHE * caches().l3))
        piece = size // self.threads // _STREAM_PIECES // 4096 * 4096
        parts: list[NDArray[np.uint8]] = [
            np.empty(piece * _STREAM_PIECES, np.uint8) for _ in range(self.threads)
        ]
        for memory in parts:
            memory.fill(1)  # pages that were never written are all the same page of zeros
        stream = self._library.read_stream
        stream.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        stream.restype = ctypes.c_int64
        addresses = [memory.ctypes.data for memory in parts]
        seconds = [
            _together([(stream, (address + number * piece, piece)) for address in addresses])
            for _ in range(_STREAM_PASSES)
            for number in range(_STREAM_PIECES)
        ]
        return piece * self.threads / min(seconds) / 1e9

    def _loop(self, name: str, flops: int) -> Callable[[], float]:
        """A measurement of a kernel that is called with a number of turns, each of so many operations."""
        kernel = self._library[name]
        kernel.argtypes = [ctypes.c_int64]
        kernel.restype = ctypes.c_float

        def seconds(turns: int) -> float:
            return _together([(kernel, (turns,))] * self.threads)

        turns = 1000
        # A disturbed call takes long with any number of turns.
        while (taken := min(seconds(turns) for _ in range(_CALLS))) < self._shortest:
            turns = int(turns * min(10.0, 1.2 * self._shortest / max(taken, 1e-6))) + 1
        return lambda: flops * turns * self.threads / seconds(turns) / 1e9


def _together(calls: Sequence[tuple[Any, tuple[int, ...]]]) -> float:
    """Seconds that C functions take, each on a thread of its own; ctypes lets them run at once."""
    gate = threading.Barrier(len(calls))
    times: list[tuple[float, float]] = []

    def run(function: Any, arguments: tuple[int, ...]) -> None:
        gate.wait()
        # Each takes its own time: who looked on from outside could come late and find them half done.
        start = time.perf_counter()
        function(*arguments)
        times.append((start, time.perf_counter()))

    workers = [threading.Thread(target=run, args=call, name="hasten-peak") for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in times) - min(start for start, _ in times)


def accumulators(target: Target) -> int:
    """As many as fit the registers beside the two operands: enough to hide the latency everywhere."""
    return target.registers - 4


def peak_source(target: Target) -> str:
    """C of two kernels: independent chains of fused multiply-adds, all in registers; and reading memory."""
    lanes = target.vector_bytes // 4
    register = {"x86-64": "v", "aarch64": "w"}[target.arch]
    names = _names(target)
    lines = [
        '#include "hasten.h"',
        f"typedef float vector __attribute__((vector_size({target.vector_bytes})));",
        f"typedef int64_t words __attribute__((vector_size({target.vector_bytes})));",
        "",
        "/* Values stay finite: x -> x / 2 + 1 tends to 2. */",
        "HASTEN_API float peak(int64_t turns) {",
        "    vector factor = (vector){0} + 0.5f, term = (vector){0} + 1.0f;",
        # The compiler must not know the operands, or it would solve the recurrence.
        f'    __asm__ volatile("" : "+{register}"(factor), "+{register}"(term));',
        *(f"    vector {name} = term + {i}.0f;" for i, name in enumerate(names)),
        "    for (int64_t turn = 0; turn < turns; turn++) {",
        *(f"        {name} = {name} * factor + term;" for _ in range(_STEPS) for name in names),
        "    }",
        *_total("vector", names, lanes),
        "",
        "/* Reads `bytes` bytes, a multiple of 4096, at an address that is aligned to 8. */",
        "HASTEN_API int64_t read_stream(const char *memory, int64_t bytes) {",
        "    words a = {0}, b = {0}, c = {0}, d = {0};",
        "    for (int64_t at = 0; at < bytes; at += 4 * (int64_t)sizeof(words)) {",
        "        words next[4];",
        "        __builtin_memcpy(next, memory + at, sizeof next);",
        "        a ^= next[0], b ^= next[1], c ^= next[2], d ^= next[3];",
        "    }",
        "    a ^= b ^ c ^ d;",
        "    int64_t all = 0;",
        f"    for (int lane = 0; lane < {lanes // 2}; lane++) all ^= a[lane];",
        "    return all;",
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


def dot_source(name: str, dot: Dot, target: Target) -> str:
    """C of a kernel of that name: chains of an instruction on vectors."""
    names = _names(target)
    register = {64: "v", 32: "x", 16: "w"}[dot.vector_bytes]
    step = [f'        __asm__("{dot.code}" : "+{register}"({n}) : "{register}"(factor));' for n in names]
    lines = [
        '#include "hasten.h"',
        f"typedef int32_t words __attribute__((vector_size({dot.vector_bytes})));",
        "",
        "/* As bf16 the products, 2^-200, are below what a sum can take up; sums of bytes wrap. */",
        f"HASTEN_API float {name}(int64_t turns) {{",
        "    words factor = (words){0} + 0x0d800d80;",
        f'    __asm__ volatile("" : "+{register}"(factor));',
        *(f"    words {n} = factor + {i};" for i, n in enumerate(names)),
        "    for (int64_t turn = 0; turn < turns; turn++) {",
        *(step * _STEPS),
        "    }",
        *_total("words", names, dot.vector_bytes // _SUM_BYTES),
    ]
    return "\n".join(lines) + "\n"


def tile_source(name: str, instruction: str) -> str:
    """C of a kernel of that name: chains of an instruction on tiles of matrices (AMX)."""
    dots = [
        f'        __asm__ volatile("{instruction} %tmm6, %tmm4, %tmm{t}");' for t in range(_TILES_OF_SUMS)
    ]
    lines = [
        '#include "hasten.h"',
        "",
        f"HASTEN_API float {name}(int64_t turns) {{",
        "    struct { uint8_t palette, begin, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; }",
        "    shape = {1};",
        "    for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = 16;",
        '    __asm__ volatile("ldtilecfg %0" : : "m"(shape) : "memory"); /* all tiles are zero */',
        "    for (int64_t turn = 0; turn < turns; turn++) {",
        *(dots * _STEPS),
        "    }",
        '    __asm__ volatile("tilerelease");',
        "    return 0;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _names(target: Target) -> list[str]:
    return [f"a{i}" for i in range(accumulators(target))]


def _total(vector: str, names: Sequence[str], lanes: int) -> list[str]:
    """The end of a kernel: the sum of everything, so that nothing is left out as useless."""
    return [
        f"    const {vector} sum = {' + '.join(names)};",
        "    float total = 0;",
        f"    for (int lane = 0; lane < {lanes}; lane++) total += sum[lane];",
        "    return total;",
        "}",
    ]
