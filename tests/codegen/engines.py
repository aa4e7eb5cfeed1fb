"""Ways to run a tensor program through the code generator: interpreted nests, and compiled C."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.codegen import part
from hasten.codegen.batch import batch_sources
from hasten.codegen.elementary import expand_operation
from hasten.codegen.kernel import scratch_view
from hasten.codegen.lower_stages import Lowered, lower_program
from hasten.codegen.microkernels import microkernels
from hasten.codegen.part import Part
from hasten.codegen.schedule import DEFAULTS, Schedules
from hasten.codegen.toolchain import build, find_compiler
from hasten.codegen.weights import Weights
from hasten.errors import InputError
from hasten.loops.dtypes import DType
from hasten.loops.expr import Size
from hasten.loops.interpret import interpret, uninitialized
from hasten.loops.nest import Function
from hasten.loops.program import Program
from hasten.loops.scope import size_value
from hasten.loops.sizes import bind_sizes, measured_sizes
from hasten.loops.verify_nest import verify_function
from hasten.runtime.library import Call, Library, shared_pool
from hasten.target import Target

Arrays = Mapping[str, np.ndarray]

TILE_DTYPES = (DType.F32, DType.BF16, DType.U8)

GUARD = 64
"""Elements behind each tensor of the arena that vectors may read and must not use."""


@functools.cache
def _tiles(target: Target) -> tuple[Function, ...]:
    return tuple(microkernels(target, TILE_DTYPES))


def parameters(program: Program) -> tuple[str, ...]:
    """Names of the sizes that calls give: those of the inputs that are not derived."""
    found = {n.name: None for i in program.inputs.values() for n in i.shape if isinstance(n, Size)}
    return (*(name for name in found if name not in program.derived), *program.elements)


@dataclass(frozen=True)
class Interpreted:
    """A lowered program whose kernels are interpreted, one thread after the other."""

    program: Program
    lowered: Lowered
    target: Target

    @staticmethod
    def of(
        program: Program, target: Target, precision: DType = DType.F32, schedules: Schedules = DEFAULTS
    ) -> Interpreted:
        lowered = lower_program(program, target, schedules, precision)
        tiles = _tiles(target)
        for k in lowered.kernels:
            for f in (k.function, *k.helpers):
                verify_function(f, (*tiles, *k.helpers))
        return Interpreted(program, lowered, target)

    def run(self, feeds: Arrays, threads: int = 1) -> dict[str, np.ndarray]:
        sizes = bind_sizes(self.program, feeds)
        tensors = {name: np.ascontiguousarray(a).reshape(-1) for name, a in feeds.items()}
        tensors |= {name: a.reshape(-1) for name, a in self.lowered.constants.items()}
        functions = {f.name: f for f in _tiles(self.target)}
        for number, k in enumerate(self.lowered.kernels):
            for t in k.writes:
                guard = 0 if t in self.program.outputs else GUARD
                tensors[t] = uninitialized(self.lowered.layouts[t].dtype, self.count(t, sizes) + guard)
            functions |= {f.name: f for f in k.helpers}
            given: dict[str, object] = {p: tensors[t] for p, t in k.buffers}
            if k.over is not None:  # as if nothing read it later
                own, old = tensors[k.writes[0]], tensors[k.over]
                count = self.count(k.over, sizes)
                own[:count] = old[:count].view(own.dtype)
                given |= {p: own.view(old.dtype) for p, t in k.buffers if t == k.over}
            given |= {p: size_value(e, sizes) for p, e in k.sizes}
            scratch = size_value(k.scratch, sizes) // 4
            for thread in range(threads):
                given |= {"fault": np.zeros(1, np.uint8), "kernel": number}
                given |= {"thread": thread, "threads": threads}
                for dtype in (*TILE_DTYPES, DType.F64):
                    view = scratch_view(dtype).name
                    given[view] = uninitialized(dtype, scratch * 4 // dtype.bytes + GUARD)
                fault = interpret(k.function, [given[p.name] for p in k.function.params], functions)
                if fault is not None:
                    raise InputError(f"index {fault.value} is outside {fault.limit} in {k.title}")
            for t in k.writes:
                shape = [size_value(n, sizes) for n in self.lowered.layouts[t].shape]
                written = tensors[t][: self.count(t, sizes)].reshape(shape)
                sizes |= measured_sizes(self.program, t, written, sizes)
        results = {}
        for name in self.program.outputs:
            shape = tuple(size_value(n, sizes) for n in self.program.info(name).shape)
            results[name] = tensors[name].reshape(shape)
        return results

    def count(self, tensor: str, sizes: dict[str, int]) -> int:
        return size_value(self.lowered.layouts[tensor].elements, sizes)


@dataclass(frozen=True)
class Compiled:
    """One program of a shared object."""

    program: Program
    part: int
    library: Library
    weights: np.ndarray
    titles: tuple[str, ...]

    def run(self, feeds: Arrays, threads: int = 1) -> dict[str, np.ndarray]:
        sizes = bind_sizes(self.program, feeds)
        names = parameters(self.program)
        values = (ctypes.c_int64 * max(1, len(names)))(*(sizes[n] for n in names))
        infos = [self.program.info(n) for n in self.program.outputs]
        dims = (ctypes.c_int64 * max(1, sum(len(i.shape) for i in infos)))()
        arena_bytes = ctypes.c_int64()
        status = self.library.plan(self.part, values, dims, ctypes.byref(arena_bytes))
        assert status == 0, f"hasten_plan says {status}"
        rest = iter(dims)
        outputs = [guarded(tuple(next(rest) for _ in i.shape), i.dtype.numpy) for i in infos]
        inputs = [np.ascontiguousarray(feeds[n]) for n in self.program.inputs]
        pointers = (ctypes.c_void_p * (len(inputs) + len(outputs)))(
            *(a.ctypes.data for a in inputs), *(a.ctypes.data for _, a in outputs)
        )
        arena = aligned(arena_bytes.value)
        arena[...] = 0xFF  # NaN, and integers that no index should be
        before = arena_bytes.value
        call = Call()
        call.sizes, call.values = ctypes.addressof(values), ctypes.addressof(pointers)
        call.weights, call.arena = self.weights.ctypes.data, arena.ctypes.data
        call.pool = shared_pool(self.library) if threads > 1 else None
        call.threads = threads
        self.library.run(self.part, ctypes.byref(call))
        assert before == arena.size
        if call.fault.code:
            raise InputError(
                f"index {call.fault.value} is outside {call.fault.limit} in {self.titles[call.fault.kernel]}"
            )
        for block, _ in outputs:
            assert (block[-EDGE:] == 0xA5).all(), "wrote behind an output"
            assert (block[:EDGE] == 0xA5).all(), "wrote in front of an output"
        return {n: a for n, (_, a) in zip(self.program.outputs, outputs, strict=True)}


EDGE = 256


def guarded(shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array between two stretches of known bytes, and the block that it lies in."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    block = np.full(size + 2 * EDGE, 0xA5, np.uint8)
    return block, block[EDGE : EDGE + size].view(dtype).reshape(shape)


def aligned(count: int) -> np.ndarray:
    """Bytes at an address that 64 divides."""
    block = np.empty(count + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + count]


def compile_programs(
    programs: Sequence[Program],
    target: Target,
    *,
    parallel: bool = False,
    schedules: Sequence[Schedules] | None = None,
    precision: DType = DType.F32,
) -> list[Compiled]:
    """Builds programs as the parts of one shared object.

    Args:
        programs: what to compile.
        target: instruction set.
        parallel: divide even the smallest kernel among the threads.
        schedules: for each program, where they are not the defaults.
        precision: of the operands of products.
    """
    sources, weights, titles = program_sources(
        programs, target, parallel=parallel, schedules=schedules, precision=precision
    )
    library = Library(memoryview(build(sources, target, find_compiler(target))))
    image = aligned(weights.size)
    if weights.arrays:
        image[...] = np.concatenate(weights.arrays)
    return [Compiled(p, i, library, image, titles[i]) for i, p in enumerate(programs)]


def program_sources(
    programs: Sequence[Program],
    target: Target,
    *,
    parallel: bool = False,
    schedules: Sequence[Schedules] | None = None,
    precision: DType = DType.F32,
) -> tuple[dict[str, str], Weights, list[tuple[str, ...]]]:
    """C files of programs as parts of one object, their constants, and their kernels' titles."""
    weights, parts = Weights(), []
    for i, p in enumerate(programs):
        lowered = lower_program(p, target, schedules[i] if schedules else DEFAULTS, precision)
        offsets = {name: weights.add(a) for name, a in lowered.constants.items()}
        parts.append(Part(i, p, lowered, parameters(p), offsets, 0))
    with division_of_work(parallel):
        sources, codes = batch_sources(parts, target, expand_operation, per_file=PARTS_PER_FILE)
    if parallel:  # wait for all threads, however little the work is
        sources = {n: re.sub(r"run\.plan\.work / \d+", "INT64_MAX", text) for n, text in sources.items()}
    return sources, weights, [tuple(title for _, title in code.kernels) for code in codes]


PARTS_PER_FILE = 60


@contextlib.contextmanager
def division_of_work(parallel: bool) -> Iterator[None]:
    """Where asked for, even the smallest kernel is divided among the threads."""
    kept = part.SERIAL_WORK, part.SERIAL_RUN
    if parallel:
        part.SERIAL_WORK = part.SERIAL_RUN = 0
    try:
        yield
    finally:
        part.SERIAL_WORK, part.SERIAL_RUN = kept
