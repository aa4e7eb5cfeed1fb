import math

import numpy as np
import pytest

from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import Address, Bounded, Expr, Load, Op, Ramp, Var, const, size
from hasten.loops.interpret import Fault, NestError, Pointer, interpret, uninitialized
from hasten.loops.nest import Call, Comment, Declare, For, Function, If, Let, Param, Prefetch, Store
from hasten.loops.verify_nest import verify_function

F32, BOOL = DType.F32, DType.BOOL
X, OUT = Param("x", F32, 1), Param("out", F32, 1, writable=True)
I, J = Var(INDEX, "i"), Var(INDEX, "j")  # noqa: E741 - the index
N = size("n")
TAIL = (Param("fault", DType.U8, 1, writable=True), Param("kernel", DType.I32))


PARAMS = (X, OUT, Param("size_n", INDEX))


def function(*body, params=PARAMS):
    return Function("f", tuple(params), tuple(body))


def x(index, lanes=1):
    return Load(F32, "x", (index,), lanes=lanes)


def ramp(count):
    return np.arange(count, dtype=np.float32)


def run(*body, data, out, n=0):
    f = function(*body)
    verify_function(f)
    interpret(f, [data, out, n])
    return out


def test_a_loop_over_elements():
    double = Store("out", (I,), Op(F32, "add", (x(I), x(I))))
    body = (Comment("doubles"), Prefetch("x", (const(0),)), For(I, const(0), N, (double,), step=2))
    found = run(*body, data=ramp(5), out=np.zeros(5, np.float32), n=5)
    np.testing.assert_array_equal(found, [0, 0, 4, 0, 8])


def test_vectors_are_contiguous_strided_or_gathered():
    places = Ramp(INDEX, const(1), const(2), lanes=4)
    value = Op(F32, "add", (x(const(4), 4), x(places, 4)), lanes=4)
    found = run(Store("out", (const(2),), value), data=ramp(9), out=np.zeros(8, np.float32))
    np.testing.assert_array_equal(found, [0, 0, 5, 8, 11, 14, 0, 0])


def test_accumulators_and_folding_by_halves():
    total = Var(F32, "total", lanes=4)
    update = Store("total", (), Op(F32, "add", (total, x(I, 4)), lanes=4))
    folded = Op(F32, "total_sum", (total,))
    body = (
        Declare("total", F32, (), 4, value=const(0, F32)),
        For(I, const(0), N, (update,), step=4),
        Store("out", (const(0),), folded),
    )
    data = np.float32([1e8, 1, -1e8, 1, 0, 0, 0, 0])
    # (1e8 - 1e8) + (1 + 1), where left to right would lose the first 1
    assert run(*body, data=data, out=np.zeros(1, np.float32), n=8)[0] == 2


def test_local_arrays_hold_elements_vectors_and_pointers():
    table = Declare("table", F32, (2,), pointer=True)
    fill = For(I, const(0), const(2), (Store("table", (I,), Address(F32, "x", (I * 3,))),))
    block = Declare("block", F32, (2, 2), 2)
    row = Load(F32, "table", (I, J * 2), lanes=2)
    copy = For(I, const(0), const(2), (For(J, const(0), const(2), (Store("block", (I, J), row),)),))
    flat = Load(F32, "block", (I, const(1)), lanes=2)
    write = For(I, const(0), const(2), (Store("out", (I * 2,), flat),))
    found = run(table, fill, block, copy, write, data=ramp(8), out=np.zeros(4, np.float32))
    np.testing.assert_array_equal(found, [2, 3, 5, 6])


def test_a_choice_evaluates_one_side_for_scalars_and_both_for_vectors():
    inside = Op(BOOL, "lt", (I, N))
    safe = Op(F32, "select", (inside, x(I), const(-1, F32)))
    loop = For(I, const(0), const(4), (Store("out", (I,), safe),))
    np.testing.assert_array_equal(run(loop, data=ramp(2), out=np.zeros(4, np.float32), n=2), [0, 1, -1, -1])
    wide = Op(BOOL, "lt", (Ramp(INDEX, const(0), const(1), lanes=4), N), lanes=4)
    both = Op(F32, "select", (wide, x(const(0), 4), const(-1, F32)), lanes=4)
    with pytest.raises(NestError, match="4 element"):
        run(Store("out", (const(0),), both), data=ramp(2), out=np.zeros(4, np.float32), n=2)


def test_branches_lets_and_conditions():
    low = Let(Var(BOOL, "low"), Op(BOOL, "le", (N, const(3))))
    body = (low, If(Var(BOOL, "low"), (Store("out", (const(0),), const(1, F32)),), ()))
    assert run(*body, data=ramp(1), out=np.zeros(1, np.float32), n=3)[0] == 1
    assert run(*body, data=ramp(1), out=np.zeros(1, np.float32), n=4)[0] == 0


def test_calls_pass_pointers_into_buffers_and_tables():
    pick = Function(
        "pick",
        (Param("rows", F32, 2), Param("to", F32, 1, writable=True)),
        (
            Declare("row", F32, (1,), pointer=True),
            Store("row", (const(0),), Load(F32, "rows", (const(1),))),
            Store("to", (const(0),), Load(F32, "row", (const(0), const(2)))),
        ),
    )
    table = Declare("table", F32, (3,), pointer=True)
    fill = For(I, const(0), const(3), (Store("table", (I,), Address(F32, "x", (I * 4,))),))
    call = Call("pick", (Address(F32, "table", (const(1),)), Address(F32, "out", (const(1),))))
    f = function(table, fill, call)
    verify_function(pick)
    verify_function(f, [pick])
    out = np.zeros(2, np.float32)
    interpret(f, [ramp(12), out, 0], {"pick": pick})
    np.testing.assert_array_equal(out, [0, 10])


@pytest.mark.parametrize(("index", "place"), [(0, 0), (4, 4), (-1, 4), (-5, 0)])
def test_an_index_from_data_counts_from_the_end_too(index, place):
    assert gather(index) == (place, None)


@pytest.mark.parametrize("index", [5, -6, 2**62])
def test_an_index_outside_reads_the_first_element_and_reports(index):
    assert gather(index) == (0, Fault(index, 5, 7))


def gather(index):
    value = x(Bounded(INDEX, Load(INDEX, "at", (const(0),)), const(5)))
    f = function(Store("out", (const(0),), value), params=(X, OUT, Param("at", INDEX, 1), *TAIL))
    verify_function(f)
    out = np.zeros(1, np.float32)
    fault = interpret(f, [ramp(5), out, np.array([index]), np.zeros(1, np.uint8), 7])
    return out[0], fault


def value_of(e: Expr, **values):
    params = [Param(n, DType.of(np.asarray(v).dtype) or INDEX) for n, v in values.items()]
    out = np.zeros(1, e.dtype.numpy)
    f = function(Store("out", (const(0),), e), params=(Param("out", e.dtype, 1, writable=True), *params))
    verify_function(f)
    interpret(f, [out, *values.values()])
    return out[0]


def test_arithmetic_is_in_the_element_type():
    a, b = Var(DType.U8, "a"), Var(DType.U8, "b")
    assert value_of(Op(DType.U8, "add", (a, b)), a=np.uint8(250), b=np.uint8(10)) == 4
    big = Op(F32, "add", (Var(F32, "x"), const(1.0, F32)))
    assert value_of(big, x=np.float32(2**24)) == 2**24
    assert value_of(Op(INDEX, "truncdiv", (Var(INDEX, "a"), const(2))), a=-3) == -1
    assert value_of(Op(INDEX, "floordiv", (Var(INDEX, "a"), const(2))), a=-3) == -2
    assert math.isnan(value_of(Op(F32, "max", (Var(F32, "x"), const(1.0, F32))), x=np.float32("nan")))
    assert value_of(Op(DType.I32, "bitcast", (Var(F32, "x"),)), x=np.float32(1)) == 0x3F800000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((Store("out", (const(3),), const(0, F32)),), "element.* at 3 of out, which has 3"),
        ((Store("out", (const(-1),), const(0, F32)),), "at -1 of out"),
        ((Store("out", (const(0),), x(const(2), 4)),), "4 element.* at 2 of x"),
        ((Store("out", (const(0),), Var(F32, "a")),), "a is used before it is set"),
        ((Store("a", (), const(0, F32)),), "a is set before it is declared"),
        ((Store("a", (const(0),), const(0, F32)),), "a is neither a parameter nor a local"),
        (
            (Declare("t", F32, (2, 2)), Store("t", (const(0), const(2)), const(0, F32))),
            r"index \[0, 2\] of t",
        ),
        (
            (
                Declare("t", F32, (1,), pointer=True),
                Store("out", (const(0),), Load(F32, "t", (const(0), const(0)))),
            ),
            r"t\[0\] is read before it is set",
        ),
    ],
)
def test_what_c_leaves_undefined_is_an_error(body, message):
    with pytest.raises(NestError, match=message):
        interpret(function(*body), [ramp(5), np.zeros(3, np.float32), 0])


def test_memory_that_was_not_written_is_conspicuous():
    assert np.isnan(uninitialized(F32, 3)).all()
    body = (Declare("t", F32, (2,)), Store("out", (const(0),), Load(F32, "t", (const(1),))))
    assert math.isnan(run(*body, data=ramp(1), out=np.zeros(1, np.float32))[0])


def test_a_pointer_reaches_back_into_its_memory():
    assert Pointer(ramp(4), 3).at(-2) == 1
