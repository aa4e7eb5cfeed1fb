"""Reductions of rows: accumulators of all widths, and terms that are written as they are added."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program
from tests.codegen.kernels import source

from hasten.codegen.lower_stages import lower_program
from hasten.loops.expr import constant_int
from hasten.target import TARGETS, Target, native, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
RNG = np.random.default_rng(0)

LENGTHS = (1, 3, 7, 16, 60, 130, 1003)
BODIES = {
    "softmax": "y = Softmax(x)",
    "log softmax": "y = LogSoftmax(x)",
    "minimum": "y = ReduceMin<keepdims = 1>(x, last)",
    "read again": "e = Exp(x) p = Softmax(e) y = Mul(p, e)",
    "of another axis": "y = Softmax<axis = 0>(x)",
}


def rows(body, length):
    return program(f"(float[n, {length}] x) => (float[n, m] y) {{ {body} }}", {"last": np.array([1])})


def test_a_softmax_computes_each_power_once():
    text = source(rows(BODIES["softmax"], 64))
    kernel = text[text.index("void map_0") :]
    assert kernel.count("hasten_exp") == 1


def test_a_result_does_not_replace_what_is_read_after_its_terms_are_written():
    weights = {"w": np.ones((24, 24), np.float32)}
    for body, over in (("y = Softmax(p)", "p"), ("s = Softmax(p) y = Mul(p, s)", None)):
        p = program(
            f"(float[n, 24] x) => (float[n, 24] z) {{ p = MatMul(x, w) {body} z = MatMul(y, w) }}", weights
        )
        kernels = lower_program(p, Target.named("x86-64-v4")).kernels
        assert [k.over for k in kernels if k.writes[0] == "y"] == [over]


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_rows_of_all_lengths(target):
    programs = [rows(body, n) for body in BODIES.values() for n in (*LENGTHS, "m")]
    for engine in compile_programs(programs, target, parallel=True):
        length = constant_int(engine.program.inputs["x"].shape[1])
        for n in LENGTHS if length is None else (length,):
            x = RNG.standard_normal((5, n)).astype(np.float32)
            x[0, n // 2] = np.inf
            x[1, n - 1] = np.nan
            x[2] = -np.inf
            agree(engine, {"x": x}, (1, 2))


def test_rows_as_the_nests_say():
    target = Target.named("x86-64-v4")
    for body in BODIES.values():
        x = RNG.standard_normal((3, 90)).astype(np.float32)
        for length in (90, "m"):
            agree(Interpreted.of(rows(body, length), target), {"x": x}, (1, 2))


def test_the_mean_of_no_integers_is_zero():
    """Processors trap on division by zero."""
    p = program(
        "(int64[m, n] x) => (int64[m] y) { y = ReduceMean<keepdims = 0>(x, last) }", {"last": np.array([1])}
    )
    for engine in compile_programs([p], native()):
        for n in (0, 1, 7):
            agree(engine, {"x": np.arange(2 * n).reshape(2, n)}, (1, 2))
