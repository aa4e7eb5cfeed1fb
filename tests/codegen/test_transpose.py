"""Blocks transposed in registers."""

import numpy as np
import pytest

from hasten.codegen.tiles import group
from hasten.codegen.transpose import transpose_function
from hasten.loops.dtypes import DType
from hasten.loops.interpret import Pointer, interpret
from hasten.loops.verify_nest import verify_function
from hasten.target import TARGETS


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_rows_become_columns(target, dtype):
    lanes, size = target.vector_bytes // 4, group(dtype)
    f = transpose_function(target, dtype)
    verify_function(f, ())
    source = np.arange(lanes * 40).reshape(lanes, 40).astype(dtype.numpy)
    result = np.zeros((lanes, 64), dtype.numpy)
    rows = [Pointer(row) for row in source]
    interpret(f, [Pointer(rows), 3, result.reshape(-1), 64])
    block = source[:, 3 : 3 + lanes * size].reshape(lanes, lanes, size)
    np.testing.assert_array_equal(
        result[:, : lanes * size].reshape(lanes, lanes, size), block.transpose(1, 0, 2)
    )
