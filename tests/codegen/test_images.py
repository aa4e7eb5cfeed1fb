"""Kernels that take one picture of a batch at a time: the same results as all pictures at once."""

import numpy as np
import pytest
from tests.codegen.engines import compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen import images, part
from hasten.codegen.lower_stages import lower_program
from hasten.loops.dtypes import DType
from hasten.target import Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def network(pictures="n", size=11):
    """A stem, two residual blocks and a depthwise convolution, then a mean: nothing after it has pictures."""
    constants = {"s": normal(16, 3, 3, 3) / 4, "a": normal(24, 16, 1, 1) / 4, "b": normal(24, 24, 3, 3) / 12}
    constants |= {"c": normal(16, 24, 1, 1) / 4, "k": normal(16, 1, 3, 3), "bias": normal(16)}
    block = "p{0} = Conv({1}, a) q{0} = Relu(p{0}) r{0} = Conv<pads = [1, 1, 1, 1]>(q{0}, b) "
    block += "t{0} = Conv(r{0}, c) u{0} = Add(t{0}, {1}) {2} = Relu(u{0}) "
    text = (
        "i = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, s, bias) "
        + block.format(1, "i", "j")
        + block.format(2, "j", "z")
        + "d = Conv<group = 16, pads = [1, 1, 1, 1]>(z, k) y = GlobalAveragePool(d)"
    )
    return program(
        f"(float[{pictures}, 3, {size}, {size}] x) => (float[{pictures}, 16, 1, 1] y, "
        f"float[{pictures}, 16, {(size + 1) // 2}, {(size + 1) // 2}] z) {{ {text} }}",
        constants,
    )


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    """Every run is taken that saves anything at all, and weights count for nothing."""
    monkeypatch.setattr(images, "LEAST_BYTES", 0)
    monkeypatch.setattr(images, "_saved", lambda *_: 1)


@pytest.mark.parametrize("few", [1, 4], ids=["a picture for each thread", "all threads on one picture"])
@pytest.mark.parametrize("precision", [DType.F32, DType.BF16])
@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_pictures_one_after_the_other(target, precision, few, monkeypatch):
    monkeypatch.setattr(part, "FEW_THREADS", few)
    programs = [network(), network(size=16)]
    for p, engine in zip(
        programs, compile_programs(programs, target, parallel=True, precision=precision), strict=True
    ):
        (run,) = lower_program(p, target, precision=precision).runs
        assert run.end - run.first >= 8
        size = 11 if p is programs[0] else 16
        for n in (0, 1, 2, 5):
            agree(
                engine, {"x": normal(n, 3, size, size)}, (1, 2, 3), 4e-6 if precision is DType.F32 else 2e-2
            )


def test_a_picture_has_the_same_result_in_every_batch():
    (engine,) = compile_programs([network()], native(), parallel=True)
    x = normal(5, 3, 11, 11)
    alone = [engine.run({"x": x[i : i + 1]}, 2)["z"] for i in range(5)]
    np.testing.assert_array_equal(engine.run({"x": x}, 2)["z"], np.concatenate(alone))


def test_what_mixes_pictures_ends_a_run():
    text = (
        "a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Relu(a) m = ReduceMax<keepdims = 1>(b, zero) c = Sub(b, m) "
    )
    p = program(
        "(float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) { " + text + "y = Conv<pads = [1, 1, 1, 1]>(c, w) }",
        {"w": normal(4, 4, 3, 3), "zero": np.array([0], np.int64)},
    )
    lowered = lower_program(p, native())
    mixed = next(i for i, k in enumerate(lowered.kernels) if "ReduceMax" in k.title)
    assert all(not r.first <= mixed < r.end for r in lowered.runs)
    (engine,) = compile_programs([p], native(), parallel=True)
    agree(engine, {"x": normal(3, 4, 8, 8)}, (1, 2), 1e-5)


def test_a_known_number_of_pictures_is_taken_at_once():
    assert lower_program(network(pictures="2"), native()).runs == ()
