"""Inputs whose shapes contradict each other, beside memory that must not be touched.

A process that reads or writes beyond the end of an input dies, and `tests.processes` says at which case.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from tests import processes
from tests.onnx_suite.suite import Case

from hasten.errors import HastenError
from hasten.onnx_backend import HastenRep, prepare_all
from hasten.runtime.artifact import read_artifact
from hasten.runtime.session import Session, start

BATCH = 64
LIMITS = processes.Limits(seconds=120, first=480, bytes=8 << 30)


@dataclass(frozen=True)
class Found:
    """What became of the changed shapes of a case.

    Attributes:
        answered: how many had an answer.
        refused: how many ended in an error of ours.
        problems: other errors.
    """

    answered: int = 0
    refused: int = 0
    problems: tuple[str, ...] = ()


def chosen(cases: Sequence[Case]) -> list[Case]:
    """The first and the last case of each operator of ONNX's suite."""
    found: dict[str, list[Case]] = {}
    for c in cases:
        if c.kind == "node" and "expanded" not in c.name:
            found.setdefault(c.operators, []).append(c)
    return [c for some in found.values() for c in (some if len(some) < 2 else (some[0], some[-1]))]


def work(cases: Sequence[Case]) -> Iterator[Found]:
    """What became of the changed shapes of each case."""
    for at in range(0, len(cases), BATCH):
        some = cases[at : at + BATCH]
        for case, rep in zip(some, prepare_all([freed(c.model) for c in some], opener=_open), strict=True):
            if isinstance(rep, HastenRep):
                yield _examine(case, rep)
                rep.session.close()
            else:
                yield Found()


def freed(model: bytes) -> onnx.ModelProto:
    """A model whose inputs may have any lengths: each axis has a name of its own."""
    proto = onnx.load_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type"):
            for d, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"{value.name}_{d}"
    del proto.graph.value_info[:]
    return proto


def _open(path: Path) -> Session:
    """A session that works on the callers' arrays, not on copies."""
    artifact = read_artifact(path, verify="never")
    return Session(artifact, *start(artifact, 1, staged_bytes=-1))


def _examine(case: Case, rep: HastenRep) -> Found:
    answered, refused, problems = 0, 0, dict[str, None]()
    for inputs, _ in case.data:
        for changed in _changed(inputs):
            try:
                rep.run([fenced(a) if isinstance(a, np.ndarray) else a for a in changed])
                answered += 1
            except HastenError:
                refused += 1
            except Exception as error:  # noqa: BLE001 - any other is a finding
                problems[processes.described(error)] = None
    return Found(answered, refused, tuple(problems))


def _changed(inputs: Sequence[object]) -> Iterator[list[object]]:
    """The inputs, one of them shorter or longer along one axis."""
    for k, array in enumerate(inputs):
        if not isinstance(array, np.ndarray):
            continue
        for axis, length in enumerate(array.shape):
            for other in {length - 1, length + 1, 1, 0} - {length, -1}:
                if length:
                    yield [*inputs[:k], array.take(np.arange(other) % length, axis), *inputs[k + 1 :]]


def fenced(array: np.ndarray) -> np.ndarray:
    """A copy of an array of numbers that ends where memory ends: what is read behind it ends the process."""
    if array.dtype.kind not in "biuf" or array.dtype.hasobject:
        return array
    page = mmap.PAGESIZE
    whole = -(-max(array.nbytes, 1) // page) * page
    block = mmap.mmap(-1, whole + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + whole), ctypes.c_size_t(page), 0) != 0:
        raise OSError("memory cannot be protected")
    made = np.frombuffer(block, array.dtype, array.size, whole - array.nbytes).reshape(array.shape)
    made[...] = array
    return made
