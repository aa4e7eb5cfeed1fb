"""Builds and runs one kernel in several schedules: generated, compiled and called as in an artifact."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.codegen.alone import symbolic_sizes, well_formed
from hasten.codegen.batch import batch_sources
from hasten.codegen.elementary import expand_operation
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.part import GUARD_BYTES, Part
from hasten.codegen.schedule import ProductShape, Schedule, Schedules
from hasten.codegen.toolchain import build, find_compiler
from hasten.codegen.weights import Weights
from hasten.loops.dtypes import BYTES, DType
from hasten.loops.evaluate import evaluate
from hasten.loops.expr import Load, walk
from hasten.loops.program import Program
from hasten.loops.scope import size_value
from hasten.runtime.library import Call, Library, shared_pool
from hasten.target import Target, cores

Array = NDArray[Any]

SAMPLE_SECONDS = 0.002
"""How long the runs of one sample take together, roughly."""

FEWEST_RUNS = 3
"""Runs of a sample, however long they take."""

TOLERANCE = 1e-4
"""Largest difference from the interpreter that passes, as a share of the largest element."""

COLDEST = 64 << 20
"""Bytes of weights, all copies together, that a bench rotates through at the most."""

STEPS_APART = 0.01
"""Share of bytes that may be one step from the interpreter's: what lies between two steps, by rounding."""

BYTE_STEPS = 32
"""Deviation of random bytes from their mean."""

_ROUNDING = {DType.BF16: 2**-7}
"""By how much, as a share of the element, rounding to a type of storage may make answers differ."""

PER_FILE = 8
"""Schedules that share a file, at the most: the time limit is looked at between two files."""

_ALIGNMENT = 64
_LARGE = 0x7F  # a number of such bytes is far from 0, whatever its type


@dataclass(frozen=True)
class Task:
    """A kernel to be tuned.

    Attributes:
        shape: its key.
        program: the kernel alone (`codegen.alone`).
        sizes: likely values of all symbolic sizes.
        resident: bytes of all constants of the model. Between two runs of a kernel a model reads so much,
            which pushes the kernel's own weights out of the caches.
        known: whether the sizes are; where they are read from data or cannot be, it is not built alone.
    """

    shape: ProductShape
    program: Program
    sizes: Mapping[str, int]
    resident: int
    known: bool = True


class Bench:
    """One kernel in several schedules, built and ready to run.

    Attributes:
        task: the kernel.
        output: where all of them write their answer.
    """

    def __init__(
        self,
        task: Task,
        schedules: Sequence[Schedule],
        target: Target,
        threads: int,
        cache: Path | None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Generates and compiles the kernel in each schedule.

        Args:
            task: the kernel.
            schedules: what to build; all in one object.
            target: instruction set, one that this machine runs.
            threads: threads of a run.
            cache: folder of compiled objects, or None.
            stop: whether to give up.

        Raises:
            ToolchainError: there is no compiler, or it failed.
            TimeoutError: `stop` said so.
        """
        self.task = task
        parts, weights = _parts(task, schedules, target, stop)
        per_file = min(PER_FILE, -(-len(parts) // cores()))
        sources, _ = batch_sources(parts, target, expand_operation, per_file=per_file)
        code = build(sources, target, find_compiler(target), cache=cache, stop=stop)
        self._library = Library(memoryview(code))
        self._feeds = _inputs(task)
        self._images = _images(weights, task.resident)
        (result,) = task.program.outputs
        info = task.program.info(result)
        self.output = np.empty([size_value(n, task.sizes) for n in info.shape], info.dtype.numpy)
        self._dtype = info.dtype
        self._arena = _aligned(max(map(self._arena_bytes, parts)))
        self._calls = [self._call(part, threads) for part in parts]
        self._turn = 0

    def sample(self, index: int) -> float:
        """Seconds of the fastest of a few runs in a schedule."""
        run, (call, _) = self._library.run, self._calls[index]
        reference, best, spent, runs = ctypes.byref(call), math.inf, 0.0, 0
        while runs < FEWEST_RUNS or spent < SAMPLE_SECONDS:
            self._turn = (self._turn + 1) % len(self._images)
            call.weights = self._images[self._turn].ctypes.data
            start = time.perf_counter()
            run(index, reference)
            seconds = time.perf_counter() - start
            best, spent, runs = min(best, seconds), spent + seconds, runs + 1
        return best

    def difference(self, index: int, expected: Array) -> float:
        """How far an answer is from the expected one (`distance`).

        It is asked for twice, over fillings that no answer is near both of: so it shows what is not written.
        """
        call, _ = self._calls[index]
        call.weights = self._images[0].ctypes.data
        worst = 0.0
        for filling in (0, _LARGE):
            ctypes.memset(self.output.ctypes.data, filling, self.output.nbytes)
            self._library.run(index, ctypes.byref(call))
            worst = max(worst, distance(self.output, expected, self._dtype))
        return worst

    def expected(self) -> Array:
        """What the interpreter says."""
        (answer,) = evaluate(well_formed(self.task.program), self._feeds).values()
        return answer

    def _sizes(self, part: Part) -> Any:
        return (ctypes.c_int64 * max(1, len(part.sizes)))(*(self.task.sizes[n] for n in part.sizes))

    def _arena_bytes(self, part: Part) -> int:
        dims = (ctypes.c_int64 * max(1, self.output.ndim))()
        arena_bytes = ctypes.c_int64()
        status = self._library.plan(part.number, self._sizes(part), dims, ctypes.byref(arena_bytes))
        assert status == 0, f"a kernel without guards refuses its sizes: {status}"
        assert tuple(dims)[: self.output.ndim] == self.output.shape
        return arena_bytes.value

    def _call(self, part: Part, threads: int) -> tuple[Call, object]:
        """A filled call, and the memory that it points to."""
        sizes = self._sizes(part)
        pointers = [self._feeds[n].ctypes.data for n in part.program.inputs] + [self.output.ctypes.data]
        values = (ctypes.c_void_p * len(pointers))(*pointers)
        call = Call()
        call.sizes, call.values = ctypes.addressof(sizes), ctypes.addressof(values)
        call.arena, call.threads = self._arena.ctypes.data, threads
        call.pool = shared_pool(self._library) if threads > 1 else None
        return call, (sizes, values)


def distance(answer: Array, expected: Array, dtype: DType) -> float:
    """How far an answer is from the expected one, as a share of the largest finite element.

    What rounding to the type of the result explains does not count. Infinity where it is expected, and NaN
    where NaN is, are right: epilogues may leave the domain of what they compute on random numbers.
    """
    found, wanted = answer.astype(np.float64), expected.astype(np.float64)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    off = np.abs(np.subtract(found, wanted, where=~same, out=np.zeros_like(wanted)))
    size = np.where(np.isfinite(wanted), np.abs(wanted), 0.0)
    explained = _ROUNDING.get(dtype, 0.0) * size
    if dtype in BYTES and np.mean(off > 0) <= STEPS_APART:
        explained = np.ones_like(wanted)
    worst = float((off - explained).max(initial=0.0))
    return math.inf if math.isnan(worst) else worst / (float(size.max(initial=0.0)) or 1.0)


def _parts(
    task: Task, schedules: Sequence[Schedule], target: Target, stop: Callable[[], bool]
) -> tuple[list[Part], Weights]:
    parts, weights = [], Weights()
    names = symbolic_sizes(task.program)
    for number, schedule in enumerate(schedules):
        if stop():
            raise TimeoutError
        chosen = Schedules({str(task.shape): schedule}, task.sizes)
        lowered = lower_program(task.program, target, chosen)
        offsets = {name: weights.add(array) for name, array in lowered.constants.items()}
        parts.append(Part(number, task.program, lowered, names, offsets, 0, stands_alone=False))
    return parts, weights


def _inputs(task: Task) -> dict[str, Array]:
    """Arrays for the inputs: numbers like those inside a network; zeros where they are indices."""
    rng = np.random.default_rng(1)
    indices = {
        inner.buffer
        for d in task.program.definitions.values()
        for e in d.expressions()
        for node in walk(e)
        if isinstance(node, Load)
        for i in node.index
        for inner in walk(i)
        if isinstance(inner, Load)
    }
    made: dict[str, Array] = {}
    for name, info in task.program.inputs.items():
        shape = [size_value(n, task.sizes) for n in info.shape]
        numbers = np.zeros(shape) if name in indices else _numbers(rng, shape, info.dtype)
        # Whole vectors and groups may be read, never used, beyond the end.
        array = numbers.astype(info.dtype.numpy)
        made[name] = _aligned(array.nbytes + GUARD_BYTES)[: array.nbytes].view(array.dtype).reshape(shape)
        made[name][...] = array
    return made


def _numbers(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> Array:
    """Random numbers of about the size that they have in networks; of bytes most are near their middle."""
    normal = rng.standard_normal(shape, np.float32)
    if dtype.is_float:
        return normal
    if dtype is DType.U8:
        return np.clip(np.rint(128 + BYTE_STEPS * normal), 0, 255)
    return np.clip(np.rint(BYTE_STEPS * normal), -127, 127)


def _images(weights: Weights, resident: int) -> list[NDArray[np.uint8]]:
    """Copies of the constants, together as large as a model's: so cold is each when its turn comes."""
    copies = max(1, min(resident, COLDEST) // max(weights.size, 1))
    images = []
    for _ in range(copies):
        image = _aligned(weights.size)
        if weights.arrays:
            image[...] = np.concatenate(weights.arrays)
        images.append(image)
    return images


def _aligned(count: int) -> NDArray[np.uint8]:
    block = np.empty(count + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + count]
