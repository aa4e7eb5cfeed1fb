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
        for model in models:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor) and isinstance(tensor.raw, mmap.mmap):
                    tensor.raw.madvise(mmap.MADV_DONTNEED)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
