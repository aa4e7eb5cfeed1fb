"""Winograd's convolutions: matrices, kernels of all sizes against the definition, rounding, the choice."""

import functools
import itertools
from dataclasses import dataclass, replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.algorithm import (
    GAIN,
    MOST_ERROR,
    Algorithm,
    precise_enough,
    rounding_error,
    suited_algorithm,
)
from hasten.codegen.convolution import find_convolution
from hasten.codegen.fuse import fuse
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.schedule import Schedule, Schedules, candidate_schedules, product_shape
from hasten.codegen.winograd_transforms import transforms
from hasten.loops.descriptions import Gemm
from hasten.loops.dtypes import DType
from hasten.target import Target, native, runs_here

TARGETS = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
WINOGRAD = (Algorithm.WINOGRAD_2, Algorithm.WINOGRAD_4)
RNG = np.random.default_rng(0)
TOLERANCE = 1e-5
"""Of the largest result: transforms lose two or three bits where sums cancel."""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def always(algorithm, programs, target, precision=DType.F32):
    """For each program the schedules that use an algorithm for everything that allows it."""
    lowered = [lower_program(p, target, precision=precision) for p in programs]
    shapes = [[k.product.shape for k in one.kernels if k.product] for one in lowered]
    assert all(shape.allows_winograd for found in shapes for shape in found)
    return [Schedules({str(shape): Schedule(algorithm) for (shape,) in [found]}) for found in shapes]


def compiled(programs, algorithm, target, parallel=False, precision=DType.F32):
    schedules = always(algorithm, programs, target, precision)
    return compile_programs(programs, target, parallel=parallel, schedules=schedules, precision=precision)


# Matrices


@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_the_matrices_compute_a_filter_exactly(algorithm):
    t = transforms(algorithm)
    d = [Fraction(int(i)) for i in RNG.integers(-9, 9, t.points)]
    g = [Fraction(int(i)) for i in RNG.integers(-9, 9, 3)]

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(times(t.weights, g), times(t.inputs, d), strict=True)]
    assert times(t.outputs, products) == [sum(d[i + k] * g[k] for k in range(3)) for i in range(t.results)]
    assert t.points == t.results + 2


@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_constants_are_exact_in_float32(algorithm):
    t = transforms(algorithm)
    values = [float(c) for row in (*t.inputs, *t.outputs) for c in row]
    assert [float(np.float32(v)) for v in values] == values


# Kernels

EPILOGUES = {
    "none": "y = Conv<pads = {pads}>(x, w)",
    "relu": "p = Conv<pads = {pads}>(x, w, bias) y = Relu(p)",
    "residual": "p = Conv<pads = {pads}>(x, w, bias) r = Add(p, other) y = Relu(r)",
    "swish": "p = Conv<pads = {pads}>(x, w, bias) q = Sigmoid(p) y = Mul(p, q)",
}


@dataclass(frozen=True)
class Case:
    """A convolution of any number of images of any size, or of one image of a given size."""

    c_in: int
    c_out: int
    pads: tuple[int, int, int, int]
    epilogue: str
    size: tuple[int, int] | None = None

    def program(self):
        n, h, w = ("n", "h", "w0") if self.size is None else (1, *self.size)
        same = [by == 0 for by in self.result(0, 0)]
        named = (h if same[0] else "oh", w if same[1] else "ow")
        oh, ow = named if self.size is None else self.result(*self.size)
        other = f", float[{n}, {self.c_out}, {oh}, {ow}] other" if self.epilogue == "residual" else ""
        weights = {"w": normal(self.c_out, self.c_in, 3, 3), "bias": normal(self.c_out)}
        return program(
            f"(float[{n}, {self.c_in}, {h}, {w}] x{other}) => (float[{n}, {self.c_out}, {oh}, {ow}] y) "
            f"{{ {EPILOGUES[self.epilogue].format(pads=list(self.pads))} }}",
            {k: v for k, v in weights.items() if k == "w" or self.epilogue != "none"},
        )

    def result(self, h, w):
        top, left, bottom, right = self.pads
        return h + top + bottom - 2, w + left + right - 2

    def feeds(self, n, h, w):
        """Random inputs, or None where the window is larger than the picture."""
        oh, ow = self.result(h, w)
        if oh < 1 or ow < 1:
            return None
        feeds = {"x": normal(n, self.c_in, h, w)}
        return feeds | ({"other": normal(n, self.c_out, oh, ow)} if self.epilogue == "residual" else {})


CHANNELS = [(16, 32), (17, 40), (32, 16), (70, 70), (40, 65), (48, 8), (33, 33), (64, 48)]
PADS = [(1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 2, 1), (0, 3, 1, 0), (5, 1, 1, 4)]
SIZES = [(1, 1, 1), (2, 2, 5), (1, 4, 3), (3, 9, 8), (1, 7, 30), (1, 30, 13), (2, 17, 16), (0, 6, 6)]
FIXED = [(1, 1), (2, 7), (4, 4), (9, 6), (14, 14), (30, 29)]
FREE_CASES = [
    Case(*c, p, e)
    for c, p, e in zip(CHANNELS, itertools.cycle(PADS), itertools.cycle(EPILOGUES), strict=False)
]
FIXED_CASES = [
    Case(*c, PADS[0], e, s)
    for c, e, s in zip(CHANNELS[::-1], itertools.cycle(EPILOGUES), FIXED, strict=False)
]


@functools.cache
def programs():
    return [case.program() for case in (*FREE_CASES, *FIXED_CASES)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_convolutions(algorithm, target):
    engines = compiled(programs(), algorithm, target, parallel=True)
    for case, engine in zip(FREE_CASES + FIXED_CASES, engines, strict=True):
        for n, h, w in SIZES if case.size is None else [(1, *case.size)]:
            feeds = case.feeds(n, h, w)
            if feeds is not None:
                agree(engine, feeds, (1, 2, 3), TOLERANCE)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_convolutions_of_what_is_stored_in_bf16(algorithm, target):
    def rounded(array):
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    even = [case for case in (*FREE_CASES, *FIXED_CASES) if case.c_in % 2 == 0]
    exact = [case.program() for case in even]
    exact = [replace(p, constants={n: rounded(a) for n, a in p.constants.items()}) for p in exact]
    engines = compiled(exact, algorithm, target, parallel=True, precision=DType.BF16)
    for case, engine in zip(even, engines, strict=True):
        for n, h, w in SIZES if case.size is None else [(1, *case.size)]:
            feeds = case.feeds(n, h, w)
            if feeds is not None:
                agree(engine, {n: rounded(a) for n, a in feeds.items()}, (1, 2, 3), TOLERANCE)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_nests_as_interpreted(algorithm, name):
    case = Case(17, 35, (2, 0, 0, 2), "residual")
    p, target = case.program(), Target.named(name)
    (schedules,) = always(algorithm, [p], target)
    engine = Interpreted.of(p, target, schedules=schedules)
    assert "winograd" in engine.lowered.kernels[-2].function.name
    agree(engine, case.feeds(2, 4, 6), (1, 3), TOLERANCE)


def test_few_tiles_are_divided_by_panels():
    case = Case(32, 128, (1, 1, 1, 1), "relu", (8, 8))
    for algorithm in WINOGRAD:
        (engine,) = compiled([case.program()], algorithm, native(), parallel=True)
        agree(engine, case.feeds(1, 8, 8), (1, 2, 3, 4), TOLERANCE)


def test_residual_blocks_by_default():
    """What is chosen without being told, one after the other: as in a network, from 3 channels to means."""
    text = "h0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0) r0 = Relu(h0) " + " ".join(
        f"a{i} = Conv<pads = [1, 1, 1, 1]>(r{i - 1}, v{i}, c) b{i} = Relu(a{i}) "
        f"d{i} = Conv<pads = [1, 1, 1, 1]>(b{i}, w{i}, c) e{i} = Add(d{i}, r{i - 1}) r{i} = Relu(e{i})"
        for i in (1, 2, 3)
    )
    weights = {f"{n}{i}": normal(32, 32, 3, 3) / np.float32(17) for n in "vw" for i in (1, 2, 3)}
    p = program(
        f"(float[n, 3, 60, 52] x) => (float[n, 32, 1, 1] y) {{ {text} y = GlobalAveragePool(r3) }}",
        {"w0": normal(32, 3, 3, 3), "c": normal(32), **weights},
    )
    names = [k.function.name for k in lower_program(p, native()).kernels]
    assert sum("winograd" in n for n in names) == 6
    (engine,) = compile_programs([p], native())
    agree(engine, {"x": normal(2, 3, 60, 52)}, (1, 2), TOLERANCE)


# Rounding


def convolution_of(channels, size):
    """A convolution of random numbers, compiled by each algorithm, and its error against float64."""
    case = Case(channels, 16, (1, 1, 1, 1), "none", (size, size))
    p, feeds = case.program(), case.feeds(1, size, size)
    (weight,) = (a for a in p.constants.values() if a.ndim == 4)
    padded = np.pad(feeds["x"][0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    exact = sum(
        np.einsum("oc,chw->ohw", weight[:, :, y, x].astype(np.float64), padded[:, y : y + size, x : x + size])
        for y, x in itertools.product(range(3), range(3))
    )
    return p, feeds, exact


DEPTHS = (16, 64, 256, 1024, 2048)


def test_the_error_that_is_expected_is_that_which_is_measured():
    """Root mean square of the error by that of the results, against float64, on all depths."""
    cases = [convolution_of(depth, 16) for depth in DEPTHS]
    for algorithm in Algorithm:
        programs = [p for p, _, _ in cases]
        shapes = [k.product.shape for p in programs for k in lower_program(p, native()).kernels if k.product]
        schedules = [Schedules({str(shape): Schedule(algorithm)}) for shape in shapes]
        engines = compile_programs(programs, native(), parallel=True, schedules=schedules)
        for depth, engine, (_, feeds, exact) in zip(DEPTHS, engines, cases, strict=True):
            error = engine.run(feeds)["y"][0] - exact
            measured = np.sqrt((error**2).mean() / (exact**2).mean())
            assert 1 / 1.6 <= measured / rounding_error(algorithm, depth) <= 1.6, (algorithm, depth, measured)


@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_what_products_are_off_by_counts_as_the_matrices_say(algorithm):
    t = transforms(algorithm)

    def square(row):
        return sum(float(c) ** 2 for c in row)

    points = [square(b) * square(g) for b, g in zip(t.inputs, t.weights, strict=True)]
    gains = [sum(float(a) ** 2 * n for a, n in zip(row, points, strict=True)) / 3 for row in t.outputs]
    assert np.mean(gains) == pytest.approx(GAIN[algorithm], rel=1e-3)


def test_where_rounding_would_be_too_much_another_algorithm_is_taken():
    deepest = {a: max(d for d in range(16, 1 << 16, 16) if a in precise_enough(d)) for a in WINOGRAD}
    assert deepest[Algorithm.WINOGRAD_4] < deepest[Algorithm.WINOGRAD_2]
    for algorithm, depth in deepest.items():
        assert rounding_error(algorithm, depth) <= MOST_ERROR < rounding_error(algorithm, depth + 16)
    depth = deepest[Algorithm.WINOGRAD_4]
    assert suited_algorithm(1, 56, 56, depth, 64) is Algorithm.WINOGRAD_4
    assert suited_algorithm(1, 56, 56, depth + 16, 64) is Algorithm.WINOGRAD_2
    assert suited_algorithm(1, 56, 56, 1 << 16, 64) is Algorithm.DIRECT
    p = Case(depth + 16, 16, (1, 1, 1, 1), "none", (32, 32)).program()
    (shape,) = (k.product.shape for k in lower_program(p, native()).kernels if k.product)
    assert {s.algorithm for s in candidate_schedules(shape, native())} == {
        Algorithm.DIRECT,
        Algorithm.WINOGRAD_2,
    }


def test_winograd_can_be_turned_off():
    p = Case(64, 64, (1, 1, 1, 1), "relu", (56, 56)).program()
    (shape,) = (k.product.shape for k in lower_program(p, native()).kernels if k.product)
    stored = {str(shape): Schedule(Algorithm.WINOGRAD_2)}
    for chosen in ({}, stored):
        assert Schedules(chosen).of(shape, native()).algorithm is not Algorithm.DIRECT
        assert Schedules(chosen, winograd=False).of(shape, native()).algorithm is Algorithm.DIRECT


# Which convolutions, and which algorithm

OTHERS = {
    "stride": "Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)",
    "stride along one axis": "Conv<pads = [1, 1, 1, 1], strides = [1, 2]>(x, w)",
    "dilation": "Conv<pads = [1, 1, 1, 1], dilations = [2, 2]>(x, w)",
    "groups": "Conv<pads = [1, 1, 1, 1], group = 2>(x, v)",
    "window": "Conv<pads = [1, 1, 1, 1]>(x, u)",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_of_this_kind(kind):
    weights = {"w": normal(32, 32, 3, 3), "v": normal(32, 16, 3, 3), "u": normal(32, 32, 3, 2)}
    used = {k: a for k, a in weights.items() if f", {k})" in OTHERS[kind]}
    p = program(f"(float[1, 32, 16, 16] x) => (float[1, 32, h, w0] y) {{ y = {OTHERS[kind]} }}", used)
    stages = [s for s in fuse(p) if isinstance(s.body, Gemm)]
    assert stages
    for s in stages:
        assert find_convolution(s) is None
        assert not product_shape(s, {}, frozenset(p.constants)).allows_winograd


def test_suited_algorithm():
    """The layers of ResNet-50 as measured (docs/decisions/0007-winograd.md), and degenerate ones."""
    chosen = [suited_algorithm(1, s, s, c, c) for s, c in ((56, 64), (28, 128), (14, 256), (7, 512))]
    assert chosen == [Algorithm.WINOGRAD_4] * 3 + [Algorithm.WINOGRAD_2]
    assert suited_algorithm(1, 3, 3, 256, 256) is Algorithm.DIRECT
    assert suited_algorithm(8, 7, 7, 512, 512) is Algorithm.WINOGRAD_4
    assert suited_algorithm(1, 1, 1, 64, 64) is Algorithm.DIRECT
    assert suited_algorithm(1, 224, 224, 3, 32) is Algorithm.DIRECT
