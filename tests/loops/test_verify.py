import numpy as np
import pytest

from hasten.loops.descriptions import Attention, Gemm, RankSelect
from hasten.loops.dtypes import INDEX, DType
from hasten.loops.expr import (
    Address,
    Bounded,
    Const,
    Load,
    Op,
    Ramp,
    Reduce,
    Var,
    binary,
    cast,
    const,
    load,
    reduce,
    size,
    unary,
    var,
)
from hasten.loops.nest import Call, Declare, For, Function, If, Let, Param, Store
from hasten.loops.program import Definition, Element, Guard, Measured, Program, TensorInfo
from hasten.loops.verify import InvalidProgramError, verify
from hasten.loops.verify_nest import verify_function

F32, I32, BOOL = DType.F32, DType.I32, DType.BOOL
N = size("n")
I, K = var("i", N), var("k", N)  # noqa: E741 - the index
X = load("x", (I,), F32)


def program(body, *, dtype=F32, variables=(I,), name="y"):
    p = Program(constants={"w": np.zeros((2, 3), np.int32)})
    p.inputs["x"] = TensorInfo("x", F32, (N,))
    p.definitions[name] = Definition(name, dtype, variables, body, "Relu 'r'")
    p.outputs = [name]
    return p


def test_what_is_well_formed_passes():
    verify(program(unary("exp", X)))
    verify(program(reduce("max", (K,), binary("mul", X, load("x", (K,), F32)))))
    verify(program(binary("lt", cast(load("w", (0, 1), I32), F32), X), dtype=BOOL))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (load("z", (I,), F32), "reads a tensor that is not defined before"),
        (load("y", (I,), F32), "reads a tensor that is not defined before"),
        (load("x", (I, I), F32), "has 2 indices for 1 dimensions"),
        (load("x", (I,), DType.F64), "has type f64, the tensor f32"),
        (Load(F32, "x", (X,)), "has an index of type f32"),
        (load("x", (K,), F32), "is not bound here"),
        (load("x", (var("i", 3),), F32), "is not bound here"),
        (load("x", (size("m"),), F32), "is not a size of the inputs"),
        (Op(F32, "frobnicate", (X,)), "unknown operation 'frobnicate'"),
        (Op(F32, "exp", (X, X)), "has 2 operands, not 1"),
        (Op(F32, "add", (X, const(1, I32))), "operands of types f32, i32"),
        (Op(F32, "truncdiv", (X, X)), "has operands of type f32"),
        (Op(F32, "lt", (X, X)), "has type f32, not bool"),
        (Op(F32, "select", (X, X, X)), "has a condition of type f32"),
        (Op(F32, "select", (binary("lt", X, X), X, const(1, I32))), "chooses f32 or i32 as f32"),
        (Reduce(F32, "mean", (K,), X), "unknown reduction 'mean'"),
        (Reduce(F32, "sum", (I,), X), "binds i, which is bound around it"),
        (Reduce(F32, "sum", (Var(INDEX, "k"),), X), "without extent"),
        (Const(F32, 1), "is a int but has type f32"),
        (Ramp(F32, I, I), "belongs to loop nests only"),
        (const(1, I32), "the body is i32, the tensor f32"),
        (Op(F32, "exp", (X,), lanes=4), "more than one lane"),
    ],
)
def test_a_broken_definition_is_named(body, message):
    with pytest.raises(InvalidProgramError, match=r"y \(Relu 'r'\).*" + message):
        verify(program(body))


def test_contractions_keep_their_variables_apart():
    j = var("j", N)
    good = Gemm((), (I,), j, (), K, load("x", (K,), F32), load("x", (j,), F32))
    verify(program(good, variables=(I, j)))
    with pytest.raises(InvalidProgramError, match="not the definition's variables"):
        verify(program(good))
    b, h, t, d = (var(v, N) for v in "bhtd")
    attention = Attention(
        b, h, I, j, t, d, load("x", (d,), F32), load("x", (t,), F32), load("x", (j,), F32), 1.0
    )
    verify(program(attention, variables=(b, I, h, j)))
    with pytest.raises(InvalidProgramError, match="not the definition's variables"):
        verify(program(attention, variables=(b, I, h)))
    mixed = Gemm((), (I,), j, (), K, load("x", (j,), F32), load("x", (j,), F32))
    with pytest.raises(InvalidProgramError, match="operand a of a contraction depends on j"):
        verify(program(mixed, variables=(I, j)))


def test_the_program_around_its_definitions():
    p = program(X)
    p.outputs.append("nowhere")
    with pytest.raises(InvalidProgramError, match="output nowhere"):
        verify(p)
    p = program(X)
    p.guards.append(Guard(N, size("q"), "Add 'a'"))
    with pytest.raises(InvalidProgramError, match=r"a guard of Add 'a'.*q is not a size"):
        verify(p)
    p = program(X)
    p.derived["n"] = const(3)
    with pytest.raises(InvalidProgramError, match="derived size n is defined twice"):
        verify(p)
    with pytest.raises(InvalidProgramError, match="tensor x is defined twice"):
        verify(program(X, name="x"))
    with pytest.raises(InvalidProgramError, match="two dimensions have the same variable"):
        verify(program(X, variables=(I, I)))


def test_sizes_that_a_run_measures():
    ranks = RankSelect(var("which", 2), var("at", N + 1), I, binary("lt", const(0.0, F32), X))
    count = var("n", size("count"))

    def measuring(m):
        p = program(ranks, dtype=INDEX, variables=(ranks.which, ranks.at), name="ranks")
        p.definitions["z"] = Definition("z", F32, (count,), const(1.0, F32))
        p.definitions["y"] = Definition("y", F32, (), load("z", (0,), F32))
        p.measured["count"] = m
        p.outputs = ["y"]
        return p

    good = Measured("ranks", (const(0), N), N)
    verify(measuring(good))
    early = measuring(good)
    early.definitions = dict(sorted(early.definitions.items(), key=lambda d: d[0] == "ranks"))
    outside = measuring(good)
    outside.outputs = ["z"]
    for p, message in (
        (early, "extent of n: count is not a size"),
        (outside, "the shape of output z: count is not a size"),
        (measuring(Measured("x", (N,), N)), "x is not a definition"),
        (measuring(Measured("z", (const(0),), N)), "z is of f32"),
        (measuring(Measured("ranks", (N,), N)), "1 indices for 2 dimensions"),
        (measuring(Measured("ranks", (const(0), N), size("q"))), "q is not a size"),
    ):
        with pytest.raises(InvalidProgramError, match=message):
            verify(p)


def test_a_rank_counts_over_its_own_position():
    which, at = var("which", 2), var("at", N + 1)
    other = binary("lt", const(0), at)
    with pytest.raises(InvalidProgramError, match="depends on more than the position"):
        verify(program(RankSelect(which, at, I, other), dtype=INDEX, variables=(which, at)))
    with pytest.raises(InvalidProgramError, match="the variables of a rank are not the definition's"):
        verify(program(RankSelect(which, at, I, other), dtype=INDEX, variables=(at, which)))


NX, NOUT = Param("x", F32, 1), Param("out", F32, 1, writable=True)


def nest(*body, params=(NX, NOUT)):
    return Function("f", tuple(params), tuple(body))


ZERO = const(0)
AT = var("at")
X4 = load("x", (0,), F32, 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((Store("out", (ZERO,), Var(F32, "a")),), "a is not set before it is used"),
        ((Let(AT, ZERO), Let(AT, ZERO)), "at is declared twice in a block"),
        ((Let(Var(INDEX, "x"), ZERO),), "x hides a buffer"),
        ((For(AT, ZERO, ZERO, ()), Store("out", (AT,), const(0, F32))), "at is not set before"),
        ((Store("x", (ZERO,), const(0, F32)),), "x is not writable"),
        ((Store("y", (ZERO,), const(0, F32)),), "y is neither a parameter nor a local array"),
        ((Store("out", (ZERO, ZERO), const(0, F32)),), "out has 2 indices for 1 dimensions"),
        ((Store("out", (const(0, I32),), const(0, F32)),), "is an index of type i32"),
        ((Store("out", (ZERO,), const(0, I32)),), "is i32, out is of f32"),
        ((Store("out", (ZERO,), load("x", (0,), I32)),), "has type i32, the buffer f32"),
        ((Store("out", (ZERO,), Reduce(F32, "sum", (K,), const(0, F32))),), "was not scheduled"),
        ((Let(Var(F32, "a", lanes=4), const(0, F32)),), "a is f32x4, its value f32x1"),
        (
            (
                Store(
                    "out",
                    (ZERO,),
                    Op(F32, "add", (load("x", (0,), F32, 4), load("x", (0,), F32, 8)), lanes=8),
                ),
            ),
            "has 8 lanes, its operands \\[4, 8\\]",
        ),
        ((Store("out", (ZERO,), Op(F32, "abs", (const(0, F32),), lanes=4)),), "has lanes, none of its"),
        ((Store("out", (ZERO,), Op(F32, "total_sum", (const(0, F32),))),), "does not fold a vector"),
        ((Declare("a", F32), Store("a", (), load("x", (0,), F32, 4))), "is not a value of a, f32x1"),
        ((Store("out", (ZERO,), load("x", (Bounded(INDEX, ZERO, ZERO),), F32)),), "nowhere to report"),
        ((If(ZERO, ()),), "is a condition and not a boolean"),
        ((For(AT, ZERO, ZERO, (), step=0),), "the loop over at has step 0"),
        ((Call("g", ()),), "calls g, which is not known"),
        ((Call("f2", (ZERO,)),), "gives f2 1 of 2 arguments"),
        ((Call("f2", (ZERO, ZERO)),), "is i64, parameter x is f32"),
        ((Call("f2", (const(0, F32), const(0, F32))),), "does not fit parameter x"),
    ],
)
def test_broken_nests(body, message):
    other = Function("f2", (NX, NOUT), ())
    with pytest.raises(InvalidProgramError, match=message):
        verify_function(nest(*body), [other])


def test_a_parameter_name_stands_once():
    with pytest.raises(InvalidProgramError, match="two parameters have the same name"):
        verify_function(nest(params=(NX, NX)))


def test_well_formed_nests_pass():
    vector = load("x", (AT,), F32, 8)
    inner = (Let(Var(F32, "a", lanes=8), vector), Store("out", (AT,), Var(F32, "a", lanes=8)))
    again = For(AT, ZERO, const(8), inner, step=8)
    call = Call("f2", (Address(F32, "x", (ZERO,)), Address(F32, "out", (const(4),))))
    verify_function(nest(again, again, call), [Function("f2", (NX, NOUT), ())])


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (Element("w", (0, 1)), "is of no such tensor"),
        (Element("x", (0,)), "is of f32"),
        (Element("ids", (3,)), "which its shape may not have"),
        (Element("ids", (0, 0)), "which its shape may not have"),
    ],
)
def test_sizes_that_are_elements(element, message):
    p = program(binary("mul", X, cast(size("k", signed=True), F32)))
    p.inputs["ids"] = TensorInfo("ids", DType.I64, (const(3),))
    p.elements["k"] = Element("ids", (2,))
    verify(p)
    p.elements["k"] = element
    with pytest.raises(InvalidProgramError, match=message):
        verify(p)


def test_a_size_is_used_after_the_tensor_that_holds_it():
    p = program(binary("mul", X, cast(size("k", signed=True), F32)))
    p.definitions["count"] = Definition("count", INDEX, (), const(3))
    p.elements["k"] = Element("count", ())
    with pytest.raises(InvalidProgramError, match="is not a size"):
        verify(p)
    p.definitions["y"] = p.definitions.pop("y")
    verify(p)
