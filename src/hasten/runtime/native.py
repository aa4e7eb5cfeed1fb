"""Run a native step: bind its sizes, prepare its memory once for each combination of shapes, call it.

A call into a small model should cost little more than its arithmetic, so everything that depends on
shapes alone is kept: the filled C structure, and buffers at fixed addresses through which small arrays
pass (asking NumPy for an address costs more than copying a few kilobytes). What is kept belongs to a
*workspace*; each run that is under way has one of its own.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ArtifactError, InputError
from hasten.runtime.checks import bind_sizes
from hasten.runtime.library import Call, Library
from hasten.runtime.manifest import NativeStep

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]
Key = tuple[Shapes, tuple[int, ...]]
"""What a prepared call depends on: the inputs' shapes, and the numbers that sizes are read from."""

_ndarray = np.ndarray
STAGED_BYTES = 64 << 10  # arrays up to this size are copied through fixed buffers
KEPT_SHAPES = 64  # combinations of shapes that a workspace remembers
TOO_LARGE = -2  # what `hasten_plan` says of sizes that 64 bits cannot address
_ALIGNMENT = 64

_FAULTS = {
    1: "index {value} is outside its axis of length {limit} in {kernel}: correct the input that it is from",
    2: "an integer was divided by zero in {kernel}: correct the input that the divisor is from",
}


class _Prepared:
    """A call for one combination of shapes, filled but for large arrays and the arena."""

    __slots__ = (
        "arena_bytes",
        "call",
        "gives",
        "kept",
        "large_inputs",
        "large_outputs",
        "reference",
        "stages",
        "takes",
        "values",
    )

    def __init__(self) -> None:
        self.call = Call()
        self.reference = ctypes.byref(self.call)
        self.arena_bytes = 0
        self.values: Any = None
        self.stages: list[tuple[int, Array]] = []  # small inputs and their buffers
        self.large_inputs: list[int] = []
        # for each output its buffer, or what to allocate
        self.large_outputs: list[Array | tuple[tuple[int, ...], np.dtype[Any]]] = []
        # if all arrays are small: what identifies each input and its buffer, and each output's
        self.takes: list[tuple[str, np.dtype[Any], tuple[int, ...], Array]] = []
        self.gives: list[tuple[str, Array]] = []
        self.kept: list[object] = []  # memory that the C structure points to


class _Workspace:
    """What a run under way has for itself: the arena, and prepared calls, the last used at the end."""

    __slots__ = ("address", "again", "arena", "calls", "last")

    def __init__(self) -> None:
        self.again: _Prepared | None = None  # the last used, if all its arrays are small
        self.arena = np.empty(0, np.uint8)
        self.address = 0
        self.calls: dict[Key, _Prepared] = {}
        self.last: Key | None = None


class NativeRunner:
    """Runs a native step; several threads may do so at once.

    Attributes:
        step: The step.
    """

    def __init__(
        self,
        step: NativeStep,
        library: Library,
        weights: NDArray[np.uint8],
        pool: int | None,
        threads: int,
        guards: Sequence[str],
        staged_bytes: int = STAGED_BYTES,
    ) -> None:
        self.step = step
        self._staged_bytes = staged_bytes
        self._library = library
        self._run = library.run
        self._part = step.part
        self._weights = weights  # keeps the file mapped
        self._pool = pool
        self._threads = threads
        self._guards = guards
        self._input_dtypes = [np.dtype(info.dtype) for info in step.inputs]
        self._output_dtypes = [np.dtype(name) for name in step.output_dtypes]
        self._free: list[_Workspace] = []  # pop and append are atomic

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Runs the step.

        Args:
            arrays: Its inputs, of the right element types.

        Returns:
            Its outputs, in memory that nothing else refers to.

        Raises:
            InputError: Shapes or values do not fit.
        """
        key = (tuple([array.shape for array in arrays]), self._read(arrays) if self.step.elements else ())
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = _Workspace()
        last = workspace.last
        prepared = workspace.calls[key] if key == last else self._switch(workspace, key)
        for index, stage in prepared.stages:
            stage[...] = arrays[index]
        if prepared.gives:
            if self._run(self._part, prepared.reference):
                self._fail(workspace, prepared)
            outputs = [stage.copy() for _, stage in prepared.gives]
        else:
            outputs = self._run_with_large(workspace, prepared, arrays)
        if len(self._free) < self._threads + 1:
            self._free.append(workspace)
        return outputs

    def run_again(self, feeds: Mapping[str, Any]) -> dict[str, Array] | None:
        """Runs the step on inputs of the same names, types and small shapes as those of the last run.

        For small models most of the time of a call is Python around it, so nothing is done here but to
        compare and copy.

        Returns:
            The outputs by name, or None, with nothing done, where this is another kind of call.

        Raises:
            InputError: Values do not fit.
        """
        free = self._free
        try:
            workspace = free.pop()
        except IndexError:
            return None
        again = workspace.again
        if again is not None and len(feeds) == len(again.takes):
            for name, dtype, shape, stage in again.takes:
                array = feeds.get(name)
                if type(array) is not _ndarray or array.dtype is not dtype or array.shape != shape:
                    break
                stage[...] = array
            else:
                if self._run(self._part, again.reference):
                    self._fail(workspace, again)
                outputs = {}
                for name, stage in again.gives:
                    outputs[name] = stage.copy()
                free.append(workspace)
                return outputs
        free.append(workspace)
        return None

    def _run_with_large(
        self, workspace: _Workspace, prepared: _Prepared, arrays: Sequence[Array]
    ) -> list[Array]:
        values = prepared.values
        alive = []
        for index in prepared.large_inputs:
            array = _dense(arrays[index])
            alive.append(array)
            values[index] = array.ctypes.data
        outputs = []
        for index, output in enumerate(prepared.large_outputs, len(arrays)):
            if isinstance(output, tuple):
                array = _new(*output)
                values[index] = array.ctypes.data
                outputs.append(array)
            else:
                outputs.append(output)
        if self._run(self._part, prepared.reference):
            self._fail(workspace, prepared)
        # What is still a buffer of ours is small.
        return [
            made.copy() if made is output else made
            for made, output in zip(outputs, prepared.large_outputs, strict=True)
        ]

    def _read(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """The sizes that inputs hold; 0 where one is too short, which is an error later."""
        places = self.step.elements.values()
        return tuple(int(arrays[n].flat[at]) if at < arrays[n].size else 0 for n, at in places)

    def _switch(self, workspace: _Workspace, key: Key) -> _Prepared:
        """Finds or prepares the call for these shapes and makes it the last used one."""
        calls = workspace.calls
        prepared = calls.pop(key, None)
        if prepared is None:
            try:
                prepared = self._prepare(key)
            except InputError:
                self._free.append(workspace)  # as it was
                raise
        if prepared.arena_bytes > workspace.arena.nbytes - _ALIGNMENT:
            # Grown arenas serve all shapes.
            workspace.arena = np.empty(0, np.uint8)  # free the old one first
            workspace.arena, workspace.address = _allocate(prepared.arena_bytes)
            for other in calls.values():
                other.call.arena = workspace.address
        prepared.call.arena = workspace.address
        calls[key] = prepared
        if len(calls) > KEPT_SHAPES:
            del calls[next(iter(calls))]
        workspace.last = key
        # Numbers that are read may differ from call to call.
        workspace.again = prepared if prepared.gives and not self.step.elements else None
        return prepared

    def _prepare(self, whole_key: Key) -> _Prepared:
        key, numbers = whole_key
        sizes = bind_sizes(self.step.inputs, key) | dict(zip(self.step.elements, numbers, strict=True))
        shapes, arena_bytes = self._plan(sizes, key)
        prepared = _Prepared()
        prepared.arena_bytes = arena_bytes
        size_array = (ctypes.c_int64 * max(1, len(self.step.sizes)))(
            *(sizes[name] for name in self.step.sizes)
        )
        values = (ctypes.c_void_p * (len(key) + len(shapes)))()
        kinds = [*zip(key, self._input_dtypes, strict=True)]
        kinds += zip(shapes, self._output_dtypes, strict=True)
        buffers = _stage(kinds, self._staged_bytes)
        for index, buffer in enumerate(buffers):
            if buffer is not None:
                values[index] = buffer.ctypes.data
        staged = [buffer for buffer in buffers if buffer is not None]
        inputs, outputs = buffers[: len(key)], buffers[len(key) :]
        prepared.stages = [(index, b) for index, b in enumerate(inputs) if b is not None]
        prepared.large_inputs = [index for index, b in enumerate(inputs) if b is None]
        prepared.large_outputs = [
            kind if buffer is None else buffer
            for buffer, kind in zip(outputs, kinds[len(key) :], strict=True)
        ]
        if len(staged) == len(buffers):
            taken, given = staged[: len(key)], staged[len(key) :]
            names = [info.name for info in self.step.inputs]
            prepared.takes = list(zip(names, self._input_dtypes, key, taken, strict=True))
            prepared.gives = list(zip(self.step.outputs, given, strict=True))
        prepared.values = values
        prepared.kept = [size_array, staged]
        prepared.call.sizes = ctypes.addressof(size_array)
        prepared.call.values = ctypes.addressof(values)
        prepared.call.weights = self._weights.ctypes.data
        prepared.call.pool = self._pool
        prepared.call.threads = self._threads
        return prepared

    def _plan(self, sizes: Mapping[str, int], key: Shapes) -> tuple[Shapes, int]:
        """Shapes of the outputs and bytes of scratch memory."""
        dims = (ctypes.c_int64 * max(1, sum(self.step.output_ranks)))()
        arena_bytes = ctypes.c_int64()
        c_sizes = (ctypes.c_int64 * max(1, len(self.step.sizes)))(*(sizes[n] for n in self.step.sizes))
        status = self._library.plan(self.step.part, c_sizes, dims, ctypes.byref(arena_bytes))
        named = [f"{info.name} {list(shape)}" for info, shape in zip(self.step.inputs, key, strict=True)]
        received = ", ".join([*named, *(f"{name} = {sizes[name]}" for name in self.step.elements)])
        if 0 < status <= len(self._guards):
            raise InputError(
                f"these {'values' if self.step.elements else 'shapes'} break a condition of the model, "
                f"{self._guards[status - 1]}: received {received}"
            )
        if status == TOO_LARGE:
            raise InputError(f"received {received}, too large: its values could not be addressed")
        if status != 0:
            raise ArtifactError(f"the artifact's code and manifest disagree on part {self.step.part}")
        rest = iter(dims)
        shapes = tuple(tuple(next(rest) for _ in range(rank)) for rank in self.step.output_ranks)
        if any(length < 0 for shape in shapes for length in shape):
            made = ", ".join(map(str, map(list, shapes)))
            raise InputError(f"received {received}, too small: the results would have shapes {made}")
        return shapes, arena_bytes.value

    def _fail(self, workspace: _Workspace, prepared: _Prepared) -> None:
        fault = prepared.call.fault
        kernels = self.step.kernels
        text = _FAULTS.get(fault.code, f"fault {fault.code} with value {{value}} in {{kernel}}")
        known = 0 <= fault.kernel < len(kernels)
        kernel = kernels[fault.kernel] if known else f"kernel {fault.kernel}"
        message = text.format(value=fault.value, limit=fault.limit, kernel=kernel)
        fault.code = 0
        self._free.append(workspace)
        raise InputError(message)


def _stage(kinds: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], largest: int) -> list[Array | None]:
    """One aligned buffer for each array up to `largest` bytes, all in one block; None for each other one."""
    places = []
    total = 0
    for shape, dtype in kinds:
        count = dtype.itemsize
        for length in shape:
            count *= length
        small = count <= largest
        places.append(total if small else -1)
        total += -(-count // _ALIGNMENT) * _ALIGNMENT if small else 0
    block, address = _allocate(total)
    offset = address - block.ctypes.data
    try:
        return [
            np.ndarray(shape, dtype, block, offset + place) if place >= 0 else None
            for (shape, dtype), place in zip(kinds, places, strict=True)
        ]
    except ValueError as error:  # an empty array, of which NumPy counts the other axes
        raise InputError(f"arrays of these shapes cannot be made: {error}") from None


def _dense(array: Array) -> Array:
    """The array, or a copy of it that is dense and aligned."""
    try:
        return np.require(array, requirements=["C", "A"])
    except MemoryError:
        raise _no_memory(array.nbytes) from None


def _new(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # ValueError: more bytes than there are addresses
        raise _no_memory(math.prod(shape) * dtype.itemsize) from None


def _no_memory(size: int) -> InputError:
    return InputError(
        f"a run on inputs of these shapes needs {size >> 20} MB more memory than there is: "
        "give smaller batches, or smaller numbers where sizes are read from an input"
    )


def _allocate(size: int) -> tuple[NDArray[np.uint8], int]:
    """Memory and the first aligned address in it."""
    try:
        memory = np.empty(size + _ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):
        raise _no_memory(size) from None
    return memory, -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
