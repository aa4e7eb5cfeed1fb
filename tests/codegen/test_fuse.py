import numpy as np
import pytest
from tests.codegen.engines import Interpreted, compile_programs
from tests.codegen.graphs import agree, program

from hasten.codegen.fuse import cost, fuse, is_movement
from hasten.codegen.layout import assign_layouts, contiguous
from hasten.loops.descriptions import Attention, Gemm
from hasten.loops.dtypes import DType
from hasten.loops.expr import Op, binary, const, load, reduce, select, unary, var, walk
from hasten.target import Target, native

F32 = DType.F32
W = {"w": np.ones((8, 4), np.float32)}


def stages(text, constants=None):
    return fuse(program(text, constants))


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ("y = Relu(x)", 1),
        ("a = Relu(x) b = Exp(a) y = Neg(b)", 1),
        ("a = Transpose(x) y = Exp(a)", 1),
        ("a = Neg(x) b = Exp(a) c = Tanh(a) y = Add(b, c)", 1),  # a costs nothing to do twice
        ("a = Softmax(x) y = Neg(a)", 1),
        ("a = MatMul(x, w) b = Relu(a) y = Add(b, x)", 2),  # x is 8 wide and the product 4
    ],
)
def test_number_of_stages(nodes, count):
    wide = "[n, 4]" if "MatMul" in nodes else "[n, 8]"
    if "MatMul" in nodes:
        nodes, count = nodes.replace("Add(b, x)", "Neg(b)"), 1
    shape = "[8, n]" if "Transpose" in nodes else wide
    constants = W if "MatMul" in nodes else None
    assert len(stages(f"(float[n, 8] x) => (float{shape} y) {{ {nodes} }}", constants)) == count


@pytest.mark.parametrize("n", ["n", "3", "1"])  # along an axis of one element, readers say 0
def test_an_epilogue_takes_all_that_follows_element_by_element(n):
    text = "(float[n, 8] x, float[n, 4] r) => (float[n, 4] y) { a = MatMul(x, w) b = Add(a, r) y = Tanh(b) }"
    (only,) = stages(text.replace("[n", f"[{n}"), W)
    assert isinstance(only.body, Gemm)
    assert only.name == "y"
    assert only.epilogue is not None
    assert [o.split()[0] for o in only.origins] == ["MatMul", "Add", "Tanh"]


def test_a_product_that_is_a_result_itself_is_written():
    text = "(float[n, 8] x) => (float[n, 4] a, float[n, 4] y) { a = MatMul(x, w) y = Tanh(a) }"
    assert [s.name for s in stages(text, W)] == ["a", "y"]


def test_heads_are_split_inside_attention():
    text = (
        "(float[b, s, 24] q, float[b, t, 24] k) => (float[b, s, 24] y) "
        "{ y = Attention<q_num_heads = 3, kv_num_heads = 3>(q, k, k) }"
    )
    assert any(isinstance(s.body, Attention) for s in stages(text))
    assert len(stages(text)) <= 2


def test_stages_read_only_what_stands_before():
    text = (
        "(float[b, 3, h, w0] x) => (float[b, 8, h, w0] y) { p = Conv<pads = [1, 1, 1, 1]>(x, k) "
        "g = GlobalAveragePool(p) s = Sigmoid(g) m = Mul(p, s) y = Relu(m) }"
    )
    p = program(text, {"k": np.ones((8, 3, 3, 3), np.float32)})
    known = {*p.inputs, *p.constants}
    for s in fuse(p):
        assert set(s.reads()) <= known
        known.add(s.name)
    assert set(p.outputs) <= known


def test_a_convolution_reads_and_writes_channels_innermost():
    text = (
        "(float[b, 3, h, w0] x) => (float[b, 4, h, w0] y) "
        "{ p = Conv<pads = [1, 1, 1, 1]>(x, k1) q = Relu(p) y = Conv<pads = [1, 1, 1, 1]>(q, k2) }"
    )
    kernels = {"k1": np.ones((8, 3, 3, 3), np.float32), "k2": np.ones((4, 8, 3, 3), np.float32)}
    p = program(text, kernels)
    fixed = {n: p.info(n) for n in (*p.inputs, *p.constants)}
    done, layouts = assign_layouts(fuse(p), fixed, p.outputs)
    products = [s for s in done if isinstance(s.body, Gemm)]
    assert len(products) == 2
    for s in products:
        assert contiguous(s.body.a, s.body.depth, layouts)
        assert layouts[s.name].order[-1] == s.vars.index(s.body.column)
    assert layouts["x"].order == layouts["y"].order == (0, 1, 2, 3)  # the caller's memory


def test_cost_and_movement():
    i = var("i", 8)
    x = load("x", (i,), F32)
    assert cost(x) == 0
    assert cost(binary("add", x, binary("mul", x, x))) == 2
    assert cost(unary("exp", x)) > cost(unary("neg", x))
    assert cost(reduce("sum", (var("k", 9),), x)) >= 100
    assert is_movement(select(binary("lt", i, const(3)), x, const(0, F32)))
    assert not is_movement(select(Op(DType.BOOL, "lt", (x, const(0, F32))), x, const(0, F32)))
    assert not is_movement(unary("neg", x))


JOIN = "y = Concat<axis = 0>(z, r)"


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("(float[n, k] x, float[m] z) => (float[a] y)", "r = ReduceSum<keepdims = 0>(x, last) " + JOIN),
        ("(float[n, k] x, float[m, k] z) => (float[a, k] y)", "r = Softmax(x) " + JOIN),
        ("(float[n, k] x) => (float[a, k] y)", "r = Softmax(x) y = Pad(r, pads)"),
    ],
)
def test_sums_do_not_run_before_their_condition(signature, body):
    """What is joined or padded is read where it is; sums in front of the condition would read beyond it."""
    used = {"last": np.array([1]), "pads": np.array([2, 0, 1, 0])}
    p = program(f"{signature} {{ {body} }}", {name: a for name, a in used.items() if name in body})
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 5)).astype(np.float32)}
    if "z" in p.inputs:
        rows = (40, 5) if len(p.inputs["z"].shape) == 2 else (40,)
        feeds["z"] = rng.standard_normal(rows).astype(np.float32)
    agree(Interpreted.of(p, Target.named("x86-64-v3")), feeds, (1, 2))


def test_a_condition_that_is_no_border_stays_in_a_convolution_of_few_channels():
    text = "(float[n, 3, 9, 9] x) => (float[n, 4, 7, 7] y) { t = Trilu(x) y = Conv(t, w) }"
    rng = np.random.default_rng(0)
    p = program(text, {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)})
    for engine in compile_programs([p], native()):
        agree(engine, {"x": rng.standard_normal((2, 3, 9, 9)).astype(np.float32)}, (1, 2))


@pytest.mark.parametrize("value", ["", ", nought"])
def test_a_border_of_zeros_is_taken_in_whether_its_value_is_written_or_not(value):
    text = "(float[n, 8, h, w] x) => (float[n, 4, oh, ow] y) { p = Pad(x, pads@) y = Conv(p, k) }".replace(
        "@", value
    )
    constants = {
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "nought": np.float32(0),
        "k": np.ones((4, 8, 3, 3), np.float32),
    }
    assert [s.name for s in stages(text, constants)] == ["y"]


def test_what_several_elements_share_is_computed_once():
    grown = 'Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
    text = f"(float[1, 8, 9, 9] x) => (float[1, 8, 18, 18] y) {{ @ y = {grown}(t, , scales) }}"
    constants = {"k": np.ones((8, 1, 3, 3), np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    sums = stages(text.replace("@", "t = Conv<group = 8, pads = [1, 1, 1, 1]>(x, k)"), constants)
    assert [s.name for s in sums] == ["t", "y"]
    costly = stages(
        text.replace("@", "c = Conv<group = 8, pads = [1, 1, 1, 1]>(x, k) t = Gelu(c)"), constants
    )
    assert [s.name for s in costly] == ["t", "y"]
    assert [s.name for s in stages(text.replace("@", "t = Neg(x)"), constants)] == [
        "y"
    ]  # costs nothing to do twice
    parts = stages(
        "(float[n, 8] x) => (float[n, 4, 2] y) { e = Exp(x) y = Reshape(e, s) }", {"s": np.array([0, 4, 2])}
    )
    assert [s.name for s in parts] == ["y"]


GROUPS = "(float[n, 32, h, w] x, float[n, 64, h, w] r) => (float[n, 6, oh, ow] y) { @ }"
GROUPED = {
    "k": np.random.default_rng(0).standard_normal((64, 16, 3, 3)).astype(np.float32),
    "b": np.arange(64, dtype=np.float32),
    "w1": np.random.default_rng(1).standard_normal((6, 64, 1, 1)).astype(np.float32),
    "w3": np.random.default_rng(4).standard_normal((64, 32, 1, 1)).astype(np.float32),
    "behind": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
    "start": np.array([0]),
    "end": np.array([-1]),
    "axis": np.array([2]),
    "w2": np.random.default_rng(2).standard_normal((6, 32, 3, 3)).astype(np.float32),
}


@pytest.mark.parametrize(
    ("nodes", "taken"),
    [
        ("s = Add(g, r) a = Relu(s) y = Conv(a, w1)", 3),
        ("t = Sigmoid(g) a = Mul(g, t) y = Conv<group = 2, pads = [1, 1, 1, 1]>(a, w2)", 1),
        ("m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(g) y = Conv(m, w1)", 0),
        ("q = Conv(x, w3) s = Add(g, q) y = Conv(s, w1)", 2),  # reads what is computed after the product
        ("p = Pad(g, behind) y = Conv(p, w1)", 1),
        ("p = Concat<axis = 2>(g, r) y = Conv(p, w1)", 1),
        ("p = Concat<axis = 0>(g, r) y = Conv(p, w1)", 1),
        ("p = Slice(g, start, end, axis) q = Slice(r, start, end, axis) s = Add(p, q) y = Conv(s, w1)", 1),
    ],
)
def test_what_follows_groups_of_channels_is_their_epilogue(nodes, taken):
    """Unless it is read twice, or windows slide over it: they are for what is written."""
    head = "g = Conv<group = 2, pads = [1, 1, 1, 1]>(x, k, b) "
    p = program(GROUPS.replace("@", head + nodes), GROUPED)
    product = next(s for s in fuse(p) if s.name == "g_product")
    found = [] if product.epilogue is None else [n for n in walk(product.epilogue) if isinstance(n, Op)]
    assert sum(n.dtype is F32 for n in found) == taken  # bias, sum and activation
    (engine,) = compile_programs([p], native())
    shapes, rng = {"x": (2, 32, 7, 9), "r": (2, 64, 7, 9)}, np.random.default_rng(3)
    feeds = {n: rng.standard_normal(shapes[n]).astype(np.float32) for n in p.inputs}
    agree(engine, feeds, (1, 2), tolerance=2e-5)
