"""Sums that elements share are stages of their own where the loops would not share them."""

from hasten.codegen.shared_sums import share_sums
from hasten.codegen.stage import Stage
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Load, Var, binary, const, reduce, size

N, C, S = Var(INDEX, "n", size("n")), Var(INDEX, "c", const(32)), Var(INDEX, "s", const(100))
R = Var(INDEX, "r", const(100))
X = Load(DType.F32, "x", (N, C, S))


def stage(total):
    return Stage("y", DType.F32, (N, C, S), binary("sub", X, total), None, ("norm",))


def test_a_sum_for_each_channel_is_shared_where_channels_are_innermost():
    total = reduce("sum", (R,), Load(DType.F32, "x", (N, C, R)))
    assert share_sums(stage(total), (0, 1, 2), frozenset())[0] == []
    (shared,), rest = share_sums(stage(total), (0, 2, 1), frozenset({"y_sum"}))
    assert (shared.name, shared.vars, shared.body) == ("y_sum_", (N, C), total)
    assert rest.body == binary("sub", X, Load(DType.F32, "y_sum_", (N, C)))


def test_a_sum_for_each_group_is_computed_once_for_it():
    flat = binary("floordiv", C * 100 + S, const(400))
    total = reduce("sum", (R,), Load(DType.F32, "x", (N, flat, R)))
    (shared,), rest = share_sums(stage(total), (0, 1, 2), frozenset())
    assert [v.extent for v in shared.vars] == [const(8), size("n")] or [v.extent for v in shared.vars] == [
        size("n"),
        const(8),
    ]
    assert flat in rest.body.args[1].index


def test_what_falls_as_its_variables_rise_and_sums_of_few_stay():
    falling = binary("floordiv", 3199 - C * 100 - S, const(400))
    few = Var(INDEX, "r", const(4))
    for total in (
        reduce("sum", (R,), Load(DType.F32, "x", (N, falling, R))),
        reduce("sum", (few,), Load(DType.F32, "x", (N, C, few))),
    ):
        assert share_sums(stage(total), (0, 1, 2), frozenset())[0] == []
