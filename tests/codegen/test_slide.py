"""Depthwise convolutions and pooling of all sizes: compiled C, interpreted nests and the definition."""

import functools
import itertools

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.fuse import fuse
from hasten.codegen.layout import Layout, assign_layouts
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.slide import find_slide
from hasten.codegen.slide_kernel import choose_block
from hasten.target import TARGETS, Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
THREADS = (1, 2, 3)
RNG = np.random.default_rng(0)

EPILOGUES = {
    "none": "y = Transpose<perm = [0, 2, 3, 1]>(t)",
    "clip": "u = Clip(t, zero, six) y = Transpose<perm = [0, 2, 3, 1]>(u)",
    "silu": "s = Sigmoid(t) u = Mul(t, s) y = Transpose<perm = [0, 2, 3, 1]>(u)",
    "residual": "u = Relu(t) v = Transpose<perm = [0, 2, 3, 1]>(u) y = Add(v, other)",
}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def depthwise(
    channels,
    kernel=(3, 3),
    strides=1,
    pads=(1, 1, 1, 1),
    epilogue="none",
    *,
    size=("h", "w"),
    dilation=1,
    multiplier=1,
):
    """A depthwise convolution over channels that lie innermost: x and y are [n, height, width, channel]."""
    h, w = size
    outputs = channels * multiplier
    other = f", float[n, {h}, {w}, {outputs}] other" if epilogue == "residual" else ""
    constants = {"k": normal(outputs, 1, *kernel), "b": normal(outputs)}
    if epilogue == "clip":
        constants |= {"zero": np.float32(0), "six": np.float32(1)}
    return program(
        f"(float[n, {h}, {w}, {channels}] x{other}) => (float[n, oh, ow, {outputs}] y) "
        "{ p = Transpose<perm = [0, 3, 1, 2]>(x) "
        f"t = Conv<group = {channels}, kernel_shape = {list(kernel)}, strides = [{strides}, {strides}], "
        f"pads = {list(pads)}, dilations = [{dilation}, {dilation}]>(p, k, b) {EPILOGUES[epilogue]} }}",
        constants,
    )


def cases():
    """Channels around the widths of vectors and blocks; every window, stride, padding and epilogue."""
    windows = [
        ((3, 3), 1, (1, 1, 1, 1)),
        ((3, 3), 2, (1, 1, 1, 1)),
        ((5, 5), 1, (2, 2, 2, 2)),
        ((5, 5), 2, (2, 2, 2, 2)),
        ((1, 3), 1, (0, 1, 0, 1)),
        ((3, 3), 2, (0, 0, 1, 1)),
        ((5, 5), 2, (1, 2, 2, 0)),
        ((3, 3), 1, (0, 0, 0, 0)),
        ((3, 7), 3, (0, 3, 4, 1)),
    ]
    channels = [1, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 48, 64, 70]
    kinds = [k for k in EPILOGUES if k != "residual"]
    several = zip(itertools.cycle(windows), channels + channels[::-1], itertools.cycle(kinds), strict=False)
    return [(c, *window, kind) for window, c, kind in several]


@functools.cache
def symbolic():
    return [depthwise(*case) for case in cases()]


def feeds_of(p, n, h, w):
    info = p.inputs["x"]
    return {"x": normal(n, h, w, int(info.shape[3].value))}


def fits(kernel, pads, h, w):
    return h + pads[0] + pads[2] >= kernel[0] and w + pads[1] + pads[3] >= kernel[1]


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_any_height_and_width(target):
    engines = compile_programs(symbolic(), target, parallel=True)
    for number, (engine, case) in enumerate(zip(engines, cases(), strict=True)):
        for h, w in [(1, 1), (2, 20), (20, 2), (7, 7), (3, 9), *RNG.integers(1, 21, (3, 2))]:
            if fits(case[1], case[3], h, w):
                agree(engine, feeds_of(engine.program, 1 + number % 2, h, w), THREADS)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_constant_sizes(target):
    sizes = [1, 3, 5, 7, 8, 13, 14, 16, 19, 20]
    programs = []
    for (c, kernel, strides, pads, kind), h, w in zip(
        cases(), itertools.cycle(sizes[::-1]), itertools.cycle(sizes[:-1]), strict=False
    ):
        if fits(kernel, pads, h, w):
            programs.append((depthwise(c, kernel, strides, pads, kind, size=(h, w)), h, w))
    for engine, (p, h, w) in zip(
        compile_programs([p for p, _, _ in programs], target, parallel=True), programs, strict=True
    ):
        agree(engine, feeds_of(p, 2, h, w), THREADS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_as_interpreted_nests(target):
    """Also what this machine cannot run; and local arrays start without values here."""
    for case, (h, w) in zip(cases()[::5], itertools.cycle([(4, 9), (1, 1), (5, 16)]), strict=False):
        p = depthwise(*case)
        if fits(case[1], case[3], h, w):
            agree(Interpreted.of(p, target), feeds_of(p, 1, h, w), (1, 2))


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_other_forms_agree(target):
    """Dilation, several outputs for a channel, a residual, no padding at all; whichever kernel takes them."""
    programs = [
        depthwise(24, pads=(2, 2, 2, 2), dilation=2),
        depthwise(12, multiplier=2),
        depthwise(40, epilogue="residual"),
        depthwise(33, kernel=(3, 1), pads=(1, 0, 1, 0)),
    ]
    for engine in compile_programs(programs, target, parallel=True):
        feeds = feeds_of(engine.program, 2, 9, 11)
        if "other" in engine.program.inputs:
            feeds["other"] = normal(2, 9, 11, 40)
        agree(engine, feeds, THREADS)


def pooling(op, channels, kernel, strides=1, pads=(0, 0, 0, 0), *, size=("h", "w"), **more):
    """Pooling over channels that lie innermost."""
    attributes = {"kernel_shape": list(kernel), "strides": [strides, strides], "pads": list(pads), **more}
    written = ", ".join(f"{k} = {v}" for k, v in attributes.items())
    h, w = size
    return program(
        f"(float[n, {h}, {w}, {channels}] x) => (float[n, oh, ow, {channels}] y) "
        f"{{ p = Transpose<perm = [0, 3, 1, 2]>(x) t = {op}<{written}>(p) "
        "y = Transpose<perm = [0, 2, 3, 1]>(t) }"
    )


POOLS = [
    ("MaxPool", 40, (3, 3), 2, (1, 1, 1, 1), {}),
    ("MaxPool", 32, (5, 5), 1, (2, 2, 2, 2), {}),
    ("MaxPool", 7, (3, 3), 2, (0, 0, 0, 0), {"ceil_mode": 1}),
    ("MaxPool", 16, (13, 13), 1, (6, 6, 6, 6), {}),
    ("MaxPool", 33, (2, 3), 1, (1, 2, 0, 1), {"dilations": [2, 2]}),
    ("MaxPool", 1, (2, 2), 2, (0, 0, 0, 0), {}),
    ("AveragePool", 33, (3, 3), 1, (1, 1, 1, 1), {}),
    ("AveragePool", 16, (3, 3), 1, (1, 1, 1, 1), {"count_include_pad": 1}),
    ("AveragePool", 24, (2, 2), 2, (0, 0, 0, 0), {}),
    ("AveragePool", 9, (3, 5), 3, (1, 2, 1, 2), {"ceil_mode": 1}),
    ("AveragePool", 12, (1, 3), 2, (0, 1, 0, 1), {"dilations": [1, 3]}),
]


@functools.cache
def pools():
    return [pooling(*case[:5], **case[5]) for case in POOLS]


def pictures(p, kernel, pads, dilations=(1, 1)):
    """Pictures that the window fits, some elements of which are no finite numbers."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    for h, w in [(1, 1), (2, 20), (20, 2), (7, 7), (5, 16), *RNG.integers(1, 21, (3, 2))]:
        if fits(reach, pads, h, w):
            feeds = feeds_of(p, 2, h, w)
            feeds["x"][0, h // 2, w // 2] = np.nan
            feeds["x"][1, : h // 2 + 1] = -np.inf
            yield feeds


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_pooling(target):
    for engine, (_, _, kernel, _, pads, more) in zip(
        compile_programs(pools(), target, parallel=True), POOLS, strict=True
    ):
        for feeds in pictures(engine.program, kernel, pads, more.get("dilations", (1, 1))):
            agree(engine, feeds, THREADS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_pooling_as_interpreted_nests(target):
    for p, (_, _, kernel, _, pads, more) in zip(pools()[::4], POOLS[::4], strict=True):
        names = [k.function.name for k in lower_program(p, target).kernels]
        assert any("window" in n for n in names), names
        feeds = next(pictures(p, kernel, pads, more.get("dilations", (1, 1))))
        agree(Interpreted.of(p, target), feeds, (1, 2))


def test_pooling_of_wide_windows_is_left():
    """A window over a whole row of a picture is a reduction, not one that slides."""
    p = pooling("AveragePool", 8, (40, 40), size=(40, 41))
    names = [k.function.name for k in lower_program(p, Target.named("avx2")).kernels]
    assert not any("window" in n for n in names), names


def test_which_stages_it_takes():
    dilated = depthwise(24, pads=(2, 2, 2, 2), dilation=2)
    taken = [depthwise(32), depthwise(5, (5, 5), 2), depthwise(32, epilogue="residual"), dilated]
    left = [depthwise(12, multiplier=2)]
    for p in taken + left:
        names = [k.function.name for k in lower_program(p, Target.named("avx2")).kernels]
        assert any("window" in n for n in names) == (p in taken), names


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("kernel", "strides"), [((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((5, 5), 2)])
def test_blocks_stay_in_registers(target, kernel, strides):
    for channels in (32, 96, 144, 240, 1152):
        p = depthwise(channels, kernel, strides, (kernel[0] // 2,) * 4, size=(28, 28))
        stages = fuse(p)
        _, layouts = assign_layouts(stages, {**p.inputs, **{n: p.info(n) for n in p.constants}}, p.outputs)
        layouts["k"] = Layout("k", layouts["k"].dtype, layouts["k"].shape, (1, 2, 3, 0))
        (slide,) = [s for s in (find_slide(stage, layouts) for stage in stages) if s]
        block = choose_block(slide, target)
        assert block.vectors * (block.positions + slide.taps + 1) < target.registers
        assert block.positions * block.vectors >= 7
        assert block.lanes * 4 == target.vector_bytes
