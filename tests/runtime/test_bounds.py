"""Indices, counts and sizes that are out of range: an error that names the node, and no memory touched."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.parser
import pytest

import hasten
from hasten.errors import HastenError, InputError
from hasten.onnx_backend import HastenRep, prepare_all

INDEXING = {
    "Gather": "(float[n, 3] x, int64[m] i) => (float[m, 3] y) { [it] y = Gather (x, i) }",
    "Gather of the last axis": """(float[3, n] x, int64[m] i) => (float[3, m] y)
        { [it] y = Gather <axis = -1> (x, i) }""",
    "Gather by int32": "(float[n, 3] x, int32[m] i) => (float[m, 3] y) { [it] y = Gather (x, i) }",
    "GatherElements": "(float[n] x, int64[m] i) => (float[m] y) { [it] y = GatherElements (x, i) }",
    "GatherND": "(float[n, 3] x, int64[m, 1] i) => (float[m, 3] y) { [it] y = GatherND (x, i) }",
    "ScatterElements": """(float[5] x, int64[4] i, float[4] u) => (float[5] y)
        { [it] y = ScatterElements (x, i, u) }""",
    "ScatterElements with a sum": """(float[5] x, int64[4] i, float[4] u) => (float[5] y)
        { [it] y = ScatterElements <reduction = "add"> (x, i, u) }""",
    "ScatterND": """(float[5, 2] x, int64[4, 1] i, float[4, 2] u) => (float[5, 2] y)
        { [it] y = ScatterND (x, i, u) }""",
    "a table": """(int64[m] i) => (float[m, 2] y) <float[5, 2] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
        { [it] y = Gather (t, i) }""",
}  # fmt: skip

EMPTY = {
    "Relu": "(float[n, 3] x) => (float[n, 3] y) { y = Relu (x) }",
    "Add": "(float[n, 3] x, float[3] b) => (float[n, 3] y) { y = Add (x, b) }",
    "ReduceSum": "(float[n, 3] x) => (float[3] y) <int64[1] a = {0}> { y = ReduceSum <keepdims = 0> (x, a) }",
    "ReduceProd": """(float[n, 3] x) => (float[3] y) <int64[1] a = {0}>
        { y = ReduceProd <keepdims = 0> (x, a) }""",
    "MatMul": "(float[n, 3] x, float[3, 2] w) => (float[n, 2] y) { y = MatMul (x, w) }",
    "MatMul of no depth": "(float[3, n] x, float[n, 2] w) => (float[3, 2] y) { y = MatMul (x, w) }",
    "Gemm of no rows": "(float[n, 3] x, float[3, 2] w) => (float[n, 2] y) { y = Gemm (x, w) }",
    "Conv": "(float[n, 2, 5, 5] x, float[3, 2, 3, 3] w) => (float[n, 3, 3, 3] y) { y = Conv (x, w) }",
    "MaxPool": "(float[n, 2, 5] x) => (float[n, 2, 3] y) { y = MaxPool <kernel_shape = [3]> (x) }",
    "Softmax": "(float[3, n] x) => (float[3, n] y) { y = Softmax (x) }",
    "LayerNormalization": "(float[n, 3] x, float[3] s) => (float[n, 3] y) { y = LayerNormalization (x, s) }",
    "Concat": "(float[n, 3] x, float[2, 3] z) => (float[m, 3] y) { y = Concat <axis = 0> (x, z) }",
    "Pad": "(float[n] x) => (float[m] y) <int64[2] p = {1, 2}> { y = Pad (x, p) }",
    "Tile": "(float[n] x) => (float[m] y) <int64[1] r = {3}> { y = Tile (x, r) }",
    "Transpose": "(float[n, 3] x) => (float[3, n] y) { y = Transpose (x) }",
    "Reshape": "(float[n, 3] x) => (float[m] y) <int64[1] s = {-1}> { y = Reshape (x, s) }",
    "Split": """(float[n, 4] x) => (float[n, 2] y, float[n, 2] z)
        { y, z = Split <axis = 1, num_outputs = 2> (x) }""",
    "Cast": "(float[n] x) => (int64[n] y) { y = Cast <to = 7> (x) }",
    "Where": "(bool[n] c, float[n] x) => (float[n] y) { y = Where (c, x, x) }",
    "CumSum": "(float[n] x) => (float[n] y) <int64 a = {0}> { y = CumSum (x, a) }",
    "Gather by nothing": "(float[4] x, int64[n] i) => (float[n] y) { y = Gather (x, i) }",
    "QuantizeLinear": """(float[n] x) => (uint8[n] y) <float s = {0.5}, uint8 z = {3}>
        { y = QuantizeLinear (x, s, z) }""",
    "NonZero": "(float[n] x) => (int64[1, m] y) { y = NonZero (x) }",
    "Scatter": """(float[n, 2] x, int64[1, 1] i, float[1, 2] u) => (float[n, 2] y)
        { y = Identity (x) }""",
}  # fmt: skip


SCALARS = {
    "arithmetic": "(float x, float z) => (float y) { a = Add (x, z) y = Mul (a, x) }",
    "with a vector": "(float x, float[n] z) => (float[n] y) { y = Sub (x, z) }",
    "a choice": "(bool c, float x, float z) => (float y) { y = Where (c, x, z) }",
    "Reshape to an axis": "(float x) => (float[1] y) <int64[1] s = {1}> { y = Reshape (x, s) }",
    "Reshape to no axis": "(float[1, 1] x) => (float y) <int64[0] s = {}> { y = Reshape (x, s) }",
    "Unsqueeze": "(float x) => (float[1, 1] y) <int64[2] a = {0, 1}> { y = Unsqueeze (x, a) }",
    "Squeeze": "(float[1] x) => (float y) { y = Squeeze (x) }",
    "Transpose": "(float x) => (float y) { y = Transpose (x) }",
    "Expand": "(float x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Expand (x, s) }",
    "Shape and Size": "(float x) => (int64[0] y, int64 z) { y = Shape (x) z = Size (x) }",
    "ReduceSum": "(float[n] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }",
    "ReduceMax of one": "(float x) => (float y) { y = ReduceMax <keepdims = 0> (x) }",
    "a vector by a vector": "(float[n] x, float[n] z) => (float y) { y = MatMul (x, z) }",
    "Gather": "(float[n] x, int64 i) => (float y) { y = Gather (x, i) }",
    "GatherND": "(float[5] x, int64[1] i) => (float y) { y = GatherND (x, i) }",
    "Cast": "(float x) => (int64 y) { y = Cast <to = 7> (x) }",
    "Einsum": """(float[n] x, float[n] z) => (float y) { y = Einsum <equation = "i,i->"> (x, z) }""",
    "Softplus": "(float x) => (float y) { y = Softplus (x) }",
    "QuantizeLinear": """(float x) => (uint8 y) <float s = {0.5}, uint8 z = {3}>
        { y = QuantizeLinear (x, s, z) }""",
    "ConstantOfShape": "(int64[0] s) => (float y) { y = ConstantOfShape (s) }",
    "Range": "(int64 x) => (int64[m] y) <int64 a = {0}, int64 d = {1}> { y = Range (a, x, d) }",
}  # fmt: skip

FAR = """(uint8[n, m] x, int64[k] i) => (uint8[k, m] y, uint8[2, m] z, int64[1] n)
<int64[1] a = {-3}, int64[1] b = {-1}>
{ [it] y = Gather (x, i) z = Slice (x, a, b) n = Shape <end = 1> (x) }"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, HastenRep | HastenError]:
    texts = {**INDEXING, **{f"empty {k}": v for k, v in EMPTY.items()}, "far": FAR}
    texts |= {f"scalar {k}": v for k, v in SCALARS.items()}
    models = [
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {t}') for t in texts.values()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(zip(texts, prepare_all(models), strict=True))


def feeds(rep: HastenRep, n: int, index: int | None = None) -> dict[str, np.ndarray]:
    made = {}
    for info in rep.session.inputs:
        shape = tuple(d if isinstance(d, int) else {"n": n}.get(d, 4) for d in info.shape)
        made[info.name] = np.ones(shape, info.dtype)
        if index is not None and info.name == "i" and made["i"].size:
            made["i"].reshape(-1)[-1] = index
    return made


@pytest.mark.parametrize("name", INDEXING)
def test_an_index_out_of_range_names_the_node(name, compiled):
    rep = compiled[name]
    assert isinstance(rep, HastenRep) and not rep.host
    narrow = "int32" in name
    for bad in (5, 6, -6, 2**31 - 1, -(2**31), *(() if narrow else (2**40, 2**63 - 1, -(2**63)))):
        with pytest.raises(InputError, match=f"index {bad} is outside its axis of length 5 .*'it'"):
            rep.session.run(feeds(rep, 5, bad))
    for good in (0, 4, -5):
        rep.session.run(feeds(rep, 5, good))


@pytest.mark.parametrize("name", [k for k in INDEXING if "[n" in INDEXING[k] or ", n]" in INDEXING[k]])
def test_nothing_is_taken_from_an_empty_axis(name, compiled):
    rep = compiled[name]
    with pytest.raises(InputError, match=r"n > 0 .*'it'"):
        rep.session.run(feeds(rep, 0, 0))
    none = {n: a[:0] if n == "i" else a for n, a in feeds(rep, 0).items()}
    assert all(a.size == 0 for a in rep.session.run(none).values())


@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors(name, compiled):
    """As NumPy and the definition have it, by ONNX's reference evaluator."""
    rep = compiled[f"empty {name}"]
    assert isinstance(rep, HastenRep), rep
    text = f'<ir_version: 10, opset_import: ["": 21]> g {EMPTY[name]}'
    given = feeds(rep, 0)
    with np.errstate(all="ignore"):
        expected = onnx.reference.ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, given)
    for found, right in zip(rep.session.run(given).values(), expected, strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("name", SCALARS)
def test_tensors_without_axes(name, compiled):
    """By ONNX's reference evaluator."""
    rep = compiled[f"scalar {name}"]
    assert isinstance(rep, HastenRep) and not rep.host, rep
    given = feeds(rep, 3, 1)
    text = f'<ir_version: 10, opset_import: ["": 21]> g {SCALARS[name]}'
    expected = onnx.reference.ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, given)
    for found, right in zip(rep.session.run(given).values(), map(np.asarray, expected), strict=True):
        assert (found.dtype, found.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(found, right, rtol=1e-6)


def test_sizes_and_places_beyond_32_bits(compiled):
    """Two gigabytes that are hardly touched."""
    rep = compiled["far"]
    assert isinstance(rep, HastenRep) and not rep.host, rep
    x = np.zeros((2**31 + 7, 1), np.uint8)
    x[2**31 + 5] = 7
    for i in (2**31 + 5, -2):
        found = rep.session.run({"x": x, "i": np.array([i, 0])})
        assert found["y"].tolist() == [[7], [0]]
        assert found["z"].tolist() == [[0], [7]]
        assert found["n"].tolist() == [2**31 + 7]
    with pytest.raises(InputError, match=f"index {2**31 + 7} is outside its axis of length {2**31 + 7} "):
        rep.session.run({"x": x, "i": np.array([2**31 + 7])})


def test_sizes_whose_product_wraps_are_refused():
    text = """<ir_version: 10, opset_import: ["": 21]> g
    (float[n, m] x) => (float[m, m] y) { t = Transpose (x) y = MatMul (t, x) }"""
    (rep,) = prepare_all([onnx.parser.parse_model(text)])
    for m in (2**31, 2**32, 2**40, 2**58):
        x = np.zeros((0, m), np.float32)
        with pytest.raises(InputError, match=r"too large|memory than there is"):
            rep.session.run({"x": x})
    assert not rep.session.run({"x": np.zeros((0, 3), np.float32)})["y"].any()


def test_a_loop_counts_within_bounds():
    text = """<ir_version: 10, opset_import: ["": 21]> g
    (int64 count, float[2] x) => (float[2] y) <bool go = {1}>
    { y = Loop (count, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t)
        { d = Identity (c) t = Add (s, s) }> }"""
    (rep,) = prepare_all([onnx.parser.parse_model(text)])
    x = np.ones(2, np.float32)
    for count, right in ((0, 1), (3, 8), (-1, 1), (-(2**63), 1)):
        assert rep.session.run({"count": np.int64(count), "x": x})["y"].tolist() == [right] * 2


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_the_least_integer_divided_by_minus_one_wraps(dtype):
    text = f"""<ir_version: 10, opset_import: ["": 21]> g
    ({dtype}[n] x, {dtype}[n] d) => ({dtype}[n] q, {dtype}[n] r, {dtype}[n] f)
    {{ q = Div (x, d) r = Mod (x, d) f = Mod <fmod = 1> (x, d) }}"""
    (rep,) = prepare_all([onnx.parser.parse_model(text)])
    least = np.iinfo(dtype).min
    x, d = np.full(17, least, dtype), np.full(17, -1, dtype)
    found = rep.session.run({"x": x, "d": d})
    assert found["q"].tolist() == [least] * 17
    assert found["r"].tolist() == found["f"].tolist() == [0] * 17
    rep.session.run({"x": x, "d": np.zeros(17, dtype)})  # which ONNX leaves open


def test_what_the_host_asserts_is_an_error_of_ours():
    text = """<ir_version: 10, opset_import: ["": 21]> g
    (float[n, k, l] x, int64[4] s) => (float[n, h, w, 2] y) { y = AffineGrid (x, s) }"""
    (rep,) = prepare_all([onnx.parser.parse_model(text)])
    size = np.array([1, 3, 5, 6])
    assert rep.session.run({"x": np.ones((1, 2, 3), np.float32), "s": size})["y"].shape == (1, 5, 6, 2)
    with pytest.raises(InputError, match="AffineGrid"):
        rep.session.run({"x": np.ones((1, 3, 2), np.float32), "s": size})


def test_what_goes_by_blocks_or_conditions_stays_within():
    texts = (
        """(float[n, m] x, bool[k] c) => (float[l, m] y) { [it] y = Compress <axis = 0> (x, c) }""",
        """(float[n, m] x, bool[k] c) => (float[l] y) { [it] y = Compress (x, c) }""",
        """(uint8[n, m] x, float[j, k] c) => (float[n, m] y)
        { [it] y = DequantizeLinear <axis = 1, block_size = 2> (x, c) }""",
    )
    heads = [f'<ir_version: 10, opset_import: ["": 21]> g {t}' for t in texts]
    by_row, flat, blocked = prepare_all([onnx.parser.parse_model(t) for t in heads])
    some = np.array([False, True])
    for rep, rows in ((by_row, 0), (by_row, 1), (flat, 0)):
        with pytest.raises(InputError, match="'it'"):
            rep.session.run({"x": np.ones((rows, 3), np.float32), "c": some})
    assert by_row.session.run({"x": np.ones((2, 3), np.float32), "c": some})["y"].shape == (1, 3)
    x = np.ones((2, 4), np.uint8)
    assert blocked.session.run({"x": x, "c": np.ones((2, 2), np.float32)})["y"].tolist() == x.tolist()
    for shape in ((2, 1), (1, 2)):
        with pytest.raises(InputError, match="'it'"):
            blocked.session.run({"x": x, "c": np.ones(shape, np.float32)})


def test_parts_that_an_axis_is_too_short_for():
    text = """<ir_version: 10, opset_import: ["": 21]> g
    (float[n] x) => (float[a] p, float[b] q, float[c] r, float[d] s)
    { [it] p, q, r, s = Split <num_outputs = 4> (x) }"""
    (rep,) = prepare_all([onnx.parser.parse_model(text)])
    for n in (1, 5):
        with pytest.raises(InputError, match=r"long enough for 4 parts .*'it'"):
            rep.session.run({"x": np.ones(n, np.float32)})
    for n, last in ((3, 0), (7, 1), (8, 2)):
        assert rep.session.run({"x": np.ones(n, np.float32)})["s"].shape == (last,)


SLIDING = {
    "Conv": "y = Conv(x, k)",
    "MaxPool": "y = MaxPool<kernel_shape = [5, 5]>(x)",
    "VALID": 'y = Conv<auto_pad = "VALID">(x, k)',
    "AveragePool": "y = AveragePool<kernel_shape = [5, 5], ceil_mode = 1>(x)",
}


@pytest.mark.parametrize("name", SLIDING)
def test_a_picture_that_no_window_fits_in_is_refused(name, tmp_path):
    """Though what follows has a shape that does not tell."""
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
      g (float[n,2,h,w] x) => (float[n,2,1,1] z) {{ {SLIDING[name]} z = GlobalMaxPool(y) }}""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 5, 5), np.float32), "k"))
    session = hasten.compile(proto, cache=tmp_path)
    for shape in ((5, 6), (7, 5)):
        assert session.run({"x": np.ones((1, 2, *shape), np.float32)})["z"].shape == (1, 2, 1, 1)
    for shape in ((3, 9), (9, 3), (0, 9)):
        with pytest.raises(InputError, match="4 or more elements along a spatial axis"):
            session.run({"x": np.ones((1, 2, *shape), np.float32)})
