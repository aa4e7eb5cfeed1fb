"""Products around a depthwise convolution, run in bands of rows: against the definition."""

import itertools

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen import bands
from hasten.codegen.lower_stages import lower_program
from hasten.codegen.schedule import Order, Schedule, Schedules, Split
from hasten.loops.dtypes import DType
from hasten.target import Target, native, runs_here

HERE = list(dict.fromkeys(t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)))
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def block(
    size,
    channels=(5, 24, 7),
    kernel=(3, 3),
    stride=1,
    pads=(1, 1, 1, 1),
    kind="expand, project",
    residual=False,
):
    """An inverted residual block, or what of it `kind` names, over pictures [n, channel, h, w]."""
    first, wide, last = channels
    # A convolution of a window in front: it cannot be part of the chain, and writes channels innermost.
    constants = {"f": normal(first, 3, 3, 3) / 3, "k": normal(wide, 1, *kernel)}
    constants |= {"low": np.float32(0), "high": np.float32(2)}
    steps, source = ["i = Conv<pads = [1, 1, 1, 1]>(x, f)"], "i"
    if "expand" in kind:
        constants |= {"e": normal(wide, first, 1, 1), "eb": normal(wide)}
        steps.append("p = Conv(i, e, eb) q = Clip(p, low, high)")
        source = "q"
    steps.append(
        f"d = Conv<group = {wide}, strides = [{stride}, {stride}], pads = {list(pads)}>({source}, k) "
        "c = Clip(d, low, high)"
    )
    if "project" in kind:
        constants |= {"l": normal(last, wide, 1, 1)}
        steps.append("r = Conv(c, l) y = Add(i, r)" if residual else "y = Conv(c, l)")
    else:
        last = wide
        steps.append("y = Softmax<axis = 1>(c)")
    h, w = size
    return program(
        f"(float[n, 3, {h}, {w}] x) => (float[n, {last}, oh, ow] y) {{ {' '.join(steps)} }}", constants
    )


CASES = [
    block((9, 7)),
    block((9, 7), (16, 33, 16), residual=True),
    block((20, 5), (8, 17, 40), (5, 5), 2, (2, 2, 2, 2)),
    block((13, 16), (3, 8, 4), (3, 3), 2, (0, 0, 1, 1)),
    block((2, 3), kernel=(5, 3), pads=(2, 1, 2, 1)),
    block((2, 19), kernel=(5, 5), pads=(4, 2, 4, 2)),
    block((11, 7), kernel=(2, 2), stride=3, pads=(0, 0, 0, 0)),
    block((16, 6), (4, 70, 6), pads=(0, 1, 0, 1)),
    block((10, 8), (6, 48, 6), kind="expand"),
    block((10, 8), (32, 32, 9), (5, 5), 2, (1, 2, 2, 1), kind="project"),
    block((7, 12), (32, 32, 32), kind="project", residual=True),
]


@pytest.fixture(params=[1, 6 << 10], ids=["one row", "some rows"])
def always(request, monkeypatch):
    """Every chain is run in bands, of one row or of a few."""
    monkeypatch.setattr(bands, "WORTH_BYTES", 0)
    monkeypatch.setattr(bands, "BAND_BYTES", request.param)


def feeds_of(p, n):
    shape = [1 if hasattr(e, "name") else int(e.value) for e in p.inputs["x"].shape]
    return {"x": normal(n, *shape[1:])}


def bands_of(p):
    return [k for k in lower_program(p, Target.named("avx2")).kernels if "band" in k.function.name]


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_agrees_with_the_definition(target, always):
    for engine, p in zip(compile_programs(CASES, target, parallel=True), CASES, strict=True):
        assert len(bands_of(p)) == 1
        for n in (1, 3):
            agree(engine, feeds_of(p, n), (1, 2, 3))


def test_as_interpreted_nests(always):
    """Nothing is read from the ring before it was written there."""
    for p in CASES[:1] + CASES[3:5]:
        agree(Interpreted.of(p, Target.named("avx2")), feeds_of(p, 2), (1, 3))


def test_tensors_between_are_not_in_the_arena(always):
    (kernel,) = lower_program(CASES[0], Target.named("avx2")).kernels[2:-1]
    names = [kernel.function.name, *(f.name for f in kernel.helpers)]
    assert names == ["band_2", "band_2_window", "band_2_expand", "band_2_project"]
    assert {"d", "q"}.isdisjoint(t for _, t in kernel.buffers)


class Everywhere(dict):
    """One schedule for every kernel."""

    def get(self, key, default=None):
        return Schedule(split=Split.ROWS, order=Order.ROWS, row_block=48, tile_rows=4)


def test_schedules_measured_alone_are_not_for_bands(always):
    target = Target.named("avx2")
    plain, chosen = (
        {k.function.name: k for k in lower_program(CASES[0], target, schedules).kernels}
        for schedules in (Schedules(), Schedules(Everywhere()))
    )
    assert [name for name, k in plain.items() if k != chosen[name]] == ["product_1"]
    assert "band_2" in plain


def test_a_product_with_weights_in_codes_is_no_part_of_a_band(always):
    """Its kernel needs memory of its own."""
    text = (
        "(float[n, 16, 9, 7] x) => (float[n, 24, 9, 7] y) { wd = DequantizeLinear<axis = 0>(w, s) "
        "p = Conv(x, wd) y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p) }"
    )
    weight = RNG.integers(-127, 128, (24, 16, 1, 1)).astype(np.int8)
    p = program(text, {"w": weight, "s": RNG.uniform(0.01, 0.02, 24).astype(np.float32)})
    assert any(n.endswith("_scales") for n in lower_program(p, native()).constants)
    for engine in compile_programs([p], native()):
        agree(engine, {"x": normal(2, 16, 9, 7)}, (1, 2))


def test_small_pictures_are_left_alone():
    assert not bands_of(block((14, 14), (32, 192, 32)))
    assert bands_of(block((112, 112), (16, 96, 24)))


def test_a_tensor_with_another_reader_is_written_as_a_whole():
    text = (
        "(float[n, 8, 64, 64] x) => (float[n, 8, 64, 64] y) { q = Conv(x, e) s = Conv(q, w) "
        "d = Conv<group = 128, pads = [1, 1, 1, 1]>(q, k) r = Conv(d, w) y = Add(s, r) }"
    )
    constants = {"e": normal(128, 8, 1, 1), "k": normal(128, 1, 3, 3), "w": normal(8, 128, 1, 1)}
    written = [
        t for k in lower_program(program(text, constants), Target.named("avx2")).kernels for t in k.writes
    ]
    assert "q" in written and "d" not in written


def test_equal_blocks_share_their_functions(always):
    from hasten.codegen.module import share_functions

    e, k, w = normal(16, 8, 1, 1), normal(16, 1, 3, 3), normal(8, 16, 1, 1)
    layers = " ".join(
        f"q{i} = Conv(x{i}, e) d{i} = Conv<group = 16, pads = [1, 1, 1, 1]>(q{i}, k) x{i + 1} = Conv(d{i}, l)"
        for i in range(3)
    )
    text = f"(float[n, 8, 9, 9] x0) => (float[n, 8, 9, 9] y) {{ {layers} y = Relu(x3) }}"
    kernels, functions = share_functions(
        lower_program(program(text, {"e": e, "k": k, "l": w}), Target.named("avx2")).kernels, 0
    )
    assert len({k.function.name for k in kernels if "band" in k.function.name}) <= 2
    assert len([f for f in functions if f.name.endswith("window")]) == 1
    assert len(list(itertools.chain(functions))) == len({f.name for f in functions})


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_how_rows_are_cut_changes_no_bit(target, monkeypatch):
    """In bf16, where a sum that is rounded otherwise shows in what is stored and not only in the last bit."""

    def results(worth, size, threads):
        monkeypatch.setattr(bands, "WORTH_BYTES", worth)
        monkeypatch.setattr(bands, "BAND_BYTES", size)
        engines = compile_programs(CASES, target, parallel=True, precision=DType.BF16)
        return [e.run(f, n)["y"] for e, f in zip(engines, feeds, strict=True) for n in threads]

    feeds = [feeds_of(p, 2) for p in CASES]
    one, some, apart = results(0, 1, (1, 3)), results(0, 6 << 10, (2, 3)), results(1 << 40, 1, (1, 1))
    for a, b, whole in zip(one, some, apart, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, whole, rtol=0, atol=2.0**-7 * np.abs(whole).max())


@pytest.mark.parametrize("last", ["Add(d, q)", "Mul(d, q)"])
def test_a_window_whose_epilogue_reads_its_input_too(always, last):
    """The rows that it reads are in a ring, a whole picture is not."""
    text = f"""(float[n, 4, 12, 7] x) => (float[n, 16, 12, 7] y) {{ q = Conv(x, w)
        d = Conv<group = 16, pads = [1, 1, 1, 1]>(q, k) y = {last} }}"""
    p = program(text, {"w": normal(16, 4, 1, 1), "k": normal(16, 1, 3, 3)})
    for engine in compile_programs([p], native()):
        agree(engine, {"x": normal(3, 4, 12, 7)}, (1, 2))
