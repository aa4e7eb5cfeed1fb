"""Memory that a process gives back before others take some: compilers, and the candidates of a search."""

from __future__ import annotations

import ctypes
import mmap

import onnx_ir as ir


def give_back(*models: ir.Model) -> None:
    """Lets go of pages that are not needed now.

    Weights in mapped files stay readable, and take no memory until they are read again. What was freed within
    the heap goes back to the system, where the C library can do that (glibc).

    Args:
        models: whose weights may be in mapped files.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        tensors = [value.const_value for model in models for value in model.graph.initializers.values()]
        maps = {id(t.raw): t.raw for t in tensors if isinstance(t, ir.ExternalTensor)}
        for found in maps.values():
            if isinstance(found, mmap.mmap):
                found.madvise(mmap.MADV_DONTNEED)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
