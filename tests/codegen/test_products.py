"""Matrix products, convolutions and attention of all sizes: compiled C against the definition."""

import functools
import itertools

import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.lower_stages import lower_program
from hasten.loops.expr import Load, walk
from hasten.loops.nest import For, Store, statements
from hasten.target import Target, native, runs_here

TARGETS = [t for t in (Target.named("x86-64-v3"), native()) if runs_here(t)]
TARGETS = list(dict.fromkeys(TARGETS))
THREADS = (1, 2, 3)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# Matrix products

EPILOGUES = {
    "none": "y = MatMul(x, w)",
    "bias": "p = MatMul(x, w) y = Add(p, bias)",
    "relu": "p = MatMul(x, w) q = Add(p, bias) y = Relu(q)",
    "gelu": "p = MatMul(x, w) q = Add(bias, p) y = Gelu(q)",
    "residual": "p = MatMul(x, w) q = Add(p, bias) r = Tanh(q) y = Add(r, other)",
    "gated": "p = MatMul(x, w) q = Sigmoid(p) r = Mul(p, q) y = Mul(r, column)",
    "two readers": "p = MatMul(x, w) q = Relu(p) s = Neg(p) y = Mul(q, s)",
}


def matmul(k, n, epilogue):
    uses = EPILOGUES[epilogue]
    extra = (f", float[m, {n}] other" if "other" in uses else "") + (
        ", float[m, 1] column" if "column" in uses else ""
    )
    return program(
        f"(float[m, {k}] x{extra}) => (float[m, {n}] y) {{ {uses} }}",
        {"w": normal(k, n), **({"bias": normal(n)} if "bias" in uses else {})},
    )


def product_sizes():
    """Depths and columns around the widths of vectors, tiles and panels, and some at random."""
    edges = [(1, 1), (1, 33), (40, 1), (3, 15), (4, 16), (5, 17), (8, 31), (7, 32), (16, 47), (9, 48)]
    edges += [(2, 49), (33, 63), (32, 64), (31, 65), (40, 70), (50, 70), (61, 96), (48, 64)]
    edges += [(20, 8), (96, 16), (24, 24), (60, 24), (16, 40), (9, 56)]
    return edges + [(int(RNG.integers(1, 41)), int(RNG.integers(1, 71))) for _ in range(13)]


@functools.cache
def products():
    kinds = itertools.cycle(EPILOGUES)
    return [matmul(k, n, kind) for (k, n), kind in zip(product_sizes(), kinds, strict=False)]


def feeds_of(p, **sizes):
    """Random inputs; sizes by name."""
    feeds = {}
    for name, info in p.inputs.items():
        shape = [sizes[e.name] if hasattr(e, "name") else int(e.value) for e in info.shape]
        if info.dtype.is_float:
            feeds[name] = normal(*shape)
        elif info.dtype.value == "bool":
            feeds[name] = RNG.random(shape) < 0.7
        else:
            feeds[name] = RNG.integers(-5, 5, shape).astype(info.dtype.numpy)
    return feeds


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_products_with_a_constant(target):
    for number, engine in enumerate(compile_programs(products(), target, parallel=True)):
        for m in sorted(
            {0, 1, 2, 6, 7, 12, 13, 25, 30, 1 + (number * 7) % 30, 200 if number % 7 == 0 else 1}
        ):
            agree(engine, feeds_of(engine.program, m=m), THREADS)


@pytest.mark.parametrize(
    ("columns", "widths"), [(24, {16, 8}), (40, {16, 8}), (16, {16}), (8, {8}), (33, {16})]
)
def test_tiles_of_fewer_columns_are_finished_in_registers(columns, widths):
    """Of a last panel too, where its columns are whole vectors and half a one."""
    (kernel,) = lower_program(matmul(20, columns, "relu"), Target.named("x86-64-v4")).kernels
    stores = [s for s in statements(kernel.function.body) if isinstance(s, Store) and s.buffer == "out"]
    from_registers = {
        s.value.lanes
        for s in stores
        if any(isinstance(n, Load) and n.buffer == "sums" for n in walk(s.value))
    }
    assert from_registers == widths


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_single_row_at_the_end_goes_with_the_tile_before_it(target):
    """Wherever blocks and the parts of threads begin, the same tile takes a row."""
    p = matmul(70, 90, "bias")
    (engine,) = compile_programs([p], target)
    for m in (13, 25, 49, 97, 145, 193, 205, 385, 386):
        agree(engine, feeds_of(p, m=m), (1, 2, 3, 4, 5, 7, 16))


RUNTIME = [
    "(float[b, m, k] x, float[b, k, n] w) => (float[b, m, n] y) { y = MatMul(x, w) }",
    "(float[b, h, m, k] x, float[h, k, n] w) => (float[b, h, m, n] y) { y = MatMul(x, w) }",
    "(float[m, k] x, float[k, n] w, float[n] c) => (float[m, n] y) { p = MatMul(x, w) y = Add(p, c) }",
    "(float[m, k] x, float[n, k] w, float[n] c) => (float[m, n] y) "
    "{ y = Gemm<transB = 1, alpha = 0.5>(x, w, c) }",
    "(float[k, m] x, float[k, n] w) => (float[m, n] y) { y = Gemm<transA = 1>(x, w) }",
    "(float[k] x, float[b, k, n] w) => (float[b, n] y) { y = MatMul(x, w) }",
    "(float[b, m, k] x, float[k] w) => (float[b, m] y) { y = MatMul(x, w) }",
    "(float[b, m, h, k] x, float[b, n, h, k] w) => (float[b, h, m, n] y) "
    "{ p = Transpose<perm = [0, 2, 1, 3]>(x) q = Transpose<perm = [0, 2, 3, 1]>(w) y = MatMul(p, q) }",
    "(float[m, k] x, float[k, n] w) => (float[n, m] y) { p = MatMul(x, w) q = Relu(p) y = Transpose(q) }",
    "(float[m, k] x, float[k, n] w) => (float[m, n] y) { s = Softmax(x) p = MatMul(s, w) y = Softmax(p) }",
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_products_of_two_inputs(target):
    engines = compile_programs([program(t) for t in RUNTIME], target, parallel=True)
    sizes = [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 7, 33),
        (3, 2, 13, 40, 16),
        (1, 4, 30, 1, 70),
        (2, 1, 7, 16, 1),
        (5, 2, 1, 9, 48),
    ]
    for engine in engines:
        for b, h, m, k, n in sizes:
            agree(engine, feeds_of(engine.program, b=b, h=h, m=m, k=k, n=n), THREADS)
        agree(engine, feeds_of(engine.program, b=2, h=2, m=0, k=3, n=4))
        agree(engine, feeds_of(engine.program, b=0, h=2, m=2, k=3, n=4))
        agree(engine, feeds_of(engine.program, b=2, h=2, m=2, k=0, n=4))


# Convolutions

CONVOLUTIONS = [  # channels in, out, groups, kernel, strides, pads, dilations
    (3, 8, 1, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (16, 33, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    (5, 16, 1, (1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
    (4, 7, 1, (3, 2), (1, 1), (0, 1, 2, 0), (1, 1)),
    (6, 12, 2, (3, 3), (1, 2), (1, 1, 1, 1), (2, 1)),
    (9, 9, 9, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (16, 16, 16, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    (8, 16, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (12, 8, 4, (1, 3), (1, 1), (0, 1, 0, 1), (1, 1)),
    (1, 40, 1, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    (2, 3, 1, (4, 4), (3, 3), (5, 5, 5, 5), (1, 1)),
]


def convolution(c_in, c_out, groups, kernel, strides, pads, dilations, epilogue):
    attributes = (
        f"group = {groups}, kernel_shape = {list(kernel)}, strides = {list(strides)}, "
        f"pads = {list(pads)}, dilations = {list(dilations)}"
    )
    conv = f"p = Conv<{attributes}>(x, w, bias)"
    rest = {
        "none": "y = Identity(p)",
        "relu": "y = Relu(p)",
        "clip": "y = Clip(p, low, high)",
        "swish": "q = Sigmoid(p) y = Mul(p, q)",
        "residual": "q = HardSwish(p) r = Abs(p) y = Add(q, r)",
        "squeeze": "q = GlobalAveragePool(p) r = Sigmoid(q) y = Mul(p, r)",
    }[epilogue]
    return program(
        f"(float[b, {c_in}, h, w0] x) => (float[b, {c_out}, oh, ow] y) {{ {conv} {rest} }}",
        {
            "w": normal(c_out, c_in // groups, *kernel),
            "bias": normal(c_out),
            **({"low": np.float32(0), "high": np.float32(6)} if epilogue == "clip" else {}),
        },
    )


@functools.cache
def convolutions():
    kinds = itertools.cycle(["none", "relu", "clip", "swish", "residual", "squeeze"])
    return [convolution(*row, kind) for row, kind in zip(CONVOLUTIONS * 2, kinds, strict=False)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_convolutions(target):
    for engine in compile_programs(convolutions(), target, parallel=True):
        for b, h, w0 in ((1, 7, 9), (2, 12, 5), (1, 5, 17), (3, 8, 8), (0, 7, 7)):
            agree(engine, feeds_of(engine.program, b=b, h=h, w0=w0), THREADS)


CHAINS = [
    "(float[b, 3, h, w0] x) => (float[b, 8, h, w0] y, float[b, 16, h, w0] z) { "
    "p = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) q = Relu(p) r = Conv<pads = [1, 1, 1, 1]>(q, w2, b2) "
    "y = Add(q, r) z = Concat<axis = 1>(q, r) }",
    "(float[b, 3, h, w0] x) => (float[b, 8] y) { "
    "p = Conv<strides = [2, 2]>(x, w1, b1) q = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(p) "
    "r = GlobalAveragePool(q) s = Flatten(r) y = Softmax(s) }",
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_chains_of_convolutions(target):
    weights = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 8, 3, 3), "b2": normal(8)}
    programs = [program(t, {n: a for n, a in weights.items() if n in t}) for t in CHAINS]
    for engine in compile_programs(programs, target, parallel=True):
        for b, h, w0 in ((1, 9, 9), (2, 16, 11)):
            agree(engine, feeds_of(engine.program, b=b, h=h, w0=w0), THREADS)


# Attention


def attention(heads, kv_heads, size, value_size, mask="", causal=0, form=3):
    if form == 3:
        q, k, v = (f"b, s, {heads * size}", f"b, t, {kv_heads * size}", f"b, t, {kv_heads * value_size}")
        result, counts = f"b, s, {heads * value_size}", f"q_num_heads = {heads}, kv_num_heads = {kv_heads}, "
    else:
        q, k, v = f"b, {heads}, s, {size}", f"b, {kv_heads}, t, {size}", f"b, {kv_heads}, t, {value_size}"
        result, counts = f"b, {heads}, s, {value_size}", ""
    given = f", {mask} mask" if mask else ""
    used = ", mask" if mask else ""
    return program(
        f"(float[{q}] q, float[{k}] k, float[{v}] v{given}) => (float[{result}] y) "
        f"{{ y = Attention<{counts}is_causal = {causal}>(q, k, v{used}) }}"
    )


ATTENTIONS = [
    (2, 2, 16, 16, "", 0, 3),
    (3, 3, 5, 7, "", 0, 3),
    (4, 2, 8, 24, "float[s, t]", 0, 3),
    (4, 1, 32, 33, "float[b, 1, 1, t]", 0, 3),
    (2, 2, 40, 64, "bool[b, 1, s, t]", 0, 3),
    (1, 1, 1, 1, "bool[s, t]", 0, 4),
    (6, 3, 17, 48, "", 1, 4),
    (2, 2, 64, 32, "float[b, 2, s, t]", 1, 4),
    (2, 1, 9, 16, "bool[b, 2, s, t]", 1, 4),
]


@functools.cache
def attentions():
    return [attention(*row) for row in ATTENTIONS]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_attention(target):
    for engine in compile_programs(attentions(), target, parallel=True):
        for b, s, t in ((1, 1, 1), (2, 1, 17), (1, 13, 13), (2, 33, 40), (3, 7, 32), (1, 40, 5), (0, 3, 3)):
            feeds = feeds_of(engine.program, b=b, s=s, t=t)
            agree(engine, feeds, THREADS)
            if "mask" in feeds and s > 2:  # rows without any key, and without all but one
                blocked = False if feeds["mask"].dtype == bool else -np.inf
                feeds["mask"] = feeds["mask"].copy()
                feeds["mask"][..., :1, :] = blocked
                feeds["mask"][..., -1:, 1:] = blocked
                agree(engine, feeds, THREADS)


def projected(heads, size):
    """Queries, keys and values from one product."""
    width = heads * size
    weight = np.random.default_rng(0).standard_normal((48, 3 * width)).astype(np.float32) / 7
    return program(
        f"(float[b, s, 48] x, float[b, 1, 1, s] mask) => (float[b, s, {width}] y) "
        "{ p = MatMul(x, w) q, k, v = Split<axis = -1>(p, sizes) "
        f"y = Attention<q_num_heads = {heads}, kv_num_heads = {heads}>(q, k, v, mask) }}",
        {"w": weight, "sizes": np.array([width] * 3)},
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_thread_computes_the_same_stretch_of_queries_keys_and_values(target):
    programs = [projected(heads, size) for heads, size in ((2, 64), (6, 16), (3, 8))]
    for engine in compile_programs(programs, target, parallel=True):
        for b, s in ((1, 1), (2, 17), (1, 40)):
            agree(engine, feeds_of(engine.program, b=b, s=s), THREADS)
    divided = []
    for p in programs:
        (product, *_) = (k for k in lower_program(p, target).kernels if k.product is not None)
        divided.append(
            "part" in {s.var.name for s in statements(product.function.body) if isinstance(s, For)}
        )
    assert divided == [True, True, False]  # 24 columns are no whole panels


def test_large_scores_do_not_overflow():
    engine = compile_programs([attention(1, 1, 4, 4)], native())[0]
    feeds = {n: a * 1000 for n, a in feeds_of(engine.program, b=1, s=5, t=9).items()}
    agree(engine, feeds)


# The interpreter of nests


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
def test_nests_as_interpreted(name):
    target = Target.named(name)
    chosen = [*products()[2::9], *convolutions()[3:9:2], *attentions()[2:8:3]]
    for number, p in enumerate(chosen):
        feeds = feeds_of(p, m=7, b=1, h=6, w0=5, s=7, t=5)
        agree(Interpreted.of(p, target), feeds, ((1, 3) if number % 2 else (2,)))


def test_epilogues_that_wait_as_interpreted():
    p = matmul(48, 70, "residual")
    agree(Interpreted.of(p, Target.named("x86-64-v4")), feeds_of(p, m=27), (1, 2))
