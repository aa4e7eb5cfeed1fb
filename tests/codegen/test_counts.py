"""Operations and bytes of kernels, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.graphs import program

from hasten.codegen.kernel import Kernel
from hasten.codegen.lower_stages import lower_program
from hasten.loops.dtypes import DType
from hasten.loops.expr import Expr
from hasten.loops.simplify import infix
from hasten.target import Target


def value(e: Expr, **sizes: int) -> int:
    return int(eval(infix(e), {"min": min, **sizes}))


def kernels(text: str, **constants: np.ndarray) -> tuple[Kernel, ...]:
    return lower_program(program(text, constants), Target.named("x86-64-v3")).kernels


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_product_with_bias_and_residual() -> None:
    (k,) = kernels(
        "(float[n, 48] x, float[n, 40] r) => (float[n, 40] y) "
        "{ p = MatMul(x, w) q = Add(p, c) y = Add(q, r) }",
        w=ones(48, 40),
        c=ones(40),
    )
    assert value(k.flops, n=7) == 2 * 7 * 48 * 40
    packed = 48 * 48  # columns are rounded up to half a panel
    assert value(k.bytes, n=7) == 4 * (7 * 48 + packed + 40 + 7 * 40 + 7 * 40)
    assert k.factors is DType.F32


@pytest.mark.parametrize(("groups", "per_group"), [(1, 16), (4, 16), (16, 1)])
def test_convolutions(groups: int, per_group: int) -> None:
    """Groups of few channels are multiplied together, zeros between them included, and counted so."""
    found = kernels(
        f"(float[n, 16, 9, 9] x) => (float[n, 16, 9, 9] y) {{ y = Conv<pads = [1, 1, 1, 1], group = {groups}>"
        "(x, w) }",
        w=ones(16, 16 // groups, 3, 3),
    )
    assert sum(value(k.flops, n=2) for k in found) == 2 * 2 * 16 * 81 * per_group * 9


def test_a_depthwise_kernel_reads_its_picture_once() -> None:
    found = kernels(
        "(float[n, 16, 9, 9] x) => (float[n, 16, 9, 9] y) "
        "{ y = Conv<pads = [1, 1, 1, 1], group = 16>(x, w) }",
        w=ones(16, 1, 3, 3),
    )
    (k,) = [k for k in found if value(k.flops, n=2)]
    assert value(k.bytes, n=2) == 4 * (2 * 2 * 16 * 81 + 16 * 9)


def test_attention() -> None:
    found = kernels(
        "(float[b, s, 64] q, float[b, t, 64] k, float[b, t, 64] v) => (float[b, s, 64] y) "
        "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }"
    )
    sizes = {"b": 3, "s": 5, "t": 7}
    (k,) = [k for k in found if value(k.flops, **sizes)]
    assert value(k.flops, **sizes) == 2 * 3 * 2 * 5 * 7 * (32 + 32)
    assert value(k.bytes, **sizes) == 4 * 3 * 64 * (5 + 7 + 7 + 5)


def test_of_a_table_only_the_rows_that_are_read_count() -> None:
    (k,) = kernels("(int64[n] i) => (float[n, 8] y) { y = Gather(table, i) }", table=ones(100, 8))
    assert value(k.flops, n=5) == 0
    assert value(k.bytes, n=5) == 5 * 8 + 4 * 2 * 5 * 8
    assert value(k.bytes, n=1000) == 1000 * 8 + 4 * (100 * 8 + 1000 * 8)


def test_a_reduction_counts_once_for_each_row() -> None:
    found = kernels("(float[n, 100] x) => (float[n, 100] y) { y = LayerNormalization(x, w, w) }", w=ones(100))
    assert sum(value(k.flops, n=3) for k in found) == 2 * 3 * 100  # the variance
