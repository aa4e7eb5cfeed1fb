"""Windows along rows of row-major pictures: compiled C, interpreted nests and the definition."""

import itertools

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.loops.expr import constant_int
from hasten.target import Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
RNG = np.random.default_rng(0)
FREE = ("h", "w")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def attributes(**given):
    return ", ".join(f"{name} = {value}" for name, value in given.items())


def depthwise(
    kernel, strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), size=FREE, each=1, finish="Relu(t)"
):
    """A convolution of single channels whose result is row-major."""
    constants = {"k": normal(3 * each, 1, *kernel), "b": normal(3 * each)}
    own = attributes(strides=list(strides), dilations=list(dilations), pads=list(pads), group=3)
    shape = ", ".join(map(str, size))
    dims = ", ".join(f"o{d}" for d in range(len(size)))
    head = f"(float[n, 3, {shape}] x) => (float[n, {3 * each}, {dims}] y)"
    return program(f"{head} {{ t = Conv<{own}>(x, k, b) y = {finish} }}", constants)


def pool(op, kernel, strides=(1, 1), pads=(1, 1, 1, 1), size=FREE, **more):
    own = attributes(kernel_shape=list(kernel), strides=list(strides), pads=list(pads), **more)
    shape = ", ".join(map(str, size))
    return program(f"(float[n, 3, {shape}] x) => (float[n, 3, oh, ow] y) {{ y = {op}<{own}>(x) }}")


PROGRAMS = [
    depthwise((3, 3)),
    depthwise((3, 3), size=(9, 70), each=2),
    depthwise((5, 3), strides=(2, 2), size=(21, 150)),
    depthwise((3, 3), strides=(1, 3), pads=(0, 2, 1, 0)),
    depthwise((3, 5), dilations=(2, 3), pads=(2, 6, 2, 6), finish="Sigmoid(t)"),
    depthwise((1, 7), pads=(0, 3, 0, 3)),
    depthwise((1, 3), pads=(2, 1, 1, 0), size=(5, 33)),
    depthwise((1, 2), strides=(3, 2), pads=(1, 2, 2, 1)),
    depthwise((7, 1), pads=(3, 0, 3, 0), size=(33, 18)),
    depthwise((7, 7), pads=(3, 3, 3, 3), size=(65, 40)),
    depthwise((9,), (1,), (1,), (4, 4), size=("w",)),
    depthwise((5,), (2,), (1,), (0, 3), size=(101,)),
    pool("MaxPool", (3, 3)),
    pool("MaxPool", (3, 3), strides=(2, 2), size=(24, 100)),
    pool("MaxPool", (5, 5), pads=(2, 2, 2, 2), dilations="[1, 1]", size=(20, 7)),
    pool("MaxPool", (2, 3), strides=(2, 2), pads=(0, 1, 1, 1), ceil_mode=1),
    pool("AveragePool", (3, 3)),
    pool("AveragePool", (3, 2), strides=(1, 2), count_include_pad=1),
    pool("AveragePool", (3, 3), strides=(2, 2), pads=(0, 0, 1, 1), ceil_mode=1, size=(35, 66)),
]
SIZES = ((1, 1), (3, 20), (6, 3), (33, 70), (34, 129))


def feeds(p):
    """Inputs of sizes that are free or as the program says."""
    fixed = [constant_int(n) for n in p.inputs["x"].shape[2:]]
    sizes = dict.fromkeys(
        tuple(size if known is None else known for size, known in zip(own, fixed, strict=False))
        for own in SIZES
    )
    for batch, size in itertools.product((2,), sizes):
        yield {"x": normal(batch, 3, *size)}


@pytest.mark.parametrize("p", PROGRAMS, ids=range(len(PROGRAMS)))
def test_every_one_is_such_a_window(p):
    for target in ("x86-64-v3", "x86-64-v4", "aarch64"):
        (kernel,) = lower_program(p, Target.named(target)).kernels
        assert kernel.function.name == "window_0"
        assert constant_int(kernel.scratch) != 0


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_compiled(target):
    for engine in compile_programs(PROGRAMS, target, parallel=True):
        for given in feeds(engine.program):
            agree(engine, given, (1, 2, 3))


@pytest.mark.parametrize("p", PROGRAMS[:16:3], ids=range(0, 16, 3))
def test_interpreted(p):
    given = next(itertools.islice(feeds(p), 1, None), None) or next(feeds(p))
    agree(Interpreted.of(p, Target.named("x86-64-v4")), {"x": given["x"][:1]}, (1, 2))


def test_windows_that_share_nothing_are_not_copied():
    p = pool("MaxPool", (2, 2), strides=(2, 2), pads=(0, 0, 0, 0))
    (kernel,) = lower_program(p, Target.named("x86-64-v4")).kernels
    assert kernel.function.name == "map_0"


def test_infinities_and_nan_in_a_picture():
    p = pool("MaxPool", (3, 3))
    (engine,) = compile_programs([p], HERE[0], parallel=True)
    x = normal(1, 3, 9, 40)
    x[0, 0] = -np.inf
    x[0, 1, 4, 7] = np.nan
    x[0, 2, 3, 9] = np.inf
    agree(engine, {"x": x})


def test_pictures_without_elements():
    programs = [
        pool("MaxPool", (3, 3), size=(5, 0)),
        pool("AveragePool", (1, 3), pads=(0, 1, 0, 1), size=(0, 5)),
    ]
    text = """(float[n, 8, 0, 300] x) => (float[n, 64, 0, 300] y)
        { a = Conv(x, wide) y = Conv<group = 64, pads = [1, 1, 1, 1]>(a, k) }"""
    programs.append(program(text, {"wide": normal(64, 8, 1, 1), "k": normal(64, 1, 3, 3)}))
    for engine in compile_programs(programs, native()):
        (name, info), *_ = engine.program.inputs.items()
        shape = (2, *(constant_int(n) for n in info.shape[1:]))
        agree(engine, {name: np.zeros(shape, np.float32)})
