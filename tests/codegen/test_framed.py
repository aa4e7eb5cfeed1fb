"""Padded copies of pictures of few channels (the first layer's input): row by row, without conditions."""

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.loops.dtypes import DType
from hasten.loops.nest import If, statements
from hasten.target import TARGETS, Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
RNG = np.random.default_rng(0)


def first_layer(channels, kernel, stride, pads, size=("h", "w")):
    weight = RNG.standard_normal((20, channels, *kernel)).astype(np.float32)
    return program(
        f"(float[n, {channels}, {size[0]}, {size[1]}] x) => (float[n, 20, oh, ow] y) "
        f"{{ y = Conv<strides = [{stride}, {stride}], pads = {list(pads)}>(x, k) }}",
        {"k": weight},
    )


CASES = [
    first_layer(3, (3, 3), 2, (0, 0, 1, 1)),
    first_layer(3, (7, 7), 2, (3, 3, 3, 3)),
    first_layer(1, (5, 3), 1, (2, 1, 2, 1)),
    first_layer(4, (3, 5), 3, (4, 5, 0, 2)),
    first_layer(2, (3, 3), 1, (0, 0, 0, 0)),
    first_layer(7, (1, 3), 1, (0, 1, 0, 1)),
]


def feeds_of(p, n, h, w):
    channels = int(p.inputs["x"].shape[1].value)
    return {"x": RNG.standard_normal((n, channels, h, w)).astype(np.float32)}


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_agrees_with_the_definition(target):
    for engine in compile_programs(CASES, target, parallel=True):
        for n, h, w in ((1, 7, 7), (2, 8, 20), (3, 19, 9), (0, 9, 9)):
            agree(engine, feeds_of(engine.program, n, h, w), (1, 2, 3))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_as_interpreted_nests(target):
    for p in CASES[:3]:
        agree(Interpreted.of(p, target), feeds_of(p, 2, 8, 9), (1, 2))


@pytest.mark.parametrize("precision", [DType.F32, DType.BF16])
def test_a_row_has_no_conditions(precision):
    p = first_layer(3, (3, 3), 2, (0, 0, 1, 1), (224, 224))
    (copy,) = [
        k for k in lower_program(p, Target.named("avx2"), precision=precision).kernels if "padded" in k.title
    ]
    branches = [s for s in statements(copy.function.body) if isinstance(s, If)]
    assert len(branches) == 1  # whether the row is in the picture at all


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_rounded_to_bf16(target):
    for engine in compile_programs(CASES, target, parallel=True, precision=DType.BF16):
        agree(engine, feeds_of(engine.program, 2, 11, 9), (1, 3), tolerance=2.0**-7)
