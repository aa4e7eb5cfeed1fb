"""Load a shared object from memory, and the thread pool that all of them share."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from hasten.errors import ArtifactError
from hasten.runtime.artifact import Artifact
from hasten.target import TARGETS, Target, best_here, describe_machine

ABI_VERSION = 1
_PREFIX, _SUFFIX = "code/", ".so"


class Fault(ctypes.Structure):
    """`hasten_fault` of hasten.h."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("kernel", ctypes.c_int32),
        ("value", ctypes.c_int64),
        ("limit", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """`hasten_call` of hasten.h."""

    _fields_ = (
        ("sizes", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("fault", Fault),
    )


class Library:
    """A loaded shared object; unloaded when the last reference is gone.

    Attributes:
        run: `hasten_run`, taking an int and a reference to a `Call`.
        plan: `hasten_plan`.
    """

    def __init__(self, code: memoryview) -> None:
        loaded, descriptor = _load(code)
        # Not at exit: other threads may still be in the code then.
        weakref.finalize(self, _unload, loaded._handle, descriptor).atexit = False
        try:
            version = loaded.hasten_abi_version()
            self.run: Any = loaded.hasten_run
            self.plan: Any = loaded.hasten_plan
            self._pool_create: Any = loaded.hasten_pool_create
            self._loaded = loaded
        except AttributeError as error:
            raise ArtifactError(f"its code was not made by hasten: {error}") from None
        if version != ABI_VERSION:
            raise ArtifactError(
                f"its code has version {version} of the C interface and this hasten uses version "
                f"{ABI_VERSION}: compile the model again"
            )
        self._pool_create.restype = ctypes.c_void_p

    def function(self, name: str) -> Any:
        """A function that this object exports beside the interface.

        Raises:
            AttributeError: It has none of this name.
        """
        return getattr(self._loaded, name)

    def create_pool(self) -> int | None:
        """The address of a new pool, or None if there is no memory for it."""
        pool: int | None = self._pool_create(0)
        return pool


def choose_code(artifact: Artifact) -> tuple[Target, memoryview]:
    """The best code in the artifact that runs on this machine.

    Raises:
        ArtifactError: There is none.
    """
    target = best_here([t for t in TARGETS if f"{_PREFIX}{t.name}{_SUFFIX}" in artifact.members])
    if target is not None:
        return target, artifact.members[f"{_PREFIX}{target.name}{_SUFFIX}"]
    held = sorted(
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        for name in artifact.members
        if name.startswith(_PREFIX)
    )
    raise ArtifactError(
        f"{artifact.path} has code for {', '.join(held) or 'no processor'}, and this machine is "
        f"{describe_machine()}: compile the model with --target for this machine"
    )


class _SharedPool:
    """The process's thread pool: made by the first library that needs one, kept to the end.

    This is the package's one module-level state. Each session having a pool of its own would put several
    threads on a core, and a pool passed from hand to hand would burden every caller with it. Threads start
    when runs ask for them, so no session needs another size of pool.
    """

    def __init__(self) -> None:
        self.unlock()
        self._pool: int | None = None
        self._owner: Library | None = None  # its code runs the threads, so it stays loaded

    def get(self, library: Library) -> int | None:
        with self._lock:
            if self._pool is None:
                self._pool = library.create_pool()
                self._owner = library
            return self._pool

    def unlock(self) -> None:
        """For the child of a fork, in which the thread that held the lock does not exist."""
        self._lock = threading.Lock()


_shared_pool = _SharedPool()
os.register_at_fork(after_in_child=_shared_pool.unlock)


def shared_pool(library: Library) -> int | None:
    """The address of the process's pool; made by `library` if there is none yet."""
    return _shared_pool.get(library)


def _load(code: memoryview) -> tuple[ctypes.CDLL, int | None]:
    """Loads from anonymous memory, or through a temporary file where that is not allowed."""
    if hasattr(os, "memfd_create"):
        descriptor = None
        try:
            descriptor = os.memfd_create("hasten")
            with open(descriptor, "wb", closefd=False) as file:
                file.write(code)
            # The descriptor stays open: the loader knows objects by name, and would take a later object
            # under the same /proc/self/fd/N for this one.
            return ctypes.CDLL(f"/proc/self/fd/{descriptor}"), descriptor
        except OSError:
            if descriptor is not None:
                os.close(descriptor)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix="hasten-", suffix=".so")
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        return ctypes.CDLL(name), None
    except OSError as error:
        raise ArtifactError(f"the system does not load the artifact's code: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def _unload(handle: int, descriptor: int | None) -> None:
    _ctypes.dlclose(handle)
    if descriptor is not None:
        os.close(descriptor)
