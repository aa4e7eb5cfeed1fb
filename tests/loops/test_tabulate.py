import numpy as np

from hasten.loops.dtypes import DType
from hasten.loops.expr import Load, Op, const, reduce, var
from hasten.loops.tabulate import tabulate


def test_a_sum_of_constants_for_each_column() -> None:
    w = np.arange(12, dtype=np.int32).reshape(3, 4)
    k, column = var("k", 3), var("column", 4)
    total = reduce("sum", (k,), Load(DType.I32, "w", (k, column)))
    table = tabulate(Op(DType.I32, "mul", (total, const(-2, DType.I32))), (column,), {"w": w, "other": w})
    np.testing.assert_array_equal(table, -2 * w.sum(axis=0))
    assert table.dtype == np.int32


def test_a_single_value_has_no_dimension() -> None:
    assert tabulate(const(2.5, DType.F32), (), {}).shape == ()
