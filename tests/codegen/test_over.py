"""Results that are written in the memory of what they are made from."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.target import TARGETS, Target, runs_here

HERE = [t for t in TARGETS if runs_here(t)]
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((24, 24)).astype(np.float32) / 5,
    "g": RNG.standard_normal(24).astype(np.float32),
    "all": np.full(24, 2),
}


def graph(body, shape="n, 24"):
    return program(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} y = MatMul(last, w) }}", WEIGHTS)


LAYERS = graph(
    "p = MatMul(x, w) a = LayerNormalization(p, g, g) q = MatMul(a, w) m = MatMul(q, w) "
    "r = Add(m, a) b = LayerNormalization(r, g, g) c = MatMul(b, w) last = Softmax(c)"
)


def over(p, target="x86-64-v4"):
    return {k.writes[0]: k.over for k in lower_program(p, Target.named(target)).kernels}


def test_normalized_rows_and_residual_sums_replace_what_they_read():
    found = over(LAYERS)
    assert found["a"] == "p" and found["r"] == "a" and found["b"] == "r" and found["last"] == "c"


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w) r = ReverseSequence<batch_axis = 1, time_axis = 0>(p, all) last = Add(p, r)",
        "p = MatMul(x, w) t = Transpose<perm = [1, 0]>(p) e = Exp(t) u = MatMul(e, p) last = MatMul(x, u)",
    ],
    ids=["reversed", "transposed"],
)
def test_what_other_rows_need_is_kept(body):
    assert set(over(graph(body)).values()) == {None}


def test_a_single_row_that_threads_share_is_kept():
    assert set(over(graph("p = MatMul(x, w) last = Softmax(p)", "1, 24")).values()) == {None}


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_results_are_the_same(target):
    (engine,) = compile_programs([LAYERS], target, parallel=True)
    for rows in (0, 1, 5, 40):
        x = RNG.standard_normal((rows, 24)).astype(np.float32)
        agree(engine, {"x": x}, (1, 2, 3), 1e-5)
        agree(Interpreted.of(LAYERS, target), {"x": x[:13]}, (1, 2), 1e-5)
