"""Kernels: a function of the loop IR together with the tensors and sizes it is called with."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.codegen.schedule import Product
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr, Var
from hasten.loops.nest import Function, Param

THREAD = Var(DType.I32, "thread")
THREADS = Var(DType.I32, "threads")
FAULT_PARAM = Param("fault", DType.U8, 1, writable=True)
"""Where a kernel reports a fault; a pointer to `hasten_fault` in C."""

TAIL_PARAMS = (
    FAULT_PARAM,
    Param("kernel", DType.I32),
    Param("thread", DType.I32),
    Param("threads", DType.I32),
)
"""Every kernel's last parameters: its index for fault reports, the thread and their number."""

SCRATCH = "scratch"
SCRATCH_PARAM = Param(SCRATCH, DType.F32, 1, writable=True)
"""Parameter of kernels that ask for scratch memory: this thread's own, as f32."""


def scratch_view(dtype: DType) -> Param:
    """Parameter: the same scratch memory as elements of a type."""
    return SCRATCH_PARAM if dtype is DType.F32 else Param(f"{SCRATCH}_{dtype}", dtype, 1, writable=True)


@dataclass(frozen=True)
class Kernel:
    """One step of a compiled part.

    Attributes:
        function: the code.
        helpers: functions that it calls, callees first.
        buffers: for each buffer parameter, the tensor that it gets.
        sizes: for each size parameter, its value at the call.
        work: number of elementary operations, to decide how many threads it deserves.
        writes: the tensors that it computes.
        over: a tensor that it reads in whose memory the first of these may lie, if nothing reads it later.
        scratch: bytes of arena that each thread needs for itself, 0 for none.
        title: what a person reads in a profile.
        flops: floating-point operations of its sums of products.
        bytes: what it reads and writes, once.
        factors: element type in which it multiplies.
        product: where it is the kernel of a product or convolution, which, and how it was built.
    """

    function: Function
    helpers: tuple[Function, ...]
    buffers: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[str, Expr], ...]
    work: Expr
    writes: tuple[str, ...]
    scratch: Expr
    title: str
    flops: Expr
    bytes: Expr
    factors: DType
    product: Product | None = None
    over: str | None = None
